"""Asks a source which of two clips is better, in both orders, keeps the answers and combines them into preferences."""

import contextlib
import logging
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.preferences import COMPARISONS, PREFERENCES, Tally, tally
from data.records import Comparison, Preference, read_rows, write_rows
from feedback.core.commits import Commits
from feedback.core.kept import Judged, answers_of
from feedback.core.source import FAILED, UNRATED, LabelError
from feedback.pairs.outcome import prefer
from feedback.pairs.people import rate_command
from feedback.pairs.shown import Comparer, ShownPair

logger = logging.getLogger(__name__)

Key = frozenset[str]  # the sample_ids of a pair
Ids = tuple[str, str]  # in the order in which they are shown


class Compared(NamedTuple):
    """Answers about pairs of clips, in the order of the pairs, and what they come to."""

    comparisons: list[Comparison]
    preferences: list[Preference]

    @property
    def tally(self) -> Tally:
        """The counts."""
        return tally(self.preferences)


def as_comparer(source: Any) -> Comparer:
    """A source whose rubric compares. Raises ValueError for another one."""
    if not source.rubric.compares:
        raise ValueError(f"{source.name}: its rubric {source.rubric.name} is about one clip; expected compares: true")
    comparer: Comparer = source
    return comparer


def raters(source: Comparer) -> Sequence[str]:
    """The people who compare, with one vote each; empty if the source is not people."""
    return tuple(getattr(source, "raters", ()))


def votes_in_an_order(source: Comparer, votes: int) -> int:
    """Votes about a pair in each order of showing; each person votes once, in one order."""
    return len(raters(source)) or (1 if source.repeatable else votes)


def compare_pairs(
    pairs: Sequence[ShownPair], source: Comparer, work: Path | None, batch_size: int, max_failed: float = 0.0
) -> Compared:
    """The answers about these pairs in both orders; people choose their own order.

    work: resume state. Answers are committed there atomically, by units of batch_size pairs; a restart asks only about
        the missing pairs and ends with the same rows. The caller deletes it. None: nothing is kept.
    max_failed: largest part of the pairs that may remain without a reply; the next run asks about them again.
    Raises LabelError if more pairs failed, or if a first frame that the rubric shows is missing or differs between the
    clips of a pair; ValueError if no pair got an answer, for a pair that is listed twice, or if `work` holds answers of
    another source or about other pairs.
    """
    for pair in pairs:
        pair.first_frame(source.rubric)
    pairs = [replace(pair, place=2 * place) for place, pair in enumerate(pairs)]  # each is shown twice
    keys = {frozenset(pair.ids): pair for pair in pairs}
    if len(keys) != len(pairs):
        raise ValueError(f"{len(pairs) - len(keys)} of {len(pairs)} pairs are listed twice")
    found = _committed(work, source, keys) if work else {}
    missing = [pair for pair in pairs if frozenset(pair.ids) not in found]
    commits = Commits(work, "comparisons", Comparison, batch_size, list(keys), found) if work else None
    found |= _ask(source, missing, max_failed, commits, len(found))
    rows = [row for pair in pairs for row in found[frozenset(pair.ids)]]
    if all((row.error or "").startswith(UNRATED) for row in rows):
        raise LabelError(
            f"{source.name}: none of {len(pairs)} pairs is compared. Compare some with\n"
            f"  {rate_command(source.name, pairs, raters(source)[0])}"
        )
    if all(row.error is not None for row in rows):
        raise ValueError(f"{source.name} answered about none of {len(pairs)} pairs; the first error: {rows[0].error}")
    both = not raters(source)
    preferences = [
        prefer(pair.first.sample.prompt_id, pair.ids, found[frozenset(pair.ids)], source.rubric.of(pair.prompt), both)
        for pair in pairs
    ]
    counts = tally(preferences)
    logger.info(
        "%s: of %d pairs %d have a preferred clip, %d are ties, %d lack an answer; the clip that was shown first was "
        "preferred in both orders in %d, the second in %d",
        source.name, counts.pairs, counts.first + counts.second, counts.ties, counts.unknown, counts.first_in_both,
        counts.second_in_both,
    )  # fmt: skip
    return Compared(rows, preferences)


def identity(source: Comparer, compared: Compared) -> dict[str, Any]:
    """What a manifest says of the source."""
    return {
        "source": source.name,
        "rubric": source.rubric.name,
        "rubric_hash": source.rubric.hash,
        "model": source.model,
        "model_versions": sorted({row.model_version for row in compared.comparisons}),
    }


def write_compared(folder: Path, compared: Compared) -> None:
    """Write the two tables into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    write_rows(folder / COMPARISONS, compared.comparisons, Comparison)
    write_rows(folder / PREFERENCES, compared.preferences, Preference)


# Asking

SHOWN = Judged[ShownPair, Comparison](
    "shown pairs", Comparison, ("first", "second"), lambda pair: (pair.first, pair.second), lambda pair: pair.place
)


def _ask(
    source: Comparer,
    pairs: Sequence[ShownPair],
    max_failed: float,
    commits: Commits[Key, Comparison] | None,
    before: int,
) -> dict[Key, list[Comparison]]:
    """The source's answers about all pairs, committed in batches. before: number of pairs that earlier runs asked."""
    found: dict[Key, list[Comparison]] = {}
    failed, total = 0, before + len(pairs)
    if commits:
        message = "%s: %d pairs to compare, %d a commit; %d are done; the work lies in %s"
        logger.info(message, source.name, total, commits.size, before, commits.work)
    with contextlib.ExitStack() as ending:
        progress = ending.enter_context(
            tqdm(total=total, initial=before, unit="pair", desc=f"compare by {source.name}")
        )
        if commits:
            ending.callback(commits.flush)  # also if the source stops with an error
        for key, rows in _answers(source, pairs):
            found[key] = rows
            if _have(rows, FAILED):
                failed += 1
                _stop_at(failed, max_failed, total, rows, source)
            elif commits and not _have(rows, UNRATED):  # failed and unrated pairs are asked about again by the next run
                commits.add(key, rows)
            progress.set_postfix(source.status(), refresh=False)
            progress.update()
    return found


