"""summary.json as the tables that people read, for the page and for the terminal."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SPLITS = ("all", "train", "test")
COMPARED = {"minus_base": "− base", "minus_start": "− start"}
VOTES_AGREE, NOT_UNANIMOUS = "votes agree (κ)", "not unanimous"  # columns only where clips had more than one vote
BETTER, WORSE, OPEN = "better", "worse", "open"  # open: the interval holds 0, so neither may be said


class Cell(NamedTuple):
    """An estimate in percent (points, for a difference), ready to be shown."""

    text: str
    verdict: str | None  # of a difference: better, worse or open


class Row(NamedTuple):
    """One policy under one judge."""

    policy: str
    cells: dict[str, Cell]  # column title -> cell


def columns(summary: Mapping[str, Any], judge: str) -> list[str]:
    """Column titles under a judge: the splits that have clips, the differences on all of them, agreement of votes."""
    found = {split for policy in summary["policies"].values() for split in policy["accept"][judge]}
    voted = any(judge in policy.get("agreement", {}) for policy in summary["policies"].values())
    return [
        *(split for split in SPLITS if split in found),
        *COMPARED.values(),
        *([VOTES_AGREE, NOT_UNANIMOUS] if voted else []),
    ]


def rows(summary: Mapping[str, Any], judge: str) -> list[Row]:
    """Every policy under one judge, in the order of the summary."""
    return [Row(name, _cells(policy, judge)) for name, policy in summary["policies"].items()]


def judges(summary: Mapping[str, Any]) -> list[str]:
    """The judges of a summary, in its order."""
    return list(next(iter(summary["policies"].values()))["accept"])


def verdict(low: float | None, high: float | None) -> str:
    """better or worse only where the interval is clear of zero."""
    if low is None or high is None or low <= 0 <= high:
        return OPEN
    return BETTER if low > 0 else WORSE


def _cells(policy: Mapping[str, Any], judge: str) -> dict[str, Cell]:
    cells = {split: _rate(**found) for split, found in policy["accept"][judge].items()}
    for key, title in COMPARED.items():
        if key in policy:
            cells[title] = _difference(**policy[key][judge]["all"])
    return cells | votes(policy.get("agreement", {}).get(judge))


def votes(agreement: Mapping[str, Any] | None) -> dict[str, Cell]:
    """Pairs of votes that make the same label, in percent, with kappa, and clips that are not unanimous."""
    if not agreement:
        return {}
    label = agreement["label"]
    kappa = "–" if label["kappa"] is None else f"{label['kappa']:.2f}"
    agree = "–" if label["observed"] is None else f"{100 * label['observed']:.1f} ({kappa})"
    return {
        VOTES_AGREE: Cell(agree, None),
        NOT_UNANIMOUS: Cell(f"{label['not_unanimous']} of {label['clips']}", None),
    }


def _rate(rate: float | None, low: float | None, high: float | None, n: int) -> Cell:
    if rate is None or low is None or high is None:
        return Cell("–", None)
    return Cell(f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]", None)


def _difference(diff: float | None, low: float | None, high: float | None) -> Cell:
    if diff is None or low is None or high is None:
        return Cell("–", OPEN)
    return Cell(f"{100 * diff:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", verdict(low, high))


def as_text(summary: Mapping[str, Any]) -> str:
    """The tables of all judges for a terminal; ▲ and ▼ mark differences whose interval is clear of zero."""
    return "\n\n".join(_judge_table(summary, judge) for judge in judges(summary))


def _judge_table(summary: Mapping[str, Any], judge: str) -> str:
    marks = {BETTER: " ▲", WORSE: " ▼", OPEN: "  ", None: ""}
    titles = columns(summary, judge)
    lines = [[f"accepted by {judge}, % [95 %]", *titles]]
    for row in rows(summary, judge):
        cells = [row.cells.get(title, Cell("", None)) for title in titles]
        lines.append([row.policy, *(cell.text + marks[cell.verdict] for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(text.rjust(width) for text, width in zip(line[1:], others, strict=True))])
        for line in lines
    )
