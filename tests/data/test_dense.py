"""Pairs with one start, windows of frames, and the latent frames that lie in them."""

from dataclasses import replace

import pytest

from data.dense import latent_frames, pairs_of_starts, read_starts, window_frames, window_of_each, windows_of
from data.records import Sample, SharedStart
from data.store import ClipSet
from tests.support.training import write_clip_set

CLIP = Sample("clip", "p", "a cup", "c", "train", "base", 1, 9, 8.0, 32, 32, "videos/clip.mp4")


def named(prefix: str, prompts: int, clips: int) -> list[Sample]:
    return [
        replace(CLIP, sample_id=f"{prefix}{p}{clip}", prompt_id=f"p{p}")
        for p in range(prompts)
        for clip in range(clips)
    ]


def test_every_frame_is_in_one_window_and_the_first_window_has_a_frame_more():
    assert window_frames(9, 4) == [range(5), range(5, 9)]
    assert window_frames(8, 3) == [range(4), range(4, 7), range(7, 8)]
    assert window_frames(9, 20) == [range(9)]
    for count in range(1, 30):
        for length in range(1, 12):
            assert [frame for window in window_frames(count, length) for frame in window] == [*range(count)]
    assert [window.sample_id for window in windows_of(CLIP, 4)] == ["clip-w0", "clip-w1"]
    with pytest.raises(ValueError, match="window is 0, expected at least 1 frame"):
        window_frames(9, 0)


def test_latent_frames_are_of_one_frame_and_then_of_r_or_of_r_each():
    # the tabletop's VAE: 9 frames, 5 latent frames, r = 2
    assert latent_frames(9, 5) == [range(1), range(1, 3), range(3, 5), range(5, 7), range(7, 9)]
    assert latent_frames(81, 21)[:3] == [range(1), range(1, 5), range(5, 9)]  # Wan
    assert latent_frames(16, 16) == [range(place, place + 1) for place in range(16)]  # a VAE of single frames
    assert latent_frames(8, 4) == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    with pytest.raises(
        ValueError, match="22 latent frames are not of 81 frames in equal parts"
    ):  # padded CogVideoX 1.5
        latent_frames(81, 22)


def test_a_latent_frame_lies_in_one_window_or_the_length_is_refused():
    # windows 0-4 and 5-8, latent frames 0, 1-2, 3-4, 5-6, 7-8
    assert window_of_each(9, 4, 5) == [0, 0, 0, 1, 1]
    assert window_of_each(9, 2, 5) == [0, 0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"window is 3, so frames 3 to 4 of 9, .*; wanted is a multiple of 2"):
        window_of_each(9, 3, 5)


def test_each_pair_starts_from_another_clip_of_its_prompt():
    pairs = pairs_of_starts(named("r", 2, 3), named("d", 2, 4), 2)

    assert pairs == [
        SharedStart("p0", "r00", "d00", "d01"), SharedStart("p0", "r01", "d02", "d03"),
        SharedStart("p1", "r10", "d10", "d11"), SharedStart("p1", "r11", "d12", "d13"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="pairs_per_prompt is 2, but p0 has 1 clips to start from"):
        pairs_of_starts(named("r", 2, 1), named("d", 2, 4), 2)


def test_another_clip_set_has_no_starts(tmp_path):
    write_clip_set(tmp_path / "samples")
    with pytest.raises(ValueError, match="not a set of pairs with one start: it has no starts.parquet"):
        read_starts(ClipSet.open(tmp_path / "samples"))
