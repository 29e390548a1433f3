"""What the docs say of the default run is what metrics/evaluate.json has of it, and dvc.lock is of that run."""

import json
import re
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml

from evaluation.metrics import DETAIL
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[1]
BEST_OF = "base, best of 4"
COLUMNS = ("all prompts", "train", "test", "− base", "− start")


@pytest.fixture(scope="module")
def published() -> dict:
    """The figures of the default run: a key, a judge, a policy, a split."""
    found: dict = json.loads((ROOT / "metrics/evaluate.json").read_text(encoding="utf-8"))[DETAIL]
    return found


def text_of(page: str) -> str:
    """A page without bold and italics and in one line, so that a sentence is found where it is wrapped."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").replace("*", "").replace("\n>", " ").split())


def rate(figures: list[float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*figures)


def difference(figures: list[float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*figures).replace("-", "−")


def rows_of_readme() -> dict[str, dict[str, str]]:
    """The cells of the table in README, by policy and column."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What the default run reaches")[2]
    head, _, *rows = re.findall(r"^\|(.*)\|$", section.partition("\nUnder the judge")[0], re.M)
    titles = [cell.strip().partition(" (")[0] for cell in head.split("|")[1:]]
    found = {}
    for row in rows:
        name, *cells = (cell.strip() for cell in row.split("|"))
        found[name.strip("*")] = dict(zip(titles, cells, strict=True))
    return found


def test_the_table_in_readme_is_the_published_run_s(published):
    rates, starts = published["accept"]["physics"], default_params()["policies"]
    rows = {name: cells for name, cells in rows_of_readme().items() if "alone" not in name}  # a run of its own
    assert [*rows] == ["base", *(name for name in rates if name in starts), BEST_OF]
    for name, cells in rows.items():
        assert tuple(cells) == COLUMNS
        policy = "base best of 4 by judge" if name == BEST_OF else name
        splits = rates[policy]
        expected = [rate(splits["all"]), f"{splits['train'][0]:.1f}", f"{splits['test'][0]:.1f}"]
        minus_base = published["minus_base"]["physics"].get(policy)
        minus_start = published["minus_start"]["physics"].get(policy) if policy in starts else None
        if minus_start and starts[policy]["start"] == "base":
            minus_start = None  # the same figures again
        for one in (minus_base, minus_start):
            figures = one["all"] if one else None
            text = difference(figures) if figures else ""
            number, bracket, rest = text.partition(" [")
            expected.append(f"**{number}**{bracket}{rest}" if figures and figures[1] > 0 else text)
        assert list(cells.values()) == expected, name


def test_what_pages_say_of_the_default_run_is_the_published_run_s(published):
    physics, judge = (published["accept"][name] for name in ("physics", "judge"))
    minus_base, minus_start = (published[key]["physics"] for key in ("minus_base", "minus_start"))
    accepted, rejected, _ = published["rounds"]["r1"]

    def of(policy: str) -> str:
        return difference(minus_base[policy]["all"])

    by_judge = ", ".join(f"{name} {judge[name]['all'][0]:.1f}" for name in ["base", *default_params()["policies"]])
    base, rwr1, dpo2 = (f"{physics[name]['all'][0]:.1f}" for name in ("base", "rwr1", "dpo2"))
    gain, bracket = of("rwr1").split(" ", 1)
    said = {
        "README.md": [f"Under the judge that was trained on: {by_judge}."],
        "docs/reproducibility.md": [
            f"| 1 (the table in README) | {rwr1} |",
            f"| base | {base} |",
            f"{accepted} of {accepted + rejected:,} were accepted",
            f"accepted {rwr1} % of its clips against {base} % of the base's, a paired difference of {gain} points "
            f"(95 % bootstrap interval over prompts {bracket},",
        ],
        "docs/experiments.md": [
            f"| {of('rwr1')} | {of('dpo1')} | {of('rwr2')} | {difference(minus_start['rwr2']['all'])} |",
            f"({dpo2} %, {of('dpo2')} over base, {difference(minus_start['dpo2']['all'])} over rwr1)",
            f"({accepted} of {accepted + rejected:,};",
            f"rwr2 − rwr1 {difference(minus_start['rwr2']['train'])}, dpo1 − base "
            f"{difference(minus_base['dpo1']['train'])}, dpo2 − rwr1 {difference(minus_start['dpo2']['train'])}.",
        ],
        "docs/servers.md": [f"served: {accepted} accepted, {rejected} rejected"],
        "docs/evaluation.md": [f"| base | {rate(physics['base']['all'])} |"],
    }
    for page, sentences in said.items():
        for sentence in sentences:
            assert sentence in text_of(page), (page, sentence)


def test_the_published_run_is_of_the_default_params():
    stages = load_yaml(str(ROOT / "dvc.lock"))["stages"]
    params = default_params()
    sampled = {name.partition("@")[2] for name in stages if name.startswith("eval-generate@")}
    assert sampled == set(params["evaluate"]["policies"])
    for name, stage in stages.items():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            now = params
            for part in key.split("."):
                now = now[part]
            assert now == value, f"{name}: {key}; `make repro` and commit dvc.lock and metrics/evaluate.json"


def test_the_headline_that_dvc_compares_is_of_the_same_figures(published):
    headline = json.loads((ROOT / "metrics/evaluate.json").read_text(encoding="utf-8"))
    del headline[DETAIL]
    for name, value in headline.items():
        key, policy = ("minus_base", name[1:]) if name.startswith("Δ") else ("accept", name)
        assert value == pytest.approx(published[key]["physics"][policy]["all"][0], abs=0.051), name
