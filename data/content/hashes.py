"""Content hashes of files and folders, remembered, so that a large model is read once."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.manifest import atomically, sha256_of


class Hashes:
    """sha256 by path, remembered by size and time of change."""

    def __init__(self, known: dict[str, list[Any]]) -> None:
        """known: path -> size, mtime in ns, sha256; what is read is added to it."""
        self.known = known

    def of(self, path: Path) -> str:
        """sha256 of a file's bytes, or of a folder's names and bytes; hidden files and __pycache__ do not count."""
        if path.is_file():
            return self._of_file(path)
        files = sorted(_files_under(path))
        listed = [[str(file.relative_to(path)), self._of_file(file)] for file in files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        size, changed, found = self.known.get(str(path), (None, None, ""))
        if (size, changed) != (stat.st_size, stat.st_mtime_ns):
            found = sha256_of(path)
            self.known[str(path)] = [stat.st_size, stat.st_mtime_ns, found]
        return found


@contextmanager
def remembered(memory: Path) -> Iterator[Hashes]:
    """Hashes that a JSON file remembers."""
    hashes = Hashes(json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {})
    try:
        yield hashes
    finally:
        with atomically(memory) as partial:
            partial.write_text(json.dumps(hashes.known), encoding="utf-8")


def named_path(value: Any) -> Path | None:
    """The file or folder that a value of a configuration names; None where it names none."""
    try:
        path = Path(value) if isinstance(value, str | Path) and str(value) else None
        return path if path is not None and path.exists() else None
    except (OSError, ValueError):  # a text that is too long for a name
        return None


def _files_under(folder: Path) -> Iterator[Path]:
    """All files of a folder, links followed, without what is hidden and without __pycache__."""
    for found, folders, names in os.walk(folder, followlinks=True):
        here = Path(found).resolve()
        seen = [name for name in folders if name.startswith(".") or name == "__pycache__"]
        seen += [name for name in folders if here.is_relative_to((here / name).resolve())]  # a link to a folder above
        folders[:] = [name for name in folders if name not in seen]
        yield from (file for name in names if not name.startswith(".") and (file := Path(found, name)).is_file())
