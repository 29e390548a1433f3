"""Whether much moves in a clip, VBench-style: 1 where enough pairs of frames do, else 0.

A pair moves where the mean norm of RAFT's flow over its fastest 5 % of pixels lies above 6 pixels for a shorter side of
256, in proportion; enough are 4 of 16 frames, rounded. VBench thins a clip to about 8 frames a second first. It loads
the weights `raft-things`, torchvision trained its own: VBench-style.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feedback.core.source import Metric
from feedback.metrics import optical_flow
from feedback.metrics.flow import fastest
from feedback.metrics.metric import metric_kind

PIXELS, SIDE = 6.0, 256.0  # what counts as motion, at this shorter side
ENOUGH, OF = 4, 16  # pairs that must move, of so many frames
FRAMES_PER_SECOND = 8.0


@dataclass(frozen=True, kw_only=True)
class Options(optical_flow.Options):
    """A block of kind `dynamic_degree` in params.yaml; `reduce` is not read."""

    fps: float = 8.0  # of the clips: what they are thinned to 8 from

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps <= 0:
            raise ValueError(f"fps is {self.fps}, expected more than 0")


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device."""
    return DynamicDegree(optical_flow.measure(name, options, device), options.fps)


KIND = metric_kind("vbench_style_dynamic_degree", Options, measure, needs_device=True)


class DynamicDegree:
    """1 where a clip moves, 0 where it does not. raft: feedback.metrics.raft.Raft, or what tells flows as it does."""

    def __init__(self, raft: Any, fps: float) -> None:
        self._raft, self._fps = raft, fps
        self.model, self.model_version = raft.model, raft.model_version
        self.definition = f"VBench-style dynamic degree, of clips at {fps:g} frames a second. {raft.definition}"

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """0 or 1 for each clip, uint8 (F, H, W, 3); nan for one of a single frame."""
        return [self._moves(clip[:: max(1, round(self._fps / FRAMES_PER_SECOND))]) for clip in clips]

    def _moves(self, clip: np.ndarray) -> float:
        return moves([fastest(flow) for flow in self._raft.flows(clip)], min(clip.shape[1:3]), self._fps)


def moves(of_pairs: Sequence[float], side: int, fps: float) -> float:
    """1 or 0 from the motion of each pair, in pixels. side: the shorter one, in pixels. fps: of the whole clip."""
    if not of_pairs:
        return float("nan")
    threshold = max(1.0, FRAMES_PER_SECOND / fps) * PIXELS * side / SIDE
    wanted = round(ENOUGH * (len(of_pairs) + 1) / OF)
    return float(sum(motion > threshold for motion in of_pairs) >= max(1, wanted))
