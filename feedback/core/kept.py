"""Asks a source in this process about those clips, or pairs of clips, alone that it has not judged before.

A verdict is kept (feedback/core/verdicts.py) under a hash of all that it depends on:

    the clip       the bytes of its mp4, its prompt and the other columns of its row, the number of votes; of two clips
                   at once, both in the order in which they are shown. The bytes of its first frame, where that is shown
    the source     its kind and options; a file or folder that an option names counts by content
    the model      its version, and the type of its device
    the rubric     its hash: the words and frames that the source sees, and not how answers combine. Where each prompt
                   has questions of its own, those of the clip's prompt, so that another prompt's may change
    the code       of its kind: what the module imports of ours and of the user's, without comments and layout, and
                   the versions of the installed packages that this code imports

Clips that are judged in one batch share the last digits of their p_yes. What is kept has those of the batch in which it
was judged, and is never replaced: so a set that is labelled again gets the same bytes.
"""

import ast
import contextlib
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from data.content.hashes import Hashes, named_path
from data.content.modules import installed_versions, module_files
from data.manifest import sha256_of
from data.pace import measured
from data.records import Comparison, Verdict
from feedback.core.rubric import AnyRubric, Rubric
from feedback.core.source import FAILED, UNRATED, UNREADABLE_CLIP, Request, Source, shown_first_frame, verdicts_on
from feedback.core.verdicts import BETWEEN, Origin, Unusable, VerdictFile, verdicts_path

if TYPE_CHECKING:
    from feedback.pairs.shown import Named

logger = logging.getLogger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)
SubjectT = TypeVar("SubjectT")
RowT = TypeVar("RowT", bound=Verdict | Comparison)

MARK = "keeping"  # attribute of a source whose verdicts are kept: a Keeping
AGAIN = (UNREADABLE_CLIP, FAILED, UNRATED)  # beginnings of errors that the next run may not meet
PACE = ("batch_size", "cache")  # options that change no answer, but for its last digits
WIRING = ("feedback.core.kinds",)  # makes sources of blocks, and decides no answer
TOGETHER, SECONDS = 64, 2.0  # verdicts are committed so many together, or after so many seconds
PLACE = ("sample_id", "policy", "seed", "file_name")  # columns that say where a clip comes from, not what it shows
OF_PROMPT = "(each prompt's own)"  # in place of a rubric's hash, which each clip then has
OF_SOURCE = ("source", "model", "rubric_hash")  # fields of a row that its source fills in


class Keeping(NamedTuple):
    """What a source's verdicts depend on besides the clip, the rubric and the model's version."""

    kind: str
    decides: Mapping[str, Any]  # as JSON
    window: int  # clips that it judges together


@dataclass(frozen=True)
class Judged(Generic[SubjectT, RowT]):
    """What a source answers about: a clip, or two clips in the order in which they are shown."""

    what: str  # in words, the plural
    row: type[RowT]  # of an answer
    ids: tuple[str, ...]  # fields of a row that hold the clips' sample_ids
    clips: Callable[[SubjectT], tuple[Request, ...]]  # of a subject, as many as `ids`
    place: Callable[[SubjectT], int]  # of a subject in its set

    @property
    def own(self) -> tuple[str, ...]:
        """Fields of a row that its source and its clips fill in."""
        return *self.ids, *OF_SOURCE


ONE_CLIP = Judged[Request, Verdict](
    "clips", Verdict, ("sample_id",), lambda request: (request,), lambda request: request.place
)


def mark(
    source: Source,
    kind: str,
    modules: Collection[str],
    options: Mapping[str, Any],
    rubric: str | None,
    device: str | None,
) -> None:
    """Let the verdicts of a source be kept, unless the environment turns that off.

    modules: dotted paths of its kind and of the kinds of sources in its options. options: all of them, with defaults.
    rubric: path of the source's rubric, which counts by its hash. device: torch name; None where it has no model.
    """
    if (file := _opened()) is None:
        return
    with file:
        hashes = Hashes(file.hashes())
        before = dict(hashes.known)
        decides = {
            "modules": sorted(modules),
            "options": _by_content(options, rubric, hashes),
            "device": device and device.partition(":")[0],
            **_code(modules),
        }
        with contextlib.suppress(Unusable):
            file.remember({path: known for path, known in hashes.known.items() if before.get(path) != known})
    keeping = Keeping(kind, decides, int(options.get("batch_size") or 1))
    with contextlib.suppress(AttributeError):  # an object with __slots__, whose verdicts are not kept
        object.__setattr__(source, MARK, keeping)  # also of a frozen dataclass


def verdicts_of(
    source: Source, requests: Mapping[str, Request]
) -> Generator[tuple[str, Sequence[Verdict]], None, None]:
    """As `verdicts_on`, and first the clips that were judged before, whose verdicts are read from the file."""
    return answers_of(source, ONE_CLIP, requests, partial(verdicts_on, source))


