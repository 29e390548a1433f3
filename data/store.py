"""Clip sets: folders of clips, latents and conditions, so that training needs neither VAE nor encoders.

    videos/<sample_id>.mp4
    metadata.parquet              one row per clip; docs/inspecting.md says how Hugging Face's `videofolder` reads it
    latents-00000.safetensors     one shard a batch: "latents" (B, C, F, H, W)
    conditions.safetensors        the conditions of each prompt, by name: "prompt/<prompt_id>/<name>" (…),
                                  "empty/<name>" (…) of the empty caption, "negative/<name>" (…) of a negative prompt
    starts.parquet                of a set of pairs with one start (data/dense.py), what each pair was sampled from
    first/<prompt_id>.png         the image that the generator was given for the prompt, at the clip's size; of all
                                  prompts or of none
    manifest.json                 last; its fact `shards` lists the sample ids of each shard, in order

The first version had embeddings.safetensors, "prompt/<prompt_id>" (L, D) and "empty" (L, D); it is read as
conditions of the name `text`.

Written by ClipSetWriter, which resumes after a kill; read by ClipSet, which refuses an unfinished folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from data import records
from data.first_frames import png_bytes, read_png
from data.manifest import MANIFEST, StoreError, atomically, read_manifest, sha256_of, write_manifest
from data.records import Sample, SharedStart, read_rows, write_rows
from data.video import encode_video, read_video

if TYPE_CHECKING:  # it takes seconds to import, and most stages read clips and rows alone
    import torch

KIND = "clip_set"
METADATA = "metadata.parquet"
CONDITIONS = "conditions.safetensors"
FIRST = "first"  # folder of the first frames
STARTS = "starts.parquet"  # of a set of pairs (data/dense.py)
EMBEDDINGS = "embeddings.safetensors"  # of the first version


class PromptConditions(NamedTuple):
    """The inputs of a denoiser beside latents and time: tensors by name, without a batch axis."""

    prompts: Mapping[str, Mapping[str, torch.Tensor]]  # by prompt_id; the same names for all
    empty: Mapping[str, torch.Tensor]  # those of the empty caption; a name that it lacks, it does not replace
    negative: Mapping[str, torch.Tensor] | None = None  # those of the negative prompt; None without one

    @property
    def unwanted(self) -> Mapping[str, torch.Tensor]:
        """What guidance leads away from: the negative prompt's, or the empty caption's."""
        return self.empty if self.negative is None else self.negative

    def named(self) -> dict[str, torch.Tensor]:
        """All of them under one name each, as they are stored."""
        groups = {f"prompt/{prompt_id}": own for prompt_id, own in self.prompts.items()}
        groups |= {"empty": self.empty} | ({} if self.negative is None else {"negative": self.negative})
        return {f"{group}/{name}": tensor for group, own in groups.items() for name, tensor in own.items()}


class ClipSetWriter:
    """Writes a clip set batch by batch into `work`, which may be left over from a killed run.

    A batch counts as done once its rows are in `.batches/`, which are written after its videos and its latents; a batch
    torn by a kill is simply written again. The same calls end with the same bytes, killed in between or not.
    """

    def __init__(self, work: Path) -> None:
        self.work = Path(work)
        self._markers = self.work / ".batches"  # dotted: not part of the result, so the manifest does not list it

    def done_batches(self) -> set[int]:
        """Indices of the batches that need not be made again."""
        if (self.work / MANIFEST).is_file():
            return set(range(len(read_manifest(self.work, KIND)["facts"]["shards"])))
        return {int(marker.stem) for marker in self._markers.glob("[0-9]*.parquet")}

    def done_rows(self) -> dict[int, list[Sample]]:
        """The rows of the batches that need not be made again, by index."""
        if (self.work / MANIFEST).is_file():
            rows = records.by_id(read_rows(self.work / METADATA, Sample))
            shards = read_manifest(self.work, KIND)["facts"]["shards"]
            return {index: [rows[sample_id] for sample_id in ids] for index, ids in enumerate(shards)}
        return {index: read_rows(self._markers / f"{index:05d}.parquet", Sample) for index in self.done_batches()}

    def add_batch(self, index: int, samples: Sequence[Sample], videos: Sequence[bytes], latents: torch.Tensor) -> None:
        """Write batch `index` (0, 1, ...) and commit it.

        videos: an mp4 a sample, from `encode_clips`. latents: (B, C, F, H, W), stored in their own dtype.
        Raises ValueError where they are not of the rows, StoreError where the disk is full; then nothing is committed.
        """
        if (self.work / MANIFEST).is_file():
            raise StoreError(f"{self.work}: this clip set is finished; publish it, or start from an empty folder")
        _check_batch(samples, videos, latents)
        for sample, video in zip(samples, videos, strict=True):
            with atomically(self.work / sample.file_name) as partial:
                partial.write_bytes(video)
        _write_tensors(self.work / _shard_name(index), {"latents": latents})
        _write_rows(self._markers / f"{index:05d}.parquet", samples)

    def add_first_frames(self, frames: Mapping[str, np.ndarray]) -> None:
        """Write the images that the generator was given, before `finish`. frames: prompt_id -> (H, W, 3) uint8.

        Raises ValueError for another shape or dtype, StoreError where the disk is full.
        """
        if (self.work / MANIFEST).is_file():  # a kill came after the manifest, which lists them
            return
        for prompt_id, pixels in frames.items():
            _check_first_frame(prompt_id, pixels)
            with atomically(self.work / first_name(prompt_id)) as partial:
                partial.write_bytes(png_bytes(pixels))

    def add_starts(self, pairs: Sequence[SharedStart]) -> None:
        """Write what each pair of clips was sampled from, before `finish`. Raises StoreError where the disk is full."""
        if not (self.work / MANIFEST).is_file():
            with atomically(self.work / STARTS) as partial:
                write_rows(partial, pairs, SharedStart)

    def finish(self, conditions: PromptConditions, facts: Mapping[str, Any]) -> None:
        """Turn the batches into a clip set: metadata, conditions, manifest last.

        facts: what readers should know of this set; JSON, not volatile. Raises StoreError when a batch or a file of one
        is missing, ValueError when `conditions` does not fit the samples.
        """
        if not (self.work / MANIFEST).is_file():
            batches = self._committed_batches()
            samples = [sample for batch in batches for sample in batch]
            records.by_id(samples)  # raises on duplicates
            _check_conditions(samples, conditions)
            self._check_files(batches)
            self._check_first_frames(samples)
            _write_rows(self.work / METADATA, samples)
            _write_tensors(self.work / CONDITIONS, conditions.named())
            write_manifest(self.work, KIND, shards=[[s.sample_id for s in batch] for batch in batches], **facts)
        # After the manifest: a kill before it must not cost the batches.
        shutil.rmtree(self._markers, ignore_errors=True)

    def _committed_batches(self) -> list[list[Sample]]:
        done = self.done_batches()
        if not done:
            raise StoreError(f"{self.work}: no batches were written, so there is no clip set to finish")
        missing = sorted(set(range(max(done) + 1)) - done)
        if missing:
            raise StoreError(f"{self.work}: batches {missing} are missing of 0 to {max(done)}; generate them first")
        rows = self.done_rows()
        return [rows[index] for index in sorted(done)]

    def _check_files(self, batches: Sequence[Sequence[Sample]]) -> None:
        """Every video there, every shard readable, of its batch's length and shaped like the first."""
        first = None
        for index, batch in enumerate(batches):
            for path in (self.work / sample.file_name for sample in batch):
                if not path.is_file():
                    raise StoreError(f"{path}: missing, though batch {index} was committed; start from an empty folder")
            path = self.work / _shard_name(index)
            lengths, shapes = _shard_layout(path)
            if lengths != {len(batch)}:
                raise StoreError(f"{path}: tensors of length {sorted(lengths)} for {len(batch)} samples")
            first = first or shapes
            if shapes != first:
                raise StoreError(f"{path}: holds {shapes} a sample, but the first shard holds {first}")

    def _check_first_frames(self, samples: Sequence[Sample]) -> None:
        """A first frame of the clip's size for every prompt of the samples, or for none and no other prompt."""
        there = {path.stem: path for path in (self.work / FIRST).glob("*.png")}
        of_prompt = {sample.prompt_id: sample for sample in samples}
        if there and there.keys() != of_prompt.keys():
            raise StoreError(
                f"{self.work / FIRST}: first frames of {len(there)} prompts, but the clips are of {len(of_prompt)}; "
                f"without its pair is {min(there.keys() ^ of_prompt.keys())}"
            )
        for prompt_id, path in there.items():
            found, sample = read_png(path).shape[:2], of_prompt[prompt_id]
            if found != (sample.height, sample.width):
                raise StoreError(f"{path}: {found}, but the clips of {prompt_id} are {(sample.height, sample.width)}")


