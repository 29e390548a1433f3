"""The simulated world: captions, scenes, and the physics check that reads clips from their pixels."""

import csv
from pathlib import Path

import numpy as np
import pytest

from data.prompts import load_prompts
from data.video import read_video
from tabletop.captions import COLORS, KINDS, SHAPES, Claim, Thing, all_claims, caption, parse
from tabletop.physics import Check, check, check_claim, failing_frames, find_blobs
from tabletop.questions import in_words
from tabletop.render import render
from tabletop.scenes import BOTCHES, FRAMES, SIZE, make_scene

CLAIMS = all_claims()
BY_EYE = Path(__file__).parent / "by_eye"
SYMMETRIC = ("closer", "apart")
REASONS = [  # of the clip of seed 0, as physics writes them into labels, and in the words that the judges learn
    ("push_right", "static", "moves 0 units in the wanted direction, 15 would do", "stops too soon"),
    ("push_right", "reverse", "moves -25 units in the wanted direction, 15 would do", "moves the wrong way"),
    ("push_right", "teleport", "the blue thing jumps by 27 units", "jumps"),
    ("push_right", "vanish", "no blue thing in frame 5", "vanishes"),
    ("push_right", "wrong_shape", "not a ball throughout: a cone", "wrong shape cone"),
    ("push_right", "sink", "it does not stay on the table", "wrong place"),
    ("push_right", "duplicate", "two blue things in frame 3", "two of them"),
    ("push_right", "stray", "a yellow thing comes or goes", "something else appears"),
    ("lift", "static", "rises 0 units, 14 would do", "stops too soon"),
    ("lift", "reverse", "does not start on the table", "wrong place"),
    ("fall", "static", "does not fall below the table", "wrong place"),
    ("drop", "static", "does not end on the table", "wrong place"),
    ("drop", "reverse", "does not start in the air", "wrong place"),
    ("closer", "static", "their distance changes by 0 units in the wanted direction, 9 would do", "stops too soon"),
    ("closer", "sink", "they do not stay on the table", "wrong place"),
    ("take_out", "static", "no blue thing anywhere", "nothing there"),
    ("take_out", "reverse", "the blue thing vanishes", "vanishes"),
    ("take_out", "partial", "the ball is never wholly visible", "wrong place"),
    ("take_out", "teleport", "changes by 22 units at once", "jumps"),
    ("fold", "static", "its width changes by a factor 1.00 in the wanted direction, 1.45 would do", "stops too soon"),
    ("squeeze", "static", "is not squeezed", "stops too soon"),
    ("squeeze", "reverse", "not a tall sponge at first", "wrong place"),
]


def clip(kind: str, seed: int = 0, botch: str | None = None) -> tuple[np.ndarray, Claim]:
    rng = np.random.default_rng(seed)
    claims = [claim for claim in CLAIMS if claim.kind == kind]
    claim = claims[int(rng.integers(len(claims)))]
    return render(make_scene(claim, rng, botch)), claim


def verdict(kind: str, seed: int, botch: str | None = None) -> Check:
    frames, claim = clip(kind, seed, botch)
    return check(frames, caption(claim))


