"""Optical flow by RAFT (Teed and Deng 2020), torchvision's, as a metric: see feedback/metrics/flow.py for what is
summed.

RAFT compares frames at an eighth of their size and needs 128 pixels a side there. Smaller clips are enlarged by a whole
factor, bilinearly, and their flow is told in pixels of the clip; others are padded to multiples of eight.
"""

from dataclasses import dataclass
from pathlib import Path

from feedback.core.source import Metric
from feedback.metrics.metric import REDUCTIONS, MetricOptions, metric_kind

SIZES = ("large", "small")


@dataclass(frozen=True, kw_only=True)
class Options(MetricOptions):
    """A block of kind `optical_flow` in params.yaml."""

    weights: str = "large"  # large: RAFT as published, trained on by torchvision | small: a tenth of the time
    file: str | None = None  # a local copy of those weights, a state_dict; null: torchvision's download
    updates: int = 20  # refinements of the flow; VBench takes 20
    reduce: str = "sum"  # over pairs of frames: sum | mean

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights not in SIZES:
            raise ValueError(f"weights is {self.weights!r}, known are {list(SIZES)}")
        if self.reduce not in REDUCTIONS:
            raise ValueError(f"reduce is {self.reduce!r}, known are {list(REDUCTIONS)}")
        if self.updates < 1:
            raise ValueError(f"updates is {self.updates}, expected at least 1")
        if self.file is not None and not Path(self.file).is_file():
            raise ValueError(f"file: {self.file} is not there")


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device.

    Raises ValueError where the weights are not to be had, naming the metric that needs none.
    """
    from feedback.metrics.raft import load_raft  # torchvision takes seconds to import

    return load_raft(name, options, device)


KIND = metric_kind("optical_flow", Options, measure, needs_device=True)
