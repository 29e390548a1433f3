"""A stage may be killed at any moment: what it finds when it starts again, who else may run, and when it ends."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from data.manifest import StoreError, publish, read_manifest, write_manifest
from data.pace import hold, time_worked
from pipeline.guardians import POLL
from pipeline.identity import ROOT, code_files, differences, facts_of, fingerprint, identity
from pipeline.saved import in_cache, in_lock, manifest_hash
from pipeline.state import WORTH, Interrupted, StateError, stage_state

OUT = Path("runs/r1/samples")
SECONDS = 2.0  # within which a stage must follow its dvc


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Enters the state of a stage that reads the file `input`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("input").write_text("clips")
    monkeypatch.delenv("STAGE_STATE", raising=False)
    code: dict[str, str] = {"generators/core/rollout.py": "as it was"}
    monkeypatch.setattr("pipeline.state.facts_of", lambda *given: facts_of(*given) | {"code": dict(code)})

    def begin(steps=12, out=OUT, edited=None):
        code.update({edited: "edited"} if edited else {})
        return stage_state("generate", out, {"generate": {"steps": steps}}, [Path("input")])

    return begin


def leave_behind(started, seconds=0.0):
    """What a run leaves that is stopped after so long; returns its folder."""
    with pytest.raises(KeyboardInterrupt), started as work:
        (work / "batch-0").write_text("done")
        raise KeyboardInterrupt
    work.with_name(f"{work.name}.seconds").write_text(str(seconds))
    return work


def left_in(home=Path(".state/generate-runs-r1-samples")):
    return sorted(path.name for path in home.iterdir())


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


def test_a_kill_while_finished_work_is_deleted_leaves_nothing_that_passes_as_work(start, monkeypatch):
    def killed(folder, **_):
        if folder.exists():
            (folder / "batch-0").unlink()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch, start() as work:
        (work / "batch-0").write_text("done")
        (work / "batch-1").write_text("done")
        patch.setattr("pipeline.state.shutil.rmtree", killed)
    assert not work.exists()
    with start() as again:
        assert list(again.iterdir()) == []
    assert left_in() == ["lock"]


def test_with_other_params_inputs_or_code_work_of_less_than_two_minutes_is_deleted(start):
    def change_input():
        Path("input").write_text("other clips")
        return {}

    for change in (lambda: {"steps": 13}, change_input, lambda: {"edited": "generators/core/rollout.py"}):
        left = leave_behind(start(), seconds=WORTH - 1)

        with start(**change()) as work:
            assert list(work.iterdir()) == []
            assert not left.exists()


def test_work_of_hours_stops_a_run_that_differs_and_nothing_is_deleted(start):
    left = leave_behind(start(), seconds=3 * 3600)
    Path("input").write_text("other clips")

    for _ in range(2):
        with pytest.raises(StateError) as caught, start(steps=13, edited="generators/core/rollout.py"):
            pass
        said = caught.value.message
        for part in (
            f"{left}: 3.0 hours of work, 1 files of 4 B, last written 20",
            "params: generate.steps was 12, is 13",
            "inputs: input has changed",
            "code: generators/core/rollout.py has changed",
            "STAGE_STATE=adopt",
            "whether what is done still fits is your risk",
            "STAGE_STATE=discard",
        ):
            assert part in said, said
        assert (left / "batch-0").read_text() == "done"


def test_the_ways_on_can_be_pasted_into_a_shell(start):
    out = Path("my clips/r1")
    leave_behind(start(out=out), seconds=WORTH)
    with pytest.raises(StateError) as caught, start(13, out):
        pass
    for choice in ("adopt", "discard"):
        assert f"  STAGE_STATE='{choice}:generate-my clips-r1' " in caught.value.message


def test_undoing_the_change_goes_on_as_before(start):
    leave_behind(start(), seconds=WORTH)
    with pytest.raises(StateError), start(steps=13):
        pass

    with start() as work:
        assert (work / "batch-0").read_text() == "done"
    assert left_in() == ["lock"]


def test_adopt_continues_the_work_after_an_edit_of_the_code_and_keeps_its_time(start, monkeypatch):
    leave_behind(start(), seconds=5000)
    monkeypatch.setenv("STAGE_STATE", "adopt")
    with pytest.raises(Interrupted), start(edited="generators/core/rollout.py") as work:
        assert (work / "batch-0").read_text() == "done"
        raise KeyboardInterrupt
    assert float(work.with_name(f"{work.name}.seconds").read_text()) >= 5000
    monkeypatch.delenv("STAGE_STATE")

    with start() as again:  # it is this run's own now
        assert again == work
        finish(again)
    assert "adopted" not in read_manifest(OUT, "clip_set")["facts"]
    assert left_in() == ["lock"]


def finish(work):
    (work / "clips").mkdir(exist_ok=True)
    write_manifest(work / "clips", "clip_set", set="r1")
    publish(work / "clips", OUT)


def test_the_manifest_lists_the_params_and_inputs_in_which_adopted_work_was_made_otherwise(start, monkeypatch):
    leave_behind(start(), seconds=WORTH)
    monkeypatch.setenv("STAGE_STATE", "adopt")
    leave_behind(start(steps=13), seconds=WORTH)
    Path("input").write_text("other clips")

    with start(steps=13) as work:
        finish(work)
    facts = read_manifest(OUT, "clip_set", verify=True)["facts"]
    assert facts == {"set": "r1", "adopted": ["generate.steps was 12, is 13", "input has changed"]}


def test_work_that_the_stage_refuses_stays_what_it_was(start, monkeypatch):
    left = leave_behind(start(), seconds=WORTH)
    before = left.with_name(f"{left.name}.json").read_text()
    monkeypatch.setenv("STAGE_STATE", "adopt")

    with pytest.raises(StateError, match="steps must be 12\nNothing was added to the work"), start(steps=13):
        time.sleep(0.2)  # is no work
        raise ValueError("steps must be 12")
    assert left_in() == [left.name, f"{left.name}.json", f"{left.name}.seconds", "lock"]
    assert left.with_name(f"{left.name}.json").read_text() == before
    with start() as work:
        assert (work / "batch-0").read_text() == "done"


def test_discard_deletes_older_work_and_never_that_of_the_run_itself(start, monkeypatch):
    left = leave_behind(start(), seconds=WORTH)
    monkeypatch.setenv("STAGE_STATE", "discard")
    with pytest.raises(Interrupted), start(steps=13) as work:
        assert not left.exists()
        (work / "batch-0").write_text("new")
        raise KeyboardInterrupt

    with start(steps=13) as work:
        assert (work / "batch-0").read_text() == "new"


def test_of_several_older_works_all_are_listed_and_adopt_takes_the_newest(start, monkeypatch):
    older = leave_behind(start(steps=11), seconds=WORTH)
    os.utime(older / "batch-0", (1e9, 1e9))
    aside = older.rename("aside")  # two are left where an edit comes while both are young
    newer = leave_behind(start(steps=12), seconds=WORTH)
    aside.rename(older)
    older.with_name(f"{older.name}.seconds").write_text(str(WORTH))

    with pytest.raises(StateError) as caught, start(steps=13):
        pass
    assert caught.value.message.index(str(newer)) < caught.value.message.index(str(older))
    monkeypatch.setenv("STAGE_STATE", "adopt")
    with start(steps=13) as work:
        assert not newer.exists() and older.exists() and (work / "batch-0").exists()
    assert left_in() == ["lock"]


def test_work_whose_facts_and_time_are_not_recorded_is_kept_by_the_times_of_its_files(start):
    left = Path(".state/generate-runs-r1-samples/0123456789abcdef")
    left.mkdir(parents=True)
    for name, time_ in (("first", 1e9), ("last", 1e9 + 7200)):
        (left / name).touch()
        os.utime(left / name, (time_, time_))

    with pytest.raises(StateError, match="2.0 hours of work, 2 files of 0 B.*\n.*an older version"), start():
        pass
    assert left.exists()


def test_a_disk_without_room_for_the_time_of_work_stops_nothing(start, monkeypatch):
    def full(path):
        raise StoreError(f"{path}: not written: No space left on device")

    with start() as work:
        monkeypatch.setattr("pipeline.state.atomically", full)
        finish(work)
    assert left_in() == ["lock"]


def test_work_stays_where_its_output_cannot_be_written(start, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    refused = pytest.raises(StoreError, match="samples: .* not be put there: .*Read-only")
    with refused, monkeypatch.context() as patch, start() as work:
        patch.setattr("data.manifest.os.replace", read_only)
        (work / "clips").mkdir()
        (work / "clips/manifest.json").touch()
        publish(work / "clips", OUT)
    with start() as again:
        assert (again / "clips/manifest.json").is_file()


def test_a_clock_that_jumps_neither_adds_nor_takes_time_of_work(start, monkeypatch):
    left = leave_behind(start())
    os.utime(left / "batch-0", (2e9, 2e9))  # written before the clock went back by years
    for jump in (-1e6, 1e6):
        with pytest.raises(Interrupted), monkeypatch.context() as patch, start() as work:
            patch.setattr(time, "time", lambda jump=jump: 1.7e9 + jump)
            raise KeyboardInterrupt
        assert 0 <= float(work.with_name(f"{work.name}.seconds").read_text()) < 60


def test_stage_state_is_adopt_or_discard(start, monkeypatch):
    monkeypatch.setenv("STAGE_STATE", "keep")
    with pytest.raises(StateError, match="STAGE_STATE is 'keep', expected adopt or discard"), start():
        pass


def test_the_time_of_work_survives_a_sigkill(start, monkeypatch):
    Path("hold.py").write_text(HOLDS.replace("time.sleep(60)", "(work / 'x').touch(); time.sleep(60)"))
    process = run([sys.executable, "-c", "import pipeline.state as s; s.BEAT = 0.2; exec(open('hold.py').read())"])
    pid = stage_pid()
    time.sleep(1.5)
    os.kill(pid, signal.SIGKILL)
    process.wait()
    (seconds,) = Path(".state/generate-runs-r1-samples").glob("*.seconds")
    assert 0.9 < float(seconds.read_text()) < 30


def test_a_stage_that_is_started_again_knows_the_time_of_all_its_runs_and_of_the_accelerators_that_they_held(start):
    """Half a second on 2 accelerators, and then as much on 4."""
    for accelerators, stopped in ((2, True), (4, False)):
        with contextlib.suppress(Interrupted), start() as work:
            (work / f"of {accelerators}").touch()
            hold(lambda accelerators=accelerators: accelerators)
            time.sleep(0.5)
            found = time_worked()
            if stopped:
                raise KeyboardInterrupt
    assert 1.0 <= found.seconds < 5
    assert found.accelerator_seconds >= 0.5 * 2 + 0.5 * 4 - 0.1  # each time is kept to 0.1 s
    assert found.accelerator_seconds <= 4 * found.seconds
    assert time_worked() is None
    assert not list(Path(".state").glob("*/*.held"))


def test_the_work_for_another_output_is_left_alone(start):
    left = leave_behind(start())

    with start(out=Path("runs/r2/samples")):
        assert left.exists()


DVC_YAML = """
stages:
  build:
    foreach: ${rounds}
    do:
      cmd: python -m stages.build --out runs/${key}
      deps:
        - rl
        - stages/build.py
        - runs/${key}/labels
  build-compare:
    matrix:
      source: ${sources}
    cmd: python -m stages.build --out runs/compare/${item.source}
    deps: [rl, stages/build.py]
  report: {cmd: python -m stages.report, deps: [report]}
