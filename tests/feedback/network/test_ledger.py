import asyncio
import fcntl
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import feedback.network.ledger
from data.manifest import StoreError
from feedback.network.ledger import (
    APPLICATION,
    Attempt,
    GroupCommit,
    Ledger,
    Spent,
    StoredAnswer,
    ledger_path,
    request_key,
)
from pipeline.identity import ROOT

FORK = multiprocessing.get_context("fork")  # a child that need not import torch anew


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "home" / "ledger.sqlite"


def begin(ledger: Ledger, name: str, purpose: str = "r1", expected: float | None = 0.5, **more) -> Attempt:
    sent = {"clip": name}
    attempt = ledger.begin(request_key(sent), sent, purpose, expected, **more)
    assert isinstance(attempt, Attempt)
    return attempt


def outcomes(path: Path) -> list[str | None]:
    """How every attempt ended, in the order in which they were begun; by another connection."""
    with sqlite3.connect(path) as db:
        return [outcome for (outcome,) in db.execute("SELECT outcome FROM attempts ORDER BY id")]


def killed_in(work: Callable[..., None], *values) -> None:
    """Run this in a child, which ends itself by SIGKILL."""
    child = FORK.Process(target=work, args=values)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def test_an_answer_is_stored_as_received_and_found_by_the_next_run(path):
    with Ledger(path) as ledger:
        attempt = begin(ledger, "a")
        ledger.answered(attempt, '{"text": "Ja, räumt ab"}\n', 0.25)
    with Ledger(path) as ledger:
        answer = StoredAnswer('{"text": "Ja, räumt ab"}\n', 0.25)
        assert ledger.answer(attempt.key) == answer
        assert ledger.begin(attempt.key, {"clip": "a"}, "r2", 0.5) == answer
        assert ledger.answers([attempt.key, "another"]) == {attempt.key: answer}
    assert outcomes(path) == ["answered"]


def test_a_request_is_on_the_disk_before_it_is_sent(path):
    with Ledger(path) as ledger:
        attempt = begin(ledger, "a")
        with sqlite3.connect(path) as other:
            assert other.execute("SELECT key, outcome FROM attempts").fetchall() == [(attempt.key, None)]
            assert other.execute("SELECT sent FROM requests").fetchall() == [('{"clip":"a"}',)]
            assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_key_of_a_request_is_the_hash_of_its_sorted_json():
    # Pinned: another key would orphan every answer that has been paid for.
    written = '{"a":1,"b":["é",1.5,null]}'
    assert request_key({"b": ["é", 1.5, None], "a": 1}) == hashlib.sha256(written.encode()).hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        request_key({"temperature": float("nan")})


def test_a_request_in_flight_belongs_to_its_run_until_that_ends(path):
    with Ledger(path) as other:
        with Ledger(path) as first:
            attempt = begin(first, "a")
            assert other.begin(attempt.key, {"clip": "a"}, "r1", 0.5) is None
            assert first.begin(attempt.key, {"clip": "a"}, "r1", 0.5) is None
        other.refused(begin(other, "a"))
    assert outcomes(path) == ["lost", "refused"]


def test_a_request_that_was_turned_down_is_begun_again_and_cost_nothing(path):
    with Ledger(path) as ledger:
        ledger.refused(begin(ledger, "a"))
        ledger.answered(begin(ledger, "a"), "{}", 0.25)
        assert ledger.spent("r1") == Spent(0.25, 0.0, 1, 0, 0)
        assert ledger.resent("r1") == 0


def test_what_a_killed_run_had_in_flight_is_found_and_counted_as_possibly_billed(path):
    def work() -> None:
        ledger = Ledger(path)
        ledger.answered(begin(ledger, "a"), "{}", 0.25)
        begin(ledger, "b")
        begin(ledger, "c")
        os.kill(os.getpid(), signal.SIGKILL)

    killed_in(work)
    assert outcomes(path) == ["answered", None, None]
    with Ledger(path) as ledger:
        assert ledger.found_lost == 2
        assert ledger.spent("r1") == Spent(0.25, 1.0, 1, 2, 0)
        ledger.answered(begin(ledger, "b"), "{}", 0.25)
        assert ledger.resent("r1") == 1
    with Ledger(path) as ledger:
        assert ledger.found_lost == 0
    assert outcomes(path) == ["answered", "lost", "lost", "answered"]


