"""What a stage took, as its figures in metrics/ hold it."""

from dataclasses import asdict
from typing import Any

from data.counts import Counts
from data.pace import TimeWorked, time_worked

COST = "cost"  # key of the figures of a stage: how much it did, and in what time

ASKED_NOW = "asked_by_last_start"  # beside it, of a stage that labels: what was asked, and not kept from before


def with_cost(figures: dict[str, Any], counts: Counts | None = None) -> dict[str, Any]:
    """The figures, with the cost of the stage that runs now in the place of COST.

    counts: None takes those that the figures have under COST, where null are amounts that are not known. They are
        functions of params and inputs, without what a kill lost. `seconds` and `accelerator_seconds` are of the clock,
        over all starts of the stage, with what a kill lost: no two runs have the same.
    """
    counts = figures.get(COST) if counts is None else counts
    amounts = dict.fromkeys(asdict(Counts())) if counts is None else asdict(counts)
    worked = time_worked()
    times = dict.fromkeys(TimeWorked._fields) if worked is None else worked._asdict()
    return {**figures, COST: amounts | {name: None if t is None else round(t, 1) for name, t in times.items()}}
