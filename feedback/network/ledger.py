"""Requests to judges that cost money or people's time, with their replies, so that no answer is paid for twice.

One SQLite file (WAL) outside of DVC's outs, shared by every clone, queued experiment and stage of a user. An answer is
stored under a hash of all that determines it. Every request is written before it is sent, and completed by the raw
reply, so that an improved parser can read old replies again at no cost.

An attempt at a request ends in one of three ways, and until then is in flight:

    answered    the reply was committed, in the same transaction
    refused     the provider rejected it with an error, which is not billed
    lost        no reply came (a reset, a timeout, a kill), and it may have been billed

A run holds a lock on a file of its own, which the kernel releases however the run ends. So the next run finds what was
in flight when a run was killed. All runs are on one host: a ledger on a network file system is refused.
"""

import asyncio
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import platformdirs

from data.manifest import StoreError
from feedback.core.database import Format, migrate, refuse_shared_disk, version_of

logger = logging.getLogger(__name__)
T = TypeVar("T")

PEOPLE = "human"  # place of ratings of clips; the place of other ratings begins with it
VARIABLE = "FEEDBACK_LEDGER"  # environment variable with the path of another ledger
APPLICATION = 0x76666C67  # SQLite's application_id of a ledger
OLD = 86400.0  # seconds after which a run's file that is not locked is removed
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


class StoredAnswer(NamedTuple):
    """A committed answer."""

    reply: str  # as received
    cost: float | None  # US dollars; None where no price was known


class Spent(NamedTuple):
    """The cost of a purpose, in US dollars and calls."""

    dollars: float  # of committed answers
    possibly: float  # of lost attempts and of unpriced answers, as estimated before they were sent
    calls: int  # committed answers
    lost: int  # attempts that may have been billed without an answer
    unpriced: int  # committed answers whose price is unknown


class Account(NamedTuple):
    """What a source has asked at one place, over all runs."""

    source: str  # its name under feedback.sources; of ratings, the person's
    place: str  # endpoint and model, and of texts their task; of ratings, what is rated
    rated: bool  # whether a person answered
    answers: int  # that are kept
    dollars: float  # of all answers, also of those that were removed
    unpriced: int  # answers whose price is unknown
    lost: int  # attempts that may have been billed without an answer
    bytes: int  # of the kept replies
    first: str  # times of the earliest and of the latest attempt, ISO 8601 in UTC
    last: str


@dataclass(frozen=True)
class Attempt:
    """A request that is about to be sent."""

    id: int
    key: str


class OpenBatch(NamedTuple):
    """Requests that went to a provider's batch endpoint together, and are not collected yet."""

    token: str  # our own name for it, sent to the provider before its id is known
    remote: str | None  # the provider's id; None while it is not known to have arrived


def ledger_path() -> Path:
    """Path of the ledger: the environment's FEEDBACK_LEDGER, or a file in the user's data folder."""
    given = os.environ.get(VARIABLE)
    return (
        Path(given).expanduser().absolute()
        if given
        else platformdirs.user_data_path("video-feedback-rl") / "ledger.sqlite"
    )


def request_key(sent: Any) -> str:
    """The key of a request: a hash of everything that determines its answer, as JSON."""
    return hashlib.sha256(_json(sent).encode()).hexdigest()


