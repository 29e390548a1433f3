"""Judge-side augmentation: the judge's input varies a little from update to update.

No fixed pixel pattern then fools it. Ask-A-Video §4.3 reports such patterns; the augmentation is ours.
"""

import math
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Interval
from pydantic import FiniteFloat
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import interpolate

from data.config import STRICT, WholeNotNegative
from data.video import sample_frames
from feedback.differentiable.resize import DifferentiableResizing

OF_FRAMES, OF_PIXELS = 0, 1  # independent draws of one seed


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Augmentation:
    """Bounds of the augmentation; all 0 changes nothing, to the bit."""

    crop: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0  # largest part of a side cut away at either end, then enlarged
    scale: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # largest part by which frames are made smaller, then enlarged
    jitter: WholeNotNegative = 0  # most frames by which a frame may be earlier or later than evenly spaced
    noise: Annotated[FiniteFloat, Ge(0)] = 0.0  # standard deviation of the added gaussian, of values in [0, 1]

    def frame_indices(self, num_frames: int, count: int, seed: int) -> list[int]:
        """Strictly increasing indices of the frames that a judge sees: evenly spaced, each moved by up to `jitter`.

        As with data.video.sample_frames, a clip of no more than `count` frames gives all of them.
        """
        rng = np.random.default_rng((seed, OF_FRAMES))
        indices: list[int] = []
        even = sample_frames(num_frames, count)
        for place, index in enumerate(even):
            after = indices[-1] + 1 if indices else 0
            before = num_frames - (len(even) - 1 - place)  # leaves one frame for each later index
            earliest, latest = max(index - self.jitter, after), min(index + self.jitter, before - 1)
            indices.append(int(rng.integers(earliest, latest + 1)))
        return indices

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """The frames (F, H, W, 3) in [0, 1] cropped, scaled and with noise, in the same shape, with their gradient.

        Window and scale are the same for all frames of a clip, the noise differs. Values outside [0, 1] are clamped,
        with a straight-through gradient. Drawn on the CPU, so equal on every device.
        """
        rng = np.random.default_rng((seed, OF_PIXELS))
        parts, smaller = rng.random(4), rng.random()
        video = frames.permute(0, 3, 1, 2)
        height, width = video.shape[-2:]
        top, bottom, left, right = (
            math.floor(self.crop * part * side)
            for part, side in zip(parts, (height, height, width, width), strict=True)
        )
        factor = 1 - self.scale * smaller
        video = resized(video[..., top : height - bottom, left : width - right], height, width)
        video = resized(video, max(1, round(height * factor)), max(1, round(width * factor)))
        augmented = resized(video, height, width).permute(0, 2, 3, 1)
        if not self.noise:
            return augmented
        noise = torch.from_numpy(rng.standard_normal(tuple(augmented.shape), np.float32)).to(augmented.device)
        noisy = augmented + self.noise * noise
        return noisy + (noisy.clamp(0, 1) - noisy).detach()


def resized(video: Tensor, height: int, width: int) -> Tensor:
    """(F, 3, height, width) of a video (F, 3, H, W), bilinear and antialiased: values stay within their range."""
    if video.shape[-2:] == (height, width):
        return video
    with DifferentiableResizing():
        return interpolate(video, (height, width), mode="bilinear", antialias=True, align_corners=False)