@dataclass(frozen=True, eq=False)
class ClipSet:
    """A finished clip set. Latents and conditions are memory-mapped and read on access."""

    folder: Path
    manifest: dict[str, Any]
    samples: list[Sample]
    _open: dict[str, safe_open] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> ClipSet:
        """The clip set in `folder`.

        Raises StoreError naming the file that is missing, truncated or, with `verify`, changed in its bytes.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, KIND, verify)
        return cls(folder, manifest, read_rows(folder / METADATA, Sample))

    @cached_property
    def by_id(self) -> dict[str, Sample]:
        return records.by_id(self.samples)

    def latents(self, sample_ids: Sequence[str]) -> torch.Tensor:
        """(B, C, F, H, W) clean latents, normalised as the transformer sees them, in the dtype they were stored in."""
        return self._gather("latents", sample_ids)

    def conditions(self, prompt_ids: Sequence[str]) -> dict[str, torch.Tensor]:
        """(B, …) the conditions of each prompt, by name."""
        import torch

        unknown = sorted({f"prompt/{prompt_id}" for prompt_id in prompt_ids} - self._told.keys())
        if unknown:
            raise ValueError(f"{self.folder}: no conditions of {', '.join(unknown)}")
        rows = [self._told_of(f"prompt/{prompt_id}") for prompt_id in prompt_ids]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}

    @cached_property
    def empty(self) -> dict[str, torch.Tensor]:
        """What the empty caption puts in place of a prompt's conditions, by name, without a batch axis."""
        return self._told_of("empty")

    @cached_property
    def negative(self) -> dict[str, torch.Tensor] | None:
        """What the negative prompt puts in their place; None where the clips were sampled without one."""
        return self._told_of("negative") if "negative" in self._told else None

    @cached_property
    def _told(self) -> dict[str, dict[str, str]]:
        """Of each prompt and of the other captions, the names of their conditions and the keys that these have."""
        first_version = (self.folder / EMBEDDINGS).is_file()
        found: dict[str, dict[str, str]] = {}
        for key in self._tensors(EMBEDDINGS if first_version else CONDITIONS).keys():  # noqa: SIM118 - no dict
            group, _, name = (f"{key}/text" if first_version else key).rpartition("/")
            found.setdefault(group, {})[name] = key
        return found

    def _told_of(self, group: str) -> dict[str, torch.Tensor]:
        stored = self._tensors(EMBEDDINGS if (self.folder / EMBEDDINGS).is_file() else CONDITIONS)
        return {name: stored.get_tensor(key) for name, key in self._told[group].items()}

    def video(self, sample: Sample) -> Path:
        """Path of a sample's mp4."""
        return self.folder / sample.file_name

    def frames(self, sample: Sample) -> np.ndarray:
        """(F, H, W, 3) uint8 frames of a sample's mp4. Raises ValueError as `read_clip` does."""
        return read_clip(self.video(sample), sample)

    def first_frame(self, prompt_id: str) -> Path | None:
        """Path of the PNG that the generator was given for a prompt; None where it was given none."""
        name = first_name(prompt_id)
        return self.folder / name if name in self.hashes else None

    @cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of every file, by its path from the folder."""
        return {listed["path"]: listed["sha256"] for listed in self.manifest["files"]}

    def fingerprint(self) -> str:
        """sha256 of the manifest, which holds that of every file."""
        return sha256_of(self.folder / MANIFEST)

    def _gather(self, key: str, sample_ids: Sequence[str]) -> torch.Tensor:
        import torch

        unknown = [sample_id for sample_id in sample_ids if sample_id not in self._places]
        if unknown:
            raise ValueError(f"{self.folder}: no samples {', '.join(unknown)} among its {len(self.samples)}")
        places = [self._places[sample_id] for sample_id in sample_ids]
        return torch.stack([self._tensors(_shard_name(shard)).get_slice(key)[row] for shard, row in places])

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """sample_id -> shard, row in it."""
        shards = self.manifest["facts"]["shards"]
        return {sample_id: (shard, row) for shard, ids in enumerate(shards) for row, sample_id in enumerate(ids)}

    def _tensors(self, name: str) -> safe_open:
        if name not in self._open:
            self._open[name] = _opened(self.folder / name)
        return self._open[name]


def encode_clips(samples: Sequence[Sample], frames: np.ndarray) -> list[bytes]:
    """The mp4 of each sample. frames: (B, F, H, W, 3) uint8.

    Raises ValueError where there is not one clip a sample, and for frames that are not as the sample's row says.
    """
    if len(samples) != len(frames):
        raise ValueError(f"{len(frames)} clips for {len(samples)} samples; wanted one for each")
    for sample, clip in zip(samples, frames, strict=True):
        if clip.shape != (wanted := (sample.num_frames, sample.height, sample.width, 3)):
            raise ValueError(f"{sample.sample_id}: frames are {tuple(clip.shape)}, its row says {wanted}")
    pairs = zip(samples, np.asarray(frames), strict=True)
    return [encode_video(clip, sample.fps, name=sample.file_name) for sample, clip in pairs]


def read_clip(path: Path, sample: Sample) -> np.ndarray:
    """(F, H, W, 3) uint8 frames of a sample's mp4.

    Raises ValueError naming the file when it is corrupt or holds other frames than the sample's row.
    """
    frames = read_video(path)
    wanted = (sample.num_frames, sample.height, sample.width, 3)
    if frames.shape != wanted:
        raise ValueError(f"{path}: frames are {frames.shape}, its row says {wanted}")
    return frames


def _shard_name(index: int) -> str:
    return f"latents-{index:05d}.safetensors"


def first_name(prompt_id: str) -> str:
    """Path of a prompt's first frame within a clip set."""
    return f"{FIRST}/{prompt_id}.png"


