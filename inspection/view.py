"""A folder of a run as a table that a person filters: a row a clip, a row a window, or a row a pair.

    labels      runs/<round>/labels/<source>        columns of Sample and Label, in conditions of Verdict too
    weighted    runs/<round>/datasets/rwr           columns of Sample and Weighted; also of sft, kto and nft
    paired      runs/<round>/datasets/dpo           columns of Pair, and the prompt's of Sample
    dense       runs/<dense>/datasets/dense_dpo     columns of DensePair, and the prompt's of Sample
    clip_set    runs/<round>/samples                columns of Sample

Labels of a dense set have a row a window: a Sample with the window's sample_id and number of frames, and its Label.
What else its tables have is in inspection/dense.py.
The clips are found in the folder `samples` next to one of the folders above it. Their files are not checked here: a
torn clip must not hide the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
from pandas.errors import UndefinedVariableError

from data.dense import Window, window_samples, windows_of
from data.labels import open_labels
from data.manifest import MANIFEST, StoreError, read_manifest
from data.pools import KIND as POOL
from data.records import DensePair, Label, Pair, Sample, Verdict, Weighted, by_id, read_rows, schema
from data.store import METADATA, first_name
from inspection.dense import span, starts_of, with_preferences, with_starts, with_windows

TABLES = {
    "labels.parquet": Label,
    "weighted.parquet": Weighted,
    "paired.parquet": Pair,
    "dense.parquet": DensePair,
    "metadata.parquet": Sample,
}
KINDS = {Label: "labels", Weighted: "weighted", Pair: "paired", DensePair: "dense", Sample: "clip_set"}
SIDES = {"paired": ("chosen", "rejected"), "dense": ("first", "second")}  # columns of sample_ids; else one, sample_id
COMPARED = ["label", "p_accept", "reason"]
OF_THE_PROMPT = ["prompt_id", "prompt", "category", "split"]
NULLABLE = {
    pa.string(): pd.StringDtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}  # so that null stays null in a comparison


class Finished(NamedTuple):
    """Kind and facts from the manifest of a folder."""

    kind: str
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class View:
    """Some rows of a folder. Filters return another view of fewer rows."""

    folder: Path
    kind: str  # labels | weighted | paired | dense | clip_set
    facts: dict[str, Any]  # of the folder's manifest
    clips: Path  # folder of the clip set
    samples: dict[str, Sample]  # all of the clip set, by sample_id
    rows: pd.DataFrame
    verdicts: pd.DataFrame | None  # of labels: columns of Verdict, a row a question and vote of every clip
    compared: tuple[str, ...] = ()  # sources whose label_<source>, … are columns too
    windows: Mapping[str, Window] = field(default_factory=dict)  # of labels of windows, all of the set by sample_id

    @property
    def noun(self) -> str:
        """What a row is, in the plural."""
        return "pairs" if self.kind in SIDES else self.shown

    @property
    def shown(self) -> str:
        """What is drawn and played, in the plural."""
        return "windows" if self.windows else "clips"

    def head(self, count: int) -> View:
        """The first rows."""
        return replace(self, rows=self.rows.head(count))

    def only(self, kept: pd.Series, condition: str) -> View:
        """The rows of a boolean mask, null counting as no. Raises ValueError naming `condition` where none is left."""
        rows = self.rows[kept.fillna(False).astype(bool)]
        if rows.empty:
            raise ValueError(f"{self.folder}: none of {len(self.rows)} {self.noun} {condition}")
        return replace(self, rows=rows)


def open_view(folder: Path, clips: Path | None = None) -> View:
    """All rows of a finished folder.

    clips: folder of the clip set; None looks for it. Raises StoreError for a folder that is not finished or of another
    kind, and ValueError where rows and clips do not belong together.
    """
    found = finished(folder)
    name = next((name for name in TABLES if (folder / name).is_file()), None)
    if name is None:
        inner = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}")))
        there = f"; within it there is {inner}" if inner else ""
        raise StoreError(f"{folder}: a {found.kind!r}, which has no table of clips{there}")
    row_type = TABLES[name]
    clips = folder if row_type is Sample else clips or clips_of(folder)
    if (of := finished(clips)).kind == POOL:
        rounds = ", ".join(one["round"] for one in of.facts["rounds"])
        raise StoreError(f"{folder}: rows of a pool; look at those of its rounds, each by itself: {rounds}")
    samples = by_id(read_rows(clips / METADATA, Sample))
    starts, judged, windows = starts_of(clips), list(samples.values()), dict[str, Window]()
    length = found.facts.get("window") if row_type is Label else None
    if length is not None:
        windows = {window.sample_id: window for sample in judged for window in windows_of(sample, length)}
        judged = window_samples(judged, length)
    labels = open_labels(folder, clips, judged, window=length).labels if row_type is Label else None
    rows: list[Any] = [*(read_rows(folder / name, row_type) if labels is None else labels)]
    if labels is None:
        _check_same_clips(folder, clips, samples, rows)
    table = frame(rows, row_type)
    if row_type in (Pair, DensePair):
        of_prompts = frame(samples.values(), Sample)[OF_THE_PROMPT].drop_duplicates("prompt_id")
        table = table.merge(of_prompts, on="prompt_id", how="left")
        table = with_preferences(table, rows, starts) if row_type is DensePair else table
    else:
        alone = [column for column in table if column == "sample_id" or column not in schema(Sample).names]
        table = frame(judged, Sample).merge(table[alone], on="sample_id", how="inner")
        table = with_windows(table, windows) if windows else table
        table = with_starts(table, starts, "clip" if windows else "sample_id")
    verdicts = frame(read_rows(folder / "verdicts.parquet", Verdict), Verdict) if row_type is Label else None
    return View(folder, KINDS[row_type], found.facts, clips, samples, table, verdicts, windows=windows)


def finished(folder: Path) -> Finished:
    """The kind and facts of a finished folder of any kind; its files are not looked at."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Finished(document["kind"], document["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        if folder.is_file():
            raise StoreError(f"{folder} is a file; name the folder that holds it") from None
        if inner := sorted(str(path.parent) for path in folder.glob(f"*/**/{MANIFEST}")):
            raise StoreError(f"{folder} is no result itself; within it there are {', '.join(inner[:12])}") from None
        read_manifest(folder, "labels")  # raises with the reason
        raise


