"""Labels a clip set by comparisons: shares of won comparisons as labels, the preferences beside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.labels import KIND, LABELS, VERDICTS
from data.manifest import begun_for, publish, write_manifest
from data.preferences import FIRST, SECOND, TIE, win_shares
from data.records import Label, Sample, Verdict, write_rows
from data.store import ClipSet
from feedback.core.label import REPLY_LENGTH, spread
from feedback.core.source import FAILED, UNRATED, UNREADABLE_CLIP
from feedback.pairs.compare import (
    Compared,
    as_comparer,
    compare_pairs,
    identity,
    votes_in_an_order,
    write_compared,
)
from feedback.pairs.sets import pairs_of
from feedback.pairs.shown import Comparer

WIN_SHARE = "win_share"  # the measure of a clip: the part of its comparisons that it won, ties half
NO_COMPARISON = "no comparison of this clip was answered"


def compare_clip_set(
    clip_set: ClipSet,
    source: Comparer,
    work: Path,
    out: Path,
    opponents: int,
    batch_size: int,
    votes: int = 1,
    max_failed: float = 0.0,
) -> dict[str, Any]:
    """Compare the clips of a set and publish `out`, a folder of labels with the preferences beside them.

    A clip's label is null and its score is WIN_SHARE. The other arguments are as of `compare_pairs`; votes: of each
    order. Returns the facts of the manifest that count.
    """
    work.mkdir(parents=True, exist_ok=True)
    begun_for(work, clip_set.folder)
    pairs = pairs_of(clip_set, opponents, votes_in_an_order(source, votes))
    compared = compare_pairs(pairs, source, work, batch_size, max_failed)
    shares = win_shares(compared.preferences)
    verdicts = [_verdict(source, sample, shares.get(sample.sample_id), compared) for sample in clip_set.samples]
    folder = work / "out"
    write_compared(folder, compared)
    write_rows(folder / VERDICTS, verdicts, Verdict)
    write_rows(folder / LABELS, [_label(one) for one in verdicts], Label)
    alone = {sample.sample_id for sample in clip_set.samples} - shares.keys()

    def lacking(beginning: str) -> int:
        """Clips without an answer that are in a pair with an error that begins so."""
        rows = [row for row in compared.comparisons if (row.error or "").startswith(beginning)]
        return len(alone & {clip for row in rows for clip in (row.first, row.second)})

    counts = {
        "accepted": 0,  # no clip is labelled
        "rejected": 0,
        "unlabelled": len(verdicts),
        "unreadable": lacking(UNREADABLE_CLIP),
        "failed": lacking(FAILED),
        "unrated": lacking(UNRATED),
        "comparisons": compared.tally.facts() | {"opponents": opponents, "clips_without": len(alone)},
    }
    facts = {"votes": votes, "agreement": None, "measures": [WIN_SHARE], "clip_set": clip_set.fingerprint()}
    write_manifest(folder, KIND, **identity(source, compared), **facts, **counts)
    publish(folder, out)
    return counts


def look_at_pairs(
    clip_set: ClipSet, source: Any, limit: int, opponents: int, votes: int, max_failed: float
) -> Iterator[str]:
    """Compare at most `limit` pairs of a set, spread over it, and say in words what is preferred. Nothing is stored."""
    pairs = spread(pairs_of(clip_set, opponents, votes_in_an_order(as_comparer(source), votes)), limit)
    compared = compare_pairs(pairs, source, None, batch_size=limit, max_failed=max_failed)
    for pair, row in zip(pairs, compared.preferences, strict=True):
        chance = "" if row.p_first is None else f" ({row.first} with a probability of {row.p_first:.2f})"
        yield f"{pair.first.sample.file_name}, {pair.second.sample.file_name}: {pair.prompt}"
        named = {FIRST: f"{row.first} is better", SECOND: f"{row.second} is better", TIE: TIE, None: "no answer"}
        yield f"    {named[row.preferred]}{chance}"
        for one in (one for one in compared.comparisons if {one.first, one.second} == set(pair.ids)):
            said = one.error or one.reason or " ".join((one.raw or "").split())[:REPLY_LENGTH]
            sure = "" if one.p_first is None else f" ({one.p_first:.2f} first)"
            yield f"    {one.first} before {one.second}, {one.question}: {one.answer or 'no answer'}{sure}: {said}"


def _verdict(source: Comparer, sample: Sample, share: float | None, compared: Compared) -> Verdict:
    row = compared.comparisons[0]
    return Verdict(
        sample_id=sample.sample_id, source=source.name, question=WIN_SHARE, vote=0, answer=None, p_yes=None,
        score=share, reason=None, raw=None, model=source.model, model_version=source.model_version or row.model_version,
        rubric_hash=source.rubric.hash, frames=[], tokens=None, cost=None,
        error=None if share is not None else NO_COMPARISON,
    )  # fmt: skip


def _label(row: Verdict) -> Label:
    return Label(row.sample_id, row.source, None, None, row.score, 1, int(row.score is None), row.error)
