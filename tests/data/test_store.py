import errno
import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data import manifest
from data.first_frames import read_png
from data.manifest import MANIFEST, StoreError, publish, write_manifest
from data.records import Sample
from data.store import KIND, ClipSet, ClipSetWriter, PromptConditions, encode_clips
from tests.support.refusals import assert_refused

PROMPTS = {"lift": "lifting a cup", "push": "pushing a cup"}
TEXT = {name: torch.full((5, 3), float(i + 1)) for i, name in enumerate(PROMPTS)}
EMPTY = {"text": torch.zeros(5, 3)}
TOLD = PromptConditions({name: {"text": text} for name, text in TEXT.items()}, EMPTY)
FACTS = {"policy": "base"}


def sample(prompt_id: str, number: int) -> Sample:
    sample_id = f"{prompt_id}-{number}"
    return Sample(
        sample_id, prompt_id, PROMPTS[prompt_id], "toy", "train", "base", number, 3, 8.0, 16, 16,
        file_name=f"videos/{sample_id}.mp4",
    )  # fmt: skip


BATCHES = [[sample("lift", 0), sample("lift", 1)], [sample("push", 0)]]


def frames_of(index: int) -> np.ndarray:
    """Noise, for one of BATCHES."""
    return np.random.default_rng(index).integers(0, 256, (len(BATCHES[index]), 3, 16, 16, 3), dtype=np.uint8)


def batch(index: int) -> dict:
    """The arguments of add_batch for one of BATCHES; latents are 10 * batch + row throughout."""
    samples = BATCHES[index]
    latents = torch.arange(len(samples)).float().view(-1, 1, 1, 1, 1).expand(-1, 4, 2, 2, 2) + 10 * index
    return {"samples": samples, "videos": encode_clips(samples, frames_of(index)), "latents": latents}


def write(work: Path, told: PromptConditions = TOLD) -> Path:
    """What a stage does, from scratch or after a kill."""
    writer = ClipSetWriter(work)
    for index in sorted({0, 1} - writer.done_batches()):
        writer.add_batch(index, **batch(index))
    writer.finish(told, FACTS)
    return work


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def clip_set(tmp_path) -> ClipSet:
    return ClipSet.open(write(tmp_path / "set"))


# Reading


def test_a_clip_set_holds_what_was_written(clip_set):
    assert clip_set.samples == BATCHES[0] + BATCHES[1]
    assert clip_set.by_id["push-0"] == BATCHES[1][0]
    assert clip_set.manifest["facts"] == {"policy": "base", "shards": [["lift-0", "lift-1"], ["push-0"]]}
    assert clip_set.video(BATCHES[1][0]) == clip_set.folder / "videos" / "push-0.mp4"
    assert np.abs(clip_set.frames(BATCHES[1][0]).astype(int) - frames_of(1)[0]).max() <= 1
    assert sorted(contents(clip_set.folder)) == [
        "conditions.safetensors",
        "latents-00000.safetensors",
        "latents-00001.safetensors",
        "manifest.json",
        "metadata.parquet",
        "videos/lift-0.mp4",
        "videos/lift-1.mp4",
        "videos/push-0.mp4",
    ]


def test_latents_come_in_the_order_of_the_ids(clip_set):
    found = clip_set.latents(["push-0", "lift-1", "push-0", "lift-0"])
    assert found.shape == (4, 4, 2, 2, 2)
    assert found[:, 0, 0, 0, 0].tolist() == [10, 1, 10, 0]


def test_what_was_read_is_not_tied_to_the_file(clip_set):
    clip_set.latents(["lift-0"]).fill_(99)
    clip_set.conditions(["lift"])["text"].fill_(99)
    assert clip_set.latents(["lift-0"]).max() == 0
    assert clip_set.conditions(["lift"])["text"].max() == 1


def test_latents_keep_their_dtype(tmp_path):
    writer = ClipSetWriter(tmp_path)
    writer.add_batch(0, **batch(0) | {"latents": batch(0)["latents"].to(torch.bfloat16)})
    writer.finish(TOLD, {})
    assert ClipSet.open(tmp_path).latents(["lift-1"]).dtype == torch.bfloat16


