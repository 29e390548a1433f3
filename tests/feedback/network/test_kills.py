"""Runs that are killed or interrupted: no answer is lost, and none is paid for twice."""

import contextlib
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from data.labels import read_verdicts
from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.network.ledger import Ledger
from tests.conftest import hear_ctrl_c
from tests.support.faulty_provider import NULL, meant, odd_of
from tests.support.network import (
    PRICE,
    ROOT,
    AttemptRow,
    answered_as_meant,
    attempts,
    block_of,
    files_with_the_key,
    judged,
    make_clips,
    outcomes,
    source_at,
    word,
    write_params,
)


def run_stage(home: Path, source: str, ledger: Path, **environment: str) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "stages.label", "--set", "set", "--source", source, "--out", "labels",
        "--metrics", "metrics.json", "--device", "cpu",
    ]  # fmt: skip
    first = {"PYTHONPATH": str(ROOT), "FEEDBACK_LEDGER": str(ledger), "OMP_NUM_THREADS": "1"} | environment
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=home, env=os.environ | first, stdout=log, stderr=log, preexec_fn=hear_ctrl_c
        )


@pytest.fixture
def apart() -> Iterator[Callable[..., str]]:
    """Starts a server in another process; returns its address."""
    running = []

    def start(**behaviour) -> str:
        command = [sys.executable, "-m", "tests.support.faulty_provider", "0", json.dumps(behaviour)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        running.append(process)
        for line in process.stderr:
            if line.startswith("serving at "):
                return line.split()[-1]
        raise AssertionError("the server did not start")

    yield start
    for process in running:
        process.kill()
        process.wait()


def truth(base: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{base}/truth") as response:
        return json.load(response)["attempts"]


@pytest.mark.parametrize(
    ("kind", "kills", "count"),
    [
        pytest.param("gpt", 20, 300, marks=pytest.mark.slow),
        pytest.param("served", 20, 300, marks=pytest.mark.slow),
        pytest.param("gemini", 20, 300, marks=pytest.mark.slow),
        pytest.param("gpt", 2, 48, marks=pytest.mark.ci),
    ],
)
def test_a_stage_that_is_killed_again_and_again_ends_with_what_the_server_meant_and_pays_for_nothing_twice(
    tmp_path, ledger, apart, kind, kills, count
):
    behaviour = {"latency": 0.3, "faults": 0.15, "odd": 0.2, "seed": random.randrange(2**32)}
    base = apart(**behaviour)
    home = tmp_path / "home"
    clips = make_clips(home / "set", count)
    write_params(home, base, concurrency=8, timeout=3.0, attempts=12, price=PRICE)
    in_flight: set[str] = set()  # at a kill
    for _ in range(kills):
        in_flight |= killed_while_it_asks(home, kind, ledger)
    assert run_stage(home, kind, ledger).wait(300) == 0, (home / "log").read_text()[-3000:]

    known, seen = attempts(ledger), {attempt["id"]: attempt for attempt in truth(base)}
    check_books(known, seen, in_flight)
    with Ledger(ledger) as opened:
        purpose = f"{requests_for(clips, 1)[0].purpose} {kind}"
        followed = [a for n, a in enumerate(known) if a.outcome == "lost" and a.key in {b.key for b in known[n + 1 :]}]
        assert opened.resent(purpose) == len(followed) == outcomes(ledger).count("lost")
        assert opened.spent(purpose).calls == count
    source = make_source(kind, block_of(kind, base))
    rows = {row.sample_id: row for row in read_verdicts(home / "labels")}
    assert len(rows) == count
    for request in requests_for(clips, 1):
        (call,) = source.calls(request)
        (key,) = {seen[a.id]["key"] for a in known if a.key == call.key and a.id in seen}
        row, odd = rows[request.sample.sample_id], odd_of(key, behaviour["odd"])
        if odd in NULL:
            assert row.answer is None and row.error
        else:
            assert word(row) == meant(key)
    assert not files_with_the_key(tmp_path)


@pytest.mark.ci
def test_two_clones_on_one_ledger_ask_about_each_clip_once_though_one_of_them_is_killed(tmp_path, ledger, apart):
    base, count, homes = apart(latency=0.3), 40, (tmp_path / "one", tmp_path / "two")
    for home in homes:
        make_clips(home / "set", count)
        write_params(home, base)
    victim, other = (run_stage(home, "gpt", ledger) for home in homes)
    deadline = time.monotonic() + 120
    while begun(ledger) < 12:
        assert time.monotonic() < deadline, (homes[0] / "log").read_text()[-3000:]
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    assert other.wait(120) == 0, (homes[1] / "log").read_text()[-3000:]
    assert run_stage(homes[0], "gpt", ledger).wait(120) == 0

    known, seen = attempts(ledger), {attempt["id"]: attempt for attempt in truth(base)}
    lost = {row.id for row in known if row.outcome == "lost"}
    check_books(known, seen, lost)
    # At the kill 4 calls were in flight, and as many answers at most were being written.
    assert len(lost) <= 8 and len(seen) <= count + len(lost)
    one, two = (read_verdicts(home / "labels") for home in homes)
    assert one == two and len(one) == count


def killed_while_it_asks(home: Path, kind: str, ledger: Path) -> set[str]:
    """Start the stage, kill it at a random moment after its first call; returns what was in flight."""
    before = begun(ledger)
    stage, deadline = run_stage(home, kind, ledger), time.monotonic() + 120
    while begun(ledger) == before:
        assert stage.poll() is None and time.monotonic() < deadline, (home / "log").read_text()[-3000:]
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.8))
    assert stage.poll() is None, "it was done before it could be killed"
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    return {row.id for row in attempts(ledger) if row.outcome is None}


