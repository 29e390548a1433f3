"""pass@k: the probability that at least one of k clips of a prompt is accepted (Chen et al. 2021, arXiv 2107.03374).

A policy that gives up diversity for its rate keeps pass@1 and loses pass@k: it fails the same prompts every time.
"""

from math import comb

import numpy as np


def pass_at(clips: int, accepted: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the part of the sets of k among n clips that hold one of the c accepted ones.

    Unbiased for k of fresh clips. Raises ValueError for k below 1 or above n, and for c above n.
    """
    if not 1 <= k <= clips or not 0 <= accepted <= clips:
        raise ValueError(f"pass@{k} of {clips} clips, {accepted} of them accepted; k from 1 to the clips")
    return 1 - comb(clips - accepted, k) / comb(clips, k)


def by_prompt(accepted: np.ndarray, prompts: np.ndarray, k: int) -> np.ndarray:
    """(P,) float, pass@k of each prompt in the order of its number; nan for one without a labelled clip.

    accepted: (N,) 1 accepted, 0 rejected, nan unlabelled. prompts: (N,) int, 0 to P - 1.
    Unlabelled clips are left out of n. Of a prompt with fewer than k labelled clips it is pass@n.
    """
    known = ~np.isnan(accepted)
    count = int(prompts.max()) + 1
    clips = np.bincount(prompts[known], minlength=count)
    right = np.bincount(prompts[known], accepted[known], minlength=count).astype(int)
    found = [pass_at(n, c, min(k, n)) if n else np.nan for n, c in zip(clips.tolist(), right.tolist(), strict=True)]
    return np.array(found)


def within(wanted: tuple[int, ...], largest: int) -> list[int]:
    """The wanted k, each once and rising; one above the clips of the largest prompt becomes their number."""
    return sorted({min(k, largest) for k in wanted})
