"""Which prompts and clips got better or worse than the base's: a mean can rise while some prompts are lost."""

from typing import Any

import numpy as np


def wins(accepted: np.ndarray, base: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """Counts of prompts and of clips against the base, over the clips that are labelled on both sides.

    accepted, base: (N,) 1 accepted, 0 rejected, nan unlabelled, of the same prompts and seeds. prompts: (N,).

        prompts.rose, fell, equal    prompts whose number of accepted clips is larger, smaller, the same
        clips.gained, lost           clips that are accepted where the base's is rejected, and the other way
        clips.both                   clips with a label on both sides
    """
    change = accepted - base
    known = ~np.isnan(change)
    names, index = np.unique(prompts[known], return_inverse=True)
    by_prompt = np.bincount(index, change[known], minlength=len(names))
    return {
        "prompts": {
            "rose": int((by_prompt > 0).sum()), "fell": int((by_prompt < 0).sum()), "equal": int((by_prompt == 0).sum())
        },
        "clips": {"gained": int((change == 1).sum()), "lost": int((change == -1).sum()), "both": int(known.sum())},
    }  # fmt: skip
