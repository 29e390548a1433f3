"""Judge-side augmentation: what a judge is shown differs a little from update to update, so that no one pixel pattern
fools it (Ask-A-Video §4.3 reports such patterns; the augmentation is ours).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data.video import sample_frames

OF_FRAMES, OF_PIXELS = 0, 1  # independent draws of one seed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far it may go; all 0 leaves everything as it is, exactly."""

    crop: float = 0.0  # largest part of a side cut away at either end of it, below 0.5; what is left is enlarged again
    scale: float = 0.0  # largest part by which the frames are made smaller, below 1; then they are enlarged again
    jitter: int = 0  # how many frames earlier or later than evenly spaced a frame may be taken
    noise: float = 0.0  # standard deviation of the gaussian added, of values in [0, 1]

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        for key, below in (("crop", 0.5), ("scale", 1.0), ("noise", math.inf)):
            if not 0 <= getattr(self, key) < below:
                upper = f" and below {below:g}" if below < math.inf else " and finite"
                raise ValueError(f"{key} is {getattr(self, key)}, expected at least 0{upper}")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int) or self.jitter < 0:
            raise ValueError(f"jitter is {self.jitter!r}, expected a whole number of frames, at least 0")

    def shown(self, num_frames: int, count: int, seed: int) -> list[int]:
        """Increasing indices of the frames that are shown, none twice: evenly spaced, each moved by up to `jitter`.

        As data.video.sample_frames, a clip of no more than `count` frames gives all of them.
        """
        rng = np.random.default_rng((seed, OF_FRAMES))
        shown: list[int] = []
        even = sample_frames(num_frames, count)
        for place, index in enumerate(even):
            after = shown[-1] + 1 if shown else 0
            before = num_frames - (len(even) - 1 - place)  # leaves one for each that follows
            earliest, latest = max(index - self.jitter, after), min(index + self.jitter, before - 1)
            shown.append(int(rng.integers(earliest, latest + 1)))
        return shown

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """The frames (F, H, W, 3) in [0, 1] cropped, scaled and with noise, in the same shape, with their gradient.

        The same window and scale for all frames of a clip, other noise for each. Noise that leaves [0, 1] is cut off,
        which the gradient passes straight through. Drawn on the CPU, the same on every device.
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
        shown = resized(video, height, width).permute(0, 2, 3, 1)
        if not self.noise:
            return shown
        noise = torch.from_numpy(rng.standard_normal(tuple(shown.shape), np.float32)).to(shown.device)
        noisy = shown + self.noise * noise
        return noisy + (noisy.clamp(0, 1) - noisy).detach()


def resized(video: Tensor, height: int, width: int) -> Tensor:
    """(F, 3, height, width) of a video (F, 3, H, W), bilinear, antialiased, so it stays within its own range."""
    if video.shape[-2:] == (height, width):
        return video
    return interpolate(video, (height, width), mode="bilinear", antialias=True, align_corners=False)