def test_conditions_come_by_prompt(clip_set):
    assert clip_set.conditions(["push", "lift", "push"])["text"][:, 0, 0].tolist() == [2, 1, 2]
    assert torch.equal(clip_set.empty["text"], EMPTY["text"])
    assert clip_set.negative is None


def test_conditions_of_several_names_keep_their_dtypes_and_the_negative_prompt_has_its_own(tmp_path):
    def told(value: float) -> dict[str, torch.Tensor]:
        return {"text": torch.full((5, 3), value, dtype=torch.bfloat16), "given": torch.full((4, 1, 2, 2), -value)}

    negative = {"text": torch.full((5, 3), 9.0, dtype=torch.bfloat16)}
    empty = {"text": torch.zeros(5, 3, dtype=torch.bfloat16)}
    clip_set = ClipSet.open(write(tmp_path, PromptConditions({"lift": told(1.0), "push": told(2.0)}, empty, negative)))
    found = clip_set.conditions(["push", "lift"])
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "text": (torch.bfloat16, (2, 5, 3)),
        "given": (torch.float32, (2, 4, 1, 2, 2)),
    }
    assert found["given"][:, 0, 0, 0, 0].tolist() == [-2, -1]
    assert clip_set.empty.keys() == {"text"}  # the first frame stays under the empty caption
    assert torch.equal(clip_set.negative["text"], negative["text"])


def test_a_set_of_the_first_version_is_read(tmp_path):
    """Its embeddings.safetensors held one tensor a prompt, and `empty`."""
    clip_set = ClipSet.open(write(tmp_path))
    (tmp_path / "conditions.safetensors").unlink()
    (tmp_path / MANIFEST).unlink()
    old = {f"prompt/{name}": text for name, text in TEXT.items()} | {"empty": EMPTY["text"]}
    save_file(old, tmp_path / "embeddings.safetensors")
    write_manifest(tmp_path, KIND, **clip_set.manifest["facts"])

    first = ClipSet.open(tmp_path, verify=True)
    assert first.conditions(["push", "lift"]).keys() == {"text"}
    assert first.conditions(["push", "lift"])["text"][:, 0, 0].tolist() == [2, 1]
    assert torch.equal(first.empty["text"], EMPTY["text"]) and first.negative is None
    assert torch.equal(first.latents(["lift-1"]), clip_set.latents(["lift-1"]))
    with pytest.raises(ValueError, match="no conditions of prompt/fold"):
        first.conditions(["fold"])


def test_what_is_not_in_the_set_is_named(clip_set):
    with pytest.raises(ValueError, match="no samples lift-9 among its 3"):
        clip_set.latents(["lift-0", "lift-9"])
    with pytest.raises(ValueError, match="no conditions of prompt/fold"):
        clip_set.conditions(["lift", "fold"])


def test_the_fingerprint_changes_with_any_byte(tmp_path, clip_set):
    assert ClipSet.open(write(tmp_path / "again")).fingerprint() == clip_set.fingerprint()
    other = ClipSetWriter(tmp_path / "other")
    other.add_batch(0, **batch(0))
    other.add_batch(1, **batch(1) | {"latents": batch(1)["latents"] + 1e-3})
    other.finish(TOLD, FACTS)
    assert ClipSet.open(tmp_path / "other").fingerprint() != clip_set.fingerprint()


def test_hugging_face_lists_the_folder_as_it_is(clip_set, tmp_path):
    cache = str(tmp_path / "cache")
    rows = datasets.load_dataset("videofolder", data_dir=str(clip_set.folder), split="train", cache_dir=cache)
    rows = rows.cast_column("video", datasets.Video(decode=False))  # decoding would need torchcodec
    by_id = {row["sample_id"]: row for row in rows}
    assert by_id.keys() == {"lift-0", "lift-1", "push-0"}
    assert by_id["push-0"]["prompt"] == "pushing a cup"
    assert by_id["push-0"]["video"]["path"].endswith("videos/push-0.mp4")
    table = str(clip_set.folder / "metadata.parquet")
    assert len(datasets.load_dataset("parquet", data_files=table, split="train", cache_dir=cache)) == 3


