"""Win, tie and loss of one policy against another: how often a source prefers its clips, as in Fig. 6 of DRF."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.preferences import FIRST, SECOND, TIE, tally
from data.records import Preference, Sample
from evaluation.intervals import difference_by_clip, estimate
from evaluation.measures import Clips


def win_table(samples: Sequence[Sample], preferences: Sequence[Preference], draws: int, seed: int) -> dict[str, Any]:
    """How often the first policy's clip is preferred, and the second's; equal inputs give an equal table.

    samples: the first policy's clips. preferences: of each, in the same order, with it as `first` and the other
        policy's clip of the same prompt and noise as `second`. draws, seed: of the bootstrap over prompts.
        Below three prompts low and high are null.

        splits.<split>            win, tie, loss: each rate, low, high; minus: diff, low, high of win - loss; n: pairs
        categories.<category>     the same over all splits
        pairs, unknown            pairs, and how many lack an answer, which are in no rate
        both_orders, first_in_both, second_in_both, position_bias    see data.preferences.Tally; bias null for people
    """
    clips = Clips(tuple(samples))
    sides = [row.preferred for row in preferences]
    cells = {key: np.array([np.nan if s is None else float(s == side) for s in sides]) for key, side in KEYS.items()}

    def row(chosen: np.ndarray) -> dict[str, Any]:
        prompts = clips.prompts[chosen]
        found: dict[str, Any] = {}
        for key, values in cells.items():
            rate = estimate(values[chosen], prompts, draws, seed)
            found[key] = {"rate": rate.mean, "low": rate.low, "high": rate.high}
        gap = difference_by_clip(cells["win"][chosen], cells["loss"][chosen], prompts, draws, seed)
        return found | {"minus": {"diff": gap.mean, "low": gap.low, "high": gap.high}, "n": gap.n}

    counts = tally(preferences).facts()
    return {
        "splits": {split: row(chosen) for split, chosen in clips.cells[None].items()},
        "categories": {name: row(of["all"]) for name, of in clips.cells.items() if name is not None},
        **{key: counts[key] for key in COUNTS},
    }


KEYS = {"win": FIRST, "tie": TIE, "loss": SECOND}
COUNTS = ("pairs", "unknown", "both_orders", "first_in_both", "second_in_both", "position_bias")
