"""A stage may be killed at any moment and started again: its resume folder, its lock, and what becomes of older work.

.state/<stage>-<out>/lock                 held while the stage runs (pipeline.lock); <out> with - for /
.state/<stage>-<out>/<identity>/          the work so far of exactly these params, inputs and code (pipeline.identity)
.state/<stage>-<out>/<identity>.json      those params, inputs and code, to read and to compare
.state/<stage>-<out>/<identity>.seconds   how long runs have worked at it
.state/<stage>-<out>/<identity>.held      likewise, each second times the accelerators that were held, if any were
.state/<stage>-<out>/<identity>.finished  published, and kept until DVC has saved it: the folder, its manifest
"""

import contextlib
import json
import logging
import os
import shlex
import shutil
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from data.manifest import MANIFEST, StoreError, atomically
from data.pace import Clock, TimeWorked, clock_of_this_stage
from data.policies import FINISHED
from pipeline.guardians import DVC_STAGE, end_with_dvc
from pipeline.identity import CODE, Difference, differences, facts_of, identity
from pipeline.lock import LOCK, HeldError, hold
from pipeline.saved import in_cache, in_lock, manifest_hash

logger = logging.getLogger(__name__)

STATE = Path(".state")
OUTPUTS = ("runs", "metrics", "report-out")  # folders that the stages write into
CHOICE = "STAGE_STATE"  # environment variable: what to do with older work
ADOPT, DISCARD = "adopt", "discard"
WORTH = 120.0  # seconds of work that are kept until a person decides
BEAT = 5.0  # seconds between writes of the time worked, which a SIGKILL may lose
SHOWN = 6  # differences of a kind that are listed
ADOPTED = "adopted"  # beside the facts of adopted work, and in the manifest: its other params and inputs


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a stage; the text says what is kept, and what the next run does."""


class StateError(click.ClickException):
    """Why a stage cannot start; the command ends with this message and exit code 1."""


def check_outputs(root: Path) -> None:
    """Raises StateError where outputs lie behind a symbolic link: DVC refuses them only after the stage has run."""
    for folder in (folder for name in OUTPUTS for folder in _holding_outputs(root / name)):
        if folder.is_symlink():
            place = folder.relative_to(root)
            raise StateError(
                f"{place} is a symbolic link to {folder.readlink()}, and DVC refuses outputs behind one; to use a "
                f"larger disk, clone the repository there, or mount it at {place} (mount --bind), or move DVC's cache "
                "(docs/pipeline.md, A larger disk)"
            )


def _holding_outputs(folder: Path) -> Iterator[Path]:
    """A folder and those below it that are no finished outputs: those have a manifest."""
    yield folder
    if folder.is_dir() and not folder.is_symlink():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not (inner / MANIFEST).is_file():
                yield from _holding_outputs(inner)


@contextlib.contextmanager
def stage_state(stage: str, out: Path, params: Any, inputs: Sequence[Path], root: Path = STATE) -> Iterator[Path]:
    """The folder in which a stage may find what a killed run of itself had finished; deleted when the body succeeds.

    The body publishes `out` and writes the metrics. DVC deletes both before a run and saves them after it. So under DVC
    the folder stays until a later stage finds `out` in dvc.lock: after a kill before that, the stage finishes at once.

    stage: its name in dvc.yaml or that of its command. out: what it will write, which no two runs may do at once.
    params: all that shapes the output beside the inputs: a mapping by the names that a person knows them by. inputs:
        the files and folders that the stage reads.
    Other params, inputs or code mean another folder. Older ones are deleted if they hold less than WORTH seconds of
    work. Otherwise STAGE_STATE decides: adopt continues the newest one, whose other params and inputs the manifest of
    `out` then lists as the fact `adopted`; discard deletes them; without it the run stops and says what differs.
    Under torchrun the first process does all of this; the others get the folder.
    Under DVC the process ends from here on when its dvc does. Raises StateError while another run holds the stage and
    for older work, and Interrupted in place of a KeyboardInterrupt.
    """
    if os.environ.get(CHOICE, "").partition(":")[0] not in ("", ADOPT, DISCARD):
        raise StateError(f"{CHOICE} is {os.environ[CHOICE]!r}, expected {ADOPT} or {DISCARD}")
    home, facts = root / "-".join([stage, *out.parts]), facts_of(stage, params, inputs)
    work = home / identity(facts)
    if os.environ.get("RANK", "0") != "0":
        end_with_dvc()
        yield work
        return
    with _lock(home):
        end_with_dvc()
        for left in home.glob(".*/"):
            shutil.rmtree(left)
        _delete_saved(root)
        adopted = _settle(home, work, facts)
        work.mkdir(exist_ok=True)
        _finished_path(work).unlink(missing_ok=True)
        with _refusals_explained(work, adopted), _time_kept(work):
            yield work
        _list_adopted(out, work)
        kept = _note_finished(out, work) if DVC_STAGE in os.environ and (out / MANIFEST).is_file() else []
        for path in home.iterdir():
            if path.name != LOCK and path not in kept:
                _delete(path)


# Work whose result is published


def _note_finished(out: Path, work: Path) -> list[Path]:
    """Note that the work is finished; returns the files and folders that stay until DVC has saved `out`."""
    note = _finished_path(work)
    with atomically(note) as partial:
        partial.write_text(json.dumps({"out": out.as_posix(), "manifest": manifest_hash(out)}) + "\n", encoding="utf-8")
    return [work, note, _facts_path(work), _seconds_path(work), _held_path(work)]


def _delete_saved(root: Path) -> None:
    """Delete the finished work of all stages whose results are in dvc.lock."""
    for note in root.glob(f"*/*{FINISHED}"):
        if in_lock(**json.loads(note.read_text(encoding="utf-8"))):
            _delete_work(note.with_suffix(""))


# Work of other runs


class _Work(NamedTuple):
    """Work that an earlier run left."""

    folder: Path
    files: int  # without those of a dotted name, which are notes or torn
    size: int  # bytes
    written: float  # seconds since the epoch, by the clock of that moment
    seconds: float  # of work
    facts: dict[str, Any] | None  # None: not recorded
    finished: bool  # and published

    def in_words(self, now: dict[str, Any]) -> str:
        """What there is, and how its run differs from this one."""
        when = datetime.fromtimestamp(self.written).strftime("%Y-%m-%d %H:%M")
        work = "finished work, not in dvc.lock," if self.finished else "work"
        files = f"{self.files} files of {_size(self.size)}"
        what = f"{self.folder}: {_hours(self.seconds)} of {work}, {files}, last written"
        if self.facts is None:
            return f"  {what} {when}\n    by an older version, which did not record params, inputs and code"
        found = differences(self.facts, now)
        lines = [f"{one.kind}: {one.text}" for one in _first_of_each_kind(found)]
        return "\n    ".join([f"  {what} {when}", *lines])


def _settle(home: Path, work: Path, facts: dict[str, Any]) -> _Work | None:
    """Delete, adopt or refuse older work, and write down the facts of this run's; returns the work that is adopted."""
    folders = [path for path in home.iterdir() if path.is_dir() and path != work]
    older = sorted(map(_look_at, folders), key=lambda one: one.written)
    with_files = [one for one in older if one.files and not _is_cached(one.folder)]
    valuable = [one for one in with_files if one.seconds >= WORTH]
    own = _look_at(work) if work.is_dir() else None
    choice, _, only = os.environ.get(CHOICE, "").partition(":")
    choice, adopted = choice if only in ("", home.name) else "", None
    if own and own.files:  # of this very run; what is older stays until the end
        logger.info("%s: resuming from %s, after %s of work", home.name, work, _hours(own.seconds))
        for one in valuable:
            logger.warning("older work, which is deleted when this run succeeds:\n%s", one.in_words(facts))
    elif valuable and choice == ADOPT:
        adopted = valuable[-1]
        older = []  # the others stay until the end
    elif valuable and choice != DISCARD:
        raise StateError(_what_there_is(home, valuable, facts))
    fresh = not (own and own.files)
    for one in older if fresh or choice == DISCARD else []:
        _delete_work(one.folder)
    if fresh:
        written = dict(facts)
        if adopted:
            logger.warning("%s: continuing the work of a run that differed:\n%s", home.name, adopted.in_words(facts))
            written[ADOPTED] = _not_of_the_code(adopted, facts)
        _write_facts(work, written)
    if adopted:
        _move(adopted.folder, work)
    return adopted