# First frames

FIRST = {name: np.full((16, 16, 3), 50 * place, np.uint8) for place, name in enumerate(PROMPTS, 1)}


def with_first_frames(work: Path, frames: dict[str, np.ndarray]) -> Path:
    ClipSetWriter(work).add_first_frames(frames)
    return write(work)


def test_a_set_holds_the_first_frame_of_each_prompt_and_its_manifest_lists_them(tmp_path):
    clip_set = ClipSet.open(with_first_frames(tmp_path, FIRST), verify=True)

    assert clip_set.first_frame("push") == tmp_path / "first/push.png"
    assert np.array_equal(read_png(tmp_path / "first/push.png"), FIRST["push"])
    assert clip_set.hashes["first/lift.png"] == contents(tmp_path)["first/lift.png"]
    (tmp_path / "first/lift.png").unlink()
    with pytest.raises(StoreError, match="first/lift.png: missing"):
        ClipSet.open(tmp_path)


def test_a_set_without_first_frames_has_none(clip_set):
    assert clip_set.first_frame("push") is None


def test_hugging_face_lists_the_clips_of_a_set_with_first_frames_alone(tmp_path):
    folder = with_first_frames(tmp_path / "set", FIRST)
    rows = datasets.load_dataset("videofolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows["sample_id"]) == {"lift-0", "lift-1", "push-0"}


def test_a_set_with_first_frames_that_was_killed_before_it_was_published_stays_as_it_is(tmp_path):
    whole = contents(with_first_frames(tmp_path / "work", FIRST))
    assert contents(with_first_frames(tmp_path / "work", FIRST)) == whole


def test_first_frames_that_do_not_fit_the_clips_are_refused(tmp_path):
    small = np.zeros((8, 8, 3), np.uint8)
    for number, (frames, message) in enumerate(
        {
            "missing": ({"push": FIRST["push"]}, "first frames of 1 prompts, but the clips are of 2; .* is lift"),
            "of another prompt": (FIRST | {"fold": small}, "first frames of 3 prompts, .* is fold"),
            "of another size": (FIRST | {"push": small}, r"push.png: \(8, 8\), but the clips of push are \(16, 16\)"),
        }.values()
    ):
        with pytest.raises(StoreError, match=message):
            with_first_frames(tmp_path / str(number), frames)
    writer = ClipSetWriter(tmp_path / "other")
    refused: list[tuple[dict[str, np.ndarray], str]] = [
        ({"push": small.astype(float)}, r"push: a first frame is float64 \(8, 8, 3\), wanted uint8"),
        ({"push": small[..., 0]}, r"push: a first frame is uint8 \(8, 8\), wanted uint8 \(H, W, 3\)"),
        ({"../push": small}, "it becomes a file name"),
    ]
    assert_refused(writer.add_first_frames, refused)


# Torn files


@pytest.mark.parametrize(
    "name", ["latents-00001.safetensors", "conditions.safetensors", "metadata.parquet", "videos/lift-0.mp4"]
)
def test_a_truncated_file_is_named_when_the_set_is_opened(clip_set, name):
    path = clip_set.folder / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StoreError, match=f"{name}: truncated"):
        ClipSet.open(clip_set.folder)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_shard_truncated_after_opening_is_named(clip_set, kept):
    path = clip_set.folder / "latents-00001.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert clip_set.latents(["lift-0"]).max() == 0, "other shards are not touched"
    with pytest.raises(StoreError, match="latents-00001.safetensors: not a readable safetensors file"):
        clip_set.latents(["push-0"])


def test_a_changed_byte_shows_under_verify(clip_set):
    path = clip_set.folder / "latents-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    ClipSet.open(clip_set.folder)
    with pytest.raises(StoreError, match="latents-00000.safetensors: changed: sha256"):
        ClipSet.open(clip_set.folder, verify=True)


def test_a_corrupt_clip_is_named(clip_set):
    clip_set.video(BATCHES[0][0]).write_bytes(b"torn")
    with pytest.raises(ValueError, match="videos/lift-0.mp4: not a readable video"):
        clip_set.frames(BATCHES[0][0])
    clip_set.video(BATCHES[0][0]).unlink()
    with pytest.raises(StoreError, match="videos/lift-0.mp4: missing"):
        ClipSet.open(clip_set.folder)


