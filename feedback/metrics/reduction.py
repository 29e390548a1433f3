"""One number for a clip from one number per frame, or per pair of frames."""

import math
from collections.abc import Sequence
from typing import Literal

Reduction = Literal["sum", "mean"]


def reduced(of_frames: Sequence[float], how: Reduction) -> float:
    """One number for a clip from one number per frame: the sum, as in Furuta et al. (§3.2), or the mean."""
    total = math.fsum(of_frames)
    return total if how == "sum" else total / len(of_frames)
