"""Verdicts of judges and metrics in this process, in a file, so that no clip is judged twice by the same judge.

What is said of two clips that are shown together is a row too, under the hashes of both, in the order of showing.

One SQLite file beside the ledger of calls (feedback/network/ledger.py), shared by every clone, stage and source of a
user. The two are apart because their contents differ in worth: the ledger's answers were paid for, or took people's
time; what is here can be made again at the cost of computing, and may be pruned or deleted at any time.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest import StoreError
from feedback.core.database import Format, migrate, refuse_shared_disk, version_of
from feedback.network.ledger import ledger_path

VARIABLE = "FEEDBACK_VERDICTS"  # environment variable with the path of another file, or OFF
OFF = "off"  # nothing is kept, and nothing that was kept is read
APPLICATION = 0x76667664  # SQLite's application_id of such a file
BUSY = 60.0  # seconds to wait for another process's transaction
BETWEEN = " "  # between the hashes of two clips that are shown together
ROW = 100  # bytes that a row takes beside its text, about

_MIGRATIONS = (  # from version n to n + 1
    """
    CREATE TABLE judges (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, kind TEXT NOT NULL, model TEXT NOT NULL,
        version TEXT, rubric TEXT NOT NULL
    );
    CREATE TABLE verdicts (
        judge INTEGER NOT NULL REFERENCES judges, clip TEXT NOT NULL, text TEXT NOT NULL, at TEXT NOT NULL,
        PRIMARY KEY (judge, clip)
    ) WITHOUT ROWID;
    CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, sha256 TEXT NOT NULL) WITHOUT ROWID;
    """,
)


class Unusable(StoreError):
    """The file cannot be written here: no permission, a full disk, a disk of several hosts, a lock held too long."""


class Origin(NamedTuple):
    """A source with all that its answers depend on beside the clip."""

    key: str  # a hash of all that
    name: str  # under feedback.sources
    kind: str
    model: str
    version: str | None
    rubric: str


class Kept(NamedTuple):
    """How much is kept of a judge."""

    name: str  # under which it first judged
    kind: str
    model: str
    version: str | None
    rubric: str
    clips: int
    shown_pairs: int  # two clips in one order
    bytes: int  # about
    first: str  # times of the earliest and of the latest verdict, ISO 8601 in UTC
    last: str


class Chosen(NamedTuple):
    """Which verdicts to remove: those that meet all of it."""

    source: str | None = None  # a judge's name; None: any
    before: datetime | None = None  # judged before this time; None: any
    beyond: int | None = None  # all but the latest, which take so many bytes together; None: any


def verdicts_path() -> Path | None:
    """Path of the file: the environment's FEEDBACK_VERDICTS, or a file beside the ledger; None where it is off."""
    given = os.environ.get(VARIABLE)
    if given and given.lower() == OFF:
        return None
    return Path(given).expanduser().absolute() if given else ledger_path().with_name("verdicts.sqlite")