def test_a_clip_of_another_length_than_its_row_is_named(clip_set):
    with pytest.raises(ValueError, match=r"lift-0.mp4: frames are \(3, 16, 16, 3\), its row says \(9, 16, 16, 3\)"):
        clip_set.frames(replace(BATCHES[0][0], num_frames=9))


def test_an_unfinished_folder_is_not_a_clip_set(tmp_path):
    ClipSetWriter(tmp_path).add_batch(0, **batch(0))
    with pytest.raises(StoreError, match="half-written"):
        ClipSet.open(tmp_path)


# Kills


def killed_at_rename(number: int, work: Path) -> None:
    """Write a clip set in a child process that is killed (-9) just before its `number`-th file takes its name."""
    child = os.fork()
    if not child:
        count, rename = 0, os.replace

        def counted(source, target):
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            rename(source, target)

        manifest.os.replace = counted
        try:
            write(work)
        finally:  # an error in the child must not run on as a second pytest
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


# Renames: 0, 1 videos, 2 latents, 3 rows of batch 0; 4 video, 5 latents, 6 rows of batch 1; 7 metadata, 8 conditions,
# 9 manifest.
@pytest.mark.parametrize(("number", "done"), [*((n, set()) for n in range(4)), *((n, {0}) for n in range(4, 7))])
def test_killed_while_generating_it_keeps_whole_batches_and_ends_the_same(tmp_path, number, done):
    killed_at_rename(number, tmp_path / "killed")
    assert ClipSetWriter(tmp_path / "killed").done_batches() == done
    whole = write(tmp_path / "whole")
    assert contents(write(tmp_path / "killed")) == contents(whole)


@pytest.mark.parametrize("number", [7, 8, 9])
def test_killed_while_finishing_it_makes_no_batch_again_and_ends_the_same(tmp_path, number, monkeypatch):
    whole = contents(write(tmp_path / "whole"))
    killed_at_rename(number, tmp_path / "killed")
    assert ClipSetWriter(tmp_path / "killed").done_batches() == {0, 1}
    monkeypatch.setattr(ClipSetWriter, "add_batch", None)
    assert contents(write(tmp_path / "killed")) == whole


