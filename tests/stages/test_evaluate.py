"""The stage `evaluate`, its section of params.yaml, and what DVC plots of it."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from data.manifest import MANIFEST, read_manifest, sha256_of, write_manifest
from data.records import ClipMotion, Label, PromptSpread, Sample, read_rows, write_rows
from evaluation.effects.rows import Effects, write_effects
from pipeline.check import check_params
from pipeline.configs import EvaluateConfig
from pipeline.params import ParamsError, section
from pipeline.replicates import expanded
from stages.evaluate import main
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[2]
DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture
def params(tmp_path, monkeypatch):
    """Writes params.yaml into an empty project, changed by what is given for its section `evaluate`."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "feedback", "models", "tabletop"):
        Path(name).symlink_to(ROOT / name)

    def write(**evaluate):
        document = default_params()
        document["evaluate"] |= evaluate
        Path("params.yaml").write_text(yaml.safe_dump(document))

    return write


# The section


def test_what_is_chosen_may_be_left_out(params):
    params(top_k=None, best_of=None)

    config = section("evaluate", EvaluateConfig)

    assert (config.top_k, config.best_of) == (None, None)
    check_params()


def test_a_choice_that_cannot_be_made_is_refused_before_anything_is_sampled(params):
    for evaluate, message in (
        ({"top_k": 8}, "evaluate.top_k is 8, expected a section with the keys k, by"),
        ({"top_k": {"k": 8}}, "evaluate.top_k.by is missing; known keys are k, by"),
        ({"top_k": {"k": "8", "by": None}}, "evaluate.top_k.k is '8', expected a valid integer"),
        ({"top_k": {"k": 0, "by": None}}, "evaluate.top_k.k is 0, expected greater than or equal to 1"),
        ({"best_of": {"judge": "judge", "m": 4}}, "evaluate.best_of.m (4) is unknown; known keys are judge, n"),
        ({"best_of": {"judge": "judge", "n": 1}}, "evaluate.best_of.n is 1, expected greater than or equal to 2"),
        ({"top_k": {"k": 8, "by": "gpt"}}, "top_k.by is 'gpt', expected one of evaluate.judges: physics, judge"),
        ({"best_of": {"judge": "gpt", "n": 4}}, "best_of.judge is 'gpt', expected one of evaluate.judges"),
        ({"top_k": {"k": 17, "by": None}}, "evaluate.top_k.k is 17, but a prompt has 16 clips"),
        ({"best_of": {"judge": "judge", "n": 17}}, "evaluate.best_of.n is 17, but a prompt has 16 clips"),
        (
            {"best_of": {"judge": "judge", "n": 4, "of": ["base", "rwr9"]}},
            "best_of.of: 'rwr9' is not in evaluate.policies, which has base, sft1, rwr1, dpo1, rwr2, dpo2",
        ),
        ({"best_of": {"judge": "judge", "n": 4, "of": []}}, "evaluate.best_of.of is [], expected"),
    ):
        params(**{"top_k": None, "best_of": None} | evaluate)
        with pytest.raises(ParamsError, match=re.escape(message)):
            check_params()


# The stage


def write_set(folder: Path, accepted: dict[str, list[bool | None]]) -> None:
    """runs/eval/<policy> of one prompt, a clip for each answer."""
    clips = range(len(next(iter(accepted.values()))))
    name = f"{folder.name}-{{}}"
    samples = [
        Sample(name.format(i), "a", "the a", "falling", "train", folder.name, i, 9, 8.0, 32, 32, "x") for i in clips
    ]
    write_rows(folder / "samples" / "metadata.parquet", samples, Sample)
    write_manifest(folder / "samples", "clip_set")
    for judge, answers in accepted.items():
        labels = [Label(name.format(i), judge, answers[i], None, None, 1, 0, None) for i in clips]
        write_rows(folder / "labels" / judge / "labels.parquet", labels, Label)
        write_manifest(folder / "labels" / judge, "labels")
    motion = [ClipMotion(sample.sample_id, 2.0 + sample.seed) for sample in samples]
    effects = Effects(motion, [PromptSpread("a", len(samples), 1.5, 0.5)], [])
    write_effects(folder / "effects", effects, clip_set=sha256_of(folder / "samples" / MANIFEST))


@pytest.fixture
def evaluate(params):
    """Runs the stage on base and rwr1, two clips each, and hands back how it ended."""
    params(policies=["base", "rwr1"], best_of={"judge": "judge", "n": 2})
    write_set(Path("sets/base"), {"judge": [False, True], "physics": [False, True]})
    write_set(Path("sets/rwr1"), {"judge": [True, True], "physics": [None, True]})
    for name in ("r1", "r2"):
        Path("rounds").mkdir(exist_ok=True)
        counts = {"samples": 4, "accepted": 1, "rejected": 2, "unlabelled": 1}
        Path("rounds", f"{name}.json").write_text(json.dumps(counts))
    options = ["--sets", "sets", "--rounds", "rounds", "--out", "runs/evaluation", "--metrics", "metrics/evaluate.json"]
    return lambda: CliRunner().invoke(main, options)


