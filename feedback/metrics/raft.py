"""What `optical_flow` runs: RAFT on pairs of successive frames."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.optical_flow import RAFT, Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small

from feedback.metrics.flow import motion
from feedback.metrics.optical_flow import Options

LEAST = 128  # pixels a side that RAFT needs
TOGETHER = 8  # pairs of a forward pass
BUILT = {"large": (raft_large, Raft_Large_Weights.C_T_SKHT_V2), "small": (raft_small, Raft_Small_Weights.C_T_V2)}


class Raft:
    """Sums (or averages) how far the fastest pixels of each pair of frames move."""

    def __init__(self, model: RAFT, options: Options, version: str) -> None:
        self._model, self._options = model.eval().requires_grad_(False), options
        self._device = next(model.parameters()).device
        self.model, self.model_version = f"RAFT {options.weights}", version
        self.definition = (
            f"Mean norm of RAFT {options.weights}'s optical flow over the 5 % of a pair's pixels that move most, "
            f"{options.updates} updates, {options.reduce} over pairs of successive frames, in pixels."
        )

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """A number for each clip, uint8 (F, H, W, 3); nan for one of a single frame."""
        return [motion(self.flows(clip), self._options.reduce) for clip in clips]

    @torch.inference_mode()
    def flows(self, clip: np.ndarray) -> Iterator[np.ndarray]:
        """The flow of each pair of successive frames, (H, W, 2) as x, y in pixels of the clip."""
        height, width = clip.shape[1:3]
        factor = max(1, -(-LEAST // min(height, width)))
        prepared = self._prepared(clip, factor)
        for first in range(0, len(clip) - 1, TOGETHER):
            pairs = prepared[first : first + TOGETHER + 1].to(self._device)
            found = self._model(pairs[:-1], pairs[1:], num_flow_updates=self._options.updates)[-1]
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


def load_raft(name: str, options: Options, device: str) -> Raft:
    """RAFT with its weights on the device. Raises ValueError where they are not to be had, or are another model's."""
    build, published = BUILT[options.weights]
    where = f"feedback.sources.{name}"
    try:
        if options.file is None:
            state, version = published.get_state_dict(progress=False, check_hash=True), str(published)
        else:
            state = torch.load(options.file, map_location="cpu", weights_only=True)
            version = hashlib.sha256(Path(options.file).read_bytes()).hexdigest()[:12]
        model = build(weights=None)
        model.load_state_dict(state)
    except OSError as error:
        raise ValueError(
            f"{where}.weights: RAFT {options.weights} could not be had ({error}); name a copy of {published.url} as "
            f"{where}.file, or take kind optical_flow_dis, a different metric that needs no weights"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{where}.file: {options.file} does not hold RAFT {options.weights}'s weights") from error
    return Raft(model.to(device), options, version)
