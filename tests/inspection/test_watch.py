"""`vfrl show --watch`: the curve of a run, from what it leaves on disk."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from commands.show import main
from inspection import watch
from inspection.watch import chart, find, in_words, unfinished
from pipeline.lock import ours

LINES = [
    {"step": 5, "loss": 4.0},
    {"step": 10, "loss": 2.0, "held_out": {"training": 0.5, "held_out": 0.25, "others": {}}},
    {"step": 15, "loss": 1.0, "stopped": None, "held_out": {"training": 0.75, "held_out": 0.5, "others": {}}},
]


def lock(work: Path, pid: int, **elsewhere: str) -> None:
    """The lock of work: held by a process of this machine, or of one that `elsewhere` names."""
    (work.parent / "lock").write_text(json.dumps(asdict(replace(ours(), pid=pid, **elsewhere))))


def write_run(root: Path, home: str = "train-runs-policies-rwr1", pid: int | None = None, now: int = 10) -> Path:
    """A run with work in `.state`: ten of its steps in 4 seconds since its last start."""
    work = root / ".state" / home / "0123456789abcdef"
    (work / "policy").mkdir(parents=True)
    lock(work, os.getpid() if pid is None else pid)
    (work / "policy/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    progress = {"unit": "step", "steps": 600, "done": 15, "now": now, "seconds": 4.0}
    (work / "progress.json").write_text(json.dumps(progress))
    return work


def test_work_whose_result_is_published_is_no_unfinished_run():
    work = write_run(Path(), pid=dead_pid())
    assert [run.policy for run in unfinished(Path(".state"))] == ["rwr1"]
    work.with_name(f"{work.name}.finished").touch()
    assert unfinished(Path(".state")) == []


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def dead_pid() -> int:
    """Of a child that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def shown(*words: str) -> str:
    done = CliRunner().invoke(main, ["--watch", "--once", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_chart_has_its_extremes_in_its_corners():
    assert chart([(0, 1.0), (5, 2.0), (10, 3.0)], width=5, height=3).splitlines() == [
        "         3 |    *",
        "           |  *",
        "         1 |*",
        "           +-----",
        "            0  10",
    ]


def test_a_column_of_a_chart_is_the_mean_of_its_points():
    """Steps 0 and 1 fall into the first of two columns: (1 + 3) / 2 = 2."""
    assert chart([(0, 1.0), (1, 3.0), (10, 5.0)], width=2, height=2).splitlines()[:2] == [
        "         5 | *",
        "         2 |*",
    ]


def test_a_flat_curve_and_one_without_a_finite_value_are_drawn():
    assert chart([(1, 2.0), (2, 2.0)], width=2, height=2).splitlines()[1] == "         2 |**"
    assert chart([(1, float("nan")), (2, float("inf"))]) == "no finite value"


def test_a_run_that_goes_on_is_shown_with_its_rate_and_the_time_left(tmp_path):
    """585 steps are left, at ten in 4 s: 234 s. The five steps before this start do not count."""
    write_run(tmp_path)
    text = shown()
    assert "rwr1: running, 15 of 600 steps, 2.5 steps a second, 0:03:54 left" in text
    assert "\nloss\n" in text and "\nheld_out/held_out\n" in text
    assert text.splitlines()[-3].split() == ["loss", "1"]


def test_a_slow_run_has_its_seconds_a_step(tmp_path):
    write_run(tmp_path, now=2)
    assert "2.0 s a step, 0:19:30 left" in shown()


def test_a_killed_run_is_stopped_and_has_no_time_left(tmp_path):
    write_run(tmp_path, pid=dead_pid())
    assert find(None, Path(".state")) is None
    assert shown("rwr1").startswith("rwr1: stopped, 15 of 600 steps\n")


def test_a_finished_policy_is_shown_from_its_folder(tmp_path):
    folder = tmp_path / "runs/policies/dpo1"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert shown("dpo1").startswith("dpo1: finished, 15 steps logged\n")


def test_nothing_to_watch_and_an_unknown_policy_are_told_in_a_line(tmp_path):
    write_run(tmp_path, "online-runs-policies-drf", pid=dead_pid())
    for words, said in (
        (["--watch", "--once"], "no stage train or online is running; name a policy"),
        (["--watch", "rwr9"], "rwr9 was not trained here yet; there is a log of drf"),
        (["rwr1"], "rwr1: only --watch takes a policy"),
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1 and said in done.output, words


def test_watching_a_policy_ends_with_its_run(tmp_path, monkeypatch):
    work = write_run(tmp_path)
    pids = iter([os.getpid(), os.getpid(), dead_pid()])

    def next_reading(seconds):
        lock(work, next(pids))

    monkeypatch.setattr(watch.time, "sleep", next_reading)
    done = CliRunner().invoke(main, ["--watch", "rwr1"])
    assert done.exit_code == 0
    assert [line.split(",")[0] for line in done.output.splitlines() if line.startswith("rwr1: ")] == [
        "rwr1: running", "rwr1: running", "rwr1: running", "rwr1: stopped",
    ]  # fmt: skip


def test_a_run_on_another_host_goes_on_while_it_touches_its_lock():
    work = write_run(Path())
    lock(work, dead_pid(), host="node7", boot="another")
    assert [run.state for run in unfinished(Path(".state"))] == ["running"]
    an_hour_ago = time.time() - 3600
    os.utime(work.parent / "lock", (an_hour_ago, an_hour_ago))
    assert [run.state for run in unfinished(Path(".state"))] == ["stopped"]


def test_a_torn_line_is_left_out(tmp_path):
    work = write_run(tmp_path)
    with open(work / "policy/log.jsonl", "a") as file:
        file.write('{"step": 20, "lo')
    run = find(None, Path(".state"))
    assert run and "20" not in in_words(run).split("last")[-1]
