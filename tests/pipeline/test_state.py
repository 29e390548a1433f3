"""A stage may be killed at any moment: what it finds when it starts again, who else may run, and when it ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from data.manifest import write_manifest
from pipeline.state import ROOT, Interrupted, StateError, code_version, fingerprint, stage_state

OUT = Path("runs/r1/samples")
SECONDS = 2.0  # within which a stage must follow its dvc


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Enters the state of a stage that reads the file `input`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.state._end_with_parent", lambda: None)  # it would end pytest
    Path("input").write_text("clips")
    return lambda params=("steps", 12), out=OUT: stage_state("generate", out, params, [Path("input")])


def leave_behind(started):
    """What a run leaves when it is stopped half-way; returns its folder."""
    with pytest.raises(KeyboardInterrupt), started as work:
        (work / "batch-0").write_text("done")
        raise KeyboardInterrupt
    return work


def test_a_stopped_run_finds_its_work_again(start):
    leave_behind(start())

    with start() as work:
        assert (work / "batch-0").read_text() == "done"


def test_a_run_that_is_interrupted_says_what_is_kept_and_what_to_run(start):
    with pytest.raises(Interrupted, match="Nothing was finished yet: run the same command again"), start():
        raise KeyboardInterrupt
    with pytest.raises(Interrupted) as caught, start() as work:
        (work / "batch-0").write_text("done")
        raise KeyboardInterrupt
    assert f"is kept in {work}: run the same command again, and it goes on from there" in str(caught.value)


def test_success_deletes_the_work(start):
    with start() as work:
        (work / "batch-0").write_text("done")

    assert not work.exists()
    with start() as again:
        assert list(again.iterdir()) == []


def test_other_params_start_afresh_and_delete_the_older_work(start):
    left = leave_behind(start(params=("steps", 12)))

    with start(params=("steps", 13)) as work:
        assert list(work.iterdir()) == []
        assert not left.exists()


def test_another_input_starts_afresh(start):
    leave_behind(start())
    Path("input").write_text("other clips")

    with start() as work:
        assert list(work.iterdir()) == []


def test_other_code_starts_afresh(start, monkeypatch):
    leave_behind(start())
    monkeypatch.setattr("pipeline.state.code_version", lambda: "edited")

    with start() as work:
        assert list(work.iterdir()) == []


def test_the_work_for_another_output_is_left_alone(start):
    left = leave_behind(start())

    with start(out=Path("runs/r2/samples")):
        assert left.exists()


def test_the_code_version_changes_with_any_module_and_not_with_compiled_files(tmp_path):
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "__init__.py").touch()
    module = tmp_path / "rl" / "trainer.py"
    module.write_text("a = 1")
    before = code_version(tmp_path)
    (tmp_path / "rl" / "trainer.pyc").write_text("compiled")
    assert code_version(tmp_path) == before
    module.write_text("a = 2")
    assert code_version(tmp_path) != before


def test_a_folder_is_known_by_its_manifest_a_model_by_its_files_and_a_hub_id_by_its_name(tmp_path):
    finished = tmp_path / "samples"
    finished.mkdir()
    (finished / "clip.mp4").write_text("frames")
    foreign = fingerprint(finished)
    write_manifest(finished, "clip_set")
    listed = fingerprint(finished)
    (finished / "clip.mp4").write_text("other frames")
    write_manifest(finished, "clip_set")

    assert len({foreign, listed, fingerprint(finished)}) == 3
    assert fingerprint(Path("Wan-AI/Wan2.1")) == "Wan-AI/Wan2.1"


# Processes

HOLDS = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from pipeline.state import stage_state
    with stage_state("generate", Path("runs/r1/samples"), ("steps", 12), [Path("input")]):
        Path("pid.part").write_text(str(os.getpid()))
        Path("pid.part").rename("pid")
        time.sleep(60)
    """
)


def run(command, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stage_pid():
    assert wait_for(Path("pid").exists, 60), "the stage did not start"
    return int(Path("pid").read_text())


@pytest.fixture
def holder(start):
    """A process that holds the stage until the test ends."""
    process = run([sys.executable, "-c", HOLDS])
    stage_pid()
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_told_who_is_running(start, holder):
    with pytest.raises(StateError, match=f"generate-runs-r1-samples is already running, pid {holder.pid}"), start():
        pass


def test_a_killed_run_does_not_hold_the_lock(start, holder):
    holder.kill()
    holder.wait()

    with start():
        pass


def test_a_stage_ends_with_the_shell_that_started_it(start):
    shell = run(["sh", "-c", f'"{sys.executable}" -c "$0"; true', HOLDS])
    pid = stage_pid()
    assert psutil.Process(pid).ppid() == shell.pid

    shell.kill()
    shell.wait()

    assert wait_for(lambda: not running(pid), SECONDS)


@pytest.mark.parametrize("command", ["python stage.py", "python stage.py; true"], ids=["alone", "in a lasting shell"])
def test_killing_dvc_ends_the_stage(start, command, monkeypatch):
    Path("stage.py").write_text(HOLDS)
    Path("dvc.yaml").write_text(f"stages:\n  hold:\n    cmd: {command}\n    outs: [held]\n")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    dvc = run([sys.executable, "-m", "dvc", "repro"])
    pid = stage_pid()

    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()

    assert wait_for(lambda: not running(pid), SECONDS)