"""


def test_a_stage_is_known_by_the_code_that_dvc_lists_for_its_command_and_no_other(tmp_path):
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    for folder in ("rl", "report", "stages"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    for name in ("rl/trainer.py", "report/page.py", "stages/build.py", "stages/report.py"):
        (tmp_path / name).write_text("a = 1")

    def known(stage):
        return identity(facts_of(stage, {}, [], tmp_path))

    def names(stage):
        return [str(path.relative_to(tmp_path)) for path in code_files(stage, tmp_path)]

    assert names("build") == names("build-compare") == ["rl/__init__.py", "rl/trainer.py", "stages/build.py"]
    assert "report/page.py" in names("mine") and "rl/trainer.py" in names("mine")  # no stage: all our code
    before = known("build")
    (tmp_path / "rl/trainer.pyc").write_text("compiled")
    (tmp_path / "report/page.py").write_text("a = 2")
    assert known("build") == before
    (tmp_path / "rl/trainer.py").write_text("a = 2")
    assert known("build") != before


def test_what_stage_base_records_of_a_run_is_compared_file_by_file_without_its_params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Path("runs/inputs/sources/judge.json")
    record.parent.mkdir(parents=True)

    def facts(price, sha):
        record.write_text(json.dumps({"block": {"price": price}, "code": {"lab/judge.py": sha}}))
        return facts_of("label", {}, [record])

    assert identity(facts(1, "a")) == identity(facts(2, "a"))
    (found,) = differences(facts(1, "a"), facts(1, "b"))
    assert found == ("inputs", "runs/inputs/sources/judge.json.code.lab/judge.py has changed")


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


# Work whose result is published

SAMPLES = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from data.manifest import publish, write_manifest
    from pipeline.command import write_metrics
    from pipeline.state import stage_state
    with stage_state("generate", Path("runs/r1/samples"), Path("steps").read_text(), [Path("input")]) as work:
        clips = work / "clips"
        if not (clips / "manifest.json").is_file():
            with open("sampled", "a") as log:
                log.write("sampled\\n")
            clips.mkdir(exist_ok=True)
            (clips / "clip.mp4").write_text("frames" + Path("steps").read_text())
            write_manifest(clips, "clip_set")
        publish(clips, Path("runs/r1/samples"))
        if Path("full").exists():
            raise OSError("No space left on device")
        write_metrics(Path("metrics/r1.json"), {"clips": 1})
    """
)


