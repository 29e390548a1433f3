"""What the docs say of our runs is what published/ has of them, and each dvc.lock there is of the run.

dvc.lock and metrics/ at the root are not read: a user's own run replaces them, and another CPU's has other last digits.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dvc.utils.serialize import load_yaml

from commands.preset import layers, overlay, values_of
from evaluation.metrics import DETAIL, OVER_SEEDS
from pipeline.replicates import expanded
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "published"
# folders of published/
DEFAULT, SEEDS, PARADIGMS, GUIDANCE = "default", "seeds", "paradigms", "guidance"
REWARDS, DRF, ONLINE = "policy-gradients", "drf", "online"
OF_A_FURTHER_SEED = re.compile(r"-s\d+(-selected)?( |$)")


class Run(NamedTuple):
    """What a published run is of."""

    presets: list[str]
    seeds: list[int]  # of training


RUNS = {
    DEFAULT: Run([], [1]),
    SEEDS: Run([], [1, 2, 3]),
    PARADIGMS: Run(["paradigms"], [1, 2, 3]),
    GUIDANCE: Run(["guidance"], [1, 2, 3]),
    REWARDS: Run(["policy-gradients"], [1]),
    DRF: Run(["drf"], [1, 2, 3]),
    ONLINE: Run(["online"], [1, 2, 3]),
}


def figures_of(run: str) -> dict[str, Any]:
    """The figures of a run: a key, a judge, a policy, a split."""
    found: dict[str, Any] = json.loads((PUBLISHED / run / "evaluate.json").read_text(encoding="utf-8"))[DETAIL]
    return found


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The default run, of one training seed."""
    return figures_of(DEFAULT)


@pytest.fixture(scope="module")
def seeds() -> dict[str, Any]:
    """The default run with three training seeds."""
    return figures_of(SEEDS)


@pytest.fixture(scope="module")
def paradigms() -> dict[str, Any]:
    """The preset paradigms with three training seeds."""
    return figures_of(PARADIGMS)


def text_of(page: str) -> str:
    """A page without bold and italics and in one line, so that a sentence is found where it is wrapped."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").replace("*", "").replace("\n>", " ").split())


def rate(figures: list[float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*figures)


def difference(figures: list[float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*figures).replace("-", "−")


def gain(figures: list[float]) -> str:
    """A difference, its number bold where the interval is above zero."""
    number, bracket = difference(figures).split(" ", 1)
    return f"{f'**{number}**' if figures[1] > 0 else number} {bracket}"


def rows(figures: dict[str, Any], judge: str = "physics") -> list[str]:
    """The rows of a table over seeds. A start's difference is left out where the start is base: it is that to base."""
    over, found = figures[OVER_SEEDS], []
    for policy in figures["accept"][judge]:
        if OF_A_FURTHER_SEED.search(policy):
            continue
        of = over if policy in over["accept"][judge] else figures
        splits = of["accept"][judge][policy]
        cells = [rate(splits["all"][:3]), ", ".join(f"{of_seed:.1f}" for of_seed in splits["all"][3:])]
        cells += [f"{splits['train'][0]:.1f}", f"{splits['test'][0]:.1f}"]
        minus_base, minus_start = (of.get(key, {}).get(judge, {}).get(policy) for key in ("minus_base", "minus_start"))
        for minus in (minus_base, minus_start if minus_start != minus_base else None):
            cells.append(gain(minus["all"][:3]) if minus else "")
        name = re.sub(r"(.*) (best of \d+) by judge", r"*\1, \2*", policy)
        found.append("".join(f"| {cell} " if cell else "| " for cell in [name, *cells]) + "|")
    return found


def table_below(page: str, title: str) -> list[str]:
    """The rows of the first table below a heading, without its head."""
    section = (ROOT / page).read_text(encoding="utf-8").partition(f"{title}\n")[2]
    first = re.search(r"(?:^\|.*\|\n)+", section.partition("\n#")[0], re.M)
    assert first, f"{page} has no table below {title}"
    _, _, *shown = first[0].splitlines()
    return shown


def test_the_table_in_readme_is_of_the_published_seeds(seeds):
    expected = rows(seeds)
    shown = table_below("README.md", "## What the default run reaches")
    assert shown == expected, "\n".join(["README's table should read", *expected])


def test_the_table_of_paradigms_is_of_the_published_run(paradigms):
    expected = rows(paradigms)
    shown = table_below("docs/experiments.md", "## Which feedback with which algorithm")
    assert shown == expected, "\n".join(["the table should read", *expected])


def test_each_difference_that_the_text_on_paradigms_names_is_the_run_s(paradigms):
    minus = paradigms[OVER_SEEDS]["minus"]["physics"]
    _, _, after = text_of("docs/experiments.md").partition("## Which feedback with which algorithm ")
    section = after.partition(" ## ")[0]
    named = re.findall(r"([\w-]+(?:, best of 4)?) − ([\w-]+) ([+−][\d.]+ \[[+−][\d.]+, [+−][\d.]+\])", section)
    assert len(named) > 10
    for policy, other, said in named:
        key = policy.replace(", best of 4", " best of 4 by judge")
        assert said == difference(minus[key][other]["all"][:3]), (policy, other)
    in_readme = difference(minus["nft1"]["rwr1"]["all"][:3])
    assert f"NFT gains less than RWR in one round ({in_readme})" in text_of("README.md")


