"""Labels of windows: what a source is shown of them, and what is kept."""

import numpy as np
import pytest
import torch

from data.dense import open_window_labels
from data.labels import open_labels, read_labels, read_verdicts
from data.manifest import read_manifest
from data.records import Sample
from data.store import ClipSet, ClipSetWriter, encode_clips
from feedback.core import kept
from feedback.core.kinds import make_source
from feedback.core.windows import label_windows, look_at_windows
from tabletop.captions import Claim, Thing, caption
from tabletop.render import render
from tabletop.scenes import make_scene
from tests.feedback.core.test_label import Brightness
from tests.support.conditions import blank_conditions

PUSH = Claim("push_right", (Thing("red", "ball"),))


def clip_set(folder, clips: list[np.ndarray], prompt: str) -> ClipSet:
    frames = np.stack(clips)
    count, height, width = frames.shape[1:4]
    samples = [
        Sample(f"c{place}", "p", prompt, "c", "train", "base", place, count, 8.0, height, width, f"videos/c{place}.mp4")
        for place in range(len(frames))
    ]
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(len(samples), 4, 3, 4, 4))
    writer.finish(blank_conditions(["p"]), {"set": "d1", "policy": "base"})
    return ClipSet.open(folder)


def test_a_source_sees_the_frames_of_a_window_alone(tmp_path):
    clip = np.zeros((9, 32, 32, 3), np.uint8)
    clip[5:] = 250  # the second window, frames 5 to 8
    clips = clip_set(tmp_path / "samples", [clip, 250 - clip], "a light")

    counts = label_windows(clips, source := Brightness(), 4, tmp_path / "work", tmp_path / "out", 8)

    labels = {label.sample_id: label.label for label in read_labels(tmp_path / "out")}
    assert labels == {"c0-w0": False, "c0-w1": True, "c1-w0": True, "c1-w1": False}
    assert {row.sample_id: len(row.frames) for row in read_verdicts(tmp_path / "out")} == {
        "c0-w0": 5, "c0-w1": 4, "c1-w0": 5, "c1-w1": 4,
    }  # fmt: skip
    assert counts.accepted == 2 and sorted(source.judged) == sorted(labels)
    assert read_manifest(tmp_path / "out", "labels")["facts"]["window"] == 4
    assert open_window_labels(tmp_path / "out", clips).by_id["c0-w1"].label is True
    with pytest.raises(ValueError, match="its labels are of windows of 4 frames, not of whole clips"):
        open_labels(tmp_path / "out", clips.folder, clips.samples)


def test_the_physics_check_reads_the_whole_clip_and_names_the_window_that_fails(tmp_path):
    frames = render(make_scene(PUSH, np.random.default_rng(0)))
    gone = frames.copy()
    gone[7] = gone[7, :1, :1]  # the wall's colour alone: nothing is there in frame 7
    still = np.repeat(frames[:1], 9, axis=0)
    clips = clip_set(tmp_path / "samples", [frames, gone, still], caption(PUSH))

    label_windows(clips, make_source("physics", {"kind": "physics"}), 4, tmp_path / "work", tmp_path / "out", 8)

    labels = {label.sample_id: (label.label, label.reason) for label in read_labels(tmp_path / "out")}
    assert labels["c0-w0"][0] is labels["c0-w1"][0] is True
    assert labels["c1-w0"] == (True, "nothing is wrong in this window; of the clip: no red thing in frame 7")
    assert labels["c1-w1"] == (False, "no red thing in frame 7; wrong in this window: frames 7")
    assert labels["c2-w0"][0] is labels["c2-w1"][0] is False  # it does not move: wrong as a whole


def test_two_windows_with_the_same_frames_of_different_clips_are_not_taken_for_each_other(tmp_path):
    """The hash under which a verdict is kept knows the clip that a window is of: physics reads that."""
    frames = render(make_scene(PUSH, np.random.default_rng(0)))
    gone = frames.copy()
    gone[7] = gone[7, :1, :1]
    hashes = []
    for name, clip in (("one", frames), ("other", gone)):
        clips = clip_set(tmp_path / name, [clip], caption(PUSH))
        source = make_source("physics", {"kind": "physics"})
        seen = []
        source.judge = lambda requests, seen=seen: iter(seen.extend(requests) or ())
        with pytest.raises(ValueError, match="left out"):
            label_windows(clips, source, 4, tmp_path / f"work-{name}", tmp_path / f"out-{name}", 8)
        hashes.append([kept._clip(request, source.rubric) for request in seen])
        assert (tmp_path / f"work-{name}/windows/c0-w0.mp4").is_file()

    assert hashes[0][0] != hashes[1][0]


def test_people_and_sources_that_compare_label_no_windows(tmp_path):
    clips = clip_set(tmp_path / "samples", [np.zeros((9, 32, 32, 3), np.uint8)], "a light")
    people = Brightness()
    people.raters = ["me"]
    with pytest.raises(ValueError, match="people rate whole clips"):
        label_windows(clips, people, 4, tmp_path / "work", tmp_path / "out", 8)
    with pytest.raises(ValueError, match="people rate whole clips"):
        look_at_windows(clips, people, 4, 1, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_a_look_cuts_and_judges_as_many_windows_as_are_wanted(tmp_path):
    clip = np.zeros((9, 32, 32, 3), np.uint8)
    clip[5:] = 250
    clips = clip_set(tmp_path / "samples", [clip, 250 - clip], "a light")

    looks = look_at_windows(clips, source := Brightness(), 4, 2, tmp_path / "cut")

    assert [(look.sample.file_name, look.label.label) for look in looks] == [
        ("videos/c0.mp4, frames 0 to 4", False),
        ("videos/c1.mp4, frames 0 to 4", True),
    ]  # of four windows the first and the third
    assert source.judged == ["c0-w0", "c1-w0"]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["c0-w0.mp4", "c1-w0.mp4"]