def _answers(source: Comparer, pairs: Sequence[ShownPair]) -> Iterator[tuple[Key, list[Comparison]]]:
    """Yields each pair with the answers about it, ordered by order of showing, question and vote.

    Raises ValueError if the source answers about another pair, answers twice or leaves one out.
    """
    wanted = {frozenset(pair.ids): pair for pair in pairs}
    if raters(source):
        with contextlib.closing(_compared(source, {pair.ids: pair for pair in pairs})) as answers:
            for ids, rows in answers:
                yield frozenset(ids), _ordered(rows, wanted[frozenset(ids)], source)
        return
    shown = {one.ids: one for pair in pairs for one in (pair, pair.swapped())}
    waiting: dict[Key, Sequence[Comparison]] = {}  # answers in one order
    with contextlib.closing(answers_of(source, SHOWN, shown, partial(_compared, source))) as answers:
        for ids, rows in answers:
            if (key := frozenset(ids)) in waiting:
                yield key, _ordered([*waiting.pop(key), *rows], wanted[key], source)
            else:
                waiting[key] = rows


def _compared(
    source: Comparer, shown: Mapping[Ids, ShownPair]
) -> Generator[tuple[Ids, Sequence[Comparison]], None, None]:
    """Yields each shown pair with the source's answers about it, in the source's order. People show it in their own.

    Raises ValueError if the source answers about another pair, answers twice or leaves one out.
    """
    left: dict[Key | Ids, Ids] = {frozenset(ids) if raters(source) else ids: ids for ids in shown}
    answers = source.compare(iter(shown.values()))
    try:
        for rows in answers:
            ids = (rows[0].first, rows[0].second)
            key: Key | Ids = frozenset(ids) if raters(source) else ids
            if key not in left:
                raise ValueError(f"{source.name} answered about {ids}, which was not asked, or answered twice")
            yield left.pop(key), rows
    finally:  # calls in flight end before the caller continues
        getattr(answers, "close", lambda: None)()
    if left:
        pairs = {frozenset(ids) for ids in left.values()}
        raise ValueError(f"{source.name} left out {len(pairs)} pairs, such as {sorted(next(iter(pairs)))}")


def _ordered(rows: Iterable[Comparison], pair: ShownPair, source: Comparer) -> list[Comparison]:
    """The answers in order: order of showing, question, vote.

    Raises ValueError where one is missing or is of another source, and for a null without an error.
    """
    rows, questions = list(rows), [question.name for question in source.rubric.of(pair.prompt).questions]
    expected = len(questions) * pair.votes * (1 if raters(source) else 2)
    if len({(row.first, row.question, row.vote) for row in rows}) != len(rows) or len(rows) != expected:
        raise ValueError(f"{source.name}: {len(rows)} answers about {pair.ids} do not match the {expected} asked for")
    ordered = sorted(
        rows, key=lambda row: ((row.first, row.second) != pair.ids, questions.index(row.question), row.vote)
    )
    for row in ordered:
        stated, known = (row.source, row.model, row.rubric_hash), (source.name, source.model, source.rubric.hash)
        if stated != known or source.model_version not in (None, row.model_version):
            raise ValueError(
                f"{pair.ids} were compared by {stated} of version {row.model_version}, expected {known} of version "
                f"{source.model_version}"
            )
        if row.answer is None and not row.error:
            raise ValueError(f"{source.name} gave neither an answer nor an error about {pair.ids}")
    return ordered


def _have(rows: Iterable[Comparison], beginning: str) -> bool:
    """Whether the error of one of these answers begins so."""
    return any((row.error or "").startswith(beginning) for row in rows)


def _stop_at(failed: int, max_failed: float, total: int, rows: Sequence[Comparison], source: Comparer) -> None:
    if failed > max_failed * total:
        error = next(row.error for row in rows if (row.error or "").startswith(FAILED))
        raise LabelError(
            f"{source.name}: no reply about {failed} of {total} pairs, more than label.max_failed ({max_failed:.1%}) "
            f"allows; the last error: {error}. The answers so far are kept; run it again to continue"
        )


def _committed(work: Path, source: Comparer, pairs: Mapping[Key, ShownPair]) -> dict[Key, list[Comparison]]:
    """The answers that earlier runs committed."""
    found: dict[Key, list[Comparison]] = {}
    for path in sorted(work.glob("comparisons-*.parquet")):
        of_pair: dict[Key, list[Comparison]] = {}
        for row in read_rows(path, Comparison):
            of_pair.setdefault(frozenset((row.first, row.second)), []).append(row)
        if foreign := of_pair.keys() - pairs.keys():
            raise ValueError(f"{path}: answers about {sorted(next(iter(foreign)))}, which are not compared here")
        found |= {key: _ordered(rows, pairs[key], source) for key, rows in of_pair.items()}
    return found
