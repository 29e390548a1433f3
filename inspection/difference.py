"""Two label sets of the same clips: which labels differ, and how far they agree beyond chance."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.agreement import cohen
from inspection.view import View, judged_by, open_view, word
from report.text import aligned

CODES = {"accepted": 1.0, "rejected": 0.0, "unlabelled": np.nan}
NAMED = 5  # sample ids of each change, by default


@dataclass(frozen=True, eq=False)
class LabelDifference:
    """Labels of two folders, clip by clip."""

    first: Path
    second: Path
    rows: pd.DataFrame  # sample_id, category, before, after: accepted | rejected | unlabelled
    noun: str = "clips"  # what a row is, in the plural

    @property
    def changed(self) -> pd.DataFrame:
        return self.rows[self.rows["before"] != self.rows["after"]]

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa over the clips, or windows, that both labelled."""
        before, after = (self.rows[side].map(CODES).to_numpy() for side in ("before", "after"))
        kappa: float | None = cohen(before, after)["kappa"]
        return kappa


def difference(first: Path, second: Path, clips: Path | None = None) -> LabelDifference:
    """Raises ValueError where a folder holds no labels, or where the two are not of the same clips or windows."""
    one, other = open_view(first, clips), open_view(second, clips)
    for view in (one, other):
        if view.kind != "labels":
            raise ValueError(f"{view.folder}: holds {view.kind}; diff compares two folders of labels")
    if one.facts["clip_set"] != other.facts["clip_set"]:
        raise ValueError(
            f"{first} labels the clips of {one.clips}, {second} those of {other.clips}: not the same clips"
        )
    if judged_by(one) != judged_by(other):
        raise ValueError(f"{first} labels {judged_by(one)}, {second} {judged_by(other)}: not the same")
    rows = one.rows[["sample_id", "category"]].assign(before=_words(one))
    merged = rows.merge(_after(other), on="sample_id", validate="one_to_one")
    return LabelDifference(first, second, merged, one.noun)


def in_words(found: LabelDifference, named: int = NAMED) -> str:
    """The changes counted by kind and category, kappa, and the first ids of each kind."""
    changed = found.changed
    heading = f"{len(changed)} of {len(found.rows)} labels differ: {found.first} → {found.second}"
    undefined = f"undefined: no {found.noun.removesuffix('s')} has two labels, or all are the same"
    kappa = undefined if found.kappa is None else f"{found.kappa:.3f}"
    parts = [f"{heading}\nCohen's kappa {kappa}"]
    if changed.empty:
        return parts[0]
    kinds = (changed["before"] + " → " + changed["after"]).rename("change")
    order = sorted(kinds.unique())
    rows = [["category", found.noun, "changed", *order]]
    for category, group in [*found.rows.groupby("category", sort=True), ("all", found.rows)]:
        of = kinds[kinds.index.isin(group.index)]
        rows.append([category, str(len(group)), str(len(of)), *(str(int((of == kind).sum())) for kind in order)])
    parts.append(aligned(rows, "l" + "r" * (len(rows[0]) - 1)))
    for kind in order:
        ids = list(changed.loc[kinds == kind, "sample_id"])
        parts.append("\n  ".join([f"{kind}: {len(ids)}", *ids[:named], *(["…"] if len(ids) > named else [])]))
    return "\n\n".join(parts)


def _words(view: View) -> pd.Series:
    return view.rows["label"].map(word)


def _after(view: View) -> pd.DataFrame:
    return view.rows[["sample_id"]].assign(after=_words(view))
