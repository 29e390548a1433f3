"""What `vfrl audit` puts together: what people said about clips, a judge's numbers of them, and how far they agree."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from data.records import Label
    from data.tables.choices import Clip, Opened, Said
    from feedback.core.source import Source

logger = logging.getLogger(__name__)
WHOLE = ("", "overall")  # dimensions that a source's own number is compared with
UNNAMED = "whole clip"  # what the dimension without a name is called


class Numbers(NamedTuple):
    """A judge's numbers of clips."""

    labels: "dict[str, Label]"  # by sample_id
    measures: Mapping[str, Mapping[str, float]]  # measure -> sample_id -> score, without the unknown


def audit(
    said: "Said",
    source: "Source",
    block: Mapping[str, Any],
    out: Path,
    named: Mapping[str, str],
    how: tuple[int, int, float],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of a judge on what people said, written to `out`, where the judge's answers are kept.

    named: dimension -> measure of the source. how: batch size, votes, and the part of the clips that may fail.
    Raises ValueError for a dimension that is no measure of a source of several, before any clip is judged.
    """
    from data.tables.choices import open_clips
    from feedback.core.source import metrics_of

    measures = {one: measure_of(one, list(metrics_of(source)), named) for one in said.dimensions}
    opened = open_clips(said.clips, out / "samples")
    for clip, why in opened.unreadable.items():
        logger.warning("%s is left out: %s", clip.path, why)
    if source.rubric.compares:
        preferred = compared(said, opened, source, block, out, how)
    else:
        numbers = judged(opened, source, block, out, how)
    dimensions: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for dimension, measure in measures.items():
        if source.rubric.compares:
            found, of_dimension = _choice_figures(said, dimension, preferred, draws, seed)
        else:
            found, of_dimension = _figures(said, dimension, values(opened, numbers, measure), draws, seed)
        dimensions[dimension or UNNAMED] = {"measure": measure or "score"} | found
        rows += of_dimension
    counts = {"source": source.name, "clips": len(said.clips), "unreadable": len(opened.unreadable)}
    figures = counts | {"dimensions": dimensions}
    (out / "audit.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "rows.jsonl").write_text(text, encoding="utf-8")
    return figures


def measure_of(dimension: str, measures: Sequence[str], named: Mapping[str, str]) -> str | None:
    """The measure of a source that a dimension is compared with; None: the source's own number of a clip.

    Of a source of several measures a dimension is one of them, whatever the case of its letters, unless `named` says
    which. A source of one number is compared with every dimension. Raises ValueError as `audit` does.
    """
    by_name = {one.casefold(): one for one in measures}
    if dimension in named:
        if named[dimension] not in measures:
            raise ValueError(f"--measure {dimension}={named[dimension]}: the source measures {', '.join(measures)}")
        return named[dimension]
    if len(measures) < 2:
        return None
    if dimension.casefold() in by_name:
        return by_name[dimension.casefold()]
    if dimension.casefold() in WHOLE:
        return None
    raise ValueError(
        f"dimension {dimension!r} is none of the source's measures, {', '.join(measures)}; say which it is, such as "
        f"--measure {dimension}={measures[0]}"
    )


def judged(
    opened: "Opened", source: "Source", block: Mapping[str, Any], out: Path, how: tuple[int, int, float]
) -> Numbers:
    """The source's numbers of the clips. What it answered before, of this block, model and these files, is kept."""
    from data.labels import read_labels, read_verdicts
    from data.manifest import read_manifest
    from feedback.core.label import judge_identity, label_clip_set
    from feedback.core.source import metrics_of, raters_of

    batch_size, votes, max_failed = how
    identity = json.dumps([judge_identity(source, block), opened.clip_set.fingerprint(), votes], sort_keys=True)
    labels, stated = out / "labels", out / "labels.json"
    if raters_of(source) or not (stated.is_file() and stated.read_text() == identity and (labels).is_dir()):
        work = out / ".work" / _short(identity)
        label_clip_set(opened.clip_set, source, work, labels, batch_size, votes, max_failed)
        stated.write_text(identity, encoding="utf-8")
    read_manifest(labels, "labels")
    by_measure: dict[str, dict[str, float]] = {name: {} for name in metrics_of(source)}
    for row in read_verdicts(labels):
        if row.question in by_measure and row.score is not None:
            by_measure[row.question][row.sample_id] = row.score
    return Numbers({label.sample_id: label for label in read_labels(labels)}, by_measure)


def compared(
    said: "Said", opened: "Opened", source: "Source", block: Mapping[str, Any], out: Path, how: tuple[int, int, float]
) -> "dict[tuple[Clip, Clip], float]":
    """Of each answered pair, in both orders: 1 where a source that compares prefers a, -1 where b, 0 for a tie.

    Its answers are kept in `out`. Raises ValueError for a file of scores, which are of single clips.
    """
    from data.preferences import FIRST, SECOND, TIE
    from feedback.core.label import judge_identity, requests_for
    from feedback.pairs.compare import as_comparer, compare_pairs, votes_in_an_order
    from feedback.pairs.shown import ShownPair

    if said.scores:
        raise ValueError(f"{source.name} compares two clips at once, and the file has scores of single clips")
    batch_size, votes, max_failed = how
    comparer = as_comparer(source)
    identity = json.dumps([judge_identity(source, block), opened.clip_set.fingerprint(), votes], sort_keys=True)
    requests = {one.sample.sample_id: one for one in requests_for(opened.clip_set, votes_in_an_order(comparer, votes))}
    shown = {clip: requests[sample_id] for clip, sample_id in opened.ids.items()}
    listed = {frozenset((one.a, one.b)): (one.a, one.b) for one in said.choices if {one.a, one.b} <= shown.keys()}
    if not listed:
        raise ValueError("no pair has two clips that can be decoded")
    pairs = [ShownPair(shown[a], shown[b]) for a, b in listed.values()]
    work = out / ".work" / f"pairs-{_short(identity)}-{_short(repr([pair.ids for pair in pairs]))}"
    answers = compare_pairs(pairs, comparer, work, batch_size, max_failed).preferences
    worth = {FIRST: 1.0, SECOND: -1.0, TIE: 0.0}
    answered = zip(listed.values(), (row.preferred for row in answers), strict=True)
    found = {pair: worth[preferred] for pair, preferred in answered if preferred is not None}
    return found | {(b, a): -number for (a, b), number in found.items()}


def values(opened: "Opened", numbers: Numbers, measure: str | None) -> "dict[Clip, float]":
    """The judge's number of each clip that has one: of a measure; or its score, else its p_accept, else its label."""
    from evaluation.sets import SCORES

    if measure is not None:
        known = numbers.measures[measure]
    else:
        columns = [
            {key: float(value) for key, one in numbers.labels.items() if (value := getattr(one, name)) is not None}
            for name in SCORES
        ]
        known = next(filter(None, columns), {})
    return {clip: known[sample_id] for clip, sample_id in opened.ids.items() if sample_id in known}


def _figures(
    said: "Said", dimension: str, of: "Mapping[Clip, float]", draws: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of a dimension, and a row for each of its lines."""
    import numpy as np

    from evaluation.choices import choice_figures, score_figures

    nan = float("nan")
    choices = [one for one in said.choices if one.dimension == dimension]
    if choices:
        margin = np.array([of.get(one.a, nan) - of.get(one.b, nan) for one in choices])
        people = np.array([one.preferred for one in choices])
        rows = [
            {"dimension": dimension, "clip_a": str(one.a.path), "clip_b": str(one.b.path), "prompt": one.a.prompt,
             "preferred": one.preferred, "a": of.get(one.a), "b": of.get(one.b)}
            for one in choices
        ]  # fmt: skip
        prompts = np.array([one.a.prompt for one in choices])
        return choice_figures(people, margin, prompts, draws, seed), rows
    scores = [one for one in said.scores if one.dimension == dimension]
    judge = np.array([of.get(one.clip, nan) for one in scores])
    rows = [
        {"dimension": dimension, "clip": str(one.clip.path), "prompt": one.clip.prompt, "people": one.score,
         "judge": of.get(one.clip)}
        for one in scores
    ]  # fmt: skip
    prompts = np.array([one.clip.prompt for one in scores])
    return score_figures(np.array([one.score for one in scores]), judge, prompts), rows


def _choice_figures(
    said: "Said", dimension: str, preferred: "Mapping[tuple[Clip, Clip], float]", draws: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As `_figures`, of a source that compares."""
    import numpy as np

    from evaluation.choices import choice_figures

    choices = [one for one in said.choices if one.dimension == dimension]
    judge = [preferred.get((one.a, one.b)) for one in choices]
    rows = [
        {"dimension": dimension, "clip_a": str(one.a.path), "clip_b": str(one.b.path), "prompt": one.a.prompt,
         "preferred": one.preferred, "judge": number}
        for one, number in zip(choices, judge, strict=True)
    ]  # fmt: skip
    margin = np.array([np.nan if number is None else number for number in judge])
    people, prompts = np.array([one.preferred for one in choices]), np.array([one.a.prompt for one in choices])
    return choice_figures(people, margin, prompts, draws, seed), rows


def in_words(figures: Mapping[str, Any]) -> list[str]:
    """A line for each dimension."""
    return [_line(name, found) for name, found in figures["dimensions"].items()]


def _line(name: str, found: Mapping[str, Any]) -> str:
    if "pairs" in found:
        share = f"right on {_percent(found['accuracy_without_ties'])} % of the pairs without a tie"
        if found["low"] is not None:
            share += f" [{_percent(found['low'])}, {_percent(found['high'])}]"
        ties = (
            f"on {_percent(found['accuracy_with_ties'])} % of all with ties up to {found['tie_threshold']:.3g}"
            if (found["judged"])
            else "none judged"
        )
        return f"{name} ({found['measure']}): {found['judged']} of {found['pairs']} pairs judged; {share}, {ties}"
    each = found["per_prompt"]
    return (
        f"{name} ({found['measure']}): {found['judged']} of {found['clips']} clips judged; Spearman "
        f"{_two(found['spearman'])}, Kendall {_two(found['kendall'])}; per prompt, mean of {each['prompts']}: "
        f"{_two(each['spearman'])}, {_two(each['kendall'])}"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _short(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]
