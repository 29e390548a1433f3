"""The manifest: the last file that a stage writes into its folder, and what its readers check first.

A folder without a manifest is half-written. The manifest lists every file with its size and sha256 and
carries no dates, so equal contents give equal bytes. Names that begin with a dot (resume markers, partial
files) are not part of a result and are not listed.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)  # of os.link, where a copy is made
OF_RUST = "(os error "  # in what libraries in Rust, such as safetensors, raise of a disk; it is no OSError
FORMAT = 1  # raised when the layout of a published folder changes


class StoreError(Exception):
    """A folder or file that cannot be written, or is unfinished, changed or of another kind."""


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A partial file to write to, beside `path`; it takes that name, synced to disk, when the block succeeds.

    When the block fails nothing is left behind. An OSError, such as a full disk, becomes a StoreError naming `path`.
    """
    partial = path.with_name(f".{path.name}.partial")  # one name, so that a killed run's leftover is overwritten
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within it an error of the disk, such as a full one, is a StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: not written: {error.strerror or error}") from error
    except Exception as error:
        if OF_RUST not in str(error):
            raise
        raise StoreError(f"{path}: not written: {error}") from error


def write_manifest(folder: Path, kind: str, /, **facts: Any) -> None:
    """Declare `folder` finished. `facts` are what readers need to know of it; they must be JSON and not volatile."""
    document = {"format": FORMAT, "kind": kind, "facts": facts, "files": _files(folder)}
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with atomically(folder / MANIFEST) as partial:
        partial.write_text(text, encoding="utf-8")


def read_manifest(folder: Path, kind: str, verify: bool = False) -> dict[str, Any]:
    """The manifest of a finished folder: format, kind, facts (dict), files (list of path, size, sha256).

    Raises StoreError when there is none, when it is of another kind or format, or when a listed file is missing or
    of another size; with `verify` also when a file's sha256 differs, which reads every byte.
    """
    document = _parsed(folder)
    if document["format"] != FORMAT:
        raise StoreError(
            f"{folder / MANIFEST}: format {document['format']}, but this code reads format {FORMAT}; "
            "make the folder again with `dvc repro`, or use the code that wrote it"
        )
    if document["kind"] != kind:
        raise StoreError(f"{folder}: holds a {document['kind']!r}, but a {kind!r} is wanted here")
    for listed in document["files"]:
        _check(folder / listed["path"], listed, verify)
    return document


def kind_of(folder: Path) -> str:
    """The kind of a finished folder, whose files are not looked at. Raises StoreError where it has no manifest."""
    return str(_parsed(folder)["kind"])


def begun_for(work: Path, *folders: Path) -> None:
    """Write down in `work` which finished folders it is about. Raises StoreError where it was begun for others.

    They are known by their manifests. A file of a dotted name, so it is not part of a result.
    """
    now = {folder.as_posix(): sha256_of(folder / MANIFEST) for folder in folders}
    note = work / ".begun-for.json"
    if note.is_file() and (before := json.loads(note.read_text(encoding="utf-8"))) != now:
        other = ", ".join(sorted({name for name, _ in now.items() ^ before.items()}))
        raise StoreError(f"{work}: what is done there is about other contents of {other} than there are now")
    with atomically(note) as partial:
        partial.write_text(json.dumps(now) + "\n", encoding="utf-8")


def publish(work: Path, out: Path) -> None:
    """Put the finished folder `work` at `out`, replacing what is there.

    A kill at any moment leaves `out` absent, without a manifest, or whole. `work` stays whole, so that nothing is lost
    with `out`: its files are hard links to the same bytes, or copies where the file system has no hard
    links.
    Raises StoreError when `work` has no manifest.
    """
    if not (work / MANIFEST).is_file():
        raise StoreError(f"{work}: no {MANIFEST}, so it is not finished and cannot be published as {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # first, so that what is left of `out` never passes as done
    if out.exists():
        shutil.rmtree(out)
    try:
        _copy_to(out, work, work.with_name(f".{work.name}.partial"))  # not beside `out`, where readers may look
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise StoreError(f"{out}: {work} could not be put there: {error}") from error
        try:
            _copy_to(out, work, out.with_name(f".{out.name}.partial"))
        except OSError as failure:
            raise StoreError(f"{out}: {work} could not be put there: {failure}") from failure


def _copy_to(out: Path, work: Path, partial: Path) -> None:
    """Copy `work`, by hard links where that is possible, to `partial`, and rename that."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(work, partial, copy_function=_linked_or_copied)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _linked_or_copied(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError as error:
        if error.errno not in UNLINKABLE:
            raise
        shutil.copy2(source, to)


def _files(folder: Path) -> list[dict[str, Any]]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    listed = sorted(
        name.as_posix()
        for name in names
        if name != Path(MANIFEST) and not any(part.startswith(".") for part in name.parts)
    )
    return [
        {"path": name, "size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in listed
    ]


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parsed(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; make it with `dvc repro <stage>`, such as generate@r1")
    if not path.is_file():
        raise StoreError(f"{folder}: no {MANIFEST}, so it is half-written or was never made; run `dvc repro`")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({error}); make the folder again with `dvc repro`") from error
    if not isinstance(document, dict) or not {"format", "kind", "facts", "files"} <= document.keys():
        raise StoreError(f"{path}: not a manifest; wanted format, kind, facts and files")
    return document


def _check(path: Path, listed: Mapping[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise StoreError(f"{path}: missing, though the manifest lists it; make the folder again with `dvc repro`")
    size = path.stat().st_size
    if size != listed["size"]:
        torn = "truncated" if size < listed["size"] else "changed"
        raise StoreError(f"{path}: {torn}: {size} bytes, the manifest says {listed['size']}")
    if verify and (found := sha256_of(path)) != listed["sha256"]:
        raise StoreError(f"{path}: changed: sha256 {found}, the manifest says {listed['sha256']}")
