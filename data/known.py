"""Clips whose right verdict is known before a judge sees them, as ordinary clip sets: what an audit asks about.

They hold no latents and no embeddings (tensors without elements stand in their place), for nothing is trained on them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.prompts import Prompt
from data.records import Sample
from data.store import ClipSet, ClipSetWriter
from data.video import read_fps, read_video
from tabletop.captions import Claim, all_claims, parse
from tabletop.render import render
from tabletop.scenes import BOTCHES, make_scene

FULFILLED = "fulfilled"  # by the renderer's truth; what else a rendered clip can be fails its prompt
SWAPPED = "swapped"  # fulfils another caption than its prompt
REFERENCE = "reference"  # a real clip of its prompt
TURNS = (FULFILLED, "botched", FULFILLED, SWAPPED)  # of the rendered clips of a category, one after the other


class Known(NamedTuple):
    """A clip set and what each clip is: FULFILLED, SWAPPED, REFERENCE or a way to botch it (tabletop.scenes)."""

    clip_set: ClipSet
    made: dict[str, str]  # sample_id -> what it is


def foreign(prompts: Sequence[Prompt]) -> list[str]:
    """The texts that are no captions of the tabletop world."""
    texts = []
    for prompt in prompts:
        try:
            parse(prompt.prompt)
        except ValueError:
            texts.append(prompt.prompt)
    return texts


def rendered_clips(folder: Path, prompts: Sequence[Prompt], count: int, seed: int, fps: float) -> Known:
    """`count` freshly rendered clips of captions of the tabletop world, written to `folder`.

    The prompts' categories take turns. In each, half of the clips fulfil their prompt, a quarter is botched and a
    quarter shows another caption. A clip hangs on the prompts and (seed, its number) alone. Raises ValueError for
    prompts that are no captions.
    """
    of_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        of_category.setdefault(prompt.category, []).append(prompt)
    categories = list(of_category)
    samples, clips, made = [], [], {}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        of_turn = of_category[categories[number % len(categories)]]
        prompt = of_turn[int(rng.integers(len(of_turn)))]
        frames, how = _rendered(parse(prompt.prompt), TURNS[number // len(categories) % len(TURNS)], rng)
        sample = _sample(f"audit-{number:05d}", prompt, "renderer", frames, number, fps)
        samples.append(sample)
        clips.append(frames)
        made[sample.sample_id] = how
    writer = ClipSetWriter(folder)
    if not writer.done_batches():
        writer.add_batch(0, samples, np.stack(clips), _nothing(count))
    return Known(_finished(writer, samples, "renderer"), made)


def reference_clips(folder: Path, prompts: Sequence[Prompt]) -> Known:
    """The reference clips of those prompts that have one, written to `folder`, each in its own size and length.

    A last odd row or column is cut off, which mp4 may not hold. Raises ValueError naming a file that is not readable,
    and where no prompt has a reference.
    """
    having = [prompt for prompt in prompts if prompt.reference]
    if not having:
        raise ValueError(f"none of {len(prompts)} prompts has a reference clip; it stands in the column reference")
    writer = ClipSetWriter(folder)
    done, samples = writer.done_batches(), []
    for index, prompt in enumerate(having):
        path = Path(str(prompt.reference))
        frames = read_video(path)
        frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        samples.append(_sample(f"reference-{prompt.prompt_id}", prompt, REFERENCE, frames, 0, read_fps(path)))
        if index not in done:
            writer.add_batch(index, samples[-1:], frames[None], _nothing(1))
    return Known(_finished(writer, samples, REFERENCE), {sample.sample_id: REFERENCE for sample in samples})


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


def _rendered(claim: Claim, turn: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Frames of a clip for the claim, uint8 (F, H, W, 3), and what it is."""
    if turn == FULFILLED:
        return render(make_scene(claim, rng)), FULFILLED
    if turn == SWAPPED:
        return render(make_scene(_near_miss(claim, rng), rng)), SWAPPED
    botch = str(rng.choice(BOTCHES[claim.kind]))
    return render(make_scene(claim, rng, botch)), botch


def _near_miss(claim: Claim, rng: np.random.Generator) -> Claim:
    """Another event of the same things or the same event of other things, as often where there are both."""
    things = set(claim.things)
    events = [c for c in all_claims() if c.kind != claim.kind and set(c.things) == things]
    others = [c for c in all_claims() if c.kind == claim.kind and set(c.things) != things]
    near = events if events and rng.random() < 0.5 else others
    return near[int(rng.integers(len(near)))]


def _sample(name: str, prompt: Prompt, policy: str, frames: np.ndarray, seed: int, fps: float) -> Sample:
    return Sample(
        sample_id=name,
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
        file_name=f"videos/{name}.mp4",
    )


def _finished(writer: ClipSetWriter, samples: Sequence[Sample], policy: str) -> ClipSet:
    (nothing,) = _nothing(1)
    embeddings = {sample.prompt_id: nothing for sample in samples}
    writer.finish(embeddings, nothing, {"set": "audit", "policy": policy})
    return ClipSet.open(writer.work)


def _nothing(count: int):
    """A tensor (count, 0)."""
    import torch

    return torch.zeros(count, 0)
