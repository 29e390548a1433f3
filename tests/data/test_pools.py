"""Clip sets that are trained on together."""

import logging
from pathlib import Path

import pytest

from data.manifest import StoreError, read_manifest
from data.pools import check_alike, open_clip_sets, origin_of, write_pool
from data.store import ClipSet
from tests.support.training import write_clip_set

SHARED = {"family": "wan", "size": [5, 16, 16]}


@pytest.fixture
def round_of(tmp_path):
    """Writes runs/<name>/samples, of a policy, with these further facts; returns its folder."""

    def write(name: str, policy: str = "base", **facts) -> Path:
        folder = tmp_path / "runs" / name / "samples"
        write_clip_set(folder, prefix=f"{name}-", facts={"set": name, "policy": policy, **SHARED, **facts})
        return folder

    return write


def pool(folders, out: Path) -> Path:
    write_pool(out, folders, out)
    return out


def names(clip_sets: list[ClipSet]) -> list[str]:
    return [clip_set.manifest["facts"]["set"] for clip_set in clip_sets]


def test_a_pool_names_its_clip_sets_and_copies_no_clip(round_of, tmp_path):
    r1, r1b = round_of("r1"), round_of("r1b")
    both = pool([r1, r1b], tmp_path / "runs/both/samples")

    assert [path.name for path in both.iterdir()] == ["manifest.json"]
    assert read_manifest(both, "clip_sets")["facts"]["rounds"] == [
        {"round": name, "policy": "base", "folder": f"../../{name}/samples", "clip_set": ClipSet.open(of).fingerprint()}
        for name, of in (("r1", r1), ("r1b", r1b))
    ]
    assert [clip_set.folder for clip_set in open_clip_sets(both)] == [r1, r1b]


def test_a_round_is_a_clip_set_by_itself(round_of):
    (alone,) = open_clip_sets(folder := round_of("r1"))
    assert (alone.folder, alone.manifest) == (folder, ClipSet.open(folder).manifest)


def test_a_pool_of_a_pool_has_the_rounds_of_both_in_order(round_of, tmp_path):
    both = pool([round_of("r1"), round_of("r1b")], tmp_path / "runs/both/samples")
    every = pool([both, round_of("r2", "rwr1")], tmp_path / "runs/all/samples")
    assert names(open_clip_sets(every)) == ["r1", "r1b", "r2"]


def test_a_round_is_in_a_pool_once(round_of, tmp_path):
    r1 = round_of("r1")
    both = pool([r1, round_of("r1b")], tmp_path / "runs/both/samples")
    with pytest.raises(ValueError, match="all/samples: r1 is in it twice, by .*both/samples and .*r1/samples"):
        pool([both, r1], tmp_path / "runs/all/samples")


def test_a_round_that_was_sampled_again_makes_its_pool_stale(round_of, tmp_path):
    both = pool([round_of("r1"), round_of("r1b")], tmp_path / "runs/both/samples")
    (tmp_path / "runs/r1b/samples/manifest.json").unlink()
    round_of("r1b", guidance=2.0)
    with pytest.raises(StoreError, match="r1b/samples: sampled again since .*both/samples was made"):
        open_clip_sets(both)


def test_sets_that_differ_in_what_they_must_share_are_named_both(round_of, tmp_path):
    first = round_of("r1", guidance=1.0)
    for name, facts, said in (
        ("family", {"family": "ltx"}, "family is wan and ltx"),
        ("size", {"size": [9, 16, 16]}, r"size is \[5, 16, 16\] and \[9, 16, 16\]"),
        ("guided", {"embedded_guidance": 6.0}, "embedded_guidance is None and 6.0"),
    ):
        other = round_of(name, **facts)
        with pytest.raises(ValueError, match=f"r1/samples and .*{name}/samples cannot be trained on together: {said}"):
            pool([first, other], tmp_path / "pool")
    check_alike([ClipSet.open(first), ClipSet.open(round_of("other", guidance=5.0))])  # sampling may differ


def test_the_origin_of_one_round_of_the_start_says_nothing_new(round_of, caplog):
    assert origin_of([ClipSet.open(round_of("r1"))], "base") == {}
    assert caplog.text == ""


def test_the_origin_lists_rounds_and_warns_of_those_that_another_policy_sampled(round_of, caplog):
    clip_sets = [ClipSet.open(round_of("r1")), ClipSet.open(round_of("r2", "rwr1"))]
    listed = [{"round": "r1", "policy": "base"}, {"round": "r2", "policy": "rwr1"}]
    with caplog.at_level(logging.WARNING):
        assert origin_of(clip_sets, "rwr1") == {"rounds": listed}
    warned = "the clips of r1 are off-policy: base sampled them, and training starts from rwr1"
    assert [record.getMessage() for record in caplog.records] == [warned]
    assert origin_of(clip_sets[:1], "rwr1") == {"rounds": listed[:1]}
