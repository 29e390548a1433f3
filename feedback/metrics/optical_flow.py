"""Amount of motion in a clip: the optical flow between successive frames, a reward of Furuta et al. (§3.2).

The paper takes "the average of norm among the top-5%" of RAFT's flow "as a single scalar" and does not state the set.
Our reading follows VBench's dynamic degree: for each pair of successive frames, the mean norm of the 5 % of pixels with
the largest flow, in pixels per frame; then the sum over the pairs, as for all metrics of the paper.

optical_flow       RAFT (Teed and Deng 2020), torchvision's. It compares frames at an eighth of their size and needs
                   sides of at least 128 pixels: smaller clips are enlarged bilinearly by an integer factor, and the
                   flow is converted to pixels of the clip; sides are padded to multiples of eight
optical_flow_dis   DIS (Kroeger et al. 2016), OpenCV's: needs no weights and no GPU. DIS matches patches of grey
                   images, RAFT is a trained network: the figures of the two cannot be compared
"""

from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count
from feedback.core.source import Metric
from feedback.metrics.flow import Dis, Flow, Motion
from feedback.metrics.metric import MetricOptions, existing_file, metric_kind
from feedback.metrics.reduction import Reduction

RaftSize = Literal["large", "small"]


# RAFT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RaftOptions(MetricOptions):
    """Options of metrics by RAFT."""

    weights: RaftSize = (
        "large"  # large: RAFT's published architecture, trained by torchvision | small: a tenth of the time
    )
    file: Annotated[str, AfterValidator(existing_file)] | None = (
        None  # file with their state_dict; null: torchvision's download
    )
    updates: Count = 20  # refinements of the flow; VBench uses 20


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options(RaftOptions):
    """Options of kind `optical_flow`."""

    reduce: Reduction = "sum"  # over pairs of frames


def measure(name: str, options: Options, device: str) -> Motion:
    """The metric of this block, with RAFT's weights on the device.

    Raises ValueError if the weights cannot be loaded; the error names the metric that needs no weights.
    """
    return Motion(raft(name, options, device), options.reduce)


def raft(name: str, options: RaftOptions, device: str) -> Flow:
    """RAFT with its weights on the device; raises ValueError as `measure` does."""
    from feedback.metrics.raft import load_raft  # torchvision takes seconds to import

    return load_raft(name, options.weights, options.file, options.updates, device)


KIND = metric_kind("optical_flow", Options, measure, needs_device=True)


# DIS


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DisOptions(MetricOptions):
    """Options of kind `optical_flow_dis`."""

    preset: Literal["ultrafast", "fast", "medium"] = "medium"  # OpenCV's
    reduce: Reduction = "sum"  # over pairs of frames


def measure_dis(name: str, options: DisOptions, device: str) -> Metric:
    """The metric of this block. The device is not used."""
    return Motion(Dis(options.preset), options.reduce)


DIS = metric_kind("optical_flow_dis", DisOptions, measure_dis)
