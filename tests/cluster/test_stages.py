"""Clip sets and labels by the workers of a cluster, with a node killed and another joined: the bytes of one process."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.pool import Here, pool_of
from data.manifest import MANIFEST
from data.prompts import load_prompts
from data.store import ClipSet
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set
from feedback.core.pooled import Workers
from feedback.pairs.label import compare_clip_set
from generators.core.rollout import ClipSetName, Sampling, generate_checkpoint_set, generate_clip_set, load_policy
from generators.core.size import VideoSize
from tests.support.defaults import default_params

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
    assert "the node is gone" in caplog.text and "clips r1-" in caplog.text


def test_a_head_that_stops_goes_on_at_the_first_missing_unit(clips, policy, loopback, tmp_path, caplog):
    def stop():
        raise KeyboardInterrupt

    caplog.set_level("INFO")
    with pytest.raises(KeyboardInterrupt):
        generate(Disturbed(pool_of("ray", "auto", "cpu"), {5: stop}), policy, tmp_path)
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


def block(name: str) -> dict[str, Any]:
    return PARAMS["feedback"]["sources"][name] | {"batch_size": 2}


def label(clips: ClipSet, home: Path, name: str, given: dict[str, Any], pool=None) -> Path:
    """pool: None for a judge in this process."""
    source = make_source(name, given, "cpu", pool and Workers(pool, "cpu", TOGETHER))
    label_clip_set(clips, source, home / "work", home / "out", TOGETHER)
    return home / "out"


def test_labels_are_those_of_one_process_with_a_node_killed_and_after_a_kill(clips, loopback, tmp_path):
    one = label(clips, tmp_path / "one", "judge", block("judge"))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(clips, tmp_path / "two", "judge", block("judge"), Disturbed(pool_of("ray", "auto", "cpu"), {4: stop}))
    assert len(list((tmp_path / "two/work").glob("verdicts-*.parquet"))) == 2
    events = {2: loopback.kill, 3: loopback.join}
    two = label(clips, tmp_path / "two", "judge", block("judge"), Disturbed(pool_of("ray", "auto", "cpu"), events))
    assert manifest(one) == manifest(two)


def test_a_panel_with_members_here_and_there_and_an_unreadable_clip_is_that_of_one_process(clips, loopback, tmp_path):
    """Metric of several, a judge, and the world's own check, which has no model and stays in this process."""
    flow = {"kind": "clip", "path": PARAMS["feedback"]["sources"].get("clip", {}).get("path", "models/tabletop/clip")}
    members = {"judge": block("judge"), "clip": flow | {"batch_size": 2}, "physics": {"kind": "physics"}}
    panel = {"kind": "panel", "rule": "majority", "members": members}
    video = clips.video(clips.samples[5])
    whole = video.read_bytes()
    video.write_bytes(b"\0" * len(whole))
    try:
        one = label(clips, tmp_path / "one", "panel", panel)
        two = label(clips, tmp_path / "two", "panel", panel, pool_of("ray", "auto", "cpu"))
    finally:
        video.write_bytes(whole)
    assert manifest(one) == manifest(two)
    assert json.loads(manifest(one))["facts"]["unlabelled"] >= 0


def test_comparisons_are_those_of_one_process(clips, loopback, tmp_path):
    for name, pool in (("one", None), ("two", pool_of("ray", "auto", "cpu"))):
        source = make_source("pairs", block("pairs"), "cpu", pool and Workers(pool, "cpu", TOGETHER))
        compare_clip_set(clips, source, tmp_path / name / "work", tmp_path / name / "out", 1, TOGETHER)
    assert manifest(tmp_path / "one/out") == manifest(tmp_path / "two/out")