def test_killed_between_finishing_and_publishing_it_makes_nothing_again(tmp_path, monkeypatch):
    whole = contents(write(tmp_path / "work"))
    (tmp_path / "work" / ".batches").mkdir()  # as a kill between the manifest and the removal leaves it
    monkeypatch.setattr(ClipSetWriter, "add_batch", None)
    publish(write(tmp_path / "work"), tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert not (tmp_path / "out" / ".batches").exists()


def test_a_full_disk_names_the_file_and_commits_nothing(tmp_path, monkeypatch):
    sync = os.fsync

    for failing in range(4):  # two videos, the latents, the rows
        work, count = tmp_path / str(failing), 0

        def full(file):
            nonlocal count
            count += 1
            if count > failing:  # noqa: B023 - used before the next turn
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        monkeypatch.setattr(os, "fsync", full)
        named = ["lift-0.mp4", "lift-1.mp4", "latents-00000.safetensors", "00000.parquet"][failing]
        with pytest.raises(StoreError, match=f"{named}: not written: No space left on device"):
            ClipSetWriter(work).add_batch(0, **batch(0))
        assert ClipSetWriter(work).done_batches() == set()
        assert not list(work.rglob("*.partial"))
        monkeypatch.setattr(os, "fsync", sync)
        assert ClipSet.open(write(work)).samples == BATCHES[0] + BATCHES[1]


# What a writer refuses


def test_a_gap_between_batches_is_named(tmp_path):
    writer = ClipSetWriter(tmp_path)
    writer.add_batch(1, **batch(1))
    with pytest.raises(StoreError, match=r"batches \[0\] are missing of 0 to 1"):
        writer.finish(TOLD, FACTS)


def test_a_set_without_clips_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no batches were written"):
        ClipSetWriter(tmp_path).finish(TOLD, FACTS)


def test_duplicate_samples_are_refused(tmp_path):
    writer = ClipSetWriter(tmp_path)
    writer.add_batch(0, **batch(0))
    writer.add_batch(1, **batch(0))
    with pytest.raises(ValueError, match="2 duplicate sample_id among 4 rows"):
        writer.finish(TOLD, FACTS)


def test_conditions_that_do_not_fit_the_clips_or_each_other_are_named(tmp_path):
    writer = ClipSetWriter(tmp_path)
    writer.add_batch(0, **batch(0))
    text, short = TOLD.prompts["lift"], {"text": torch.zeros(4, 3)}
    told: list[tuple[PromptConditions, str]] = [
        (PromptConditions({"push": EMPTY}, EMPTY), "no conditions of the prompts lift"),
        (PromptConditions({"lift": text, "push": short}, EMPTY), r"push: conditions .*\(4, 3\).* the first .*\(5, 3\)"),
        (PromptConditions({"lift": text, "push": text | {"given": text["text"]}}, EMPTY), "push: conditions .*given"),
        (PromptConditions({"lift": short}, EMPTY), r"of the empty caption are .*\(5, 3\).* of the prompts .*\(4, 3\)"),
        (PromptConditions({"lift": text}, EMPTY, short), r"of the negative caption are .*\(4, 3\)"),
        (PromptConditions({"lift": text}, {"vision": text["text"]}), "of the empty caption are .*vision"),
    ]
    assert_refused(lambda wrong: writer.finish(wrong, FACTS), told)


def test_shards_that_do_not_fit_each_other_are_refused(tmp_path):
    writer = ClipSetWriter(tmp_path)
    writer.add_batch(0, **batch(0))
    for latents in (torch.zeros(1, 4, 9, 2, 2), batch(1)["latents"].to(torch.bfloat16)):
        writer.add_batch(1, **batch(1) | {"latents": latents})
        with pytest.raises(StoreError, match="latents-00001.safetensors: holds .* the first shard holds"):
            writer.finish(TOLD, FACTS)


def test_a_video_that_went_missing_is_named(tmp_path):
    writer = ClipSetWriter(tmp_path)
    writer.add_batch(0, **batch(0))
    (tmp_path / "videos" / "lift-1.mp4").unlink()
    with pytest.raises(StoreError, match="lift-1.mp4: missing, though batch 0 was committed"):
        writer.finish(TOLD, FACTS)


def test_a_finished_set_takes_no_more_batches(clip_set):
    with pytest.raises(StoreError, match="this clip set is finished"):
        ClipSetWriter(clip_set.folder).add_batch(2, **batch(0))


def test_rows_and_arrays_that_disagree_are_refused(tmp_path):
    for change, message in (
        ({"latents": torch.zeros(3, 4, 2, 2, 2)}, "a batch of {'samples': 2, 'videos': 2, 'latents': 3}"),
        ({"samples": [], "videos": [], "latents": torch.zeros(0)}, "at least one sample"),
        ({"samples": [replace(s, file_name="x.mp4") for s in BATCHES[0]]}, "lift-0: file_name 'x.mp4', wanted videos/"),
        (
            {"samples": [replace(s, sample_id="../x", file_name="videos/../x.mp4") for s in BATCHES[0]]},
            "'../x': it becomes a file name",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ClipSetWriter(tmp_path).add_batch(0, **batch(0) | change)
        assert ClipSetWriter(tmp_path).done_batches() == set(), message


def test_frames_that_are_not_as_their_rows_say_are_refused():
    for frames, message in (
        (np.zeros((2, 5, 16, 16, 3), np.uint8), r"lift-0: frames are \(5, 16, 16, 3\), its row says"),
        (np.zeros((2, 3, 16, 16, 3)), "videos/lift-0.mp4: frames are float64"),
        (np.zeros((1, 3, 16, 16, 3), np.uint8), "1 clips for 2 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_clips(BATCHES[0], frames)


def test_frames_may_be_a_torch_tensor():
    assert encode_clips(BATCHES[0], torch.from_numpy(frames_of(0))) == batch(0)["videos"]