def _check_first_frame(prompt_id: str, pixels: np.ndarray) -> None:
    if Path(prompt_id).name != prompt_id or prompt_id.startswith("."):
        raise ValueError(f"{prompt_id!r}: it becomes a file name, so no slash and no dot at its beginning")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"{prompt_id}: a first frame is {pixels.dtype} {pixels.shape}, wanted uint8 (H, W, 3)")


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: not a readable safetensors file, it may be truncated ({error})") from error


def _shard_layout(path: Path) -> tuple[set[int], dict[str, tuple[Any, ...]]]:
    """Lengths of a shard's tensors, and name -> (dtype, shape of one sample)."""
    shard = _opened(path)
    slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 - safe_open is no dict
    lengths = {part.get_shape()[0] for part in slices.values()}
    return lengths, {name: (part.get_dtype(), tuple(part.get_shape()[1:])) for name, part in slices.items()}


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    # No metadata entries: safetensors writes more than one in random order, and bytes must be stable.
    # Tensors that share memory, such as those of two prompts with one text, are refused there.
    owned: dict[str, torch.Tensor] = {}
    shared: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        owned[name] = own.clone() if place in shared else own
        shared.add(place)
    with atomically(path) as partial:
        save_file(owned, partial)


def _write_rows(path: Path, samples: Sequence[Sample]) -> None:
    with atomically(path) as partial:
        write_rows(partial, samples, Sample)


