"""Freshly rendered clips whose right verdict the renderer knows: what `audit.set: tabletop` asks a judge about."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.known import FULFILLED, SWAPPED, Known, KnownClip, World, known_clip, write_known
from data.prompts import Prompt
from tabletop.captions import parse, unknown_captions
from tabletop.near_misses import other_event_or_things
from tabletop.render import render
from tabletop.scenes import BOTCHES, make_scene

BOTCHED = "botched"
ORDER = (FULFILLED, BOTCHED, FULFILLED, SWAPPED)  # of the clips of a category; it repeats


def known_clips(folder: Path, prompts: Sequence[Prompt], count: int, seed: int, fps: float) -> Known:
    """`count` rendered clips of captions of the tabletop world, written to `folder`.

    The prompts' categories take turns. In each, half of the clips show their prompt, a quarter is botched and a
    quarter shows another caption. A clip depends only on the prompts and (seed, its number). Raises ValueError for
    prompts that are no captions.
    """
    of_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        of_category.setdefault(prompt.category, []).append(prompt)
    categories = list(of_category)
    clips = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        of_turn = of_category[categories[number % len(categories)]]
        prompt = of_turn[int(rng.integers(len(of_turn)))]
        clips.append(_clip(number, prompt, ORDER[number // len(categories) % len(ORDER)], rng, fps))
    return write_known(folder, "renderer", [clips])


def _clip(number: int, prompt: Prompt, made: str, rng: np.random.Generator, fps: float) -> KnownClip:
    """The clip of this number. made: FULFILLED, SWAPPED, or BOTCHED, which becomes the way in which it is botched."""
    claim, botch = parse(prompt.prompt), None
    if made == SWAPPED:
        claim = other_event_or_things(claim, rng)
    elif made == BOTCHED:
        made = botch = str(rng.choice(BOTCHES[claim.kind]))
    frames = render(make_scene(claim, rng, botch))
    return known_clip(f"audit-{number:05d}", prompt, "renderer", frames, number, fps, made)


def unknown_prompts(prompts: Sequence[Prompt]) -> list[str]:
    """The texts that are no captions of the tabletop world."""
    return unknown_captions(prompt.prompt for prompt in prompts)


WORLD = World(
    truth="the renderer's: half of the clips fulfil their prompt, a quarter is botched, a quarter shows another event",
    unknown_prompts=unknown_prompts,
    known_clips=known_clips,
)
