"""What accept rates do not show, as tables: harm that training did while it raised them."""

from collections.abc import Mapping
from typing import Any

from report.over_seeds import single_seeds
from report.table import OPEN, UNKNOWN, WORSE, Cell, ResultTable, Row, judges, seeds_cell, spread

TITLE = "What else changed"
OVER_SEEDS = (
    "A row of several seeds is the mean of as many training runs: ± is the standard deviation between the seeds, the "
    "mark is by an interval over seeds and prompts, and counts of prompts, clips and reasons are means over the seeds."
)
SPLIT = "all"


def effects_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """A row a policy, all clips; a cell is worse where the interval of its difference to base lies below 0.

    pass@k, accepted motion and wins are by the first judge that labels clips. Less diversity and less motion count as
    harm; drift has no mark, because any training moves the predictions. A policy without effects has no row.
    """
    rows = {name: one["effects"] for name, one in summary["policies"].items() if "effects" in one}
    if not rows:
        return None
    judge = next(iter(judges(summary)), None)
    cells = {name: _cells(effects, judge) | seeds_cell(summary["policies"][name]) for name, effects in rows.items()}
    columns = list(dict.fromkeys(column for one in cells.values() for column in one))
    return ResultTable(TITLE, "policy", columns, [Row(name, one) for name, one in cells.items()])


def reason_tables(summary: Mapping[str, Any]) -> list[ResultTable]:
    """For each judge that gives reasons, how many clips of each policy were not accepted for each."""
    by_policy = {name: one["effects"] for name, one in summary["policies"].items() if "effects" in one}
    found = []
    for judge in dict.fromkeys(judge for effects in by_policy.values() for judge in effects["reasons"]):
        counts = {name: effects["reasons"].get(judge, {}) for name, effects in by_policy.items()}
        reasons = dict.fromkeys(reason for own in counts.values() for reason in own)
        rows = [Row(reason, {name: _counts(own.get(reason, 0)) for name, own in counts.items()}) for reason in reasons]
        found.append(ResultTable(f"reasons of {judge}, clips", "reason", list(counts), rows))
    return found


def seeds_tables(summary: Mapping[str, Any]) -> list[ResultTable]:
    """The same tables of every training run of the policies that were trained with several seeds."""
    single = single_seeds(summary)
    found = [*filter(None, [effects_table(single)]), *reason_tables(single)]
    return [table._replace(title=f"Each training seed: {table.title[0].lower()}{table.title[1:]}") for table in found]


def drifts(summary: Mapping[str, Any]) -> dict[str, float]:
    """Each policy's drift on all of the base's clips that were looked at, where it was measured."""
    found = {name: one.get("effects", {}).get("drift", {}).get(SPLIT) for name, one in summary["policies"].items()}
    return {name: one["mean"] for name, one in found.items() if one and one["mean"] is not None}


def _cells(effects: Mapping[str, Any], judge: str | None) -> dict[str, Cell]:
    gaps, cells = effects.get("minus_base", {}), {}
    if judge:
        at, gap_at = effects["pass_at"][judge], gaps.get("pass_at", {}).get(judge, {})
        for k in at:
            cells[f"pass@{k}, %"] = _cell(at[k], gap_at.get(k), "rate", 100, 1)
    cells["Vendi score"] = _cell(effects["vendi"], gaps.get("vendi"), "mean", 1, 2)
    cells["distance"] = _cell(effects["distance"], gaps.get("distance"), "mean", 1, 3)
    motion, gap_motion = effects["motion"], gaps.get("motion", {})
    cells["motion"] = _cell(motion["all"], gap_motion.get("all"), "mean", 1, 2)
    if judge:
        cells["motion if accepted"] = _cell(motion[judge], gap_motion.get(judge), "mean", 1, 2)
    if drift := effects["drift"].get(SPLIT):
        cells["drift"] = Cell(UNKNOWN if drift["mean"] is None else f"{drift['mean']:.2g}{spread(drift, 1, '.1g')}")
    if judge and "wins" in effects:
        prompts, clips = (effects["wins"][judge][SPLIT][key] for key in ("prompts", "clips"))
        cells["prompts + / − / ="] = _counts(prompts["rose"], prompts["fell"], prompts["equal"])
        cells["clips + / −"] = _counts(clips["gained"], clips["lost"])
    return cells


def _cell(splits: Mapping[str, Any], gaps: Mapping[str, Any] | None, mean: str, scale: float, digits: int) -> Cell:
    """A mean with its difference to base in brackets; worse where the whole interval is below 0."""
    found, gap = splits[SPLIT][mean], gaps[SPLIT] if gaps else None
    if found is None:
        return Cell(UNKNOWN)
    text = f"{scale * found:.{digits}f}{spread(splits[SPLIT], scale, f'.{digits}f')}"
    if gap is None or gap["diff"] is None:
        return Cell(text)
    harmful = gap["high"] is not None and gap["high"] < 0
    return Cell(f"{text} ({scale * gap['diff']:+.{digits}f})", WORSE if harmful else OPEN)


def _counts(*counts: float) -> Cell:
    """Counts as they are, and to a decimal where they are means over seeds."""
    return Cell(" / ".join(str(one) if isinstance(one, int) else f"{one:.1f}" for one in counts))
