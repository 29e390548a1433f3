"""A stage's lock: who is told to wait, and whose work is taken over, on one host and between two."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.identity import ROOT
from pipeline.lock import HeldError, Holder, hold, holder_of, is_running, ours

WHAT = "generate-runs-r1-samples"
ELSEWHERE = Holder(4711, "node7", "the boot of node7")


@pytest.fixture
def lock(tmp_path, monkeypatch) -> Path:
    """The file of a lock, on a disk whose beats are short."""
    monkeypatch.setattr("pipeline.lock.BEAT", 0.02)
    monkeypatch.setattr("pipeline.lock.LOOK", 0.02)
    monkeypatch.setattr("pipeline.lock.SILENT", 500)
    return tmp_path / "lock"


def write(lock: Path, holder: Holder) -> None:
    lock.write_text(json.dumps(asdict(holder)))


class Beating(threading.Thread):
    """A run of another host that touches its lock, and after some touches ends by itself, if it is told to."""

    def __init__(self, lock: Path, touches: int | None = None) -> None:
        super().__init__(daemon=True)
        self.lock, self.touches, self.stopped = lock, touches, threading.Event()

    def run(self) -> None:
        count = 0
        while not self.stopped.wait(0.05):
            count += 1
            if count == self.touches:
                self.lock.write_text("")
                return
            os.utime(self.lock)


def test_the_file_says_who_runs_and_after_a_clean_end_nobody(lock):
    with hold(lock, WHAT):
        assert holder_of(lock) == ours()
        assert is_running(lock)
    assert lock.read_text() == "" and holder_of(lock) is None and not is_running(lock)
    with pytest.raises(ZeroDivisionError), hold(lock, WHAT):
        raise ZeroDivisionError
    assert holder_of(lock) is None


def test_a_second_run_on_this_host_is_told_the_pid(lock):
    with hold(lock, WHAT), pytest.raises(HeldError, match=f"^{WHAT} is already running, pid {os.getpid()}$"):
        hold(lock, WHAT).__enter__()


def test_a_lock_that_reaches_other_hosts_names_the_host(lock):
    write(lock, ELSEWHERE)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HeldError, match="already running on host node7, pid 4711. Wait for it; or end it there"):
            hold(lock, WHAT).__enter__()


def test_a_run_of_this_host_that_was_killed_is_followed_at_once(lock, monkeypatch):
    monkeypatch.setattr("pipeline.lock.LOOK", 3600.0)
    write(lock, replace(ours(), pid=4711))
    with hold(lock, WHAT):
        assert holder_of(lock) == ours()


def test_a_run_of_another_host_that_touches_its_lock_is_never_taken_for_dead(lock):
    write(lock, ELSEWHERE)
    beating = Beating(lock)
    beating.start()
    with pytest.raises(HeldError, match="already running on host node7, pid 4711"), hold(lock, WHAT):
        pass
    beating.stopped.set()
    beating.join()
    assert holder_of(lock) == ELSEWHERE


def test_clocks_of_two_hosts_need_not_agree(lock):
    write(lock, ELSEWHERE)
    a_day_ago = time.time() - 86400
    os.utime(lock, (a_day_ago, a_day_ago))
    timer = threading.Timer(0.1, os.utime, (lock, (a_day_ago + 5, a_day_ago + 5)))
    timer.start()
    with pytest.raises(HeldError, match="host node7"), hold(lock, WHAT):
        pass
    timer.join()


def test_a_run_of_another_host_that_gives_no_sign_is_followed(lock, caplog, monkeypatch):
    monkeypatch.setattr("pipeline.lock.SILENT", 5)
    write(lock, ELSEWHERE)
    with hold(lock, WHAT):
        assert holder_of(lock) == ours()
    assert "host node7 gave no sign of its run; this one goes on with its work" in caplog.text


def test_a_run_of_another_host_that_ends_meanwhile_is_followed(lock):
    write(lock, ELSEWHERE)
    beating = Beating(lock, touches=1)
    beating.start()
    with hold(lock, WHAT):
        assert holder_of(lock) == ours()


def test_a_record_of_older_code_or_half_a_record_stops_nothing(lock):
    for text in ("4711", '{"pid": 47', '{"pid": 4711}', "null"):
        lock.write_text(text)
        assert not is_running(lock)
        with hold(lock, WHAT):
            assert holder_of(lock) == ours(), text


def test_a_disk_without_locks_is_refused(lock, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("pipeline.lock.fcntl.flock", refuse)
    with pytest.raises(HeldError, match=r"the disk has no locks \(No locks available\).*Lustre: flock"):
        hold(lock, WHAT).__enter__()


def test_a_run_that_was_taken_for_dead_ends_and_leaves_the_record_of_its_follower(lock):
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        import pipeline.lock
        pipeline.lock.BEAT = 0.05
        with pipeline.lock.hold(Path(sys.argv[1]), "train"):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    write(lock, ELSEWHERE)
    _, said = process.communicate(timeout=50)

    assert process.returncode == 1
    assert "train was taken over" in said and "host='node7'" in said
    assert holder_of(lock) == ELSEWHERE
