"""Preferences of a source among clips, two clips of one prompt at a time, and what is counted of them.

    preferences.parquet     Preference, a row a pair of clips
    comparisons.parquet     Comparison, a row a pair, order, question and vote

Written by feedback.pairs: of a round into the folder of its labels, whose manifest then has the fact `comparisons`; of
two policies into a folder of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.manifest import read_manifest
from data.records import Comparison, Preference, read_rows

PREFERENCES, COMPARISONS = "preferences.parquet", "comparisons.parquet"
FIRST, SECOND, TIE = "first", "second", "tie"
OTHER = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}


@dataclass(frozen=True)
class Tally:
    """What a source said of some pairs, each a number of pairs."""

    pairs: int
    first: int  # the clip named `first` is preferred
    second: int
    ties: int
    unknown: int  # an answer is missing
    both_orders: int  # answered in both orders; the two numbers below are of these
    first_in_both: int  # the clip that was shown first was preferred in both orders
    second_in_both: int

    @property
    def position_bias(self) -> float | None:
        """Part of the pairs for which the clip that was shown first was preferred in both orders; None without any."""
        return self.first_in_both / self.both_orders if self.both_orders else None

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"position_bias": self.position_bias}


def tally(preferences: Sequence[Preference]) -> Tally:
    """The counts of these pairs."""
    preferred = [row.preferred for row in preferences]
    orders = [(row.forward, row.backward) for row in preferences if row.forward and row.backward]
    return Tally(
        pairs=len(preferences),
        first=preferred.count(FIRST),
        second=preferred.count(SECOND),
        ties=preferred.count(TIE),
        unknown=preferred.count(None),
        both_orders=len(orders),
        first_in_both=orders.count((FIRST, SECOND)),
        second_in_both=orders.count((SECOND, FIRST)),
    )


def win_shares(preferences: Iterable[Preference]) -> dict[str, float]:
    """By sample_id, the part of a clip's known comparisons that it won, ties half. Clips without any are left out."""
    points: dict[str, list[float]] = {}
    worth = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}
    for row in preferences:
        if row.preferred is not None:
            points.setdefault(row.first, []).append(worth[row.preferred])
            points.setdefault(row.second, []).append(1 - worth[row.preferred])
    return {clip: sum(won) / len(won) for clip, won in points.items()}


def compares(facts: Mapping[str, Any]) -> bool:
    """Whether the labels with these facts come from comparisons of clips."""
    return bool(facts.get("comparisons"))


def read_preferences(folder: Path, kind: str) -> list[Preference]:
    """The preferences in a finished folder. kind: of its manifest."""
    read_manifest(folder, kind)
    return read_rows(folder / PREFERENCES, Preference)


def read_comparisons(folder: Path, kind: str) -> list[Comparison]:
    """The answers in a finished folder, by pair in its order, then order of showing, question and vote."""
    read_manifest(folder, kind)
    return read_rows(folder / COMPARISONS, Comparison)
