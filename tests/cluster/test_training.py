"""Training by Ray Train on loopback nodes: the bytes of torchrun, whoever is lost on the way; errors as they are."""

import re
import socket
import time
from pathlib import Path

import pytest
import torch

from cluster import training
from cluster.nodes import LostError, RefusedError
from cluster.training import Size, together
from data.manifest import MANIFEST
from data.policies import read_log
from data.store import ClipSet
from tests.support.bodies import die, give_way_once, refuse
from tests.support.children import start
from tests.support.ray_cluster import GONE
from tests.support.training import run_slowly, write_base, write_clip_set

LONGEST = 120.0  # seconds to wait for what must happen
CHANGES = {"steps": 12, "checkpoint_every": 2, "batch_size": 4}
cluster = pytest.mark.cluster


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    return write_clip_set(tmp_path_factory.mktemp("clips") / "samples")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("policies") / "base")


@pytest.fixture(scope="module")
def torchrun(tiny_wan, clips, base, tmp_path_factory) -> Path:
    """A policy of two processes of this machine."""
    home = tmp_path_factory.mktemp("torchrun")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    given = (tiny_wan, clips.folder, base, home, CHANGES, 0.0)
    children = [start(run_slowly, *given, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    return home / "out"


@pytest.fixture
def by_ray(tiny_wan, clips, base, tmp_path):
    def started(processes: str, pause: float):
        """A run in the background, in tmp_path."""
        given = (tiny_wan, clips.folder, base, tmp_path, CHANGES, pause)
        return training._in_background(lambda: together(run_slowly, given, processes, "cpu", tmp_path / "work"))

    return started


def wait_until(condition, what: str) -> None:
    until = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {LONGEST:g} s"
        time.sleep(0.05)


def steps_done(home: Path) -> int:
    log = read_log(home / "work/policy")
    return log[-1]["step"] if log else 0


def manifest(folder: Path) -> str:
    return (folder / MANIFEST).read_text()


def test_how_many_processes_may_be_asked_for():
    for given, accelerators, wanted in (
        ("auto", 8, Size(8, 8)), ("auto", 0, Size(1, 1)), ("4", 8, Size(4, 4)), ("4-16", 8, Size(4, 16)),
    ):  # fmt: skip
        assert Size.of(given, accelerators) == wanted, given
    for wrong in ("0", "4-", "-4", "16-4", "many", "0-2", ""):
        with pytest.raises(ValueError, match=f"processes: '{wrong}' is neither auto, a number above 0, nor a range"):
            Size.of(wrong, 8)


@cluster
def test_two_processes_of_a_cluster_make_the_bytes_of_torchrun(torchrun, by_ray, loopback, tmp_path, caplog):
    caplog.set_level("INFO")
    by_ray("2", 0.0).result(LONGEST)
    assert manifest(tmp_path / "out") == manifest(torchrun)
    assert not (tmp_path / "work/ray").exists()
    assert "dpo: 12 steps with batches of 4; 0 are done" in caplog.text  # as the first process has logged


@cluster
def test_a_run_that_loses_a_node_goes_on_with_another_to_the_same_bytes(torchrun, by_ray, loopback, tmp_path, caplog):
    found = by_ray("2", 0.3)
    wait_until(lambda: steps_done(tmp_path) >= 3 or found.done(), "three steps")
    killed = loopback.kill()
    loopback.join()
    found.result(LONGEST)
    assert manifest(tmp_path / "out") == manifest(torchrun)
    assert f"node {killed} " in caplog.text and re.search(GONE, caplog.text)
    assert "all processes are started again, and go on from step-0000" in caplog.text


@cluster
def test_an_elastic_run_that_loses_a_node_ends_with_those_that_are_left(torchrun, by_ray, loopback, tmp_path, caplog):
    from safetensors.torch import load_file

    found = by_ray("1-2", 0.3)
    wait_until(lambda: steps_done(tmp_path) >= 3 or found.done(), "three steps")
    loopback.kill()
    found.result(LONGEST)
    one, two = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (tmp_path / "out", torchrun))
    assert all(torch.allclose(one[key], two[key], atol=1e-3) for key in one)
    assert [line["step"] for line in read_log(tmp_path / "out")] == list(range(1, 13))


@cluster
def test_an_error_of_ours_is_raised_once_as_it_is(loopback, tmp_path):
    with pytest.raises(ValueError, match=r"^train\.common\.steps: found 0$") as raised:
        together(refuse, (tmp_path,), "2", "cpu", tmp_path / "work")
    assert "in refuse" in str(raised.value.__cause__)
    assert sorted(path.name.split("-")[1] for path in tmp_path.glob("seen-*")) in (["0"], ["0", "1"], ["1"])


@cluster
@pytest.mark.slow
def test_a_superseded_process_is_started_again(loopback, tmp_path, caplog):
    assert together(give_way_once, (tmp_path,), "1", "cpu", tmp_path / "work") == "done"
    assert "SupersededError: another start holds the folder" in caplog.text
    assert "all processes are started again, and go on from the begin" in caplog.text


@cluster
@pytest.mark.slow
def test_a_run_whose_processes_die_again_and_again_stops(loopback, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training, "LOSSES", 2)
    with pytest.raises(LostError, match=r"2 groups of processes were lost one after the other.*node 127\.0\.0\."):
        together(die, (), "1", "cpu", tmp_path / "work")
    assert caplog.text.count("its process is gone") == 2


@cluster
def test_a_node_with_other_code_is_refused_by_its_name(loopback, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "code_hash", lambda: "0123456789abcdef")
    with pytest.raises(RefusedError, match=r"node 127\.0\.0\.\d+ \(.*has other code .* here 0123456789abcdef"):
        together(refuse, (tmp_path,), "2", "cpu", tmp_path / "work")
    assert not list(tmp_path.glob("seen-*"))
