"""Asks a source in this process about those clips alone that it has not judged before.

A verdict is kept (feedback/core/verdicts.py) under a hash of all that it depends on:

    the clip       the bytes of its mp4, its prompt and the other columns of its row, the number of votes
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
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from data.content.hashes import Hashes, named_path
from data.content.modules import installed_versions, module_files
from data.manifest import sha256_of
from data.records import Verdict
from feedback.core.rubric import AnyRubric, Rubric
from feedback.core.source import FAILED, UNRATED, UNREADABLE_CLIP, Request, Source, verdicts_on
from feedback.core.verdicts import Origin, Unusable, VerdictFile, verdicts_path

logger = logging.getLogger(__name__)

MARK = "keeping"  # attribute of a source whose verdicts are kept: a Keeping
AGAIN = (UNREADABLE_CLIP, FAILED, UNRATED)  # beginnings of errors that the next run may not meet
PACE = ("batch_size", "cache")  # options that change no answer, but for its last digits
WIRING = ("feedback.core.kinds",)  # makes sources of blocks, and decides no answer
TOGETHER, SECONDS = 64, 2.0  # verdicts are committed so many together, or after so many seconds
PLACE = ("sample_id", "policy", "seed", "file_name")  # columns that say where a clip comes from, not what it shows
OF_PROMPT = "(each prompt's own)"  # in place of a rubric's hash, which each clip then has
OWN = ("sample_id", "source", "model", "rubric_hash")  # fields of a verdict that its source and its clip fill in


class Keeping(NamedTuple):
    """What a source's verdicts depend on besides the clip, the rubric and the model's version."""

    kind: str
    decides: Mapping[str, Any]  # as JSON
    window: int  # clips that it judges together


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
    keeping: Keeping | None = getattr(source, MARK, None)
    if keeping is None or (file := _opened()) is None:
        yield from verdicts_on(source, requests)
        return
    with file:
        yield from _Asking(source, keeping, file, requests).verdicts()


class _Asking:
    """One run of a source over clips."""

    def __init__(self, source: Source, keeping: Keeping, file: VerdictFile, requests: Mapping[str, Request]) -> None:
        self.source, self.keeping, self.file, self.requests = source, keeping, file, requests
        self.origin = _origin(source, keeping)
        self.clips = {sample: key for sample, request in requests.items() if (key := _clip(request, source.rubric))}
        self.keeps = True  # False from when the file cannot be written

    def verdicts(self) -> Generator[tuple[str, Sequence[Verdict]], None, None]:
        """By clip: those that are kept, then those that the source gives."""
        found = self.file.of(self.origin, self.clips.values())
        kept = {sample: found[clip] for sample, clip in self.clips.items() if clip in found}
        if kept:
            what = "%s: %d of %d clips were judged before, and their verdicts are in %s"
            logger.info(what, self.source.name, len(kept), len(self.requests), self.file.path)
        for sample, text in kept.items():
            yield sample, self._read(sample, text)
        waiting = dict[str, Sequence[Verdict]]()  # judged, and not committed yet
        answers = verdicts_on(self.source, {sample: of for sample, of in self.requests.items() if sample not in kept})
        committed = time.monotonic()
        with contextlib.closing(answers), contextlib.ExitStack() as ending:
            ending.callback(lambda: self._commit(waiting))  # also where the source stops with an error
            for sample, rows in answers:
                waiting[sample] = rows
                due = len(waiting) >= TOGETHER or time.monotonic() - committed >= SECONDS
                # A run that is killed and started again must form the same batches as one that is not.
                if due and len(waiting) % self.keeping.window == 0:
                    yield from self._commit(waiting).items()
                    waiting.clear()
                    committed = time.monotonic()
            yield from self._commit(waiting).items()
            waiting.clear()

    def _commit(self, waiting: Mapping[str, Sequence[Verdict]]) -> dict[str, Sequence[Verdict]]:
        """Keep verdicts. Returns what is kept of these clips, or the verdicts themselves where they are not kept."""
        texts = dict[str, str]()
        for sample, rows in waiting.items():
            if sample in self.clips and self._is_final(sample, rows):
                texts.setdefault(self.clips[sample], _text(rows))
        if texts and self.keeps:
            try:
                texts = self.file.keep(self.origin, texts)
            except Unusable as error:
                self.keeps = False
                logger.warning("%s: verdicts are not kept from here on: %s", self.source.name, error)
        kept = {sample: text for sample in waiting if (text := texts.get(self.clips.get(sample, "")))}
        return {sample: self._read(sample, kept[sample]) if sample in kept else waiting[sample] for sample in waiting}

    def _is_final(self, sample: str, rows: Sequence[Verdict]) -> bool:
        """Whether these are verdicts that the next run would get too; False for those that the caller will refuse."""
        votes, own = self.requests[sample].votes, self._own(sample)
        questions = self.source.rubric.of(self.requests[sample].sample.prompt).questions
        asked = {(question.name, vote) for question in questions for vote in range(votes)}
        complete = len(rows) == len(asked) and {(row.question, row.vote) for row in rows} == asked
        theirs = all(getattr(row, name) == value for row in rows for name, value in own.items())
        return complete and theirs and not any((row.error or "").startswith(AGAIN) for row in rows)

    def _read(self, sample: str, text: str) -> list[Verdict]:
        """Verdicts on a clip from their text."""
        empty = {field.name: None for field in fields(Verdict)}
        return [Verdict(**(empty | row | self._own(sample))) for row in json.loads(text)]

    def _own(self, sample: str) -> dict[str, str]:
        """The fields that the source and the clip fill in."""
        source = self.source
        return dict(zip(OWN, (sample, source.name, source.model, source.rubric.hash), strict=True))


def _opened() -> VerdictFile | None:
    """The file of verdicts; None where the environment turns it off, or where it cannot be written."""
    if (path := verdicts_path()) is None:
        return None
    try:
        return VerdictFile(path)
    except Unusable as error:
        logger.warning("verdicts are not kept: %s", error)
        return None


def _origin(source: Source, keeping: Keeping) -> Origin:
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
    return _hash({"mp4": content, "votes": request.votes, **shown, **own})


def _text(rows: Iterable[Verdict]) -> str:
    """Verdicts on one clip as JSON, without what the source and the clip fill in."""
    names = [field.name for field in fields(Verdict) if field.name not in OWN]
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