class VerdictFile:
    """An open file of verdicts. Close it, or use it in a `with`.

    Raises Unusable where it cannot be written, and StoreError where it is damaged, is another program's, or was written
    by a newer version of this code.
    """

    def __init__(self, path: Path) -> None:
        self.path, form = path, Format("a file of verdicts", APPLICATION, VARIABLE, _MIGRATIONS)
        try:
            refuse_shared_disk(path, form)
        except StoreError as error:
            raise Unusable(f"{error}; or set {VARIABLE} to {OFF}, and none are kept") from None
        with self._errors_named(), contextlib.ExitStack() as opening:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            opening.callback(self._db.close)
            if version_of(self._db, path, form) < len(_MIGRATIONS):  # read first: it may be another program's
                with self._transaction():
                    migrate(self._db, path, form)
            self._open = opening.pop_all()

    def __enter__(self) -> "VerdictFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, origin: Origin, clips: Iterable[str]) -> dict[str, str]:
        """The texts that are kept of a judge, by clip, among these clips."""
        query = "SELECT text FROM verdicts JOIN judges ON id = judge WHERE key = ? AND clip = ?"
        with self._errors_named():
            rows = ((clip, self._db.execute(query, (origin.key, clip)).fetchone()) for clip in clips)
            return {clip: row[0] for clip, row in rows if row}

    def keep(self, origin: Origin, texts: Mapping[str, str]) -> dict[str, str]:
        """The texts that are kept from now on, by clip: these, or what another process kept of a clip before."""
        with self._transaction():
            query = "INSERT OR IGNORE INTO judges (key, name, kind, model, version, rubric) VALUES (?, ?, ?, ?, ?, ?)"
            self._db.execute(query, origin)
            query = "INSERT OR IGNORE INTO verdicts SELECT id, ?, ?, ? FROM judges WHERE key = ?"
            self._db.executemany(query, [(clip, text, _now(), origin.key) for clip, text in texts.items()])
            return self.of(origin, texts)

    def kept(self) -> list[Kept]:
        """How much is kept of each judge."""
        pairs = f"SUM(INSTR(clip, '{BETWEEN}') > 0)"
        query = f"""
            SELECT name, kind, model, version, rubric, COUNT(*) - {pairs}, {pairs},
                SUM({ROW} + LENGTH(text)), MIN(at), MAX(at)
            FROM judges JOIN verdicts ON judge = id GROUP BY id ORDER BY name, MIN(at)
        """
        with self._errors_named():
            return [Kept(*row) for row in self._db.execute(query)]

    def count(self, chosen: Chosen) -> int:
        """How many clips and shown pairs `remove` would remove the verdicts on."""
        condition, values = self._condition(chosen)
        with self._errors_named():
            return int(self._db.execute(f"SELECT COUNT(*) FROM verdicts WHERE {condition}", values).fetchone()[0])

    def remove(self, chosen: Chosen) -> int:
        """Remove verdicts, and give their room back to the disk. Returns as `count` does."""
        with self._transaction():
            condition, values = self._condition(chosen)
            removed = self._db.execute(f"DELETE FROM verdicts WHERE {condition}", values).rowcount
            self._db.execute("DELETE FROM judges WHERE id NOT IN (SELECT judge FROM verdicts)")
        with contextlib.suppress(sqlite3.OperationalError):  # another run has the file open
            self._db.execute("VACUUM")
        return removed

    def hashes(self) -> dict[str, list[Any]]:
        """Content hashes of files that judges read, as data.content.hashes.Hashes takes them."""
        with self._errors_named():
            return {path: known for path, *known in self._db.execute("SELECT path, size, changed, sha256 FROM files")}

    def remember(self, hashes: Mapping[str, list[Any]]) -> None:
        """Replace the hashes of these files."""
        if hashes:
            with self._transaction():
                rows = [(path, *known) for path, known in hashes.items()]
                self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def _condition(self, chosen: Chosen) -> tuple[str, list[Any]]:
        """An SQL condition on table verdicts, with its values."""
        terms, values = ["TRUE"], list[Any]()
        if chosen.source is not None:
            terms.append("judge IN (SELECT id FROM judges WHERE name = ?)")
            values.append(chosen.source)
        if chosen.beyond is not None:
            totals = f"SELECT at, SUM({ROW} + LENGTH(text)) OVER (ORDER BY at DESC) AS total FROM verdicts"
            query = f"SELECT MAX(at) FROM ({totals} WHERE {' AND '.join(terms)}) WHERE total > ?"
            last = self._db.execute(query, [*values, chosen.beyond]).fetchone()[0]
            terms.append("at <= ?")
            values.append(last or "")
        if chosen.before is not None:
            terms.append("at < ?")
            values.append(_iso(chosen.before))
        return " AND ".join(terms), values

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk has already rolled it back
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise Unusable(f"{self.path}: the file of verdicts could not be read or written: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path}: a damaged file of verdicts, or another file ({error}). Delete it: its verdicts are made "
                f"again where they are needed; or name another file in {VARIABLE}, or set that to {OFF}"
            ) from error


def _now() -> str:
    return _iso(datetime.now(UTC))


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")
