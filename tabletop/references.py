"""Rendered clips in place of real ones: `references: tabletop` of an online run."""

import hashlib
from collections.abc import Sequence

import numpy as np

from data.prompts import Prompt
from data.video import sample_frames
from feedback.judges.vlm import sampled_fps
from feedback.questions.references import RealClip
from tabletop.captions import parse
from tabletop.render import render
from tabletop.scenes import FRAMES, make_scene


def real_clips(prompts: Sequence[Prompt], frames: int, fps: float) -> dict[str, RealClip]:
    """A rendered clip of each prompt by prompt_id, `frames` of its frames evenly spaced.

    A caption has the same clip every time. fps: of the whole clip. Raises ValueError for a prompt of another world.
    """
    indices, clips = sample_frames(FRAMES, frames), {}
    for prompt in prompts:
        seed = int.from_bytes(hashlib.sha256(prompt.prompt.encode()).digest()[:8], "big")
        clip = render(make_scene(parse(prompt.prompt), np.random.default_rng(seed)))
        clips[prompt.prompt_id] = RealClip(clip[indices], sampled_fps(indices, fps))
    return clips
