"""How long stages took: what is kept of a run, and what a damaged file says."""

import json
import os
import sys
import time
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import psutil
import pytest

from data.pace import Measured, collected_measurements, measured
from pipeline.rates import RUNS, Command, Rate, TimedUnit, _keep, rate_of, read_rates, recorded, unit_of
from tests.support.defaults import DEFAULTS

CLIPS = TimedUnit("sample models/tabletop/generator 64x64x17", "clips", 8.0)


def test_a_rate_is_of_what_this_run_did_and_the_rest_is_its_start():
    found = [Measured("clips", 10, 40.0), Measured("rows", 999, 5.0)]  # 10 clips of 8 forwards in 40 s

    assert rate_of(CLIPS, found, 47.0) == Rate("clips", 0.5, 7.0)


def test_a_run_that_did_none_of_its_units_leaves_the_rate_as_it_was():
    assert rate_of(CLIPS, [], 47.0) is None


def test_a_stage_without_units_is_measured_as_a_whole():
    assert rate_of(TimedUnit("audit judge", RUNS, 240.0), [Measured("clips", 240, 1.0)], 48.0) == Rate(RUNS, 0.2, 0.0)


def test_what_is_measured_reaches_the_one_who_listens_alone():
    measured("clips", 1, 1.0)  # nobody listens
    with collected_measurements() as found:
        measured("clips", 2, 3.0)
        measured("clips", 0, 9.0)  # all of them were there
    measured("clips", 4, 5.0)

    assert found == [Measured("clips", 2, 3.0)]


def test_a_file_that_cannot_be_written_does_not_fail_a_stage_that_is_done(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pipeline.rates.RATES", tmp_path / "rates.json")
    (tmp_path / "rates.json").mkdir()
    _keep("sample", Rate("clips", 0.5, 7.0))
    assert "how long the stage took is not kept" in caplog.text


def test_a_missing_or_damaged_file_holds_no_rates(tmp_path):
    path = tmp_path / "rates.json"
    assert read_rates(path) == {}
    for text in ("{", "[]", json.dumps({"build": {"seconds": 1.0}}), json.dumps({"build": 3})):
        path.write_text(text)
        assert read_rates(path) == {}, text


def test_a_command_line_is_read_with_its_flags():
    command = Command.of("generate", ["--set", "r1", "--checkpoints", "--out", "runs/r1/samples"])

    assert command == ("generate", {"set": "r1", "checkpoints": "", "out": "runs/r1/samples"})


@pytest.mark.parametrize(
    ("command", "unit"),
    [
        (Command("generate", {"sampling": "generate"}), ("clips", 8.0)),
        (Command("generate", {"sampling": "evaluate.generate"}), ("clips", 16.0)),  # guidance: two forwards a step
        (Command("label", {"source": "judge"}), ("clips", 1.0)),
        (Command("label", {"source": "gpt"}), ("calls", 1.0)),
        (Command("label", {"source": "pairs"}), ("shown pairs", 1.0)),
        (Command("train", {"objective": "dpo"}), ("rows", 1.0)),
        (Command("audit", {"source": "judge"}), (RUNS, 240.0)),
        (Command("report", {}), (RUNS, 1.0)),
    ],
)
def test_a_stage_is_measured_by_what_it_does_most(command, unit, tmp_path, monkeypatch):
    root = DEFAULTS.parents[2]
    monkeypatch.chdir(tmp_path)
    for name in ("tabletop", "feedback", "configs", "models"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "params.yaml").write_text(DEFAULTS.read_text())

    assert unit_of(command)[1:] == unit


def test_a_clock_that_jumps_during_a_run_leaves_its_time_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(DEFAULTS.read_text())
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("stages.report", None))
    monkeypatch.setattr(sys, "argv", ["report", "--out", "report-out"])
    now = time.time()
    for jump in (-1e6, 1e6):
        with monkeypatch.context() as patch, recorded():
            patch.setattr(time, "time", lambda jump=jump: now + jump)
        assert 0 < read_rates(tmp_path / ".state/rates.json")["report"].seconds < 24 * 3600


def test_under_dvc_a_stage_takes_the_time_since_the_stage_before_it(tmp_path, monkeypatch):
    """A dvc that began a minute ago, in which another stage ended half a minute ago or none did."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(DEFAULTS.read_text())
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("stages.report", None))
    monkeypatch.setattr(sys, "argv", ["report", "--out", "report-out"])
    now, path = time.time(), tmp_path / ".state/rates.json"
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: now)
    monkeypatch.setattr("pipeline.rates.dvc_of_this_stage", lambda: SimpleNamespace(create_time=lambda: now - 60))
    with recorded():
        pass
    assert read_rates(path)["report"].seconds == pytest.approx(60, abs=5)
    for ended, seconds in ((now - 30, 30), (now - 3600, 60)):  # the latter in an earlier dvc
        os.utime(path, (ended, ended))
        with recorded():
            pass
        assert read_rates(path)["report"].seconds == pytest.approx(seconds, abs=5)
