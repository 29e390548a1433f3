"""How a stage command ends."""

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from data.manifest import StoreError, read_manifest
from pipeline.command import stage_command, tracker_option
from pipeline.params import ParamsError, section
from pipeline.state import Interrupted


def run(body):
    """The outcome of a command that does this."""

    @stage_command
    def main():
        body()

    return CliRunner().invoke(main)


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda: raise_(ValueError("beta is -1")), "Error: beta is -1"),
        (lambda: raise_(StoreError("runs/r1: no manifest")), "Error: runs/r1: no manifest"),
        (lambda: raise_(ParamsError("train.lr is unknown")), "Error: train.lr is unknown"),
        (lambda: read_manifest(Path("no/such"), "clip_set"), "Error: no/such: no such folder"),
        (lambda: section("train", dict, Path("no/such.yaml")), "Error: no/such.yaml: not read: No such file"),
        (lambda: Path("no/such").read_text(), "No such file or directory: 'no/such'"),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_line_and_exits_1(body, message):
    result = run(body)

    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_librarys_complaint_within_our_code_is_a_bug_and_keeps_its_traceback():
    result = run(lambda: json.loads("{"))

    assert isinstance(result.exception, json.JSONDecodeError)
    assert result.exit_code == 1


def test_ctrl_c_ends_with_what_the_stage_says_and_exits_130():
    for error, said in (
        (Interrupted("Interrupted. It is kept."), "It is kept."),
        (KeyboardInterrupt(), "Interrupted."),
    ):
        result = run(lambda error=error: raise_(error))
        assert result.exit_code == 130
        assert said in result.output and "Aborted" not in result.output


def test_a_command_that_succeeds_exits_0():
    assert run(lambda: None).exit_code == 0


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_any_work(monkeypatch, tmp_path):
    """A folder `wandb` in the working folder, as wandb itself leaves one, is no package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else real(name))
    began = []

    @stage_command
    @tracker_option
    def main(tracker):
        began.append(tracker)

    for name, said in (
        ("mlflow", "'mlflow' is not one of 'tensorboard', 'wandb', 'trackio', 'dvclive'"),
        ("trackio", "trackio is not installed here: pip install trackio"),
        *([] if real("wandb") and real("wandb").origin else [("wandb", "pip install wandb")]),
    ):
        done = CliRunner().invoke(main, env={"STAGE_TRACKER": name})
        assert done.exit_code == 2 and said in " ".join(done.output.split()), name
    assert CliRunner().invoke(main).exit_code == 0 and began == [None]


def test_every_stage_that_trains_and_the_first_one_know_the_tracker():
    for stage in ("base", "train", "online"):
        options = importlib.import_module(f"stages.{stage}").main.params
        assert [one.envvar for one in options if one.name == "tracker"] == ["STAGE_TRACKER"], stage