def _what_there_is(home: Path, valuable: Sequence[_Work], facts: dict[str, Any]) -> str:
    listed = "\n".join(one.in_words(facts) for one in reversed(valuable))
    risky = any(one.facts is None or _not_of_the_code(one, facts) for one in valuable)
    risk = (
        "; params or inputs differ, as listed: whether what is done still fits is your risk, and the manifest will "
        "list them"
        if risky
        else ""
    )
    adopt, discard = (f"{CHOICE}={shlex.quote(f'{choice}:{home.name}')}" for choice in (ADOPT, DISCARD))
    return (
        f"{home.name}: an earlier run left work, and this run differs from it:\n{listed}\n"
        f"Undo the change to go on as before, or run again with one of\n"
        f"  {adopt}    to continue {'the newest' if len(valuable) > 1 else 'that work'}{risk}\n"
        f"  {discard}  to delete it and start afresh\n"
        "Without the name behind it, the choice is for every stage of the run"
    )


def _not_of_the_code(one: _Work, facts: dict[str, Any]) -> list[str]:
    """How params and inputs of adopted work differ, with what it had adopted itself."""
    if one.facts is None:
        return ["work whose params and inputs are not known"]
    return [*one.facts.get(ADOPTED, []), *(d.text for d in differences(one.facts, facts) if d.kind != CODE)]


def _first_of_each_kind(found: Sequence[Difference]) -> Iterator[Difference]:
    for kind in dict.fromkeys(one.kind for one in found):
        own = [one for one in found if one.kind == kind]
        yield from own[:SHOWN]
        if len(own) > SHOWN:
            yield Difference(kind, f"and {len(own) - SHOWN} more")