@pytest.fixture(scope="module")
def honest() -> dict[str, tuple[np.ndarray, Claim]]:
    """A clip of each kind of event that shows what its caption says."""
    return {kind: clip(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def botched() -> dict[tuple[str, str], list[Check]]:
    """Verdicts on six clips of each way to botch each kind of event."""
    return {
        (kind, botch): [verdict(kind, seed, botch) for seed in range(6)] for kind in KINDS for botch in BOTCHES[kind]
    }


def test_a_caption_is_parsed_back_into_its_claim():
    assert [parse(caption(claim)) for claim in CLAIMS] == CLAIMS


def test_words_outside_this_world_are_an_error():
    with pytest.raises(ValueError, match="no caption of the tabletop world"):
        parse("pushing purple cube from left to right")


def test_a_botch_that_the_kind_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="hover"):
        make_scene(Claim("lift", (Thing("red", "cube"),)), np.random.default_rng(0), "hover")


def test_each_way_to_botch_is_rejected_in_at_least_four_of_six_clips(botched):
    rejected = {key: sum(not one.ok for one in verdicts) for key, verdicts in botched.items()}
    assert {key: count for key, count in rejected.items() if count < 4} == {}


def test_physics_agrees_with_the_renderers_truth_on_99_percent_of_honest_and_of_botched_clips(botched):
    wrong = [key for key, verdicts in botched.items() for one in verdicts if one.ok]
    assert len(wrong) <= 0.01 * 6 * len(botched), wrong
    refused = [(kind, seed) for kind in KINDS for seed in range(100, 120) if not verdict(kind, seed).ok]
    assert len(refused) <= 0.01 * 20 * len(KINDS), refused


def test_a_reason_has_the_words_that_labels_and_lessons_hold(botched):
    found = [(kind, botch, botched[kind, botch][0]) for kind, botch, *_ in REASONS]
    assert [(kind, botch, one.reason, in_words(one.failure)) for kind, botch, one in found] == REASONS
    assert verdict("lift", 0).reason == "the event happened as described"


def test_reversing_an_accepted_clip_flips_the_verdict(honest):
    for kind, (frames, claim) in honest.items():
        assert check(frames, caption(claim)).ok, kind
        assert not check(frames[::-1].copy(), caption(claim)).ok, kind


def test_recolouring_flips_the_verdict():
    """Red, green and blue swap places, so that the claimed event happens in another colour."""
    for kind in KINDS:
        clips = (clip(kind, seed) for seed in range(50))
        frames, claim = next(one for one in clips if all(thing.color != "yellow" for thing in one[1].things))
        assert check(frames, caption(claim)).ok, kind
        assert not check(frames[..., [1, 2, 0]], caption(claim)).ok, kind


def test_deleting_the_thing_half_way_flips_the_verdict(honest):
    """From the middle on, the claimed things are gone."""
    for kind, (frames, claim) in honest.items():
        empty, _ = clip(kind, botch="empty")
        assert not check(np.concatenate([frames[:5], empty[5:]]), caption(claim)).ok, kind


def test_a_clip_shows_its_own_caption_and_no_other():
    for kind in KINDS:
        frames, claim = clip(kind, seed=3)
        blobs = find_blobs(frames)
        accepted = {other for other in CLAIMS if check_claim(frames, other, blobs).ok}
        assert accepted == ({one for one in CLAIMS if one.event == claim.event} if kind in SYMMETRIC else {claim})


def test_physics_tells_shapes_apart_as_well_as_colours():
    for shape in SHAPES:
        frames = render(make_scene(Claim("lift", (Thing("green", shape),)), np.random.default_rng(4)))
        assert [other for other in SHAPES if check(frames, f"lifting green {other} up").ok] == [shape]


def test_physics_agrees_with_labels_made_by_eye_on_generated_clips():
    clips = read_video(BY_EYE / "clips.mp4").reshape(-1, FRAMES, SIZE, SIZE, 3)
    with (BY_EYE / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for batch, least, kappa in (("first", 0.87, 0.74), ("fresh", 0.84, 0.67)):
        of_batch = [row for row in rows if row["batch"] == batch]
        eye = np.array([row["by_eye"] == "accept" for row in of_batch])
        physics = np.array([check(clips[int(row["place"])], row["prompt"]).ok for row in of_batch])
        agreement = (eye == physics).mean()
        chance = eye.mean() * physics.mean() + (1 - eye.mean()) * (1 - physics.mean())
        assert agreement >= least, batch
        assert (agreement - chance) / (1 - chance) >= kappa, batch


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


def test_the_frames_that_fail_are_those_of_the_reason_and_all_where_it_names_none():
    frames, claim = clip("push_right")
    text = caption(claim)
    assert failing_frames(frames, text) == frozenset()
    for botch, wanted in (("vanish", "no blue thing in frame 5"), ("duplicate", "two blue things in frame 3")):
        botched, _ = clip("push_right", botch=botch)
        assert check(botched, text).reason == wanted
        assert min(failing_frames(botched, text)) == int(wanted[-1]) and len(failing_frames(botched, text)) < FRAMES
    jumping, _ = clip("push_right", botch="teleport")
    assert 0 < len(failing_frames(jumping, text)) <= 2  # away, and back
    still, _ = clip("push_right", botch="static")
    assert failing_frames(still, text) == frozenset(range(FRAMES))


def test_a_clip_has_failing_frames_where_the_check_fails_and_only_there():
    for kind in KINDS:
        for botch in (None, *BOTCHES[kind]):
            frames, claim = clip(kind, 1, botch)
            assert bool(failing_frames(frames, caption(claim))) is not check(frames, caption(claim)).ok, (kind, botch)
