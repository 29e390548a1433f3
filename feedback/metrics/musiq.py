"""Implements kind `imaging_quality`: MUSIQ of a clip's frames, by the package pyiqa."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as images

from feedback.metrics.converted import read_pickle
from feedback.metrics.image_text import WHITE, channels_first

LONGEST = 512  # pixels of the longer side
TOGETHER = 16  # frames per forward pass
INSTALL = "pip install --no-deps pyiqa==0.1.16"


class ImagingQuality:
    """MUSIQ (Ke et al. 2021) of each frame, in [0, 1]; the mean over the frames."""

    definition = (
        f"VBench-style imaging quality: mean over all frames of MUSIQ / 100, the longer side at most {LONGEST} pixels."
    )

    def __init__(self, model: nn.Module, device: str, version: str) -> None:
        self._model, self._device = model.to(device).eval().requires_grad_(False), device
        self.model, self.model_version = "MUSIQ (SPAQ)", version

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float] = ()) -> list[float]:
        """A number for each clip, uint8 (F, H, W, 3)."""
        return [self._of_frames(prepared(clip)) for clip in clips]

    def _of_frames(self, frames: Tensor) -> float:
        scores = [self._model(part.to(self._device)).flatten().cpu() for part in frames.split(TOGETHER)]
        return float(torch.cat(scores).double().mean()) / 100


def prepared(clip: np.ndarray) -> Tensor:
    """float32 (F, 3, H', W') in [0, 1]; a longer side above LONGEST is scaled, bilinearly and not antialiased."""
    frames = channels_first(clip)
    longest = max(frames.shape[-2:])
    if longest > LONGEST:
        size = [int(side * LONGEST / longest) for side in frames.shape[-2:]]
        frames = images.resize(frames, size, images.InterpolationMode.BILINEAR, antialias=False)
    return frames / WHITE


def load_musiq(name: str, file: str, device: str) -> ImagingQuality:
    """MUSIQ with the weights of a file. name: of the block in feedback.sources, for errors.

    Raises ValueError where pyiqa is not installed, and for a file that holds other weights.
    """
    try:
        from pyiqa.archs.musiq_arch import MUSIQ  # takes seconds to import, and few have it
    except ImportError as error:
        raise ValueError(f"feedback.sources.{name}: kind imaging_quality needs pyiqa ({error}): {INSTALL}") from error
    model: nn.Module = MUSIQ(pretrained=False)
    weights = {key.removeprefix("module."): one for key, one in read_pickle(Path(file)).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"feedback.sources.{name}.file: {file} does not hold MUSIQ's weights for SPAQ") from error
    return ImagingQuality(model, device, hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12])