def answers_of(
    source: "Named",
    judged: Judged[SubjectT, RowT],
    subjects: Mapping[KeyT, SubjectT],
    ask: Callable[[Mapping[KeyT, SubjectT]], Generator[tuple[KeyT, Sequence[RowT]], None, None]],
) -> Generator[tuple[KeyT, Sequence[RowT]], None, None]:
    """As `ask`, and first the subjects that were judged before, the answers about which are read from the file.

    ask: yields all of the source's answers about one subject at a time, in any order of the subjects.
    """
    ask = partial(_timed, judged.what, ask)
    keeping: Keeping | None = getattr(source, MARK, None)
    if keeping is None or (file := _opened()) is None:
        yield from ask(subjects)
        return
    with file:
        yield from _Asking(source, keeping, file, judged, subjects).answers(ask)


def _timed(
    what: str,
    ask: Callable[[Mapping[KeyT, SubjectT]], Generator[tuple[KeyT, Sequence[RowT]], None, None]],
    subjects: Mapping[KeyT, SubjectT],
) -> Generator[tuple[KeyT, Sequence[RowT]], None, None]:
    """As `ask`; says how long the source took."""
    began, count = time.monotonic(), 0
    for answer in ask(subjects):
        count += 1
        yield answer
    measured(what, count, time.monotonic() - began)


