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
    indices = sample_frames(FRAMES, frames)
    clips = {prompt.prompt_id: rendered_clip(prompt.prompt)[indices] for prompt in prompts}
    return {prompt_id: RealClip(clip, sampled_fps(indices, fps)) for prompt_id, clip in clips.items()}


def rendered_clip(text: str) -> np.ndarray:
    """A clip that shows a caption, uint8 (F, H, W, 3): the same every time. Raises ValueError for other texts."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return render(make_scene(parse(text), np.random.default_rng(seed)))
