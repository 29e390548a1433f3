"""Comparisons through the stages: labels, pairs, win tables and audits."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from commands.judge import main as judge
from data.records import Pair, Preference, Sample, Weighted, read_rows
from evaluation.accuracy import against_pairs
from evaluation.preferences import win_table
from report.table import pair_audit_table, preference_table
from stages.audit import main as audit
from stages.build import main as build
from stages.label import main as label
from stages.prefer import main as prefer
from tests.feedback.pairs.test_compare import make_clips
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[2]
BRIGHTER = {"kind": "tests.support.brighter", "rubric": "feedback/rubrics/preference.yaml"}


@pytest.fixture
def project(tmp_path, monkeypatch) -> dict:
    """A project whose source `lab` prefers the brighter clip; its round has eight clips of two prompts."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "feedback", "models", "tabletop"):
        Path(name).symlink_to(ROOT / name)
    params = default_params()
    params["feedback"]["sources"]["lab"] = BRIGHTER
    params["build"]["sources"]["lab"] = {"reward": "score", "pairs": "preferred"}
    params["preferences"] = {"rwr1-base": {"policy": "rwr1", "against": "base", "source": "lab", "clips": 3}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    make_clips(Path("runs/r1/samples"), prompts=2)
    return params


def run(command, *words: str) -> str:
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


LABEL = ("--set", "runs/r1/samples", "--source", "lab", "--out", "runs/r1/labels/lab", "--metrics", "metrics/l.json")
BUILD = (
    "--set", "runs/r1/samples", "--labels", "runs/r1/labels/lab", "--out", "runs/r1/datasets",
    "--metrics", "metrics/b.json",
)  # fmt: skip


def test_comparisons_become_pairs_for_dpo_and_weights_for_rwr(project):
    run(label, *LABEL)
    run(build, *BUILD)

    pairs = read_rows(Path("runs/r1/datasets/dpo/paired.parquet"), Pair)
    # Four clips of each prompt, clip0 the darkest; label.opponents is 4, so each meets all three others.
    assert len(pairs) == 12 and all(row.chosen > row.rejected and row.margin == 1.0 for row in pairs)
    weights = {row.sample_id: row.weight for row in read_rows(Path("runs/r1/datasets/rwr/weighted.parquet"), Weighted)}
    assert [round(3 * weights[f"clip{n}"]) for n in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    counts = json.loads(Path("metrics/l.json").read_text())
    assert counts["comparisons"]["pairs"] == 12 and counts["comparisons"]["position_bias"] == 0.0
    assert (counts["accepted"], counts["rejected"], counts["unlabelled"]) == (0, 0, 8)


def test_build_says_what_a_source_that_compares_needs(project):
    run(label, *LABEL)
    del project["build"]["sources"]["lab"]
    Path("params.yaml").write_text(yaml.safe_dump(project))
    done = CliRunner().invoke(build, BUILD)

    assert done.exit_code == 1 and "build.sources.lab: {reward: score, pairs: preferred}" in done.output


def test_a_look_shows_pairs_and_a_price_counts_both_orders(project):
    said = run(judge, "--source", "lab", "--set", "runs/r1/samples", "--limit", "2")
    assert len(re.findall(r"^    clip\d is better \(clip\d with a probability of [01].00\)$", said, re.MULTILINE)) == 2
    said = run(judge, "--source", "lab", "--set", "runs/r1/samples", "--dry-run")
    assert said.startswith("lab: 24 shown pairs, ")


PREFER = (
    "--entry", "rwr1-base", "--policy", "runs/eval/rwr1/samples", "--against", "runs/eval/base/samples",
    "--out", "runs/preferences/rwr1-base", "--metrics", "metrics/eval-prefer/rwr1-base.json",
)  # fmt: skip


def test_a_policy_wins_where_its_clips_are_preferred(project):
    make_clips(Path("runs/eval/base/samples"), prompts=2)
    make_clips(Path("runs/eval/rwr1/samples"), prompts=2, policy="rwr1", brightness=10)
    run(prefer, *PREFER)

    table = json.loads(Path("metrics/eval-prefer/rwr1-base.json").read_text())
    assert (table["policy"], table["against"], table["pairs"], table["unknown"]) == ("rwr1", "base", 6, 0)
    assert table["splits"]["all"]["win"] == {"rate": 1.0, "low": None, "high": None}  # of two prompts
    assert table["splits"]["all"]["minus"] == {"diff": 1.0, "low": None, "high": None}
    rows = read_rows(Path("runs/preferences/rwr1-base/preferences.parquet"), Preference)
    assert {(row.first.split("/")[0], row.second.split("/")[0], row.preferred) for row in rows} == {
        ("rwr1", "base", "first")
    }
    (row,) = preference_table({"preferences": {"rwr1-base": table}}).rows
    assert row.name == "rwr1 against base, by lab" and row.cells["win"].text == "100.0 [–]"


def test_policies_whose_clips_are_of_other_noise_are_refused(project):
    make_clips(Path("runs/eval/base/samples"), prompts=2)
    make_clips(Path("runs/eval/rwr1/samples"), prompts=1, policy="rwr1")
    done = CliRunner().invoke(prefer, PREFER)

    assert done.exit_code == 1 and "clips have no partner of the same prompt, noise and size" in done.output


def test_an_audit_asks_about_pairs_whose_better_clip_the_renderer_knows(project):
    project["audit"] |= {"sources": ["lab"], "clips": 48, "draws": 100}
    Path("params.yaml").write_text(yaml.safe_dump(project))
    run(audit, "--source", "lab", "--out", "runs/audit/lab", "--metrics", "metrics/audit/lab.json")

    figures = json.loads(Path("metrics/audit/lab.json").read_text())
    rows = [json.loads(line) for line in Path("runs/audit/lab/known.jsonl").read_text().splitlines()]
    assert figures["clips"] == figures["labelled"] == len(rows) > 8
    assert "fulfilled" not in {row["made"] for row in rows}  # of the worse clip
    right = [row["preferred"] == "first" for row in rows]
    assert figures["decided_accuracy"] == sum(right) / len(right) and figures["pairs"]["position_bias"] == 0.0
    assert figures["votes"] is None and figures["notes"]["votes"] == "lab compares two clips at once"


def test_accuracy_with_and_without_ties_by_hand():
    samples = [sample(n, "ab"[n // 3]) for n in range(6)]
    rows = [said(n, preferred) for n, preferred in enumerate(("first", "tie", "second", "first", "first", None))]
    figures = against_pairs(samples, rows, 100, 1)

    assert (figures["clips"], figures["labelled"], figures["decided"]) == (6, 5, 4)
    assert figures["accuracy"] == 0.7  # 1 + 1/2 + 0 + 1 + 1 of 5
    assert figures["decided_accuracy"] == 0.75
    (row,) = pair_audit_table({"audit": {"lab": figures}}).rows
    assert [row.cells[key].text for key in ("pairs", "ties, %", "right without ties, %")] == ["5", "20.0", "75.0"]
    with pytest.raises(ValueError, match="none of 1 pairs was answered"):
        against_pairs(samples[:1], [said(0, None)], 100, 1)


# The table


def sample(n: int, prompt: str, split: str = "train") -> Sample:
    return Sample(f"s{n}", prompt, prompt, "c", split, "rwr1", n, 9, 8.0, 32, 32, "v.mp4")


def said(n: int, preferred: str | None, forward: str | None = None, backward: str | None = None) -> Preference:
    return Preference("p", f"rwr1/s{n}", f"base/s{n}", "lab", preferred, None, forward, backward, 0, None)


def test_rates_by_hand():
    samples = [sample(0, "a"), sample(1, "a"), sample(2, "b"), sample(3, "b"), sample(4, "b", "test")]
    rows = [
        said(0, "first", "first", "first"), said(1, "tie", "first", "second"), said(2, "second", "second", "second"),
        said(3, "first", "first", "first"), said(4, None, None, "first"),
    ]  # fmt: skip
    table = win_table(samples, rows, 200, 1)
    everything = table["splits"]["all"]

    assert [everything[key]["rate"] for key in ("win", "tie", "loss")] == [0.5, 0.25, 0.25]  # of four that are known
    assert everything["minus"]["diff"] == 0.25 and everything["n"] == 4
    assert everything["minus"]["low"] is None  # of two prompts
    assert table["splits"]["test"]["win"]["rate"] is None and table["splits"]["test"]["n"] == 0
    assert (table["pairs"], table["unknown"], table["both_orders"], table["first_in_both"]) == (5, 1, 4, 1)
    assert table["position_bias"] == 0.25


def test_swapping_the_policies_swaps_wins_and_losses():
    samples = [sample(n, "abc"[n % 3]) for n in range(6)]
    rows = [said(n, preferred) for n, preferred in enumerate(("first", "second", "first", "tie", "first", None))]
    other = {"first": "second", "second": "first"}
    swapped = [replace(row, preferred=other.get(row.preferred, row.preferred)) for row in rows]
    one, two = (win_table(samples, given, 300, 2)["splits"]["all"] for given in (rows, swapped))

    assert (one["win"], one["tie"], one["loss"]) == (two["loss"], two["tie"], two["win"])
    assert one["minus"]["diff"] == -two["minus"]["diff"]
    assert (one["minus"]["low"], one["minus"]["high"]) == pytest.approx((-two["minus"]["high"], -two["minus"]["low"]))
