"""What was asked of judges that cost money or people's time, and what they answered: nobody is asked twice.

One SQLite file (WAL) outside of DVC's outs, shared by every clone, queued experiment and stage of a user. An answer is
kept under a hash of all that determines it. Every request is written down before it is sent and completed by the raw
reply, so that a better parser reads old replies again for nothing.

An attempt at a request ends in one of three ways, and until then is in flight:

    answered    the reply was committed, in the same transaction
    refused     the provider turned it down with an error, which is not billed
    lost        no reply came (a reset, a timeout, a kill), and it may have been billed

What was in flight when its run was killed is found by the next one: a run holds a lock on a file of its own, which the
kernel lets go of however the run ends.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import platformdirs

from data.manifest import StoreError

logger = logging.getLogger(__name__)

VARIABLE = "FEEDBACK_LEDGER"  # environment variable with the path of another ledger
APPLICATION = 0x76666C67  # marks the file as ours
OLD = 86400.0  # seconds after which a run's file that nobody holds is removed
BUSY = 60.0  # seconds to wait for another process's transaction

_MIGRATIONS = (  # from version n to n + 1
    """
    CREATE TABLE requests (key TEXT PRIMARY KEY, sent TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES requests, run TEXT NOT NULL, purpose TEXT NOT NULL,
        batch TEXT REFERENCES batches, at TEXT NOT NULL, expected REAL, outcome TEXT, cost REAL
    );
    CREATE TABLE answers (
        key TEXT PRIMARY KEY REFERENCES requests, reply TEXT NOT NULL, cost REAL, at TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE batches (
        token TEXT PRIMARY KEY, place TEXT NOT NULL, remote TEXT, collected INTEGER NOT NULL, at TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX in_flight ON attempts (run) WHERE outcome IS NULL;
    CREATE INDEX purposes ON attempts (purpose);
    CREATE INDEX attempts_of ON attempts (key);
    """,
)


class Answer(NamedTuple):
    """A committed answer."""

    reply: str  # as it came
    cost: float | None  # US dollars; null where no price was known


class Spent(NamedTuple):
    """What a purpose has cost, in US dollars and calls."""

    dollars: float  # of committed answers
    possibly: float  # of lost attempts and of unpriced answers, as expected before they were sent
    calls: int  # committed answers
    lost: int  # attempts that may have been billed without an answer
    unpriced: int  # committed answers whose price is unknown


@dataclass(frozen=True)
class Attempt:
    """A request that is about to be sent."""

    id: int
    key: str


class Batch(NamedTuple):
    """Requests that went to a provider's batch endpoint together."""

    token: str  # our own name for it, told to the provider before its id is known
    remote: str | None  # the provider's id; null while it is not known to have arrived


def ledger_path() -> Path:
    """Where the ledger is: the environment's FEEDBACK_LEDGER, or the user's data folder."""
    given = os.environ.get(VARIABLE)
    return Path(given).absolute() if given else platformdirs.user_data_path("video-feedback-rl") / "ledger.sqlite"


def request_key(sent: Any) -> str:
    """The key of a request: a hash of everything that determines its answer, as JSON."""
    return hashlib.sha256(_json(sent).encode()).hexdigest()


class Ledger:
    """An open ledger, for any thread, one at a time; close it, or use it in a `with`.

    Raises StoreError where the file cannot be written, is no ledger, or was written by a newer version of this code.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.run, self._turn = path, uuid.uuid4().hex, threading.RLock()
        with self._told(), contextlib.ExitStack() as opening:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = opening.enter_context(self._run_file(self.run).open("w"))
            opening.callback(self._run_file(self.run).unlink, missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._db = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            opening.callback(self._db.close)
            self._db.execute("BEGIN")  # one look, for another run may be making it just now
            self._check_ours()  # before anything is written: it may be another's
            self._db.execute("COMMIT")
            self._use_wal()
            self._db.execute("PRAGMA synchronous = FULL")  # a power cut must not take what was paid for
            self._migrate()
            self.found_lost = self._end_dead_runs()
            self._sweep()
            self._open = opening.pop_all()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def answer(self, key: str) -> Answer | None:
        """The committed answer to a request."""
        row = self._one("SELECT reply, cost FROM answers WHERE key = ?", key)
        return Answer(*row) if row else None

    def answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The committed answers among these requests."""
        return {key: found for key in keys if (found := self.answer(key))}

    def begin(
        self, key: str, sent: Any, purpose: str, expected: float | None, batch: str | None = None
    ) -> Attempt | Answer | None:
        """Write down that a request is about to be sent, unless it need not be.

        sent: all that determines the answer, as JSON, with hashes for media; request_key(sent) is the key.
        purpose: what it is for; `spent` adds up by it. expected: what the answer should cost, in US dollars.
        Returns the attempt; or the answer, where there is one; or None while another live run has it in flight.
        """
        with self._transaction():
            if found := self.answer(key):
                return found
            if self._one("SELECT 1 FROM attempts WHERE key = ? AND outcome IS NULL", key):
                self._end_dead_runs()
                if self._one("SELECT 1 FROM attempts WHERE key = ? AND outcome IS NULL", key):
                    return None
            self._db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, _json(sent)))
            row = (key, self.run, purpose, batch, _now(), expected)
            cursor = self._db.execute(
                "INSERT INTO attempts (key, run, purpose, batch, at, expected) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            return Attempt(int(cursor.lastrowid or 0), key)

    def answered(self, attempt: Attempt, reply: str, cost: float | None) -> None:
        """Commit the reply to an attempt. The same answer delivered twice is kept once."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (attempt.key, reply, cost, _now()))
            self._db.execute("UPDATE attempts SET outcome = 'answered', cost = ? WHERE id = ?", (cost, attempt.id))

    def refused(self, attempt: Attempt) -> None:
        """The provider turned an attempt down, unbilled."""
        self._end(attempt, "refused")

    def lost(self, attempt: Attempt) -> None:
        """No reply came to an attempt, which may have been billed."""
        self._end(attempt, "lost")

    def write(self, key: str, sent: Any, reply: str) -> None:
        """Commit an answer that cost no money, a person's; it takes the place of an earlier one."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, _json(sent)))
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, NULL, ?)", (key, reply, _now()))

    def together(self, steps: Sequence[Callable[[], Any]]) -> list[Any]:
        """What several calls of the methods above return, in one transaction, which waits for the disk once."""
        with self._transaction():
            return [step() for step in steps]

    def spent(self, purpose: str) -> Spent:
        """What has been spent for a purpose, by all runs."""
        with self._told():
            rows = self._db.execute(
                "SELECT outcome, COUNT(*), TOTAL(cost), TOTAL(expected) FILTER (WHERE cost IS NULL), SUM(cost IS NULL) "
                "FROM attempts WHERE purpose = ? GROUP BY outcome",
                (purpose,),
            ).fetchall()
        of = {outcome: (calls, cost, expected, unpriced) for outcome, calls, cost, expected, unpriced in rows}
        none = (0, 0.0, 0.0, 0)
        answered, lost = of.get("answered", none), of.get("lost", none)
        return Spent(answered[1], answered[2] + lost[2], answered[0], lost[0], answered[3])

    def resent(self, purpose: str) -> int:
        """How often a request was sent again, for a purpose, after an attempt that may have been billed."""
        query = """
            SELECT COUNT(*) FROM attempts AS earlier WHERE outcome = 'lost' AND EXISTS (
                SELECT 1 FROM attempts WHERE key = earlier.key AND id > earlier.id AND purpose = ?)
        """
        row = self._one(query, purpose)
        return int(row[0]) if row else 0

    # Batches: their attempts stay in flight when the run that submitted them ends.

    def open_batch(self, token: str, place: str) -> None:
        """Write down that a batch is about to be submitted to a place: a provider's endpoint and model."""
        with self._transaction():
            self._db.execute("INSERT INTO batches VALUES (?, ?, NULL, 0, ?)", (token, place, _now()))

    def submitted(self, token: str, remote: str) -> None:
        """The provider took a batch, and calls it `remote`."""
        with self._transaction():
            self._db.execute("UPDATE batches SET remote = ? WHERE token = ?", (remote, token))

    def open_batches(self, place: str) -> list[Batch]:
        """Batches of a place that have not been collected, oldest first."""
        with self._told():
            query = "SELECT token, remote FROM batches WHERE place = ? AND NOT collected ORDER BY at, token"
            return [Batch(*row) for row in self._db.execute(query, (place,))]

    def any_batch(self, place: str) -> bool:
        """Whether a batch of any place whose name begins like this has not been collected."""
        query = "SELECT 1 FROM batches WHERE NOT collected AND substr(place, 1, ?) = ?"
        return self._one(query, len(place), place) is not None

    def batch_place(self, key: str) -> str | None:
        """The place of the batch in which a request is in flight; null where it is in none."""
        query = "SELECT place FROM attempts JOIN batches ON token = batch WHERE attempts.key = ? AND outcome IS NULL"
        row = self._one(query, key)
        return row[0] if row else None

    def expected_of(self, token: str, purpose: str) -> float:
        """US dollars that what of a batch is still in flight for a purpose should cost."""
        query = "SELECT TOTAL(expected) FROM attempts WHERE batch = ? AND purpose = ? AND outcome IS NULL"
        return float(self._one(query, token, purpose)[0])

    def hold(self, place: str) -> TextIO | None:
        """A lock on the batches of a place, held until it is closed; null while another run holds it."""
        name = hashlib.sha256(place.encode()).hexdigest()[:16]
        with self._told():
            # Never unlinked: of two runs, one could then hold the old file and one the new.
            file = self.path.with_name(f".{self.path.name}.{name}.batches").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return None
            return file

    def attempts_of(self, token: str) -> dict[str, Attempt]:
        """The attempts of a batch that are in flight, by key."""
        with self._told():
            query = "SELECT id, key FROM attempts WHERE batch = ? AND outcome IS NULL"
            return {key: Attempt(number, key) for number, key in self._db.execute(query, (token,))}

    def close_batch(self, token: str, outcome: str) -> None:
        """A batch is over: what of it is still in flight ends with this outcome, refused or lost."""
        with self._transaction():
            self._db.execute("UPDATE attempts SET outcome = ? WHERE batch = ? AND outcome IS NULL", (outcome, token))
            self._db.execute("UPDATE batches SET collected = 1 WHERE token = ?", (token,))

    # The file

    def _end(self, attempt: Attempt, outcome: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE attempts SET outcome = ? WHERE id = ?", (outcome, attempt.id))

    def _end_dead_runs(self) -> int:
        """Mark what dead runs had in flight as lost. How many attempts that were."""
        query = "SELECT DISTINCT run FROM attempts WHERE outcome IS NULL AND batch IS NULL"
        dead = [run for (run,) in self._db.execute(query).fetchall() if run != self.run and not self._alive(run)]
        update = "UPDATE attempts SET outcome = 'lost' WHERE run = ? AND outcome IS NULL AND batch IS NULL"
        found = sum(self._db.execute(update, (run,)).rowcount for run in dead)
        if found:
            logger.warning(
                "%d requests were in flight when a run was killed; they may have been billed, and those that are "
                "still wanted are sent again", found,
            )  # fmt: skip
        return found

    def _alive(self, run: str) -> bool:
        path = self._run_file(run)
        try:
            with path.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)
        return False

    def _sweep(self) -> None:
        """Remove what runs left that were killed with nothing in flight; a young file may be about to be locked."""
        beginning, end = f".{self.path.name}.", ".run"
        for path in self.path.parent.glob(f"{beginning}*{end}"):
            with contextlib.suppress(FileNotFoundError):  # its run has just ended
                if time.time() - path.stat().st_mtime > OLD:
                    self._alive(path.name.removeprefix(beginning).removesuffix(end))

    def _run_file(self, run: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{run}.run")

    def _use_wal(self) -> None:
        """Switch to a write-ahead log. SQLite does not wait by itself for another run that opens the file too."""
        deadline = time.monotonic() + BUSY
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _check_ours(self) -> int:
        """The version of the file's tables; 0 where it is new. Raises where it is not for this code."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if (application, version, tables) != (0, 0, 0) and application != APPLICATION:
            raise StoreError(f"{self.path}: an SQLite file of something else, not a ledger of ours")
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"{self.path}: a ledger of version {version}, but this code knows versions up to "
                f"{len(_MIGRATIONS)}; update the code, or name another ledger in {VARIABLE}"
            )
        return int(version)

    def _migrate(self) -> None:
        with self._transaction():
            version = self._check_ours()
            for step in _MIGRATIONS[version:]:
                for statement in filter(str.strip, step.split(";")):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _one(self, query: str, *values: Any) -> Any:
        with self._told():
            return self._db.execute(query, values).fetchone()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told():
            if self._db.in_transaction:  # a part of `together`
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk has already undone it
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with self._turn:
                yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: the ledger could not be read or written: {error}") from error


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
