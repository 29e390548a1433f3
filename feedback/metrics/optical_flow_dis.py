"""Optical flow by DIS (Kroeger et al. 2016), OpenCV's: no weights and no GPU. Another metric than `optical_flow`.

What is summed is the same (feedback/metrics/flow.py), but DIS matches patches of grey pictures where RAFT has learned
to, so their figures are not to be compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feedback.core.source import Metric
from feedback.metrics.flow import motion
from feedback.metrics.metric import REDUCTIONS, MetricOptions, metric_kind

PRESETS = ("ultrafast", "fast", "medium")


@dataclass(frozen=True, kw_only=True)
class Options(MetricOptions):
    """A block of kind `optical_flow_dis` in params.yaml."""

    preset: str = "medium"  # OpenCV's: ultrafast | fast | medium
    reduce: str = "sum"  # over pairs of frames: sum | mean

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, known are {list(PRESETS)}")
        if self.reduce not in REDUCTIONS:
            raise ValueError(f"reduce is {self.reduce!r}, known are {list(REDUCTIONS)}")


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block."""
    return Dis(options)


KIND = metric_kind("optical_flow_dis", Options, measure)


class Dis:
    """Sums (or averages) how far the fastest pixels of each pair of frames move."""

    def __init__(self, options: Options) -> None:
        import cv2  # which a check of params need not wait for

        self._cv2: Any = cv2  # whose annotations know no DIS
        self._options = options
        self._preset = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{options.preset.upper()}")
        self.model, self.model_version = "OpenCV DIS", cv2.__version__
        self.definition = (
            f"Mean norm of DIS's optical flow ({options.preset}) over the 5 % of a pair's pixels that move most, "
            f"{options.reduce} over pairs of successive frames, in pixels."
        )

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """A number for each clip, uint8 (F, H, W, 3); nan for one of a single frame."""
        return [motion(self.flows(clip), self._options.reduce) for clip in clips]

    def flows(self, clip: np.ndarray) -> Iterator[np.ndarray]:
        """The flow of each pair of successive frames, (H, W, 2) as x, y in pixels."""
        grey = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in clip]
        for before, after in zip(grey, grey[1:], strict=False):
            # A new one for each pair: it would start from the flow of the pair before.
            yield self._cv2.DISOpticalFlow_create(self._preset).calc(before, after, None)
