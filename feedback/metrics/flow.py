"""Amount of motion in a clip, from the optical flow between successive frames; feedback.metrics.optical_flow says more.

What needs no block of params.yaml: the number that flow becomes, and DIS, which needs no weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from feedback.metrics.reduction import Reduction, reduced

TOP = 0.05  # fraction of a frame's pixels


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