def begun(ledger: Path) -> int:
    """How many attempts there are, also while another process makes the ledger."""
    with contextlib.suppress(sqlite3.OperationalError):
        return len(attempts(ledger)) if ledger.exists() else 0
    return 0


def check_books(known: Iterable[AttemptRow], seen: Mapping[str, Mapping[str, Any]], in_flight: set[str]) -> None:
    """The ledger and the server agree about every single attempt."""
    known = list(known)
    assert seen.keys() <= {row.id for row in known}  # nothing was sent that was not written down before
    answered: set[str] = set()
    for row in known:
        assert row.key not in answered, "asked again after its answer was committed"
        at_server = seen.get(row.id)
        if row.outcome == "answered":
            answered.add(row.key)
            assert at_server["delivered"]
        elif row.outcome == "refused":
            assert at_server["delivered"] and not at_server["billed"]
        else:
            assert row.outcome == "lost"
            assert row.id in in_flight or not at_server["delivered"]
        if at_server and not at_server["delivered"]:
            assert row.outcome == "lost"
    assert in_flight <= {row.id for row in known if row.outcome == "lost"}
    assert {row.key for row in known} == answered


def test_a_kill_between_the_answer_and_its_writing_is_one_request_sent_again_and_reported(
    server, clips, ledger, caplog
):
    code = f"""
import os, signal
from data.store import ClipSet
from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.network.ledger import Ledger
from pathlib import Path
Ledger.answered = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
source = make_source("j", {block_of("gpt", server.base, price=PRICE)!r})
list(source.judge(requests_for(ClipSet.open(Path({str(clips.folder)!r})), 1)[:1]))
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert outcomes(ledger) == [None]
    assert [attempt["delivered"] for attempt in server.attempts] == [True]
    caplog.set_level(logging.INFO)
    rows = judged(source_at(server, price=PRICE), clips, 1)
    assert answered_as_meant(server, rows)
    assert outcomes(ledger) == ["lost", "answered"]
    assert "1 requests were in flight when a run was killed; they may have been billed" in caplog.text
    assert "for 1 calls that may have been billed without an answer" in caplog.text


def test_ctrl_c_keeps_the_answers_in_flight(tmp_path, ledger, server):
    home = tmp_path / "home"
    make_clips(home / "set", 40)
    write_params(home, server.base)
    server.behaviour.latency = 0.5
    stage, deadline = run_stage(home, "gpt", ledger), time.monotonic() + 120
    while len(server.attempts) < 4:
        assert stage.poll() is None and time.monotonic() < deadline, (home / "log").read_text()[-3000:]
        time.sleep(0.02)
    stage.send_signal(signal.SIGINT)
    assert stage.wait(120) != 0
    assert set(outcomes(ledger)) == {"answered"}
    assert len(attempts(ledger)) == len(server.attempts) < 40
