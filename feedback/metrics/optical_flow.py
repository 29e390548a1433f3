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

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count
from feedback.core.source import Metric
from feedback.metrics.metric import MetricOptions, Reduction, existing_file, metric_kind, reduced

TOP = 0.05  # fraction of a frame's pixels

RaftSize = Literal["large", "small"]


class Flow(Protocol):
    """An estimator of optical flow."""

    model: str
    model_version: str
    what: str  # its name in a metric's definition
    settings: str  # the parameters of its flow, for the definition; empty, or ends with a comma and a space

    def flows(self, clip: np.ndarray) -> Iterator[np.ndarray]:
        """The flow of each pair of successive frames of uint8 (F, H, W, 3): (H, W, 2), as x, y in pixels."""


class Motion:
    """The sum or mean over pairs of frames of the flow of their fastest pixels."""

    def __init__(self, flow: Flow, reduce: Reduction) -> None:
        self.flow, self._reduce = flow, reduce
        self.model, self.model_version = flow.model, flow.model_version
        self.definition = (
            f"Mean norm of {flow.what} over the 5 % of a pair's pixels that move most, "
            f"{flow.settings}{reduce} over pairs of successive frames, in pixels."
        )

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float] = ()) -> list[float]:
        """A number for each clip, uint8 (F, H, W, 3); nan for a clip of one frame."""
        return [motion(self.flow.flows(clip), self._reduce) for clip in clips]


def motion(flows: Iterable[np.ndarray], how: Reduction) -> float:
    """One number for a clip from the flows (H, W, 2) of its pairs of frames: sum or mean; nan without a pair."""
    of_pairs = [fastest(flow) for flow in flows]
    return reduced(of_pairs, how) if of_pairs else float("nan")


def fastest(flow: np.ndarray) -> float:
    """Mean norm of the 5 % of a pair's pixels with the largest flow, at least one pixel. flow: (H, W, 2), in pixels."""
    norms = np.linalg.norm(flow.astype(np.float64), axis=-1).ravel()
    count = max(1, int(TOP * norms.size))
    return float(np.partition(norms, -count)[-count:].mean())


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


class Dis:
    """Optical flow by DIS."""

    settings = ""

    def __init__(self, preset: str) -> None:
        import cv2  # imported here, so that a check of params does not wait for it

        self._cv2: Any = cv2  # OpenCV's annotations do not include DIS
        self._preset = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}")
        self.model, self.model_version = "OpenCV DIS", cv2.__version__
        self.what = f"DIS's optical flow ({preset})"

    def flows(self, clip: np.ndarray) -> Iterator[np.ndarray]:
        """The flow of each pair of successive frames, (H, W, 2) as x, y in pixels."""
        grey = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in clip]
        for before, after in zip(grey, grey[1:], strict=False):
            # A new object for each pair: a used one would start from the previous pair's flow.
            yield self._cv2.DISOpticalFlow_create(self._preset).calc(before, after, None)


def measure_dis(name: str, options: DisOptions, device: str) -> Metric:
    """The metric of this block. The device is not used."""
    return Motion(Dis(options.preset), options.reduce)


DIS = metric_kind("optical_flow_dis", DisOptions, measure_dis)
