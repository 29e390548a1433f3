"""Units on forks of this process: their results, their errors, and their end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from cluster import devices
from cluster.forks import Forks
from cluster.pool import Unit, pool_of

ROOT = Path(__file__).parents[2]


class Doubler:
    """Doubles tensors, says in which process, and obeys a few words."""

    def __init__(self):
        self.made_in = os.getpid()

    def work(self, data):
        if data == "fail":
            raise ValueError("this unit cannot be done")
        if data == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == "sleep":
            time.sleep(60)
        time.sleep(0.05)
        return {"twice": 2 * data, "pid": os.getpid(), "made_in": self.made_in, "threads": torch.get_num_threads()}


def units(*data):
    return [Unit(7 * number, f"unit {number}", value) for number, value in enumerate(data)]


def test_every_unit_is_done_once_by_this_process_or_by_forks_that_share_its_worker():
    done = list(Forks(2).run(Doubler, units(*(torch.full((2,), float(n)) for n in range(9)))))
    assert sorted(number for number, _ in done) == [7 * n for n in range(9)]
    for number, result in done:
        assert result["twice"].tolist() == [2.0 * (number // 7)] * 2
    assert {result["made_in"] for _, result in done} == {os.getpid()}
    assert done[0][1]["pid"] == os.getpid()
    forks = {result["pid"] for _, result in done} - {os.getpid()}
    assert len(forks) == 2
    assert {result["threads"] for _, result in done[1:]} == {1}


def test_one_worker_forks_nothing():
    done = list(Forks(1).run(Doubler, units(1, 2, 3)))
    assert [result["pid"] for _, result in done] == [os.getpid()] * 3


def test_as_many_forks_as_torch_leaves_cores_idle(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    threads = torch.get_num_threads()
    try:
        for used, wanted in ((1, 4), (2, 2), (4, 1)):
            torch.set_num_threads(used)
            done = list(Forks().run(Doubler, units(*range(1 + 3 * 4))))
            assert len({result["pid"] for _, result in done[1:]}) == wanted
    finally:
        torch.set_num_threads(threads)


def test_an_error_of_a_fork_is_raised_here_with_its_message():
    with pytest.raises(ValueError, match="this unit cannot be done"):
        list(Forks(2).run(Doubler, units(1, 2, "fail", 3)))


def test_a_fork_that_is_killed_is_an_error_that_says_what_helps():
    with pytest.raises(ChildProcessError, match=r"a worker was killed while unit .*STAGE_WORKERS=1"):
        list(Forks(2).run(Doubler, units(1, 2, "die", 3)))


def test_forks_end_with_their_parent(tmp_path):
    code = (
        "from tests.cluster.test_forks import *; print('begun', flush=True)\n"
        "list(Forks(2).run(Doubler, units(1, 'sleep', 'sleep')))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    deadline = time.monotonic() + 30
    while len(forks := psutil.Process(parent.pid).children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(forks) == 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(forks, timeout=5)
    assert not alive


def test_a_cpu_gets_forks_and_a_number_of_workers_is_theirs():
    for workers, wanted in (("auto", None), ("3", 3)):
        pool = pool_of("here", workers, "cpu")
        assert isinstance(pool, Forks)
        assert pool.workers == wanted


def test_small_models_get_one_thread_and_a_large_one_gives_the_cores_back(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "_loaded", 0)
    monkeypatch.setattr(devices, "THREADS", 2)
    before = torch.get_num_threads()
    try:
        devices.fit_threads([torch.nn.Linear(1000, 1000), "a tokenizer"])
        assert torch.get_num_threads() == 1
        devices.fit_threads([torch.nn.Linear(7000, 7000, device="meta")])  # of another device
        assert torch.get_num_threads() == 1
        devices.fit_threads([torch.nn.Embedding(49_000, 1000)])
        assert torch.get_num_threads() == 2  # 50 million with the first
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        devices.fit_threads([torch.nn.Embedding(49_000, 1000)])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
