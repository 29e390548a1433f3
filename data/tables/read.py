"""A CSV file as people have it: read with one clear sentence on what is wrong, and where.

What spreadsheets add is accepted: a byte order mark, any line ends, spaces around names, empty columns and rows. What
would be read wrongly is refused: other encodings, other separators, other kinds of file.
"""

import csv
import difflib
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.manifest import atomically
from data.written import decoded, wide_encoding

CURE = "save it as 'CSV UTF-8 (comma delimited)'"  # as Excel calls it
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
KINDS = {b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)", b"%PDF": "a PDF", b"\x1f\x8b": "a gzip archive"}


class TableRow(NamedTuple):
    """A row that is not empty."""

    number: int  # as a spreadsheet counts; the header is row 1
    cells: dict[str, str]  # by name of the column, without spaces around them; one for each column


class Table(NamedTuple):
    """All rows of a file, and what in its header may be a mistake, a sentence each."""

    rows: list[TableRow]
    remarks: list[str]


def read_table(path: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    """The rows of a CSV that has all required columns.

    A column is one of the required or optional ones where its name is equal but for case, spaces and dashes. Others
    keep their names. Raises ValueError naming the file, and the row where there is one.
    """
    rows = _rows(path, _text(path))
    header = _header(rows)
    known = [_known(name, (*required, *optional)) for name in header]
    _check_header(path, header, known, required, optional)
    return Table(
        [
            TableRow(number, _cells(path, number, row, known, required))
            for number, row in rows
            if any(map(str.strip, row))
        ],
        _near_misses(known, required, optional),
    )


def columns_of(path: Path, known: Sequence[str]) -> set[str]:
    """Those of these columns that a CSV has, by the rules of `read_table`. Raises ValueError as it does."""
    return {_known(name, known) for name in _header(_rows(path, _text(path)))} & set(known)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV in UTF-8, with commas."""
    with atomically(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


# From bytes to rows


def _text(path: Path) -> str:
    """The file's text. Raises ValueError for what is no UTF-8 text, with the way to make it one."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder; wanted a CSV file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not read: {error.strerror}") from error
    if kind := _other_kind(content, path):
        raise ValueError(f"{path}: {kind}, and not a CSV file; open it in a spreadsheet and {CURE}")
    text = decoded(path, content, CURE)
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; wanted a header and rows")
    return text


def _other_kind(content: bytes, path: Path) -> str | None:
    """What kind of file these bytes are, where they are no text in one byte or UTF-8."""
    if encoding := wide_encoding(content):
        return f"text in {encoding} (Excel's 'Unicode Text')"
    if content.startswith(b"PK\x03\x04"):
        return _workbook(path)
    return next((kind for mark, kind in KINDS.items() if content.startswith(mark)), None)


def _workbook(path: Path) -> str:
    """Which spreadsheet a zip file is."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile:
        names = []
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook (.xlsx)"
    if "content.xml" in names:
        return "an OpenDocument spreadsheet (.ods)"
    return "a zip archive"


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with its number. Raises ValueError naming the row that is not CSV."""
    reader, number = csv.reader(io.StringIO(text, newline=""), strict=True), 0
    while True:
        number += 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, row {number}: {_explained(str(error))}") from error
        yield number, row


def _explained(error: str) -> str:
    """What the csv module says, as a user's mistake."""
    if error == "unexpected end of data":
        return "a quote opens in this row and never closes"
    if "expected after" in error:
        return 'a quoted text goes on after its closing quote; close each quote, and write one inside a text twice ("")'
    return f"not CSV ({error})"


# From rows to cells


def _header(rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    return [cell.strip() for cell in next(rows, (1, []))[1]]


def _known(name: str, columns: Sequence[str]) -> str:
    """The column that this name of a header stands for, or the name itself."""
    plain = _plain(name)
    return plain if plain in columns else name


def _plain(name: str) -> str:
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _check_header(
    path: Path, header: Sequence[str], known: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    missing = [name for name in required if name not in known]
    also = f" and optionally {', '.join(optional)}" if optional else ""
    wanted = f"wanted {', '.join(required)}{also}, separated by commas"
    if missing:
        for separator, name in SEPARATORS.items():
            if any(separator in cell for cell in header):
                raise ValueError(f"{path}: separated by {name}; wanted commas: open it in a spreadsheet and {CURE}")
        if header and header[0].startswith("sep="):
            raise ValueError(f"{path}, row 1: {header[0]!r} is a note for Excel; delete this row")
        meant = [f"is {one!r} meant?" for name in missing for one in _alike(name, header)]
        raise ValueError(
            f"{path}: no column {', '.join(missing)} in the header {', '.join(header)!r}; {' '.join([*meant, wanted])}"
        )
    for place, name in enumerate(known):
        if name and name in known[:place]:
            first = known.index(name)
            raise ValueError(f"{path}: columns {first + 1} and {place + 1} have the same name, {name!r}; rename one")


def _cells(
    path: Path, number: int, row: Sequence[str], known: Sequence[str], required: Sequence[str]
) -> dict[str, str]:
    """A row's cells by their column. Missing cells at the end are empty where no required column is among them."""
    where = f"{path}, row {number}"
    cells = [cell.strip() for cell in row]
    surplus = [cell for place, cell in enumerate(cells) if cell and (place >= len(known) or not known[place])]
    if surplus:
        curly = "; curly quotes are not quotes here" if any(mark in cell for cell in cells for mark in "“”") else ""
        raise ValueError(
            f"{where}: more cells than columns, such as {surplus[-1]!r}; a text with a comma in it must stand in "
            f'quotes ("…"){curly}'
        )
    named = len(known) - next((place for place, name in enumerate(reversed(known)) if name), 0)
    lacking = [name for name in known[len(cells) : named] if name in required]
    if lacking:
        raise ValueError(f"{where}: fewer cells than columns: no cell for {', '.join(lacking)}")
    filled = [*cells, *[""] * (len(known) - len(cells))]
    return {name: cell for name, cell in zip(known, filled, strict=False) if name}


def _near_misses(known: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    """A sentence on every column whose name is like that of an optional one that is not there."""
    others = [name for name in known if name not in (*required, *optional)]
    return [
        f"column {name!r} is kept and not used; the name of the column for such files is {column!r}"
        for column in optional
        if column not in known
        for name in _alike(column, others)
    ]


def _alike(column: str, names: Sequence[str]) -> list[str]:
    """Those of the names that have a word like this one, beginning with the same letter."""
    return [
        name
        for name in names
        if any(
            word[0] == column[0] and difflib.SequenceMatcher(None, word, column).ratio() >= 0.8
            for word in (_plain(name), *_plain(name).split("_"))
            if word
        )
    ]
