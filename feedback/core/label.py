"""Labels a clip set: judges every clip with a source, stores the answers and combines them into labels."""

import contextlib
import hashlib
import json
import logging
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from data.labels import LABELS, QUESTIONS, VERDICTS
from data.manifest import MANIFEST, begun_for, publish, read_manifest, write_manifest
from data.records import Asked, Label, Sample, Verdict, read_rows, write_rows
from data.store import ClipSet
from feedback.core.agreement import Agreement, VoteAgreement, vote_agreement
from feedback.core.commits import Commits
from feedback.core.kept import verdicts_of
from feedback.core.rubric import AnyRubric, Question, combine
from feedback.core.source import (
    FAILED,
    UNRATED,
    UNREADABLE_CLIP,
    FirstFrame,
    LabelError,
    Request,
    Source,
    WholeClip,
    check_first_frames,
    in_order,
    metrics_of,
    raters_of,
    rubrics_of,
    votes_of,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
REPLY_LENGTH = 240  # characters of a raw reply; enough for the answer of an OpenAI-compatible server


class LabelCounts(NamedTuple):
    """Numbers of clips by label. The unlabelled clips include the unreadable, the failed and the unrated ones."""

    accepted: int
    rejected: int
    unlabelled: int
    unreadable: int  # their mp4 could not be decoded, so the source did not see them
    failed: int  # every attempt to get a reply failed
    unrated: int  # unlabelled, and at least one person has not rated them


class Windows(NamedTuple):
    """What the clips of a set are, where they are windows (feedback/core/windows.py)."""

    length: int  # frames
    whole: Mapping[str, WholeClip]  # by the window's sample_id


def label_clip_set(
    clip_set: ClipSet,
    source: Source,
    work: Path,
    out: Path,
    batch_size: int,
    votes: int = 1,
    max_failed: float = 0.0,
    windows: Windows | None = None,
) -> LabelCounts:
    """Judge every clip `votes` times and publish the tables of data/labels.py and a manifest as the folder `out`.

    work: resume state. Verdicts are committed there atomically, in units of batch_size consecutive clips; a restart
        judges only the missing clips and produces the same bytes. The caller deletes it on success, and uses a separate
        folder for each source, rubric and clip set.
    votes: independent votes on every clip. Each person votes once and a repeatable source votes once, regardless of
        this number.
    max_failed: largest fraction of the clips that may remain without a reply. They get null verdicts, and the next run
        judges them again.
    A clip that cannot be decoded gets null verdicts with the error. Raises LabelError if more clips than `max_failed`
    failed or if no clip is rated, and ValueError if no clip got an answer or if `work` holds verdicts on other clips or
    of another source.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    work.mkdir(parents=True, exist_ok=True)
    begun_for(work, clip_set.folder)
    votes = votes_of(source, votes)
    requests = requests_for(clip_set, votes, windows)
    found = _committed(work, source, clip_set.samples, votes)
    missing = [request for request in requests if request.sample.sample_id not in found]
    ids = [sample.sample_id for sample in clip_set.samples]
    commits = Commits(work, "verdicts", Verdict, batch_size, ids, found)
    found |= _judge(source, missing, max_failed, commits, len(found))
    verdicts, labels, counts = _combined(source, clip_set, found)
    agreed = _agreed(source, verdicts, clip_set.samples, votes)
    facts = {
        "votes": votes,
        "agreement": asdict(agreed) if agreed else None,
        "measures": list(metrics_of(source)),
        "clip_set": clip_set.fingerprint(),
        **counts._asdict(),
        **({"window": windows.length} if windows else {}),
    }
    _publish(work / "out", out, source, verdicts, labels, _asked(source, clip_set.samples), facts)
    return counts


class Look(NamedTuple):
    """A clip, the verdicts on it and the label that they make."""

    sample: Sample
    label: Label
    verdicts: list[Verdict]

    def in_words(self, rubric: AnyRubric) -> str:
        """Text for the author of the rubric: the prompt, the label, and the answer to each question with its reason."""
        outcome = {True: "accepted", False: "rejected", None: "unlabelled"}[self.label.label]
        chance = "" if self.label.p_accept is None else f", p_accept {self.label.p_accept:.2f}"
        lines = [f"{self.sample.file_name}: {self.sample.prompt}", f"    {outcome}{chance}"]
        questions = {question.name: question for question in rubric.of(self.sample.prompt).questions}
        for one in self.verdicts:
            vote = f" (vote {one.vote})" if self.label.votes > 1 else ""
            lines.append(f"    {one.question}{vote}: {_in_a_line(one, questions[one.question])}")
        return "\n".join(lines)


def look_at(
    clip_set: ClipSet,
    source: Source,
    limit: int,
    votes: int = 1,
    max_failed: float = 0.0,
    windows: Windows | None = None,
) -> list[Look]:
    """Judge at most `limit` clips of a set. Nothing is stored, except what the source itself stores."""
    return look_at_all([clip_set], source, limit, votes, max_failed, windows)


def look_at_all(
    clip_sets: Sequence[ClipSet],
    source: Source,
    limit: int,
    votes: int = 1,
    max_failed: float = 0.0,
    windows: Windows | None = None,
) -> list[Look]:
    """As `look_at`, several sets at once, whose sample_ids differ; their costs count for the first."""
    votes = votes_of(source, votes)
    of_all = [request for clip_set in clip_sets for request in requests_for(clip_set, votes, windows)]
    purpose = of_all[0].purpose if of_all else ""
    requests = spread([replace(one, purpose=purpose, place=place) for place, one in enumerate(of_all)], limit)
    return look_at_requests(requests, source, votes, max_failed)


def look_at_requests(
    requests: Sequence[Request], source: Source, votes: int = 1, max_failed: float = 0.0
) -> list[Look]:
    """As `look_at`, of clips that need be in no set. votes: those of the requests."""
    found = _judge(source, requests, max_failed, None, 0)
    samples = [request.sample for request in requests]
    looks = [_look(one, found[one.sample_id], source) for one in samples]
    verdicts = [verdict for look in looks for verdict in look.verdicts]
    counts = _count([look.label for look in looks], verdicts)
    logger.info("%s: %d accepted, %d rejected, %d unlabelled", source.name, *counts[:3])
    _agreed(source, verdicts, samples, votes)
    return looks


def _look(sample: Sample, rows: list[Verdict], source: Source) -> Look:
    return Look(sample, combine(rows, source.rubric.of(sample.prompt)), rows)


def spread(requests: Sequence[T], limit: int) -> list[T]:
    """`limit` of these, evenly spread and including the first: a set lists its clips grouped by prompt."""
    count = min(limit, len(requests))
    return [requests[place * len(requests) // count] for place in range(count)]


def judge_identity(source: Source, block: Mapping[str, Any]) -> dict[str, str | None]:
    """What an audit applies to: the source, the hash of its block in params.yaml, its model and its rubric."""
    written = json.dumps(block, sort_keys=True, default=str)
    return {
        "source": source.name,
        "block": hashlib.sha256(written.encode()).hexdigest()[:12],
        "model": source.model,
        "model_version": source.model_version,
        "rubric_hash": source.rubric.hash,
    }


def warn_of_audit(folder: Path, judge: Mapping[str, str | None], least: float) -> None:
    """Log a warning if the audit in `folder` found an accuracy below `least`. Without an audit nothing is logged.

    judge: from `judge_identity`. If the audit is of another judge, it does not apply, and an info line says so.
    """
    if not (folder / MANIFEST).is_file():
        return
    facts = read_manifest(folder, "audit")["facts"]
    if other := [key for key, value in judge.items() if facts[key] != value]:
        message = "%s: the audit in %s does not apply: it is of another %s; audit this judge by `dvc repro audit@%s`"
        logger.info(message, judge["source"], folder, " and ".join(other), judge["source"])
    elif facts["accuracy"] < least:
        message = "%s: accuracy %.1f %% in its audit of %d clips (%s), below label.min_audited_accuracy: %g"
        logger.warning(message, judge["source"], 100 * facts["accuracy"], facts["clips"], folder / "audit.json", least)


def requests_for(clip_set: ClipSet, votes: int, windows: Windows | None = None) -> list[Request]:
    """A request for each clip of a set, in its order. windows: what the clips are, where they are windows."""
    purpose, hashes = clip_set.fingerprint(), clip_set.hashes
    return [
        Request(
            sample,
            clip_set.video(sample),
            votes,
            purpose,
            hashes.get(sample.file_name),
            first_frame_of(clip_set, sample),
            place,
            windows.whole[sample.sample_id] if windows else None,
        )
        for place, sample in enumerate(clip_set.samples)
    ]


def first_frame_of(clip_set: ClipSet, sample: Sample) -> FirstFrame | None:
    """The image that the generator was given for a clip; None where it was given none."""
    path = clip_set.first_frame(sample.prompt_id)
    if path is None:
        return None
    return FirstFrame(path, clip_set.hashes[path.relative_to(clip_set.folder).as_posix()])


def _committed(work: Path, source: Source, samples: Sequence[Sample], votes: int) -> dict[str, list[Verdict]]:
    """The verdicts that earlier runs committed, by sample_id."""
    known = {sample.sample_id: sample for sample in samples}
    found: dict[str, list[Verdict]] = {}
    for path in sorted(work.glob("verdicts-*.parquet")):
        of_clip: dict[str, list[Verdict]] = {}
        for row in read_rows(path, Verdict):
            of_clip.setdefault(row.sample_id, []).append(row)
        if foreign := of_clip.keys() - known.keys():
            raise ValueError(f"{path}: verdicts on {sorted(foreign)[:3]}, which are not in the clip set")
        found |= {sample: _in_order(rows, known[sample], source, votes, str(path)) for sample, rows in of_clip.items()}
    return found


def _judge(
    source: Source, requests: Sequence[Request], max_failed: float, commits: Commits[str, Verdict] | None, before: int
) -> dict[str, list[Verdict]]:
    """The source's verdicts on all requests by sample_id, committed in batches.

    before: number of clips that earlier runs judged.
    """
    asked = {request.sample.sample_id: request for request in requests}
    source.rubric.check_prompts(request.sample.prompt for request in requests)
    check_first_frames(source, requests)
    found: dict[str, list[Verdict]] = {}
    nulls, failed, started, total = 0, 0, time.monotonic(), before + len(requests)
    if commits:
        message = "%s: %d clips to judge, %d a commit; %d are done; the work lies in %s"
        logger.info(message, source.name, total, commits.size, before, commits.work)
    with contextlib.ExitStack() as ending:
        progress = ending.enter_context(tqdm(total=total, initial=before, unit="clip", desc=f"label by {source.name}"))
        if commits:
            ending.callback(commits.flush)  # also if the source stops with an error
        answers = verdicts_of(source, asked)
        for sample, rows in ending.enter_context(contextlib.closing(answers)):
            found[sample] = _in_order(rows, asked[sample].sample, source, asked[sample].votes, source.name)
            nulls += any(row.error is not None for row in rows)
            if _have(rows, FAILED):
                failed += 1
                _stop_at(failed, max_failed, total, rows, source)
            elif commits and not _have(rows, UNRATED):  # failed and unrated clips are judged again by the next run
                commits.add(sample, found[sample])
            progress.set_postfix({"null": nulls} | source.status(), refresh=False)
            progress.update()
    if requests:
        seconds = time.monotonic() - started
        message = "%s: %d clips in %.1f s, %.1f ms per clip"
        logger.info(message, source.name, len(requests), seconds, 1000 * seconds / len(requests))
    return found


def _combined(
    source: Source, clip_set: ClipSet, found: Mapping[str, Sequence[Verdict]]
) -> tuple[list[Verdict], list[Label], LabelCounts]:
    """All verdicts in the order of the clips, the labels, and the numbers of clips by label."""
    samples = clip_set.samples
    verdicts = [verdict for sample in samples for verdict in found[sample.sample_id]]
    if all(one.error is not None for one in verdicts):
        if verdicts and all((one.error or "").startswith(UNRATED) for one in verdicts):
            options = {"--set": str(clip_set.folder), "--source": source.name, "--rater": raters_of(source)[0]}
            command = shlex.join(["vfrl", "rate", *chain(*options.items())])
            raise LabelError(f"{source.name}: none of {len(samples)} clips is rated. Rate some with\n  {command}")
        first = verdicts[0].error if verdicts else "the clip set is empty"
        raise ValueError(f"{source.name} answered about none of {len(samples)} clips; the first error: {first}")
    labels = [combine(found[sample.sample_id], source.rubric.of(sample.prompt)) for sample in samples]
    counts = _count(labels, verdicts)
    logger.info("%s: %d accepted, %d rejected, %d unlabelled", source.name, *counts[:3])
    if counts.unreadable:
        logger.warning("%s: %d of %d clips could not be decoded", source.name, counts.unreadable, len(samples))
    if counts.failed:
        logger.warning("%s: no reply about %d of %d clips", source.name, counts.failed, len(samples))
    if counts.unrated:
        logger.info("%s: %d of %d clips lack a rating, and a label", source.name, counts.unrated, len(samples))
    return verdicts, labels, counts


def _in_a_line(verdict: Verdict, question: Question) -> str:
    """An answer with its probability and its reason or error; without a reason the raw reply, if it is in words."""
    words = {True: question.affirmative, False: question.negative, None: "no answer"}
    answer = words[verdict.answer] if verdict.score is None else f"score {verdict.score:g}"
    chance = "" if verdict.p_yes is None else f" ({verdict.p_yes:.2f} {question.affirmative})"
    raw = " ".join((verdict.raw or "").split())[:REPLY_LENGTH]
    if verdict.answer is not None and raw.startswith("{"):  # a server's whole reply
        raw = ""
    why = "; ".join(text for text in (verdict.error, verdict.reason or raw) if text)
    return f"{answer}{chance}{f': {why}' if why else ''}"


def _agreed(source: Source, verdicts: Sequence[Verdict], samples: Sequence[Sample], votes: int) -> VoteAgreement | None:
    """The agreement of the votes; None for a single vote."""
    if votes == 1:
        return None
    found = vote_agreement(verdicts, rubrics_of(source, samples))
    several = {"all answers": found.answers, **found.questions} if len(found.questions) > 1 else {}
    for what, of in {"the label": found.label, **several}.items():
        logger.info("%s: votes agree on %s: %s", source.name, what, _in_words(of))
    return found


def _in_words(found: Agreement) -> str:
    if found.observed is None:
        return "no clip has two answered votes"
    kappa = "undefined, all are the same" if found.kappa is None else f"{found.kappa:.2f}"
    return (
        f"{found.observed:.1%} of the pairs (kappa {kappa}), "
        f"{found.not_unanimous} of {found.clips} clips are not unanimous"
    )


def _have(rows: Iterable[Verdict], beginning: str) -> bool:
    """Whether the error of one of these verdicts begins so."""
    return any((row.error or "").startswith(beginning) for row in rows)


def _stop_at(failed: int, max_failed: float, total: int, rows: Sequence[Verdict], source: Source) -> None:
    if failed > max_failed * total:
        error = next(row.error for row in rows if (row.error or "").startswith(FAILED))
        raise LabelError(
            f"{source.name}: no reply about {failed} of {total} clips, more than label.max_failed "
            f"({max_failed:.1%}) allows; the last error: {error}. The answers so far are kept; "
            "run it again once that is mended"
        )


def _in_order(rows: Sequence[Verdict], sample: Sample, source: Source, votes: int, where: str) -> list[Verdict]:
    """As `in_order`. Also raises ValueError for verdicts of another source, and for a null verdict without an error."""
    ordered = in_order(rows, sample, source, votes, where)
    known = (source.name, source.model, source.rubric.hash)
    for row in rows:
        stated = (row.source, row.model, row.rubric_hash)
        if stated != known or source.model_version not in (None, row.model_version):
            raise ValueError(
                f"{where}: {sample.sample_id} was judged by {stated} of version {row.model_version}, "
                f"expected {known} of version {source.model_version}"
            )
        if row.answer is None and row.score is None and not row.error:
            raise ValueError(f"{where}: {source.name} gave neither an answer nor an error about {sample.sample_id}")
    return ordered


def _publish(
    folder: Path,
    out: Path,
    source: Source,
    verdicts: Sequence[Verdict],
    labels: Sequence[Label],
    asked: Sequence[Asked],
    facts: dict[str, Any],
) -> None:
    """Write the tables and their manifest to a new `folder`, and move it to `out`."""
    shutil.rmtree(folder, ignore_errors=True)
    write_rows(folder / VERDICTS, verdicts, Verdict)
    write_rows(folder / LABELS, labels, Label)
    if asked:
        write_rows(folder / QUESTIONS, asked, Asked)
    write_manifest(
        folder,
        "labels",
        source=source.name,
        rubric=source.rubric.name,
        rubric_hash=source.rubric.hash,
        model=source.model,
        model_versions=sorted({verdict.model_version for verdict in verdicts}),
        **facts,
    )
    publish(folder, out)


def _asked(source: Source, samples: Sequence[Sample]) -> list[Asked]:
    """What was asked about each prompt's clips, if that is more than one question and not a metric's."""
    prompts = dict.fromkeys(sample.prompt for sample in samples)
    rows = [
        Asked(prompt, one.name, one.ask.strip().replace("{prompt}", prompt), one.affirmative, one.negative, one.wanted,
              one.required)
        for prompt in prompts
        for one in source.rubric.of(prompt).questions
    ]  # fmt: skip
    several = len({row.question for row in rows}) > 1
    return rows if several and not metrics_of(source) else []


def _count(labels: Sequence[Label], verdicts: Sequence[Verdict]) -> LabelCounts:
    def clips(beginning: str) -> set[str]:
        return {one.sample_id for one in verdicts if (one.error or "").startswith(beginning)}

    unlabelled = {label.sample_id for label in labels if label.label is None}
    return LabelCounts(
        accepted=sum(label.label is True for label in labels),
        rejected=sum(label.label is False for label in labels),
        unlabelled=len(unlabelled),
        unreadable=len(clips(UNREADABLE_CLIP)),
        failed=len(clips(FAILED)),
        unrated=len(clips(UNRATED) & unlabelled),
    )
