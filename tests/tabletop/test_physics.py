"""The simulated world: captions, scenes, and the physics check that reads clips from their pixels."""

import csv
from pathlib import Path

import numpy as np
import pytest

from data.prompts import load_prompts
from data.video import read_video
from tabletop.captions import COLORS, KINDS, SHAPES, Claim, Thing, all_claims, caption, parse
from tabletop.physics import check
from tabletop.render import random_clip, render
from tabletop.scenes import BOTCHES, FRAMES, SIZE, make_scene

CLAIMS = all_claims()
BY_EYE = Path(__file__).parent / "by_eye"
SYMMETRIC = ("closer", "apart")


def clip(kind: str, seed: int = 0, botch: str | None = None) -> tuple[np.ndarray, Claim]:
    rng = np.random.default_rng(seed)
    claims = [claim for claim in CLAIMS if claim.kind == kind]
    claim = claims[int(rng.integers(len(claims)))]
    return render(make_scene(claim, rng, botch)), claim


def test_a_caption_is_parsed_back_into_its_claim():
    assert [parse(caption(claim)) for claim in CLAIMS] == CLAIMS


def test_words_outside_this_world_are_an_error():
    with pytest.raises(ValueError, match="no caption of the tabletop world"):
        parse("pushing purple cube from left to right")


def test_a_botch_that_the_kind_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="hover"):
        make_scene(Claim("lift", (Thing("red", "cube"),)), np.random.default_rng(0), "hover")


def test_physics_agrees_with_the_renderers_truth_on_99_percent():
    rng = np.random.default_rng(11)
    wrong = []
    for i in range(1200):
        claims = [claim for claim in CLAIMS if claim.kind == list(KINDS)[i % len(KINDS)]]
        claim = claims[int(rng.integers(len(claims)))]
        frames, botch = random_clip(claim, rng, botched=0.5)
        if check(frames, caption(claim)).ok != (botch is None):
            wrong.append((claim.kind, botch))
    assert len(wrong) <= 12, wrong


@pytest.mark.parametrize(("kind", "botch"), [(kind, botch) for kind in KINDS for botch in BOTCHES[kind]])
def test_every_way_to_botch_is_rejected_with_a_reason(kind, botch):
    verdicts = [check(*_named(clip(kind, seed, botch))) for seed in range(6)]
    assert sum(not verdict.ok for verdict in verdicts) >= 4
    assert all(verdict.reason for verdict in verdicts)


def _named(pair: tuple[np.ndarray, Claim]) -> tuple[np.ndarray, str]:
    return pair[0], caption(pair[1])


@pytest.mark.parametrize("kind", KINDS)
def test_reversing_an_accepted_clip_flips_the_verdict(kind):
    frames, text = _named(clip(kind))
    assert check(frames, text).ok
    assert not check(frames[::-1].copy(), text).ok


@pytest.mark.parametrize("kind", KINDS)
def test_recolouring_flips_the_verdict(kind):
    """Red, green and blue swap places; what was claimed in one colour now happens in another."""
    frames, text = _named(clip(kind, seed=_seed_without_yellow(kind)))
    assert check(frames, text).ok
    assert not check(frames[..., [1, 2, 0]], text).ok


def _seed_without_yellow(kind: str) -> int:
    return next(seed for seed in range(50) if all(thing.color != "yellow" for thing in clip(kind, seed)[1].things))


@pytest.mark.parametrize("kind", KINDS)
def test_deleting_the_thing_half_way_flips_the_verdict(kind):
    """From the middle on, the claimed things' colours are painted over with the wall."""
    frames, claim = clip(kind)
    empty, _ = clip(kind, botch="empty")
    assert check(frames, caption(claim)).ok
    assert not check(np.concatenate([frames[:5], empty[5:]]), caption(claim)).ok


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_fulfils_its_own_caption_and_no_other(kind):
    frames, claim = clip(kind, seed=3)
    accepted = [other for other in CLAIMS if check(frames, caption(other)).ok]
    assert claim in accepted
    for other in accepted:
        assert other.kind == claim.kind and set(other.things) == set(claim.things), (claim, other)
        assert other == claim or claim.kind in SYMMETRIC


@pytest.mark.parametrize("shape", SHAPES)
def test_physics_tells_shapes_apart_as_well_as_colours(shape):
    frames = render(make_scene(Claim("lift", (Thing("green", shape),)), np.random.default_rng(4)))
    verdicts = {s: check(frames, f"lifting green {s} up").ok for s in SHAPES}
    assert verdicts == {s: s == shape for s in SHAPES}


@pytest.mark.parametrize(("batch", "least", "kappa"), [("first", 0.87, 0.74), ("fresh", 0.84, 0.67)])
def test_physics_agrees_with_labels_made_by_eye_on_generated_clips(batch, least, kappa):
    with (BY_EYE / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["batch"] == batch]
    clips = read_video(BY_EYE / "clips.mp4").reshape(-1, FRAMES, SIZE, SIZE, 3)
    eye = np.array([row["by_eye"] == "accept" for row in rows])
    physics = np.array([check(clips[int(row["place"])], row["prompt"]).ok for row in rows])
    agreement = (eye == physics).mean()
    chance = eye.mean() * physics.mean() + (1 - eye.mean()) * (1 - physics.mean())
    assert agreement >= least
    assert (agreement - chance) / (1 - chance) >= kappa


def test_frames_of_another_size_are_an_error():
    with pytest.raises(ValueError, match="32, 32"):
        check(np.zeros((9, 64, 64, 3), np.uint8), "lifting red cube up")


def test_the_prompt_set_covers_all_categories_and_its_splits_share_no_prompt():
    prompts = load_prompts("configs/prompt_sets/tabletop.csv")
    assert len(prompts) >= 40
    for prompt in prompts:
        assert parse(prompt.prompt).category == prompt.category
    train, test = ({parse(p.prompt) for p in prompts if p.split == split} for split in ("train", "test"))
    events = [{(claim.kind, frozenset(claim.things)) for claim in part} for part in (train, test)]
    assert not events[0] & events[1]
    assert (
        {claim.category for claim in train} == {claim.category for claim in test} == {c for c, _, _ in KINDS.values()}
    )
    assert {thing.color for claim in train for thing in claim.things} == set(COLORS)
