"""Whether a clip's pixels hold still from frame to frame, VBench-style: 1 - mean absolute difference / 255.

VBench measures it on prompts of static scenes alone, and asks for clips that are static: on others it is a measure of
stillness, highest for a clip in which nothing happens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feedback.core.source import Metric
from feedback.metrics.metric import MetricOptions, metric_kind


@dataclass(frozen=True, kw_only=True)
class Options(MetricOptions):
    """A block of kind `temporal_flickering` in params.yaml."""


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block."""
    return Stillness()


KIND = metric_kind("vbench_style_temporal_flickering", Options, measure)


class Stillness:
    """1 - mean absolute difference of successive frames / 255."""

    model, model_version = "VBench's formula", "1"
    definition = "VBench-style temporal flickering: 1 - mean absolute difference of successive frames / 255."

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """A number for each clip, uint8 (F, H, W, 3); nan for one of a single frame."""
        return [stillness(clip) for clip in clips]


def stillness(clip: np.ndarray) -> float:
    """The formula above for uint8 (F, H, W, 3); nan for a single frame."""
    if len(clip) < 2:
        return float("nan")
    return float(1 - np.abs(np.diff(clip.astype(np.float32), axis=0)).mean() / 255)