def _check_batch(samples: Sequence[Sample], videos: Sequence[bytes], latents: torch.Tensor) -> None:
    lengths = {"samples": len(samples), "videos": len(videos), "latents": len(latents)}
    if len(set(lengths.values())) != 1 or not samples:
        raise ValueError(f"a batch of {lengths}; wanted one of each for each sample, and at least one sample")
    for sample in samples:
        if sample.file_name != f"videos/{sample.sample_id}.mp4":
            raise ValueError(f"{sample.sample_id}: file_name {sample.file_name!r}, wanted videos/<sample_id>.mp4")
        if Path(sample.sample_id).name != sample.sample_id or sample.sample_id.startswith("."):
            raise ValueError(f"{sample.sample_id!r}: it becomes a file name, so no slash and no dot at its beginning")


def _check_conditions(samples: Sequence[Sample], conditions: PromptConditions) -> None:
    """Those of every prompt are there, with the same names and shapes; what replaces them has names of theirs."""
    missing = sorted({sample.prompt_id for sample in samples} - conditions.prompts.keys())
    if missing:
        raise ValueError(f"no conditions of the prompts {', '.join(missing)}")
    layouts = {prompt_id: {n: tuple(t.shape) for n, t in own.items()} for prompt_id, own in conditions.prompts.items()}
    first = next(iter(layouts.values()))
    for prompt_id, layout in layouts.items():
        if layout != first:
            raise ValueError(f"{prompt_id}: conditions {layout}, those of the first prompt are {first}")
    for caption, own in (("empty", conditions.empty), ("negative", conditions.negative or {})):
        if wrong := {name: tuple(t.shape) for name, t in own.items() if first.get(name) != tuple(t.shape)}:
            raise ValueError(f"conditions of the {caption} caption are {wrong}, those of the prompts {first}")
