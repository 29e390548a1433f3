"""Clip sets whose right verdict is known before a judge sees them: what stage `audit` asks about.

They hold no latents and no conditions (tensors without elements stand in their place), since nothing is trained on
them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.first_frames import load_first_frame
from data.prompts import Prompt
from data.records import Sample
from data.store import ClipSet, ClipSetWriter, PromptConditions, encode_clips
from data.video import read_fps, read_video

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor

FULFILLED = "fulfilled"  # by the renderer's truth; a rendered clip of any other description fails its prompt
SWAPPED = "swapped"  # shows what another caption says
REFERENCE = "reference"  # a real clip of its prompt


class Known(NamedTuple):
    """A clip set and a description of each clip: FULFILLED, SWAPPED, REFERENCE, or the name of a defect."""

    clip_set: ClipSet
    made: dict[str, str]  # sample_id -> description


class World(NamedTuple):
    """A simulated world whose renderer knows which of its clips fulfil their prompts.

    `audit.set` names a module that defines one as WORLD.
    """

    truth: str  # a sentence of audit.json: where the right verdicts come from
    unknown_prompts: Callable[[Sequence[Prompt]], list[str]]  # the texts that the world cannot render
    known_clips: Callable[[Path, Sequence[Prompt], int, int, float], Known]  # folder, prompts, count, seed, fps


class KnownClip(NamedTuple):
    """A clip to write. frames: uint8 (F, H, W, 3). made: its description."""

    sample: Sample
    frames: np.ndarray
    made: str


def known_clip(
    sample_id: str, prompt: Prompt, policy: str, frames: np.ndarray, seed: int, fps: float, made: str
) -> KnownClip:
    """A clip of a prompt, uint8 (F, H, W, 3). policy: who made it. seed: of its noise, or its number."""
    sample = Sample(
        sample_id=sample_id,
        prompt_id=prompt.prompt_id,
        prompt=prompt.prompt,
        category=prompt.category,
        split=prompt.split,
        policy=policy,
        seed=seed,
        num_frames=len(frames),
        fps=fps,
        height=frames.shape[1],
        width=frames.shape[2],
        file_name=f"videos/{sample_id}.mp4",
    )
    return KnownClip(sample, frames, made)


def write_known(
    folder: Path,
    policy: str,
    batches: Iterable[Sequence[KnownClip]],
    first_frames: Mapping[str, np.ndarray] | None = None,
) -> Known:
    """The clips as a clip set in `folder`; a batch holds clips of one size and length.

    Batches that an earlier run finished are kept. first_frames: prompt_id -> uint8 (H, W, 3), of all prompts or none.
    """
    writer = ClipSetWriter(folder)
    done, samples = writer.done_batches(), []
    made: dict[str, str] = {}
    for index, batch in enumerate(batches):
        of_batch = [clip.sample for clip in batch]
        if index not in done:
            videos = encode_clips(of_batch, np.stack([clip.frames for clip in batch]))
            writer.add_batch(index, of_batch, videos, _nothing(len(batch)))
        samples += of_batch
        made |= {clip.sample.sample_id: clip.made for clip in batch}
    writer.add_first_frames(first_frames or {})
    conditions = PromptConditions({sample.prompt_id: {} for sample in samples}, {})
    writer.finish(conditions, {"set": "audit", "policy": policy})
    return Known(ClipSet.open(writer.work), made)


def reference_clips(folder: Path, prompts: Sequence[Prompt]) -> Known:
    """The reference clips of those prompts that have one, written to `folder`, each in its own size and length.

    A last odd row or column is cut off, since mp4 cannot hold it. Where all these prompts have an image, it is stored
    as the first frame, at the clip's size. Raises ValueError naming a file that is not readable, and where no prompt
    has a reference.
    """
    having = [prompt for prompt in prompts if prompt.reference]
    if not having:
        raise ValueError(f"none of {len(prompts)} prompts has a reference clip; it stands in the column reference")
    first: dict[str, np.ndarray] = {}
    with_images = all(prompt.image for prompt in having)

    def batches() -> Iterator[list[KnownClip]]:
        for prompt in having:
            clip = _reference_clip(prompt)
            if with_images:
                height, width = clip.frames.shape[1:3]
                first[prompt.prompt_id] = load_first_frame(Path(str(prompt.image)), height, width)
            yield [clip]

    return write_known(folder, REFERENCE, batches(), first)


def _reference_clip(prompt: Prompt) -> KnownClip:
    path = Path(str(prompt.reference))
    frames = read_video(path)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    return known_clip(f"reference-{prompt.prompt_id}", prompt, REFERENCE, frames, 0, read_fps(path), REFERENCE)


def first_clips(clip_set: ClipSet, prompt_ids: Sequence[str], each: int) -> ClipSet:
    """A clip set of the first `each` clips of each of these prompts. Raises ValueError where there are none at all."""
    left = dict.fromkeys(prompt_ids, each)
    chosen = []
    for sample in clip_set.samples:
        if left.get(sample.prompt_id, 0):
            left[sample.prompt_id] -= 1
            chosen.append(sample)
    if not chosen:
        raise ValueError(f"{clip_set.folder}: no clip of the prompts {', '.join(list(left)[:3])}, …")
    return replace(clip_set, samples=chosen)


def _nothing(count: int) -> "Tensor":
    """A tensor (count, 0)."""
    import torch

    return torch.zeros(count, 0)