class _Asking(Generic[KeyT, SubjectT, RowT]):
    """One run of a source over clips or pairs of clips."""

    def __init__(
        self,
        source: "Named",
        keeping: Keeping,
        file: VerdictFile,
        judged: Judged[SubjectT, RowT],
        subjects: Mapping[KeyT, SubjectT],
    ) -> None:
        self.source, self.keeping, self.file, self.judged, self.subjects = source, keeping, file, judged, subjects
        self.origin = _origin(source, keeping)
        hashed = cache(partial(_clip, rubric=source.rubric))  # a clip may be in many pairs
        hashes = {key: [hashed(request) for request in judged.clips(subject)] for key, subject in subjects.items()}
        self.content = {key: BETWEEN.join(filter(None, ones)) for key, ones in hashes.items() if all(ones)}
        self.keeps = True  # False from when the file cannot be written

    def answers(
        self, ask: Callable[[Mapping[KeyT, SubjectT]], Generator[tuple[KeyT, Sequence[RowT]], None, None]]
    ) -> Generator[tuple[KeyT, Sequence[RowT]], None, None]:
        """By subject: those that are kept, then those that the source gives."""
        found = self.file.of(self.origin, self.content.values())
        kept = {key: found[content] for key, content in self.content.items() if content in found}
        if kept:
            words = "%s: %d of %d %s were judged before, and their verdicts are in %s"
            logger.info(words, self.source.name, len(kept), len(self.subjects), self.judged.what, self.file.path)
        for key, text in kept.items():
            yield key, self._read(key, text)
        waiting = dict[KeyT, Sequence[RowT]]()  # judged, and not committed yet
        asked = {key: subject for key, subject in self.subjects.items() if key not in kept}
        units = self._units(asked)
        left, answers, committed = Counter(units.values()), ask(asked), time.monotonic()
        torn = set[int]()  # units that are answered in part
        with contextlib.closing(answers), contextlib.ExitStack() as ending:
            ending.callback(lambda: self._commit(waiting))  # also where the source stops with an error
            for key, rows in answers:
                waiting[key] = rows
                if key in units:
                    left[units[key]] -= 1
                    (torn.add if left[units[key]] else torn.discard)(units[key])
                due = len(waiting) >= TOGETHER or time.monotonic() - committed >= SECONDS
                # A run that is killed and started again must form the same batches as one that is not.
                if due and not torn:
                    yield from self._commit(waiting).items()
                    waiting.clear()
                    committed = time.monotonic()
            yield from self._commit(waiting).items()
            waiting.clear()

    def _units(self, asked: Mapping[KeyT, SubjectT]) -> dict[KeyT, int]:
        """The number of the unit that each subject is judged in: some that follow each other, here or in their set."""
        if size := getattr(self.source, "unit", None):
            return {key: self.judged.place(subject) // size for key, subject in asked.items()}
        return {key: place // self.keeping.window for place, key in enumerate(asked)}

    def _commit(self, waiting: Mapping[KeyT, Sequence[RowT]]) -> dict[KeyT, Sequence[RowT]]:
        """Keep answers. Returns what is kept of these subjects, or the answers themselves where they are not kept."""
        texts = dict[str, str]()
        for key, rows in waiting.items():
            if key in self.content and self._is_final(key, rows):
                texts.setdefault(self.content[key], _text(rows, self.judged))
        if texts and self.keeps:
            try:
                texts = self.file.keep(self.origin, texts)
            except Unusable as error:
                self.keeps = False
                logger.warning("%s: verdicts are not kept from here on: %s", self.source.name, error)
        kept = {key: text for key in waiting if (text := texts.get(self.content.get(key, "")))}
        return {key: self._read(key, kept[key]) if key in kept else waiting[key] for key in waiting}

    def _is_final(self, key: KeyT, rows: Sequence[RowT]) -> bool:
        """Whether these are answers that the next run would get too; False for those that the caller will refuse."""
        request, own = self.judged.clips(self.subjects[key])[0], self._own(key)
        questions = self.source.rubric.of(request.sample.prompt).questions
        asked = {(question.name, vote) for question in questions for vote in range(request.votes)}
        complete = len(rows) == len(asked) and {(row.question, row.vote) for row in rows} == asked
        theirs = all(getattr(row, name) == value for row in rows for name, value in own.items())
        said = all(row.error or row.answer is not None or getattr(row, "score", None) is not None for row in rows)
        return complete and theirs and said and not any((row.error or "").startswith(AGAIN) for row in rows)

    def _read(self, key: KeyT, text: str) -> list[RowT]:
        """Answers about a subject from their text."""
        empty = {field.name: None for field in fields(self.judged.row)}
        return [self.judged.row(**(empty | row | self._own(key))) for row in json.loads(text)]

    def _own(self, key: KeyT) -> dict[str, str]:
        """The fields that the source and the clips fill in."""
        source, clips = self.source, self.judged.clips(self.subjects[key])
        ids = [request.sample.sample_id for request in clips]
        return dict(zip(self.judged.own, (*ids, source.name, source.model, source.rubric.hash), strict=True))


def _opened() -> VerdictFile | None:
    """The file of verdicts; None where the environment turns it off, or where it cannot be written."""
    if (path := verdicts_path()) is None:
        return None
    try:
        return VerdictFile(path)
    except Unusable as error:
        logger.warning("verdicts are not kept: %s", error)
        return None


def _origin(source: "Named", keeping: Keeping) -> Origin:
    rubric, version = source.rubric, source.model_version
    asked = rubric.hash if isinstance(rubric, Rubric) else OF_PROMPT
    key = _hash({"rubric": asked, "version": version, **keeping.decides})
    return Origin(key, source.name, keeping.kind, source.model, version, f"{rubric.name} {asked}")


def _clip(request: Request, rubric: AnyRubric) -> str | None:
    """The hash of a clip as a source may see it; None where its mp4 cannot be read."""
    try:
        content = request.content or sha256_of(request.path)
    except OSError:
        return None
    sample = request.sample
    shown = {one.name: getattr(sample, one.name) for one in fields(sample) if one.name not in PLACE}
    own = {} if isinstance(rubric, Rubric) else {"rubric": rubric.of(sample.prompt).hash}
    if first := shown_first_frame(rubric, request):
        own["first_frame"] = first.content
    if whole := request.whole:
        own["window"] = f"{whole.frames.start} to {whole.frames.stop} of {whole.content}"
    return _hash({"mp4": content, "votes": request.votes, **shown, **own})


def _text(rows: Iterable[RowT], judged: Judged[SubjectT, RowT]) -> str:
    """Answers about one subject as JSON, without what the source and the clips fill in."""
    names = [field.name for field in fields(judged.row) if field.name not in judged.own]
    facts = [{name: value for name in names if (value := getattr(row, name)) is not None} for row in rows]
    return json.dumps(facts, default=_plain)


def _plain(value: Any) -> Any:
    """A number of NumPy's as one of Python's; an array or a sequence as a list."""
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _by_content(value: Any, rubric: str | None, hashes: Hashes) -> Any:
    """Options with a hash in place of each file and folder that they name, without the pace and the rubric's path."""
    if isinstance(value, Mapping):
        chosen = {key: inner for key, inner in value.items() if key not in PACE and (rubric is None or inner != rubric)}
        return {str(key): _by_content(inner, rubric, hashes) for key, inner in chosen.items()}
    if isinstance(value, list | tuple):
        return [_by_content(inner, rubric, hashes) for inner in value]
    path = named_path(value)
    return value if path is None else {"sha256": hashes.of(path.absolute())}


def _code(modules: Collection[str]) -> dict[str, Any]:
    """The code of ours and of the user's that these modules import, as hashes by module, and versions of the rest."""
    files = {path: name for module in modules for path, name in module_files(module, WIRING).items()}
    code = {name: _code_hash(path) for path, name in files.items()}
    return {"code": code, "packages": installed_versions(files)}


def _code_hash(path: Path) -> str:
    """Of what a file means: comments and layout do not count, texts and docstrings do."""
    return hashlib.sha256(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode()).hexdigest()


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