def test_the_stage_writes_the_summary_the_metrics_and_what_is_plotted(evaluate, caplog):
    assert evaluate().exit_code == 0

    read_manifest(Path("runs/evaluation"), "evaluation", verify=True)
    summary, plotted = (json.loads(Path("runs/evaluation", name).read_text()) for name in ("summary.json", "plot.json"))
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    best = summary["policies"]["base best of 2 by judge"]["accept"]["judge"]["all"]
    assert best["rate"] == 1.0
    effects = summary["policies"]["rwr1"]["effects"]
    assert list(effects["pass_at"]["judge"]) == ["1", "2"]  # of the wanted 1, 4 and 16, two clips have 2
    assert effects["minus_base"]["pass_at"]["judge"]["2"]["all"]["diff"] == 0.0
    assert effects["motion"]["judge"]["all"]["mean"] == 2.5
    assert "effects" not in summary["policies"]["base best of 2 by judge"]
    detail = metrics.pop("in detail")
    # physics, the first judge, knows one clip of rwr1, which it accepts in both.
    assert metrics == {"base": 50.0, "rwr1": 100.0, "Δrwr1": 0.0}
    assert detail["rounds"] == {"r1": [1, 2, 1], "r2": [1, 2, 1]}
    assert '"all": [50.0, null, null]' in Path("metrics/evaluate.json").read_text()  # one line, which git compares
    assert len(plotted) == 3 * 2
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == summary["warnings"]
    assert "physics left 1 of rwr1's 2 clips unlabelled" in summary["warnings"][0]


def test_policies_of_several_seeds_are_summarised_together(evaluate):
    document = expanded(yaml.safe_load(Path("params.yaml").read_text()), [1, 2])
    document["evaluate"]["best_of"]["of"] = ["rwr1"]
    Path("params.yaml").write_text(yaml.safe_dump(document))
    write_set(Path("sets/rwr1-s2"), {"judge": [True, False], "physics": [True, False]})
    shutil.copy("rounds/r2.json", "rounds/r2-s2.json")

    assert evaluate().exit_code == 0

    summary = json.loads(Path("runs/evaluation/summary.json").read_text())
    found = summary["replicates"]["rwr1"]
    assert (found["policies"], found["seeds"]) == (["rwr1", "rwr1-s2"], [1, 2])
    assert found["accept"]["judge"]["all"]["rate"] == 0.75
    assert found["accept"]["judge"]["all"]["of_seeds"] == [1.0, 0.5]
    motion = found["effects"]["motion"]["judge"]["all"]  # of accepted clips: 2 and 3 under seed 1, 2 under seed 2
    assert (motion["mean"], motion["of_seeds"], motion["low"]) == (2.25, [2.5, 2.0], None)
    assert found["effects"]["wins"]["judge"]["all"]["clips"] == {"gained": 1.0, "lost": 0.5, "both": 2.0}
    assert list(summary["policies"])[:3] == ["base", "rwr1", "rwr1-s2"]
    best = "rwr1 best of 2 by judge"  # of the first seed's name alone, and yet of both
    assert set(summary["replicates"]) == {"rwr1", best}
    assert summary["replicates"][best]["policies"] == [best, "rwr1-s2 best of 2 by judge"]
    assert summary["replicates"][best]["accept"]["judge"]["all"]["of_seeds"] == [1.0, 1.0]
    assert json.loads(Path("metrics/evaluate.json").read_text())["rwr1 of 2 seeds"] == 75.0  # by physics: 1, 1, 0


def test_a_policy_without_an_evaluation_ends_the_stage_with_what_to_run(evaluate):
    shutil.rmtree("sets/rwr1")

    done = evaluate()

    assert done.exit_code == 1
    assert "Error: sets/rwr1/samples is not there" in done.output
    assert "dvc repro eval-generate@rwr1" in done.output


def test_a_policy_without_effects_ends_the_stage_with_what_to_run(evaluate):
    shutil.rmtree("sets/rwr1/effects")

    assert "dvc repro effects@rwr1" in evaluate().output


def test_policies_of_other_frame_counts_end_the_stage(evaluate):
    path = Path("sets/rwr1/samples/metadata.parquet")
    write_rows(path, [replace(row, num_frames=17) for row in read_rows(path, Sample)], Sample)
    write_manifest(path.parent, "clip_set")

    done = evaluate()

    assert done.exit_code == 1
    assert "17 frames of 32x32" in done.output
    assert not Path("runs/evaluation").exists()


# dvc plots


def test_dvc_plots_the_accept_rates_of_every_policy_and_judge(evaluate):
    evaluate()
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    Path("dvc.yaml").write_text(yaml.safe_dump({"plots": document["plots"]}))
    subprocess.run([*DVC, "init", "--no-scm", "--quiet"], check=True)
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")

    figure = next(name for plot in document["plots"] for name in plot if "accept rates" in name)
    drawn = subprocess.run([*DVC, "plots", "show", "--show-vega", figure], check=True, capture_output=True, text=True)
    plot = json.loads(drawn.stdout)

    assert plot["facet"]["column"]["field"] == "judge"
    assert {(row["policy"], row["judge"], row["rate"]) for row in plot["data"]["values"]} == {
        ("base", "judge", 0.5), ("base", "physics", 0.5), ("rwr1", "judge", 1.0), ("rwr1", "physics", 1.0),
        ("base best of 2 by judge", "judge", 1.0), ("base best of 2 by judge", "physics", 1.0),
    }  # fmt: skip
    assert "<DVC_METRIC" not in json.dumps(plot)