def clips_of(folder: Path) -> Path:
    """The clip set that a folder of labels or rows belongs to: `samples` beside it, or beside a folder above it."""
    for above in folder.absolute().parents:
        if (above / "samples" / MANIFEST).is_file():
            return above / "samples"
    raise StoreError(f"{folder}: no clip set `samples` beside it or above it; name it with --set")


def beside(clips: Path) -> dict[str, Path]:
    """Folders of finished labels of a clip set, by source."""
    root = clips.absolute().parent
    found = [*root.glob(f"labels/*/{MANIFEST}"), *root.glob(f"compare/*/labels/{MANIFEST}")]
    return {finished(path.parent).facts["source"]: path.parent for path in sorted(found)}


def frame(rows: Any, row_type: type) -> pd.DataFrame:
    """Rows as columns whose nulls stay nulls."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema(row_type)).to_pandas(types_mapper=NULLABLE.get)


# Filters


def where(view: View, condition: str) -> View:
    """Rows that meet a condition in the words of pandas.DataFrame.query: "category == 'roll' and p_accept < 0.3".

    A condition on verdicts holds for a clip when it holds for one of them. `reason` and `score` are the label's; those
    of a verdict are verdict_reason and verdict_score. A comparison with null is never true; column.isna() finds nulls.
    """
    table = view.rows.reset_index(names="row")
    if view.verdicts is not None:
        own = view.verdicts.drop(columns="source")
        taken = (own.columns.intersection(table.columns)).drop("sample_id")
        table = table.merge(own.rename(columns={name: f"verdict_{name}" for name in taken}), on="sample_id", how="left")
    met = _evaluated(table.drop(columns="row"), condition, "--where")
    if not isinstance(met, pd.Series) or met.dtype not in ("bool", "boolean"):
        raise ValueError(f"--where {condition!r} is no condition, such as category == 'roll' and p_accept < 0.3")
    chosen = table.loc[met.fillna(False).astype(bool), "row"]
    return view.only(view.rows.index.to_series().isin(chosen), f"meet --where {condition!r}")


def of_prompt(view: View, wanted: str) -> View:
    """Rows of the prompt of this id, or else of all prompts that hold this text in any case."""
    ids = view.rows["prompt_id"] == wanted
    texts = view.rows["prompt"].str.contains(wanted, case=False, regex=False)
    return view.only(ids if ids.any() else texts, f"have the prompt id, or {wanted!r} in their prompt")


def disagreeing(view: View, first: str, second: str) -> View:
    """Clips that one of two sources accepts and the other rejects, not those that either left unlabelled.

    The view gains label_<source>, p_accept_<source> and reason_<source> of both. Raises ValueError listing the label
    sets there are, for a table of pairs, and where not all are of whole clips or of the same windows.
    """
    folders = beside(view.clips)
    if missing := [name for name in (first, second) if name not in folders]:
        raise ValueError(f"{view.clips}: no labels by {', '.join(missing)}; there are labels by {', '.join(folders)}")
    if view.kind in SIDES:
        raise ValueError(f"{view.folder}: --disagree is about {view.shown}, and this is a table of pairs")
    rows = view.rows
    for name in (first, second):
        labels = open_view(folders[name], view.clips)
        if judged_by(labels) != judged_by(view):
            raise ValueError(
                f"{folders[name]} is of {judged_by(labels)}, {view.folder} of {judged_by(view)}: --disagree wants one "
                "kind; of windows inspect the folder of one of the two sources"
            )
        other = labels.rows[["sample_id", *COMPARED]]
        renamed = {column: f"{column}_{name}" for column in COMPARED}
        rows = rows.merge(other.rename(columns=renamed), on="sample_id", how="left")
    known = replace(view, rows=rows, compared=(first, second))
    return known.only(
        rows[f"label_{first}"] != rows[f"label_{second}"], f"are labelled differently by {first} and {second}"
    )


def sort(view: View, order: str) -> View:
    """Rows by a column or an expression of columns, smallest first, nulls last: "abs(p_accept - 0.5)", "-margin".

    A minus before the name of a column turns the order round, also that of texts. Expressions are those of
    pandas.DataFrame.eval. Raises ValueError listing the columns.
    """
    name = order.removeprefix("-")
    if name in view.rows:
        return replace(view, rows=view.rows.sort_values(name, ascending=name == order, kind="stable"))
    key = _evaluated(view.rows, order, "--sort")
    if not isinstance(key, pd.Series):
        raise ValueError(f"--sort {order!r} is no value of a row; columns are {', '.join(view.rows)}")
    return replace(view, rows=view.rows.iloc[key.reset_index(drop=True).sort_values(kind="stable").index])


def _evaluated(table: pd.DataFrame, expression: str, option: str) -> Any:
    """An expression of columns in the words of pandas. Raises ValueError naming the option and the columns."""
    columns = ", ".join(table)
    try:
        return table.eval(expression, engine="python", local_dict={}, global_dict={})
    except UndefinedVariableError as error:
        raise ValueError(f"{option}: {error}; columns are {columns}") from error
    except Exception as error:  # of whatever kind pandas' own parser and evaluation raise
        raise ValueError(f"{option} {expression!r}: {error or type(error).__name__}; columns are {columns}") from error


# Clips to look at


class CaptionedClip(NamedTuple):
    """A clip with the text below it."""

    sample: Sample  # or a window's
    path: Path  # its mp4; of a window that of the whole clip
    heading: str  # the clip's id, in a table of pairs its side too, of a window its frames
    outcome: str  # label and reason, or weight, or nothing
    first: Path | None = None  # PNG of the first frame, where the generator was given one
    window: tuple[Sample, range] | None = None  # the whole clip, and the window's frames; None: it is no window


def captioned_clips(view: View) -> Iterator[CaptionedClip]:
    """The clips of the rows in their order; of a pair the chosen or first one, then the rejected or second."""
    for row in view.rows.to_dict("records"):
        text = outcome(view, row)
        for side in SIDES.get(view.kind, ("sample_id",)):
            window = view.windows.get(row[side])
            clip = view.samples[window.clip if window else row[side]]
            first = view.clips / first_name(clip.prompt_id)
            one = CaptionedClip(clip, view.clips / clip.file_name, row[side], text, first if first.is_file() else None)
            if window:
                shown = replace(clip, sample_id=window.sample_id, num_frames=len(window.frames))
                heading = f"{window.sample_id}, frames {span(window.frames)}"
                one = one._replace(sample=shown, heading=heading, window=(clip, window.frames))
            elif view.kind in SIDES:
                one = one._replace(heading=f"{row[side]}, {side}")
            yield one


def judged_by(view: View) -> str:
    """What a row of labels is about: "whole clips" or "windows of 4 frames"."""
    return f"windows of {view.facts['window']} frames" if view.windows else "whole clips"


def outcome(view: View, row: Mapping[Any, Any]) -> str:
    """A row's label and reason, or weight, or margin, or what a clip starts from, in a line."""
    if view.kind == "paired":
        return f"margin {row['margin']:.3g}"
    if view.kind == "dense":
        return f"better, by latent frame: {row['better']}"
    if view.kind == "weighted":
        return f"weight {row['weight']:.3g}"
    if view.kind == "clip_set" and "start" in row and not view.compared:
        return f"starts from {row['start']}, as {row['other']}"
    parts = [_of_source(name, *(row[f"{column}_{name}"] for column in COMPARED)) for name in view.compared]
    if view.kind == "labels" and view.facts["source"] not in view.compared:
        parts.insert(0, _of_source(view.facts["source"], *(row[column] for column in COMPARED)))
    if view.kind == "labels" and not pd.isna(row["score"]):
        parts.append(f"score {row['score']:.3g}")
    return "; ".join(parts)


def word(label: Any, p_accept: Any = None) -> str:
    """A label in a word, with its probability where there is one."""
    name = "unlabelled" if pd.isna(label) else "accepted" if label else "rejected"
    return name if pd.isna(p_accept) else f"{name} {p_accept:.2f}"


def _of_source(name: str, label: Any, p_accept: Any, reason: Any) -> str:
    return f"{name}: {word(label, p_accept)}" + ("" if pd.isna(reason) else f" ({reason})")


def _check_same_clips(folder: Path, clips: Path, samples: Mapping[str, Sample], rows: Sequence[Any]) -> None:
    """Raises ValueError where rows are of other clips than those of the clip set."""
    names = ("sample_id", *(side for sides in SIDES.values() for side in sides))
    used = {getattr(row, name) for row in rows for name in names if hasattr(row, name)}
    if foreign := sorted(used - samples.keys()):
        raise ValueError(f"{folder}: {len(foreign)} clips, such as {foreign[0]}, are not in {clips}")
