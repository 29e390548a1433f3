"""The benchmark of one prompt: whose clips it takes, and its table."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.one_prompt import Case, main, row_of, table
from data.prompts import Prompt

FALL = Prompt("fall-1", "pushing red ball so that it falls off the table", "falling", "test", None, None)


def test_a_line_says_why_a_run_ended_and_who_was_fooled(tmp_path):
    said = {
        "second": {"role": "trained on", "score": 0.9, "right": True},
        "judge": {"role": "held out", "score": 0.755, "right": True},
        "physics": {"role": "also asked", "score": 0.0, "right": False},
    }
    outcome = {"stopped": None, "updates": 60, "kept": 40, "fooled": ["physics"], "clips": {"after.mp4": said}}
    (tmp_path / "seconds.json").write_text("71.5\n")
    row = row_of(Case(FALL, 2), outcome, tmp_path)
    assert row == [
        "fall-1-seed-2", FALL.prompt, "all updates", "60", "40", "71.5", "0.90", "0.76", "wrong", "physics",
    ]  # fmt: skip
    assert table([row, [*row[:8], "right", ""]]).endswith("1 of 2 are right by physics; fooled in 1")


@pytest.mark.ci
def test_the_benchmark_takes_prompts_whose_clip_is_wrong_before(tmp_path):
    quick = (
        "engine.updates=1", "engine.batch_size=2", "engine.group_size=2", "engine.keep=1", "engine.inner_epochs=1",
        "engine.steps=2", "engine.checkpoint_every=1", "engine.held_out_every=1", "engine.guidance=1.0",
        "sampling.inference_steps=2",
    )  # fmt: skip
    changes = [part for change in quick for part in ("--set", change)]
    done = CliRunner().invoke(main, ["--prompts", "1", "--out", str(tmp_path), *changes])
    assert done.exit_code == 0, done.output
    (folder,) = Path(tmp_path).iterdir()
    before = json.loads((folder / "outcome.json").read_text())["clips"]["before.mp4"]
    assert before["physics"]["right"] is False
    assert "of 1 are right by physics" in done.output