def test_a_run_that_was_killed_while_another_waits_for_it_is_noticed(path):
    ready, wait = FORK.Event(), FORK.Event()

    def work() -> None:
        with Ledger(path) as ledger:
            begin(ledger, "a")
            ready.set()
            wait.wait(60)

    child = FORK.Process(target=work, daemon=True)
    child.start()
    with Ledger(path) as ledger:
        assert ready.wait(60)
        assert ledger.begin(request_key({"clip": "a"}), {"clip": "a"}, "r1", 0.5) is None
        child.kill()
        child.join(60)
        begin(ledger, "a")
    assert outcomes(path)[0] == "lost"


def test_a_committed_answer_outlives_a_kill_at_any_moment(path):
    reader, writer = FORK.Pipe(duplex=False)

    def work(number: int) -> None:
        with Ledger(path) as ledger:
            for index in range(10_000):
                attempt = begin(ledger, f"{number}-{index}")
                ledger.answered(attempt, "{}" * 1000, 0.25)
                writer.send(attempt.key)

    committed = []
    for number in range(4):
        child = FORK.Process(target=work, args=(number,))
        child.start()
        committed.append(reader.recv())
        time.sleep(random.uniform(0, 0.1))
        child.kill()
        child.join(60)
        while reader.poll():
            committed.append(reader.recv())
    with Ledger(path) as ledger:
        assert ledger.answers(committed).keys() == set(committed)
        assert ledger.found_lost <= 1
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_same_answer_delivered_twice_is_kept_once_and_paid_once(path):
    with Ledger(path) as ledger:
        attempt = begin(ledger, "a")
        ledger.answered(attempt, "first", 0.25)
        ledger.answered(attempt, "second", 0.25)
        assert ledger.answer(attempt.key) == StoredAnswer("first", 0.25)
        assert ledger.spent("r1") == Spent(0.25, 0.0, 1, 0, 0)


def test_an_answer_that_came_after_all_does_not_replace_the_one_that_was_used(path):
    with Ledger(path) as ledger:
        late = begin(ledger, "a")
        ledger.lost(late)
        ledger.answered(begin(ledger, "a"), "used", 0.25)
        ledger.answered(late, "late", 0.25)
        assert ledger.answer(late.key) == StoredAnswer("used", 0.25)
        assert ledger.spent("r1").dollars == 0.5  # both were billed, as is now known


def test_spending_adds_up_by_purpose_over_all_runs(path):
    for cost in (0.25, 0.5):
        with Ledger(path) as ledger:
            ledger.answered(begin(ledger, f"a{cost}"), "{}", cost)
            ledger.answered(begin(ledger, f"b{cost}", purpose="r2"), "{}", 4.0)
            ledger.lost(begin(ledger, f"c{cost}", expected=1.0))
    with Ledger(path) as ledger:
        assert ledger.spent("r1") == Spent(0.75, 2.0, 2, 2, 0)
        assert ledger.spent("r3") == Spent(0.0, 0.0, 0, 0, 0)


def test_answers_of_unknown_price_count_as_what_they_were_expected_to_cost(path):
    with Ledger(path) as ledger:
        ledger.answered(begin(ledger, "a", expected=0.5), "{}", None)
        ledger.answered(begin(ledger, "b", expected=None), "{}", None)
        spent = ledger.spent("r1")
    assert (spent.dollars, spent.possibly, spent.calls, spent.unpriced) == (0.0, 0.5, 2, 2)


def test_every_lost_attempt_that_was_followed_by_another_counts_as_sent_again_once(path):
    with Ledger(path) as ledger:
        ledger.lost(begin(ledger, "a"))
        ledger.refused(begin(ledger, "a"))  # turned down, so not billed twice
        ledger.lost(begin(ledger, "a"))
        ledger.answered(begin(ledger, "a"), "{}", 0.25)
        ledger.lost(begin(ledger, "b"))  # never sent again
        assert ledger.resent("r1") == 2
        assert ledger.resent("r2") == 0


def test_a_person_may_change_an_answer(path):
    with Ledger(path) as ledger:
        for reply in ("yes", "no"):
            ledger.write("key", {"clip": "a"}, reply)
        assert ledger.answer("key") == StoredAnswer("no", None)
        assert ledger.spent("") == Spent(0.0, 0.0, 0, 0, 0)


