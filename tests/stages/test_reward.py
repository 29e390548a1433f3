"""Stage `reward`: from a round's pairs to a model that judges, also after a kill, and what it says of its mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from data.manifest import read_manifest
from data.records import Label, read_rows
from data.store import ClipSet
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set
from rl.reward import training
from stages import reward
from tests.support.defaults import default_params
from tests.support.judges import WORDS, build_judge
from tests.support.labelled import make_round

OUT = Path("runs/rewards/bt")
RUBRIC = """name: own
frames: 4
rule: all
instructions: "judge the video {prompt}"
questions: [{name: accept, ask: "Accept or Reject", affirmative: Accept, negative: Reject, wanted: yes, required: true}]
"""
OTHER_WORDS = ("a", "rolls", "<b>cup</b>", "drops", "&", "breaks")  # of make_round's prompts


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> Path:
    return build_judge(tmp_path_factory.mktemp("vlm"), [*WORDS, *OTHER_WORDS])


@pytest.fixture
def project(tmp_path, monkeypatch, vlm):
    """A round of two prompts with a pair each; returns how to write other settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGE_DEVICE", "cpu")
    make_round(Path("runs/r1"))
    Path("rubric.yaml").write_text(RUBRIC)
    Path("runs/inputs/rewards").mkdir(parents=True)
    Path("runs/inputs/rewards/bt.json").write_text("{}")

    def write(**changes: object) -> None:
        params = default_params()
        params["reward"]["settings"] |= {
            "path": str(vlm), "rubric": "rubric.yaml", "lora_rank": 2, "lora_targets": ["q_proj"], "steps": 6,
            "batch_size": 2, "forward_size": 4, "held_out": 0.5, "checkpoint_every": 2, "log_every": 1,
        }  # fmt: skip
        params["reward"]["models"] = {"bt": {"round": "r1", "changes": changes}}
        Path("params.yaml").write_text(yaml.safe_dump(params))

    write()
    return write


def train(out: Path = OUT):
    options = ["--name", "bt", "--set", "runs/r1/samples", "--rows", "runs/r1/datasets/dpo"]
    return CliRunner().invoke(reward.main, [*options, "--out", str(out), "--metrics", "metrics.json"])


def test_the_model_is_a_source_that_prefers_the_chosen_clip(project):
    result = train()
    assert result.exit_code == 0, result.output

    figures = json.loads(Path("metrics.json").read_text())
    assert (figures["pairs"], figures["held_out_pairs"], figures["prompts"]) == (1, 1, 1)
    assert figures["held_out_accuracy"] in (0.0, 0.5, 1.0) and figures["cost"]["clips"] == 0
    facts = json.loads((OUT / "reward.json").read_text())
    assert (facts["model"]["frames"], facts["model"]["clip_frames"]) == (4, 9)
    assert facts["model"]["text"] == "judge the video {prompt}\n\nAccept or Reject"
    assert facts["trained"]["round"] == "r1" and facts["trained"]["source"] == "judge"
    losses = [json.loads(line)["loss"] for line in (OUT / "log.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[-1] < losses[0]
    source = make_source("bt", {"kind": "reward_model", "path": str(OUT)})
    label_clip_set(ClipSet.open(Path("runs/r1/samples")), source, Path("work"), Path("labels"), 4, 1, 0.0)
    scores = {row.sample_id: row.score for row in read_rows(Path("labels/labels.parquet"), Label)}
    trained = {"roll": ("roll0", "roll1"), "drop": ("drop1", "drop2")}
    assert any(scores[chosen] > scores[rejected] for chosen, rejected in trained.values())


def test_a_run_that_was_killed_has_the_bytes_of_one_that_was_not(project, monkeypatch):
    assert train(Path("whole")).exit_code == 0
    step = training._step

    def dies(number, *arguments):
        if number == 3:
            raise KeyboardInterrupt
        return step(number, *arguments)

    monkeypatch.setattr(training, "_step", dies)
    assert train().exit_code != 0 and not OUT.exists()
    monkeypatch.setattr(training, "_step", step)
    assert train().exit_code == 0

    files = read_manifest(OUT, "reward_model")["files"]
    assert files == read_manifest(Path("whole"), "reward_model")["files"]
    assert {one["path"] for one in files} == {"reward.json", "weights.safetensors", "log.jsonl"}


def test_recomputed_activations_and_an_entry_s_changes_are_taken(project):
    assert train(Path("plain")).exit_code == 0
    project(gradient_checkpointing=True)
    assert train(Path("recomputed")).exit_code == 0

    logs = [
        [json.loads(line) for line in (Path(name) / "log.jsonl").read_text().splitlines()]
        for name in ("plain", "recomputed")
    ]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], abs=1e-5)


def test_mistakes_end_the_stage_with_a_sentence(project):
    for changes, message in (
        ({"held_out": 0.9}, "2 prompts have pairs, and 2 of them are held out: no pair is left"),
        ({"lora_targets": ["to_q"]}, "lora_targets to_q: "),
        ({"rubric": "none.yaml"}, "none.yaml"),
        ({"pixels": 0}, "reward.settings.pixels is 0"),
    ):
        project(**changes)
        result = train()
        assert result.exit_code == 1 and message in result.output, result.output
    shutil.rmtree("runs/r1/datasets/dpo")
    project()
    assert "runs/r1/datasets/dpo" in train().output
