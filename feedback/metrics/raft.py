"""RAFT's optical flow between successive frames, for the metrics of optical_flow.py and vbench.py."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.optical_flow import RAFT, Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small

LEAST = 128  # pixels per side that RAFT needs
TOGETHER = 8  # pairs per forward pass
BUILT = {"large": (raft_large, Raft_Large_Weights.C_T_SKHT_V2), "small": (raft_small, Raft_Small_Weights.C_T_V2)}


class Raft:
    """Optical flow by RAFT; implements feedback.metrics.flow.Flow."""

    def __init__(self, model: RAFT, size: str, updates: int, version: str) -> None:
        """size: large or small. updates: refinements of the flow."""
        self._model, self._updates = model.eval().requires_grad_(False), updates
        self._device = next(model.parameters()).device
        self.model, self.model_version = f"RAFT {size}", version
        self.what, self.settings = f"RAFT {size}'s optical flow", f"{updates} updates, "

    @torch.inference_mode()
    def flows(self, clip: np.ndarray) -> Iterator[np.ndarray]:
        """The flow of each pair of successive frames, (H, W, 2) as x, y in pixels of the clip."""
        height, width = clip.shape[1:3]
        factor = max(1, -(-LEAST // min(height, width)))
        prepared = self._prepared(clip, factor)
        for first in range(0, len(clip) - 1, TOGETHER):
            pairs = prepared[first : first + TOGETHER + 1].to(self._device)
            found = self._model(pairs[:-1], pairs[1:], num_flow_updates=self._updates)[-1]
            found = found[:, :, : factor * height, : factor * width]
            if factor > 1:
                found = functional.avg_pool2d(found, factor) / factor
            yield from found.permute(0, 2, 3, 1).float().cpu().numpy()

    @staticmethod
    def _prepared(clip: np.ndarray, factor: int) -> Tensor:
        """(F, 3, H', W') float32 in [-1, 1], both sides multiples of eight and at least LEAST."""
        frames = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if factor > 1:
            frames = functional.interpolate(frames, scale_factor=factor, mode="bilinear", align_corners=False)
        below, right = (-side % 8 for side in frames.shape[-2:])
        return functional.pad(frames, (0, right, 0, below), mode="replicate")


def load_raft(name: str, size: str, file: str | None, updates: int, device: str) -> Raft:
    """RAFT with its weights on the device.

    name: of the block in feedback.sources, for errors. size: large or small. file: a state_dict; None: torchvision's
    download. Raises ValueError if the weights cannot be loaded or belong to another model.
    """
    build, published = BUILT[size]
    where = f"feedback.sources.{name}"
    try:
        if file is None:
            state, version = published.get_state_dict(progress=False, check_hash=True), str(published)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
            version = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
        model = build(weights=None)
        model.load_state_dict(state)
    except OSError as error:
        raise ValueError(
            f"{where}.weights: RAFT {size} could not be downloaded ({error}); give a copy of {published.url} as "
            f"{where}.file, or use kind optical_flow_dis, a different metric that needs no weights"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{where}.file: {file} does not hold RAFT {size}'s weights") from error
    return Raft(model.to(device), size, updates, version)