def test_a_batch_stays_in_flight_when_its_run_ends_until_it_is_closed(path):
    with Ledger(path) as ledger:
        ledger.open_batch("token", "place")
        attempts = [begin(ledger, name, batch="token") for name in "ab"]
        ledger.submitted("token", "remote")
    with Ledger(path) as ledger:
        assert (ledger.found_lost, ledger.open_batches("elsewhere")) == (0, [])
        assert ledger.open_batches("place") == [("token", "remote")]
        assert ledger.attempts_of("token") == {attempt.key: attempt for attempt in attempts}
        ledger.answered(attempts[0], "{}", 0.25)
        ledger.close_batch("token", "lost")
        assert ledger.open_batches("place") == []
    assert outcomes(path) == ["answered", "lost"]


def test_threads_that_want_the_same_answers_begin_each_of_them_once(path):
    begun: list[str] = []

    def work(_: int) -> None:
        with Ledger(path) as ledger:
            for index in range(30):
                key, sent = request_key({"clip": index}), {"clip": index}
                if isinstance(attempt := ledger.begin(key, sent, "r1", None), Attempt):
                    begun.append(key)
                    ledger.answered(attempt, "{}", None)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert len(begun) == len(set(begun)) == 30


def test_stages_that_make_the_ledger_in_one_moment_do_not_get_in_each_others_way(path):
    def work(number: int, start: Any) -> None:
        start.wait(60)
        Ledger(path.with_name(f"{number}.sqlite")).close()

    for number in range(2):
        start = FORK.Barrier(6)
        children = [FORK.Process(target=work, args=(number, start)) for _ in range(6)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0] * 6


def test_a_full_disk_is_an_error_that_names_the_file_and_loses_no_answer(path):
    with Ledger(path) as ledger:
        kept = begin(ledger, "kept")
        ledger.answered(kept, "{}", 0.25)
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 8}")
        with pytest.raises(StoreError, match=r"ledger\.sqlite: the ledger could not be .* full"):
            for index in range(100):
                ledger.answered(begin(ledger, str(index)), "x" * 2000, 0.25)
        ledger._db.execute("PRAGMA max_page_count = 1000000")
        ledger.answered(begin(ledger, "once there is room"), "{}", 0.25)
        assert ledger.answer(kept.key) == StoredAnswer("{}", 0.25)
        assert ledger.spent("r1").calls >= 2
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_may_not_grow_is_an_error_and_the_ledger_goes_on_once_it_may(path):
    with Ledger(path) as ledger:
        ledger.answered(begin(ledger, "kept"), "{}", 0.25)
        size = path.with_name(f"{path.name}-wal").stat().st_size
        with files_of_at_most(size + 30_000), pytest.raises(StoreError, match="could not be read or written"):
            for index in range(100):
                ledger.answered(begin(ledger, str(index)), "x" * 2000, 0.25)
        ledger.answered(begin(ledger, "once there is room"), "{}", 0.25)
    with Ledger(path) as ledger:
        assert ledger.spent("r1").calls == outcomes(path).count("answered") >= 2


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file that this process writes may grow beyond this many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_ledger_of_an_older_schema_is_brought_up_to_date_with_all_its_answers(path, monkeypatch):
    with Ledger(path) as ledger:
        attempt = begin(ledger, "a")
        ledger.answered(attempt, "{}", 0.25)
    added = "ALTER TABLE answers ADD COLUMN note TEXT; CREATE TABLE notes (note TEXT);"
    newer = (*feedback.network.ledger._MIGRATIONS, added)
    with monkeypatch.context() as patch:
        patch.setattr("feedback.network.ledger._MIGRATIONS", newer)
        with Ledger(path) as ledger:
            assert ledger.answer(attempt.key) == StoredAnswer("{}", 0.25)
            assert ledger._db.execute("SELECT note FROM answers").fetchall() == [(None,)]
            assert ledger._db.execute("PRAGMA user_version").fetchone() == (len(newer),)
    message = f"a ledger of version {len(newer)}, but this code knows versions up to {len(newer) - 1}; update the code"
    with pytest.raises(StoreError, match=message):
        Ledger(path)