@pytest.mark.parametrize(
    ("run", "title", "least"),
    [
        (ONLINE, "## Online training", 10),
        (DRF, "### The baselines of Diffusion-DRF", 5),
    ],
)
def test_each_difference_that_the_text_on_a_table_by_judge_names_is_the_run_s(run, title, least):
    minus = figures_of(run)[OVER_SEEDS]["minus"]["physics"]
    section = text_of("docs/experiments.md").partition(f"{title} ")[2].partition(" ### ")[0]
    named = re.findall(r"([\w-]+) − ([\w-]+) ([+−][\d.]+ \[[+−][\d.]+, [+−][\d.]+\])", section)
    assert len(named) >= least
    for policy, other, said in named:
        assert said == difference(minus[policy][other]["all"][:3]), (policy, other)


def test_the_table_of_guidance_is_of_the_published_run():
    expected = rows(figures_of(GUIDANCE))
    shown = table_below("docs/experiments.md", "### With guidance")
    assert shown == expected, "\n".join(["the table should read", *expected])


def rows_by_judge(figures: dict[str, Any]) -> list[str]:
    """The rows of a table of differences to base: under each judge, in each seed, and by physics of either split."""
    accept, over = figures["accept"], figures.get(OVER_SEEDS)
    base = [accept[judge]["base"]["all"] for judge in ("second", "judge", "physics")]
    base += [accept["physics"]["base"][split] for split in ("train", "test")]
    shown = [f"{one[0]:.1f}" for one in base]
    if over:
        shown.insert(3, "")
    found = ["".join(f"| {cell} " if cell else "| " for cell in ("base, %", *shown)) + "|"]
    for policy in accept["physics"]:
        if policy == "base" or OF_A_FURTHER_SEED.search(policy):
            continue
        minus = (over if over and policy in over["accept"]["physics"] else figures)["minus_base"]
        cells = [gain(minus[judge][policy]["all"][:3]) for judge in ("second", "judge", "physics")]
        if over:
            cells.append(
                ", ".join(f"{of_seed:+.1f}" for of_seed in minus["physics"][policy]["all"][3:]).replace("-", "−")
            )
        cells += [gain(minus["physics"][policy][split][:3]) for split in ("train", "test")]
        name = re.sub(r"(.*) (best of \d+) by judge", r"*\1, \2*", policy)
        found.append("".join(f"| {cell} " if cell else "| " for cell in (name, *cells)) + "|")
    return found


@pytest.mark.parametrize(
    ("run", "title"),
    [
        (REWARDS, "### By rewards alone"),
        (DRF, "### The baselines of Diffusion-DRF"),
        (ONLINE, "## Online training"),
    ],
)
def test_a_table_by_judge_is_of_the_published_run(run, title):
    expected = rows_by_judge(figures_of(run))
    shown = table_below("docs/experiments.md", title)
    assert shown == expected, "\n".join(["the table should read", *expected])


def test_the_run_of_one_seed_is_the_first_of_the_three(published, seeds):
    for key in ("accept", "minus_base", "minus_start"):
        for judge, policies in published[key].items():
            for policy, splits in policies.items():
                assert seeds[key][judge][policy] == splits, (key, judge, policy)


def test_what_pages_say_of_the_default_run_is_the_published_run_s(published, seeds):
    physics = published["accept"]["physics"]
    over = {"base": seeds["accept"]["judge"]["base"], **seeds[OVER_SEEDS]["accept"]["judge"]}
    minus_base, minus_start = (published[key]["physics"] for key in ("minus_base", "minus_start"))
    accepted, rejected, _ = published["rounds"]["r1"]

    def of(policy: str) -> str:
        return difference(minus_base[policy]["all"])

    by_judge = ", ".join(f"{name} {over[name]['all'][0]:.1f}" for name in ["base", *default_params()["policies"]])
    base, rwr1, dpo2 = (f"{physics[name]['all'][0]:.1f}" for name in ("base", "rwr1", "dpo2"))
    gain, bracket = of("rwr1").split(" ", 1)
    said = {
        "README.md": [f"Under the judge that was trained on: {by_judge}."],
        "docs/reproducibility.md": [
            f"| 1 (`make repro`) | {rwr1} |",
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
    }
    for page, sentences in said.items():
        for sentence in sentences:
            assert sentence in text_of(page), (page, sentence)


@pytest.mark.parametrize("run", RUNS)
def test_a_published_run_is_of_the_params_that_it_names(run):
    presets, seeds = RUNS[run]
    params = default_params()
    for path in layers(presets):
        overlay(params, values_of(path), path)
    params = expanded(params, seeds)
    stages = load_yaml(str(PUBLISHED / run / "dvc.lock"))["stages"]
    sampled = {name.partition("@")[2] for name in stages if name.startswith("eval-generate@")}
    assert sampled == set(params["evaluate"]["policies"])
    for name, stage in stages.items():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            now = params
            for part in key.split("."):
                now = now[part]
            assert now == value, f"{run}, {name}: {key}; make the run again (CONTRIBUTING.md, The published runs)"


@pytest.mark.parametrize("run", RUNS)
def test_the_headline_that_dvc_compares_is_of_the_same_figures(run):
    headline, published = json.loads((PUBLISHED / run / "evaluate.json").read_text(encoding="utf-8")), figures_of(run)
    del headline[DETAIL]
    for name, value in headline.items():
        key, policy = ("minus_base", name[1:]) if name.startswith("Δ") else ("accept", name)
        policy, _, seeds = policy.partition(" of ")
        figures = published[OVER_SEEDS] if seeds else published
        assert value == pytest.approx(figures[key]["physics"][policy]["all"][0], abs=0.051), name
