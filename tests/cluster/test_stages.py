"""Clip sets and labels by the workers of a cluster, with a node killed and another joined: the bytes of one process."""

import errno
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.pool import Here, pool_of
from data.labels import read_verdicts
from data.manifest import MANIFEST, StoreError
from data.prompts import load_prompts
from data.store import ClipSet
from feedback.core.audit import with_other_frames
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set
from feedback.core.pooled import Workers
from feedback.pairs.label import compare_clip_set
from generators.core.rollout import ClipSetName, Sampling, generate_checkpoint_set, generate_clip_set, load_policy
from generators.core.size import VideoSize
from tests.support.defaults import default_params
from tests.support.ray_cluster import GONE

pytestmark = pytest.mark.cluster
PARAMS = default_params()
SIZE = VideoSize(9, 32, 32, 8)
SAMPLING = Sampling(2, 1.5, "unipc", samples_per_prompt=6, batch_size=2, split="train", seed=1, prompts=4)
TOGETHER = 4  # clips that a worker judges at a time


class Disturbed:
    """A pool; something happens after some results."""

    def __init__(self, pool, events):
        self.pool, self.events, self.count = pool, events, 0

    def run(self, make, units) -> Iterator[tuple[int, Any]]:
        for result in self.pool.run(make, units):
            self.count += 1
            if self.count in self.events:
                self.events[self.count]()
            yield result

    def status(self):
        return self.pool.status()

    def release(self):
        self.pool.release()


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "policy.json").write_text("{}")
    return folder


def generate(pool, policy: Path, home: Path) -> ClipSet:
    load = partial(load_policy, PARAMS["generator"], SIZE, policy, "cpu")
    prompts = load_prompts(Path(PARAMS["prompts"]["path"]))
    called = ClipSetName("r1", "base")
    generate_clip_set(load, prompts, SIZE, SAMPLING, called, home / "work", home / "out", pool=pool)
    return ClipSet.open(home / "out")


@pytest.fixture(scope="module")
def clips(policy, tmp_path_factory) -> ClipSet:
    """24 clips of the shipped generator in 12 batches, by one process."""
    return generate(Here(), policy, tmp_path_factory.mktemp("one"))


def manifest(folder: Path) -> str:
    return (folder / MANIFEST).read_text()


def test_clips_are_those_of_one_process_with_a_node_killed_and_another_joined(
    clips, policy, loopback, tmp_path, caplog
):
    events = {4: loopback.kill, 6: loopback.join}  # the first result is the texts
    found = generate(Disturbed(pool_of("ray", "auto", "cpu"), events), policy, tmp_path)
    assert manifest(found.folder) == manifest(clips.folder)
    assert re.search(GONE, caplog.text)


def test_a_full_disk_is_named_and_the_next_run_goes_on(clips, policy, loopback, tmp_path, caplog, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill():
        monkeypatch.setattr(os, "fsync", full)

    caplog.set_level("INFO")
    with pytest.raises(StoreError, match=r"/work.*: not written: No space left on device"):
        generate(Disturbed(pool_of("ray", "auto", "cpu"), {5: fill}), policy, tmp_path)
    monkeypatch.undo()
    found = generate(pool_of("ray", "auto", "cpu"), policy, tmp_path)
    assert manifest(found.folder) == manifest(clips.folder)
    assert "24 clips by base, 18 of them now" in caplog.text


def test_clips_of_checkpoints_are_those_of_one_process(policy, loopback, tmp_path):
    loads = {name: partial(load_policy, PARAMS["generator"], SIZE, policy, "cpu") for name in ("step-1", "step-2")}
    prompts, called = load_prompts(Path(PARAMS["prompts"]["path"])), ClipSetName("select", "rwr1")
    sampling = Sampling(1, 1.0, "euler", samples_per_prompt=2, batch_size=2, split="train", seed=1, prompts=2)
    for name, pool in (("one", Here()), ("two", pool_of("ray", "2", "cpu"))):
        home = tmp_path / name
        generate_checkpoint_set(loads, prompts, SIZE, sampling, called, home / "work", home / "out", pool)
    assert manifest(tmp_path / "one/out") == manifest(tmp_path / "two/out")


@pytest.fixture(scope="module")
def workers(_cluster) -> Workers:
    """The same for all tests below, so that they load each judge once."""
    _cluster.settle(2)
    return Workers(pool_of("ray", "auto", "cpu"), "cpu", TOGETHER)


def block(name: str) -> dict[str, Any]:
    return PARAMS["feedback"]["sources"][name] | {"batch_size": 2}


def label(clips: ClipSet, home: Path, name: str, given: dict[str, Any], workers=None, events=None) -> Path:
    """workers: None for a judge in this process."""
    source = make_source(name, given, "cpu", workers)
    if events:
        source._workers = SimpleNamespace(pool=Disturbed(workers.pool, events), make=workers.make)
    label_clip_set(clips, source, home / "work", home / "out", TOGETHER)
    return home / "out"


def test_labels_are_those_of_one_process_with_a_node_killed_and_after_a_kill(clips, workers, loopback, tmp_path):
    one = label(clips, tmp_path / "one", "judge", block("judge"))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(clips, tmp_path / "two", "judge", block("judge"), workers, {3: stop})
    assert len(list((tmp_path / "two/work").glob("verdicts-*.parquet"))) == 2
    events = {1: loopback.kill, 2: loopback.join}
    two = label(clips, tmp_path / "two", "judge", block("judge"), workers, events)
    assert manifest(one) == manifest(two)


def test_a_panel_with_members_here_and_there_is_that_of_one_process(clips, workers, loopback, tmp_path):
    """A judge, a metric, and the world's own check, which has no model and stays in this process; a clip is torn."""
    clip = PARAMS["feedback"]["sources"]["clip"] | {"batch_size": 2}
    members = {"judge": block("judge"), "clip": clip, "physics": {"kind": "physics"}}
    panel = {"kind": "panel", "rule": "majority", "members": members}
    video = clips.video(clips.samples[5])
    whole = video.read_bytes()
    video.write_bytes(b"\0" * len(whole))
    try:
        one = label(clips, tmp_path / "one", "panel", panel)
        two = label(clips, tmp_path / "two", "panel", panel, workers)
    finally:
        video.write_bytes(whole)
    assert manifest(one) == manifest(two)
    torn = [row.error for row in read_verdicts(two) if row.sample_id == clips.samples[5].sample_id]
    assert len(torn) == 3 and all(str(video) in error for error in torn)


def test_comparisons_are_those_of_one_process(clips, workers, loopback, tmp_path):
    for name, there in (("one", None), ("two", workers)):
        source = make_source("pairs", block("pairs"), "cpu", there)
        compare_clip_set(clips, source, tmp_path / name / "work", tmp_path / name / "out", 1, TOGETHER)
    assert manifest(tmp_path / "one/out") == manifest(tmp_path / "two/out")


def test_a_source_with_another_number_of_frames_is_that_of_one_process(clips, workers, loopback, tmp_path):
    """As stage `audit` asks it."""
    for name, there in (("one", None), ("two", workers)):
        source = make_source("judge", block("judge"), "cpu", there)
        other = with_other_frames(source, False, clips.samples, 3)
        label_clip_set(clips, other, tmp_path / name / "work", tmp_path / name / "out", TOGETHER)
    assert manifest(tmp_path / "one/out") == manifest(tmp_path / "two/out")
