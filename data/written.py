"""Text files that people write, as any editor saves them: CSV, YAML, plain text."""

import io
from pathlib import Path

MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
CURE = "save it as UTF-8"


def read_written(path: Path, cure: str = CURE) -> str:
    """The text of a UTF-8 file with Unix line ends, without the byte order mark that some editors put before it.

    cure: how to make it one, for errors. Raises ValueError naming the file, and the line where there is one, for a
    file that cannot be read and for text in another encoding.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder; wanted a text file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not read: {error.strerror}") from error
    if encoding := wide_encoding(content):
        raise ValueError(f"{path}: text in {encoding}; {cure}")
    return io.StringIO(decoded(path, content, cure), newline=None).read()


def decoded(path: Path, content: bytes, cure: str = CURE) -> str:
    """The text of a file's bytes, with its own line ends. Raises ValueError as `read_written` does."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        byte = content[error.start : error.start + 1]
        raise ValueError(
            f"{path}, line {_lines(before)}: byte 0x{byte.hex()} is not UTF-8; in Windows-1252 (Latin-1), which this "
            f"file may be in, it is {byte.decode('cp1252', 'replace')!r}; {cure}"
        ) from error
    if (place := text.find("\0")) >= 0:
        raise ValueError(f"{path}, line {_lines(text[:place])}: a NUL byte, which no text has; {cure}")
    return text


def wide_encoding(content: bytes) -> str | None:
    """The name of an encoding of two or four bytes a letter, where the content begins as one."""
    if found := next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), None):
        return found
    return "UTF-16" if b"\0\0\0\0" in (content[1:8:2], content[:8:2]) else None


def _lines(before: str) -> int:
    """The number of the line that follows this text."""
    return len(io.StringIO(before, newline=None).read().split("\n"))