@pytest.fixture
def sampling(start):
    """Runs a stage by DVC, in a repository of that stage alone; returns how often it has sampled so far."""
    stage = {
        "cmd": f'"{sys.executable}" stage.py && test ! -f killed',
        "deps": ["input", "steps"],
        "outs": ["runs/r1/samples", "metrics/r1.json"],
    }
    Path("stage.py").write_text(SAMPLES)
    Path("dvc.yaml").write_text(json.dumps({"stages": {"generate": stage}}))
    Path("steps").write_text("12")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], check=True)

    def repro(*options, killed=False):
        Path("killed").touch() if killed else Path("killed").unlink(missing_ok=True)
        done = subprocess.run(
            [*dvc, "repro", *options], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert (done.returncode == 0) is not killed, done.stdout + done.stderr
        return len(Path("sampled").read_text().splitlines())

    return repro


def test_a_run_that_is_killed_before_dvc_has_saved_its_result_finishes_at_once(sampling):
    assert sampling(killed=True) == 1
    read_manifest(OUT, "clip_set")
    assert sampling() == 1
    read_manifest(OUT, "clip_set", verify=True)
    assert Path("metrics/r1.json").is_file()


def test_a_disk_that_is_full_after_publishing_costs_the_metrics_file_alone(sampling):
    Path("full").touch()
    assert sampling(killed=True) == 1
    Path("full").unlink()
    assert sampling() == 1


@pytest.mark.ci
def test_a_result_that_dvc_has_saved_is_made_again_where_that_is_asked_for(sampling):
    assert sampling() == 1
    assert sampling() == 1
    assert sampling("--force") == 2
    Path("steps").write_text("13")
    assert sampling() == 3
    Path("steps").write_text("12")  # DVC has it
    assert sampling() == 3


@pytest.mark.ci
def test_hours_of_finished_work_that_dvc_has_not_saved_are_kept_from_a_run_that_differs(sampling):
    sampling(killed=True)
    (kept,) = Path(".state/generate-runs-r1-samples").glob("*.seconds")
    kept.write_text("9000")
    Path("steps").write_text("13")
    assert sampling(killed=True) == 1
    Path("steps").write_text("12")
    assert sampling() == 1


def test_finished_work_that_dvc_has_of_another_branch_stops_nothing(sampling):
    sampling()
    (kept,) = Path(".state/generate-runs-r1-samples").glob("*.seconds")
    kept.write_text("9000")
    Path("dvc.lock").unlink()  # that of a branch on which the stage never ran
    Path("steps").write_text("13")
    assert sampling() == 2
    assert len(list(Path(".state/generate-runs-r1-samples").glob("*.finished"))) == 1


def test_another_stage_deletes_finished_work_that_dvc_has_saved(sampling, start):
    sampling()
    home = Path(".state/generate-runs-r1-samples")
    assert len(left_in(home)) > 1
    with start(out=Path("runs/r2/samples")):
        assert left_in(home) == ["lock"]


def test_a_lock_file_that_came_by_git_does_not_count_as_saved(sampling):
    sampling()
    digest = manifest_hash(OUT)
    (listing,) = (path for path in Path(".dvc/cache/files/md5").glob("??/*.dir"))
    listing.unlink()
    assert not in_lock(OUT.as_posix(), digest)
    shutil.rmtree(".dvc/cache")  # as in a fresh clone
    assert not in_lock(OUT.as_posix(), digest)


def test_a_cache_elsewhere_is_found(sampling):
    Path(".dvc/config.local").write_text("[cache]\n    type = copy\n    dir = ../elsewhere\n")
    sampling()
    digest = manifest_hash(OUT)
    assert Path("elsewhere/files/md5").is_dir()
    assert in_cache(digest) and in_lock(OUT.as_posix(), digest)
    other = "0" * 32
    assert not in_cache(other) and not in_lock(OUT.as_posix(), other) and not in_lock("runs/r2/samples", digest)


def test_a_cache_that_the_users_config_names_is_found(sampling, tmp_path, monkeypatch):
    (tmp_path / "config").write_text(f"[cache]\n    dir = {tmp_path / 'large disk'}\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    sampling()
    assert (tmp_path / "large disk/files/md5").is_dir()
    assert in_lock(OUT.as_posix(), manifest_hash(OUT))


# Processes

HOLDS = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from pipeline.state import stage_state
    with stage_state("generate", Path("runs/r1/samples"), ("steps", 12), [Path("input")]) as work:
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


@pytest.mark.parametrize("how", ["", "nohup", "setsid"])
def test_a_stage_that_a_person_started_outlives_the_shell(start, how):
    shell = run(["sh", "-c", f'{how} "{sys.executable}" -c "$0" & wait', HOLDS])
    pid = stage_pid()
    try:
        shell.kill()
        shell.wait()
        time.sleep(3 * POLL)
        assert running(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_process_of_torchrun_ends_with_its_launcher(start, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    launcher = run(["sh", "-c", f'"{sys.executable}" -c "$0"; true', HOLDS])
    pid = stage_pid()

    launcher.kill()
    launcher.wait()

    assert wait_for(lambda: not running(pid), SECONDS)


def test_a_stage_whose_dvc_is_gone_before_it_looked_does_not_begin(start, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "generate@r1")
    Path("late.py").write_text(f"import time\ntime.sleep(0.5)  # until its shell has ended\n{HOLDS}")
    run(["sh", "-c", f'"{sys.executable}" late.py &']).wait()
    assert not wait_for(Path("pid").exists, 4)


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