class Ledger:
    """An open ledger, for any thread, one at a time. Close it, or use it in a `with`.

    Raises StoreError where the file cannot be written, lies on a disk that other hosts may use too, is not a ledger, or
    was written by a newer version of this code.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.run, self._lock = path, uuid.uuid4().hex, threading.RLock()
        refuse_shared_disk(path, self._form())
        with self._errors_named(), contextlib.ExitStack() as opening:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = opening.enter_context(self._run_file(self.run).open("w"))
            opening.callback(self._run_file(self.run).unlink, missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._db = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            opening.callback(self._db.close)
            self._db.create_function("source_of", 1, _source_of)
            self._db.execute("BEGIN")  # a consistent view, for another run may be creating the file
            version_of(self._db, path, self._form())  # before anything is written: it may be another program's file
            self._db.execute("COMMIT")
            self._use_wal()
            self._db.execute("PRAGMA synchronous = FULL")  # a power cut must not lose a paid answer
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

    def answer(self, key: str) -> StoredAnswer | None:
        """The committed answer to a request."""
        row = self._one("SELECT reply, cost FROM answers WHERE key = ?", key)
        return StoredAnswer(*row) if row else None

    def answers(self, keys: Iterable[str]) -> dict[str, StoredAnswer]:
        """The committed answers among these requests."""
        return {key: found for key in keys if (found := self.answer(key))}

    def begin(
        self, key: str, sent: Any, purpose: str, expected: float | None, batch: str | None = None
    ) -> Attempt | StoredAnswer | None:
        """Record that a request is about to be sent, unless there is an answer or another run is sending it.

        sent: all that determines the answer, as JSON, with hashes for media; request_key(sent) is the key.
        purpose: what the request is for; `spent` adds up by it. expected: estimated cost in US dollars.
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
        """Commit the reply to an attempt. An answer that is delivered twice is stored once."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (attempt.key, reply, cost, _now()))
            self._db.execute("UPDATE attempts SET outcome = 'answered', cost = ? WHERE id = ?", (cost, attempt.id))

    def refused(self, attempt: Attempt) -> None:
        """End an attempt that the provider rejected, unbilled."""
        self._end(attempt, "refused")

    def lost(self, attempt: Attempt) -> None:
        """End an attempt without a reply, which may have been billed."""
        self._end(attempt, "lost")

    def write(self, key: str, sent: Any, reply: str) -> None:
        """Commit an answer that costs no money, a person's. It replaces an earlier one."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, _json(sent)))
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, NULL, ?)", (key, reply, _now()))

    def together(self, steps: Sequence[Callable[[], Any]]) -> list[Any]:
        """The results of several calls of the methods above, in one transaction, which waits for the disk once."""
        with self._transaction():
            return [step() for step in steps]

    def spent(self, purpose: str) -> Spent:
        """The cost of a purpose, over all runs."""
        with self._errors_named():
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
        """How many lost attempts, which may have been billed, were followed by another attempt for this purpose."""
        query = """
            SELECT COUNT(*) FROM attempts AS earlier WHERE outcome = 'lost' AND EXISTS (
                SELECT 1 FROM attempts WHERE key = earlier.key AND id > earlier.id AND purpose = ?)
        """
        row = self._one(query, purpose)
        return int(row[0]) if row else 0

    def accounts(self) -> list[Account]:
        """What each source has asked, and what each person has rated, by name."""
        calls = """
            SELECT source_of(purpose) AS source, json_extract(sent, '$.place') AS place, FALSE,
                COUNT(answers.key) FILTER (WHERE outcome = 'answered'), TOTAL(attempts.cost),
                COUNT(*) FILTER (WHERE outcome = 'answered' AND attempts.cost IS NULL),
                COUNT(*) FILTER (WHERE outcome = 'lost'),
                TOTAL(LENGTH(reply)) FILTER (WHERE outcome = 'answered'), MIN(attempts.at), MAX(attempts.at)
            FROM attempts JOIN requests USING (key) LEFT JOIN answers USING (key) GROUP BY source, place
        """
        ratings = """
            SELECT json_extract(sent, '$.rater') AS source, json_extract(sent, '$.place') AS place, TRUE,
                COUNT(*), 0, 0, 0, SUM(LENGTH(reply)), MIN(at), MAX(at)
            FROM answers JOIN requests USING (key) WHERE source IS NOT NULL GROUP BY source, place
        """
        with self._errors_named():
            accounts = [Account(*row) for query in (calls, ratings) for row in self._db.execute(query)]
        return sorted(one._replace(bytes=int(one.bytes), rated=bool(one.rated)) for one in accounts)

    def forget(self, source: str) -> int:
        """Remove the answers to a source's calls. Returns their number; what they cost still counts.

        Each of them is sent, and paid for, again where it is needed. People's ratings are never removed.
        """
        ends = "attempts.outcome = 'answered' AND source_of(purpose) = ?"
        with self._transaction():
            query = f"DELETE FROM answers WHERE key IN (SELECT key FROM attempts WHERE {ends})"
            removed = self._db.execute(query, (source,)).rowcount
        with contextlib.suppress(sqlite3.OperationalError):  # another run has the file open
            self._db.execute("VACUUM")
        return removed

    # Batches: their attempts stay in flight when the run that submitted them ends

    def open_batch(self, token: str, place: str) -> None:
        """Record that a batch is about to be submitted to a place: a provider's endpoint and model, and a purpose."""
        with self._transaction():
            self._db.execute("INSERT INTO batches VALUES (?, ?, NULL, 0, ?)", (token, place, _now()))

    def submitted(self, token: str, remote: str) -> None:
        """Record the id, `remote`, under which the provider accepted a batch."""
        with self._transaction():
            self._db.execute("UPDATE batches SET remote = ? WHERE token = ?", (remote, token))

    def open_batches(self, place: str) -> list[OpenBatch]:
        """Batches of a place that have not been collected, oldest first."""
        with self._errors_named():
            query = "SELECT token, remote FROM batches WHERE place = ? AND NOT collected ORDER BY at, token"
            return [OpenBatch(*row) for row in self._db.execute(query, (place,))]

    def any_batch(self, place: str) -> bool:
        """Whether a batch of any place whose name begins like this has not been collected."""
        query = "SELECT 1 FROM batches WHERE NOT collected AND substr(place, 1, ?) = ?"
        return self._one(query, len(place), place) is not None

    def batch_place(self, key: str) -> str | None:
        """The place of the batch in which a request is in flight; None where it is in none."""
        query = "SELECT place FROM attempts JOIN batches ON token = batch WHERE attempts.key = ? AND outcome IS NULL"
        row = self._one(query, key)
        return row[0] if row else None

    def expected_of(self, token: str, purpose: str) -> float:
        """Estimated cost, in US dollars, of the requests of a batch that are in flight for a purpose."""
        query = "SELECT TOTAL(expected) FROM attempts WHERE batch = ? AND purpose = ? AND outcome IS NULL"
        return float(self._one(query, token, purpose)[0])

    def hold(self, place: str) -> TextIO | None:
        """A lock on the batches of a place, held until it is closed; None while another run holds it."""
        name = hashlib.sha256(place.encode()).hexdigest()[:16]
        with self._errors_named():
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
        with self._errors_named():
            query = "SELECT id, key FROM attempts WHERE batch = ? AND outcome IS NULL"
            return {key: Attempt(number, key) for number, key in self._db.execute(query, (token,))}

    def close_batch(self, token: str, outcome: str) -> None:
        """End a batch: its requests that are still in flight end with this outcome, refused or lost."""
        with self._transaction():
            self._db.execute("UPDATE attempts SET outcome = ? WHERE batch = ? AND outcome IS NULL", (outcome, token))
            self._db.execute("UPDATE batches SET collected = 1 WHERE token = ?", (token,))

    # The file

    def _end(self, attempt: Attempt, outcome: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE attempts SET outcome = ? WHERE id = ?", (outcome, attempt.id))

    def _end_dead_runs(self) -> int:
        """Mark the attempts that dead runs had in flight as lost; returns their number."""
        query = "SELECT DISTINCT run FROM attempts WHERE outcome IS NULL AND batch IS NULL"
        dead = [run for (run,) in self._db.execute(query).fetchall() if run != self.run and not self._alive(run)]
        update = "UPDATE attempts SET outcome = 'lost' WHERE run = ? AND outcome IS NULL AND batch IS NULL"
        found = sum(self._db.execute(update, (run,)).rowcount for run in dead)
        if found:
            logger.warning(
                "%d requests were in flight when a run was killed; they may have been billed, and those that are "
                "still needed are sent again", found,
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
        """Remove the files of runs that were killed with nothing in flight; a young file may be about to be locked."""
        beginning, end = f".{self.path.name}.", ".run"
        for path in self.path.parent.glob(f"{beginning}*{end}"):
            with contextlib.suppress(FileNotFoundError):  # its run has just ended
                if time.time() - path.stat().st_mtime > OLD:
                    self._alive(path.name.removeprefix(beginning).removesuffix(end))

    def _run_file(self, run: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{run}.run")

    def _use_wal(self) -> None:
        """Switch to a write-ahead log. SQLite does not wait for another run that is opening the file too."""
        deadline = time.monotonic() + BUSY
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _form(self) -> Format:
        return Format("a ledger", APPLICATION, VARIABLE, _MIGRATIONS)

    def _migrate(self) -> None:
        with self._transaction():
            migrate(self._db, self.path, self._form())

    def _one(self, query: str, *values: Any) -> Any:
        with self._errors_named():
            return self._db.execute(query, values).fetchone()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors_named():
            if self._db.in_transaction:  # within `together`
                yield
                return
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
        """One thread at a time; an error of SQLite or of the disk is raised as a StoreError with the path."""
        try:
            with self._lock:
                yield
        except (sqlite3.OperationalError, OSError) as error:
            raise StoreError(f"{self.path}: the ledger could not be read or written: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: a damaged ledger, or another file ({error}). It may hold answers that were paid for, so "
                f"keep it: put a copy in its place, or what `sqlite3 {self.path.name} .recover` saves of it; or name "
                f"another file in {VARIABLE}"
            ) from error


class GroupCommit:
    """Calls of a ledger's methods by many coroutines, off the event loop, which wait for the disk together.

    Calls that arrive while the disk is busy share the next commit. Use it in a `with`, which no call may outlive.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._thread = ledger, ThreadPoolExecutor(1, "ledger")
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None

    def __enter__(self) -> "GroupCommit":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    async def do(self, step: Callable[[], T]) -> T:
        """The step's result, once all that it wrote is on disk. Raises the step's own exception."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((step, done))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await done

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            ends = await loop.run_in_executor(self._thread, self._commit, [step for step, _ in group])
            for (_, done), (result, error) in zip(group, ends, strict=True):
                if done.cancelled():
                    continue
                if error is None:
                    done.set_result(result)
                else:
                    done.set_exception(error)
        self._writer = None

    def _commit(self, steps: Sequence[Callable[[], Any]]) -> list[tuple[Any, Exception | None]]:
        """The result or the exception of each step."""
        try:
            return [(result, None) for result in self._ledger.together(steps)]
        except Exception:  # none of them was written; each is tried again, since only some may fail
            return [self._alone(step) for step in steps]

    @staticmethod
    def _alone(step: Callable[[], Any]) -> tuple[Any, Exception | None]:
        try:
            return step(), None
        except Exception as error:  # raised by `do` where the step was awaited
            return None, error


def _source_of(purpose: str) -> str:
    """The name of the source that a purpose ends with: a clip set's fingerprint or a task, and the name."""
    return purpose.rpartition(" ")[2]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