def test_an_update_of_the_schema_that_fails_leaves_the_ledger_as_it_was(path, monkeypatch):
    with Ledger(path) as ledger:
        attempt = begin(ledger, "a")
        ledger.answered(attempt, "{}", 0.25)
    failing = "CREATE TABLE notes (note TEXT); ALTER TABLE absent ADD COLUMN note TEXT;"
    broken = (*feedback.network.ledger._MIGRATIONS, failing)
    with monkeypatch.context() as patch:
        patch.setattr("feedback.network.ledger._MIGRATIONS", broken)
        with pytest.raises(StoreError, match="no such table: absent"):
            Ledger(path)
    with Ledger(path) as ledger:
        assert ledger.answer(attempt.key) == StoredAnswer("{}", 0.25)
        assert not ledger._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'notes'").fetchall()


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE songs (name TEXT)")


def test_what_is_no_ledger_is_an_error_and_left_as_it_is(tmp_path):
    cases = (
        (foreign_database, "an SQLite file of another program, not a ledger of feedback"),
        (lambda path: path.write_text("Dear diary, " * 100), "file is not a database"),
        (lambda path: path.mkdir(), "unable to open database file"),
    )
    for number, (spoil, message) in enumerate(cases):
        path = tmp_path / str(number) / "ledger.sqlite"
        path.parent.mkdir()
        spoil(path)
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(StoreError, match=rf"ledger\.sqlite: .*{message}"):
            Ledger(path)
        assert before is None or path.read_bytes() == before, message
        assert [file.name for file in path.parent.iterdir()] == [path.name], message


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"ledger\.sqlite: the ledger could not be read or written"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_finished_run_leaves_nothing_beside_the_ledger(path):
    with Ledger(path) as ledger:
        ledger.answered(begin(ledger, "a"), "{}", None)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION,)


def test_the_ledger_lies_outside_of_the_repository_unless_the_environment_says_where(monkeypatch, tmp_path):
    monkeypatch.delenv("FEEDBACK_LEDGER", raising=False)
    assert not ledger_path().is_relative_to(ROOT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDBACK_LEDGER", "mine/ledger.sqlite")
    assert ledger_path() == tmp_path / "mine/ledger.sqlite"


def test_calls_that_come_together_wait_for_the_disk_together(path):
    statements: list[str] = []

    async def all_at_once(ledger: Ledger) -> list[Attempt]:
        with GroupCommit(ledger) as commits:

            async def one(number: int) -> Attempt:
                attempt = await commits.do(lambda: begin(ledger, f"clip {number}"))
                assert len(outcomes(path)) > number  # on the disk, for others to see, before it returns
                return attempt

            return await asyncio.gather(*(one(number) for number in range(50)))

    with Ledger(path) as ledger:
        ledger._db.set_trace_callback(statements.append)
        attempts = asyncio.run(all_at_once(ledger))
    assert [attempt.key for attempt in attempts] == [request_key({"clip": f"clip {number}"}) for number in range(50)]
    assert statements.count("COMMIT") <= 3  # 50, if each waited alone


@pytest.mark.parametrize("error", [StoreError("the disk is full"), ValueError("full of what JSON does not know")])
def test_a_call_that_fails_undoes_no_other(path, error):
    def fails() -> None:
        raise error

    async def three(ledger: Ledger) -> list[Any]:
        with GroupCommit(ledger) as commits:
            steps = [lambda: begin(ledger, "a"), fails, lambda: begin(ledger, "b")]
            return await asyncio.gather(*(commits.do(step) for step in steps), return_exceptions=True)

    with Ledger(path) as ledger:
        with pytest.raises(type(error), match="full"):
            ledger.together([lambda: begin(ledger, "z"), fails])
        assert outcomes(path) == []
        first, raised, last = asyncio.run(asyncio.wait_for(three(ledger), 10))
    assert raised is error
    assert (first.key, last.key) == (request_key({"clip": "a"}), request_key({"clip": "b"}))
    assert outcomes(path) == [None, None]


def test_what_a_run_left_that_was_killed_idle_is_removed_after_a_day(path):
    with Ledger(path):
        mine = list(path.parent.glob(".*.run"))
        young, old, held = (path.with_name(f".{path.name}.{name}.run") for name in ("young", "old", "held"))
        for left in (young, old, held):
            left.touch()
        for left in (old, held):
            os.utime(left, (time.time() - 2 * 86400,) * 2)
        with held.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            Ledger(path).close()
            assert set(path.parent.glob(".*.run")) == {*mine, young, held}
