"""How much moves in a clip: the optical flow between successive frames, as Furuta et al. reward it (§3.2).

They take "the average of norm among the top-5%" of RAFT's flow "as a single scalar" and leave open over what. Read
here, as in VBench's dynamic degree: for each pair of successive frames the mean norm of the 5 % of its pixels that move
most, in pixels a frame; and, as for all their metrics, the sum over the pairs.
"""

from collections.abc import Iterable

import numpy as np

from feedback.metrics.metric import reduced

TOP = 0.05  # part of a frame's pixels


def fastest(flow: np.ndarray) -> float:
    """Mean norm of the 5 % of a pair's pixels that move most, at least one. flow: (H, W, 2), in pixels."""
    norms = np.linalg.norm(flow.astype(np.float64), axis=-1).ravel()
    count = max(1, int(TOP * norms.size))
    return float(np.partition(norms, -count)[-count:].mean())


def motion(flows: Iterable[np.ndarray], how: str) -> float:
    """One number for a clip from the flow of each pair of frames, (H, W, 2): their sum or mean; nan without a pair."""
    of_pairs = [fastest(flow) for flow in flows]
    return reduced(of_pairs, how) if of_pairs else float("nan")