@contextlib.contextmanager
def _refusals_explained(work: Path, adopted: _Work | None) -> Iterator[None]:
    """Ctrl-C says what is kept; adopted work that the body refuses before it writes anything is given back."""
    before = _look_at(work) if adopted else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(_what_is_kept(work)) from None
    except Exception as error:
        if adopted is None or before is None or _look_at(work)[1:4] != before[1:4]:  # files, size, written
            raise
        if adopted.facts:
            _write_facts(adopted.folder, adopted.facts)
        _move(work, adopted.folder)
        if not isinstance(error, ValueError | StoreError):  # of which those are that refuse work
            raise
        raise StateError(
            f"{error}\nNothing was added to the work that was to be continued, and it stays in {adopted.folder}. Mend "
            f"that, undo the change, or delete the work with {CHOICE}={DISCARD}"
        ) from error


def _what_is_kept(work: Path) -> str:
    if _look_at(work).files:
        return (
            f"Interrupted. What is finished is kept in {work}: run the same command again, and it goes on from there."
        )
    return "Interrupted. Nothing was finished yet: run the same command again, and it starts afresh."


def _list_adopted(out: Path, work: Path) -> None:
    """List in the manifest of `out` the params and inputs in which adopted work was made otherwise."""
    adopted = (_look_at(work).facts or {}).get(ADOPTED)
    if adopted and (out / MANIFEST).is_file():
        document = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        document["facts"][ADOPTED] = adopted
        text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        with atomically(out / MANIFEST) as partial:
            partial.write_text(text, encoding="utf-8")


# Files of the state


def _facts_path(work: Path) -> Path:
    return work.with_name(f"{work.name}.json")


def _write_facts(work: Path, facts: dict[str, Any]) -> None:
    with atomically(_facts_path(work)) as partial:
        partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _seconds_path(work: Path) -> Path:
    return work.with_name(f"{work.name}.seconds")


def _held_path(work: Path) -> Path:
    return work.with_name(f"{work.name}.held")


def _finished_path(work: Path) -> Path:
    return work.with_name(f"{work.name}{FINISHED}")


def _is_cached(work: Path) -> bool:
    """Whether it is finished and DVC has its result, maybe of another branch's dvc.lock."""
    note = _finished_path(work)
    return note.is_file() and in_cache(json.loads(note.read_text(encoding="utf-8"))["manifest"])


def _look_at(folder: Path) -> _Work:
    stats = [path.stat() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    times = [stat.st_mtime for stat in stats] or [0.0]
    facts = _facts_path(folder)
    return _Work(
        folder,
        len(stats),
        sum(stat.st_size for stat in stats),
        max(times),
        _seconds(folder, max(times) - min(times)),
        json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else None,
        _finished_path(folder).is_file(),
    )


def _seconds(work: Path, otherwise: float = 0.0) -> float:
    path = _seconds_path(work)
    return float(path.read_text()) if path.is_file() else otherwise


def _held(work: Path) -> float:
    path = _held_path(work)
    return float(path.read_text()) if path.is_file() else 0.0


@contextlib.contextmanager
def _time_kept(work: Path) -> Iterator[None]:
    """Add the time within it to what the work's files say, every BEAT seconds and at the end.

    Within it, `data.pace.time_worked` is the time of all runs so far.
    """
    clock, ended = Clock(TimeWorked(_seconds(work), _held(work))), threading.Event()

    def write() -> None:
        worked = clock.read()
        with contextlib.suppress(StoreError, OSError):  # such as a full disk
            with atomically(_seconds_path(work)) as partial:
                partial.write_text(f"{worked.seconds:.1f}\n")
            if worked.accelerator_seconds:
                with atomically(_held_path(work)) as partial:
                    partial.write_text(f"{worked.accelerator_seconds:.1f}\n")

    def beat() -> None:
        while not ended.wait(BEAT):
            write()

    thread = threading.Thread(target=beat, name="time-kept", daemon=True)
    thread.start()
    try:
        with clock_of_this_stage(clock):
            yield
    finally:
        ended.set()
        thread.join()
        write()


def _move(work: Path, to: Path) -> None:
    """Rename work with its time. A kill in between leaves the folder under one of the names."""
    for path_of in (_seconds_path, _held_path):
        if path_of(work).is_file():
            shutil.copyfile(path_of(work), path_of(to))
    if to.is_dir():
        shutil.rmtree(to)  # without a file in it
    work.rename(to)
    _delete_work(work)


def _delete_work(work: Path) -> None:
    for path in (work, _facts_path(work), _seconds_path(work), _held_path(work), _finished_path(work)):
        _delete(path)


def _delete(path: Path) -> None:
    """A kill leaves a folder whole, or under a dotted name that the next run deletes: half of it could pass as work."""
    if path.is_dir():
        doomed = path.with_name(f".{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def _hours(seconds: float) -> str:
    if seconds < 2 * 60 * 60:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    try:
        with hold(home / LOCK, home.name):
            yield
    except HeldError as error:
        raise StateError(str(error)) from None
