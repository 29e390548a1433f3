"""Labelling by the providers' batch endpoints, through the real SDKs, against a server that speaks as theirs do."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.records import Verdict
from data.store import ClipSet
from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.core.source import UNREADABLE_CLIP, LabelError, Request
from feedback.network.api import ApiSource
from feedback.network.gemini import Gemini
from feedback.network.gpt import Gpt
from feedback.network.ledger import Ledger
from pipeline.forecast import forecast
from tests.support.batch_server import BatchServer, as_sent
from tests.support.faulty_provider import serving
from tests.support.network import PRICE, block_of, judged, make_clips
from tests.support.refusals import assert_refused

FORK = multiprocessing.get_context("fork")  # a child that need not import torch anew
CLIPS = 8
# Of a reply of the server's, by this price: GPT's 600 fresh and 400 cached tokens in, 20 out; Gemini's 1000 in, 50 out.
COST = {"gpt": (600 + 0.1 * 400 + 4 * 20) / 1e6, "gemini": (1000 + 4 * 50) / 1e6}
PROVIDERS: dict[str, Any] = {"gpt": Gpt, "gemini": Gemini}
both = pytest.mark.parametrize("kind", PROVIDERS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    return make_clips(tmp_path_factory.mktemp("set") / "samples", CLIPS)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serving(kind=BatchServer) as running:
        yield running


def block_at(server: BatchServer, kind: str, **more) -> dict[str, Any]:
    batches = {"batch": True, "poll_seconds": 0.01, "price": PRICE}
    return block_of(kind, server.base, **batches | more)


def source_at(server: BatchServer, kind: str, name: str = "j", **more) -> ApiSource:
    return make_source(name, block_at(server, kind, **more))


def outcomes(ledger: Path) -> dict[str | None, int]:
    with sqlite3.connect(ledger) as db:
        return dict(db.execute("SELECT outcome, COUNT(*) FROM attempts GROUP BY outcome").fetchall())


def spent(ledger: Path, clips: ClipSet, name: str = "j") -> float:
    with Ledger(ledger) as opened:
        return opened.spent(f"{clips.fingerprint()} {name}").dollars


def open_batches(ledger: Path) -> int:
    with sqlite3.connect(ledger) as db:
        return db.execute("SELECT COUNT(*) FROM batches WHERE NOT collected").fetchone()[0]


def meaning(rows: dict[str, Verdict]) -> dict[str, tuple]:
    return {name: (row.answer, row.p_yes, row.reason, row.frames, row.tokens, row.error) for name, row in rows.items()}


@both
def test_a_set_is_one_call_and_one_batch_that_says_what_calls_do(server, clips, ledger, kind, monkeypatch, caplog):
    caplog.set_level("INFO")
    rows = judged(source_at(server, kind), clips)
    ((batch,), single) = server.ours, list(server.bodies)
    assert (len(single), len(batch.lines)) == (1, CLIPS - 1)
    assert f"0 calls were answered before, {CLIPS} sent now, 0 of them retries" in caplog.text
    assert outcomes(ledger) == {"answered": CLIPS} and open_batches(ledger) == 0
    assert sorted(row.cost for row in rows.values()) == pytest.approx([COST[kind] / 2] * (CLIPS - 1) + [COST[kind]])
    assert spent(ledger, clips) == pytest.approx(COST[kind] * (CLIPS + 1) / 2)

    monkeypatch.setenv("FEEDBACK_LEDGER", str(ledger.with_name("other.sqlite")))
    server.bodies.clear()
    assert meaning(judged(source_at(server, kind, batch=False), clips)) == meaning(rows)
    assert sorted(map(as_sent, server.bodies)) == sorted(map(as_sent, [*server.lines(), *single]))


def test_a_line_holds_gemini_s_parameters_where_a_call_holds_them(server, clips):
    parameters = {"temperature": 0.5, "system_instruction": "Be fair.", "service_tier": "standard"}
    parameters |= {"safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]}
    judged(source_at(server, "gemini", clip="frames", resolution="low", parameters=parameters), clips)
    (call,), line = server.bodies, server.lines()[0]
    assert [len(one.pop("contents")[0]["parts"]) for one in (call, line)] == [9, 9]
    assert (call["safetySettings"], call["generationConfig"]["temperature"]) == (parameters["safety_settings"], 0.5)
    assert line == call


@both
def test_what_is_answered_is_not_sent_again(server, clips, ledger, kind):
    first, calls = judged(source_at(server, kind), clips), list(server.calls)
    assert judged(source_at(server, kind), clips) == first
    assert (server.calls, len(server.bodies)) == (calls, 1)


@both
def test_lines_that_fail_are_sent_one_by_one(server, clips, ledger, kind):
    server.plan.spoiled = ("scene 3.", "scene 5.")
    rows = judged(source_at(server, kind), clips)
    assert all(row.answer is not None for row in rows.values())
    assert outcomes(ledger) == {"answered": CLIPS, "refused": 2}
    assert len(server.ours) == 1 and len(server.bodies) == 1 + 2
    assert spent(ledger, clips) == pytest.approx(COST[kind] * (3 + (CLIPS - 3) / 2))


@both
@pytest.mark.parametrize("answers", [4, 0])  # with 0 there is no file
def test_the_answers_of_an_expired_batch_are_kept_and_the_rest_is_sent_one_by_one(server, clips, ledger, kind, answers):
    server.plan.end, server.plan.answers = "expired", answers
    assert all(row.answer is not None for row in judged(source_at(server, kind), clips).values())
    assert outcomes(ledger) == {"answered": CLIPS, "refused": CLIPS - 1 - answers}
    assert spent(ledger, clips) == pytest.approx(COST[kind] * (CLIPS - answers + answers / 2))


@both
def test_a_line_without_words_is_sent_again_alone_and_counts_as_possibly_billed(server, clips, ledger, kind):
    server.plan.empty = ("scene 3.",)
    rows = judged(source_at(server, kind), clips)
    assert all(row.answer is not None for row in rows.values())
    assert outcomes(ledger) == {"answered": CLIPS, "lost": 1}


@both
def test_a_failed_batch_stops_the_run_with_the_provider_s_words_and_costs_nothing(server, clips, ledger, kind):
    server.plan.end = "failed"
    words = "the file is no JSONL \\(line 7\\)" if kind == "gpt" else "console"
    with pytest.raises(LabelError, match=f"batch-3 failed: .*{words}.*run it again"):
        judged(source_at(server, kind), clips)
    assert outcomes(ledger) == {"answered": 1, "refused": CLIPS - 1} and open_batches(ledger) == 0
    server.plan.end = "completed"
    judged(source_at(server, kind), clips)
    assert [len(batch.lines) for batch in server.ours] == [CLIPS - 1, CLIPS - 2]


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_writing(provider: Any) -> None:
    whole, lines = provider.batch_line, []

    def line(self, *given):
        lines.append(given)
        return die() if len(lines) == 3 else whole(self, *given)

    provider.batch_line = line


def dies_before_submitting(provider: Any) -> None:
    provider.submit = die


def dies_after_submitting(provider: Any) -> None:
    whole = provider.submit

    async def submit(self, *given):
        await whole(self, *given)
        die()

    provider.submit = submit


def dies_polling(provider: Any) -> None:
    provider.progress = die


def dies_collecting(provider: Any) -> None:
    whole = provider.results

    async def results(self, remote):
        count = 0
        async for one in whole(self, remote):
            count += 1
            if count == 4:
                die()
            yield one

    provider.results = results


def kill_a_run(server: BatchServer, kind: str, clips: ClipSet, how: Callable[[Any], None], **more) -> None:
    """Judge the set in a child that is killed at this moment."""

    def work() -> None:
        how(PROVIDERS[kind])
        judged(source_at(server, kind, **more), clips)

    child = FORK.Process(target=work)
    child.start()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL


@both
@pytest.mark.parametrize("how", [dies_writing, dies_before_submitting])
def test_a_batch_of_a_run_killed_before_its_submission_is_submitted_once(server, clips, ledger, kind, how):
    kill_a_run(server, kind, clips, how)
    assert (server.ours, open_batches(ledger)) == ([], 1)
    rows = judged(source_at(server, kind), clips)
    assert all(row.answer is not None for row in rows.values())
    # Each run sends one call ahead.
    assert ([len(batch.lines) for batch in server.ours], len(server.bodies)) == ([CLIPS - 2], 2)
    assert outcomes(ledger)["answered"] == CLIPS and open_batches(ledger) == 0
    assert "lost" not in outcomes(ledger) and None not in outcomes(ledger)


@both
@pytest.mark.parametrize("how", [dies_after_submitting, dies_polling, dies_collecting])
def test_the_answers_of_a_batch_are_all_kept_and_paid_once_though_its_run_was_killed(server, clips, ledger, kind, how):
    kill_a_run(server, kind, clips, how)
    assert len(server.ours) == 1
    assert outcomes(ledger)[None] == (CLIPS - 1 - 3 if how is dies_collecting else CLIPS - 1)
    rows = judged(source_at(server, kind), clips)
    assert all(row.answer is not None for row in rows.values())
    assert (len(server.ours), len(server.bodies)) == (1, 1)
    assert outcomes(ledger) == {"answered": CLIPS} and open_batches(ledger) == 0
    assert spent(ledger, clips) == pytest.approx(COST[kind] * (CLIPS + 1) / 2)


@pytest.mark.parametrize("more", [{"batch": False}, {"name": "renamed"}])
def test_an_open_batch_is_taken_up_with_batches_off_and_under_another_name(server, clips, ledger, more):
    kill_a_run(server, "gpt", clips, dies_polling)
    assert all(row.answer is not None for row in judged(source_at(server, "gpt", **more), clips).values())
    assert (len(server.ours), len(server.bodies)) == (1, 1)
    assert spent(ledger, clips) == pytest.approx(COST["gpt"] * (CLIPS + 1) / 2)


def test_a_run_over_fewer_clips_keeps_the_other_answers_of_an_open_batch(server, clips, ledger):
    kill_a_run(server, "gpt", clips, dies_polling)
    server.plan.looks = 0
    assert len(judged(source_at(server, "gpt"), clips, 3)) == 3
    assert outcomes(ledger) == {"answered": CLIPS}


def test_two_runs_over_one_set_submit_it_once(server, clips, ledger):
    source = source_at(server, "gpt")
    with Ledger(ledger) as other:
        lock = other.hold(f"{source.provider.place} {clips.fingerprint()} j")
        assert lock
        runs = [threading.Thread(target=judged, args=(source_at(server, "gpt"), clips)) for _ in range(2)]
        for run in runs:
            run.start()
        time.sleep(0.3)
        assert server.calls == []
        lock.close()
        for run in runs:
            run.join(20)
    assert (len(server.ours), len(server.bodies)) == (1, 1)
    assert outcomes(ledger) == {"answered": CLIPS}


@both
def test_a_batch_whose_arrival_was_not_confirmed_is_found_by_its_name(server, clips, ledger, kind):
    create = "POST /v1/batches" if kind == "gpt" else ":batchGenerateContent"
    server.plan.script = [{"of": create, "status": None, "after": True}]
    judged(source_at(server, kind), clips)
    assert (len(server.ours), len(server.bodies)) == (1, 1)


@both
def test_cut_connections_and_full_servers_are_waited_out(server, clips, ledger, kind):
    download = "content" if kind == "gpt" else ":download"
    server.plan.script = [
        {"of": "/files", "status": 503},
        {"of": "GET", "status": None, "times": 2},
        {"of": "GET", "status": 429, "headers": {"Retry-After": "0"}},
        {"of": download, "status": None, "times": 2},
    ]
    judged(source_at(server, kind), clips)
    assert (len(server.ours), len(server.bodies)) == (1, 1)
    assert outcomes(ledger) == {"answered": CLIPS}
    assert all(fault["times"] == 0 for fault in server.plan.script)


@both
def test_a_key_that_is_rejected_on_the_way_stops_the_run_and_the_batch_waits(server, clips, ledger, kind):
    server.plan.script = [{"of": "GET", "status": 401}]
    with pytest.raises(LabelError, match="was rejected"):
        judged(source_at(server, kind), clips)
    assert open_batches(ledger) == 1
    judged(source_at(server, kind), clips)
    assert (len(server.ours), outcomes(ledger)) == (1, {"answered": CLIPS})


@both
def test_a_batch_that_the_provider_forgot_counts_as_possibly_billed(server, clips, ledger, kind):
    kill_a_run(server, kind, clips, dies_polling)
    server.plan.script = [{"of": "GET", "status": 404, "times": 8}]
    assert all(row.answer is not None for row in judged(source_at(server, kind), clips).values())
    assert outcomes(ledger) == {"answered": CLIPS, "lost": CLIPS - 1}


def test_a_refused_submission_stops_the_run_before_anything_else_is_sent(server, clips, ledger):
    server.plan.script = [{"of": "POST /v1/files", "status": 413}]
    with pytest.raises(LabelError, match="at the batch endpoint: HTTP 413"):
        judged(source_at(server, "gpt"), clips)
    assert len(server.bodies) == 1
    judged(source_at(server, "gpt"), clips)
    assert outcomes(ledger) == {"answered": CLIPS, "refused": CLIPS - 1}


NO_ENDPOINT = ((403, False), (404, False), (405, True), (501, True))  # status, and whether the error is a page


def afresh(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BatchServer, Path, int, bool]]:
    """For each way to lack a batch endpoint: a new server and ledger, the status, and whether the error is a page."""
    for status, page in NO_ENDPOINT:
        ledger = path / f"{status}.sqlite"
        monkeypatch.setenv("FEEDBACK_LEDGER", str(ledger))
        with serving(kind=BatchServer) as server:
            yield server, ledger, status, page


def refusing(of: str, status: int, page: bool = False) -> list[dict[str, Any]]:
    """A script by which a server refuses such requests for ever."""
    return [{"of": of, "status": status, "page": page, "times": 999}]


@both
def test_where_there_is_no_batch_endpoint_the_run_stops_once_and_names_the_option(
    tmp_path, clips, kind, monkeypatch, caplog
):
    caplog.set_level("INFO")
    for server, ledger, status, page in afresh(tmp_path, monkeypatch):
        caplog.clear()
        server.plan.script = refusing("/files", status, page) + refusing("/batches", status, page)
        with pytest.raises(LabelError) as stopped:
            judged(source_at(server, kind), clips)
        message = str(stopped.value)
        assert message.startswith("j: at the batch endpoint: ") and f"HTTP {status}" in message
        assert "Does base_url have a batch endpoint, and may the key use it? Otherwise set feedback" in message
        assert f"0 calls were answered before, {CLIPS} sent now" in caplog.text
        assert outcomes(ledger) == {"answered": 1, "refused": CLIPS - 1} and open_batches(ledger) == 0, status

        before = len(server.calls)
        rows = judged(source_at(server, kind, batch=False), clips)
        assert all(row.answer is not None for row in rows.values()), status
        assert (len(server.calls), len(server.bodies)) == (before, CLIPS), status


@both
def test_a_submission_that_keeps_failing_stops_and_without_batches_its_calls_are_sent_one_by_one(
    server, clips, ledger, kind, caplog
):
    page = kind == "gpt"  # an error as a page, or as JSON
    server.plan.script = refusing("/files", 502, page) + refusing("/batches", 502, page)
    for _ in range(2):
        with pytest.raises(LabelError, match=r"at the batch endpoint: HTTP 502.* after 3 attempts"):
            judged(source_at(server, kind, attempts=3), clips)
    assert (server.ours, open_batches(ledger), len(server.bodies)) == ([], 1, 1)
    rows = judged(source_at(server, kind, attempts=3, batch=False), clips)
    assert all(row.answer is not None for row in rows.values())
    assert outcomes(ledger) == {"answered": CLIPS, "lost": CLIPS - 1} and open_batches(ledger) == 0
    assert "it may have been billed, and its calls are sent again" in caplog.text


@both
def test_a_submission_that_failed_is_repeated_when_the_server_is_back(server, clips, ledger, kind):
    server.plan.script = refusing("/files", 502)
    with pytest.raises(LabelError, match="after 2 attempts"):
        judged(source_at(server, kind, attempts=2), clips)
    server.plan.script = []
    judged(source_at(server, kind), clips)
    # The second run sends a call ahead too, and its batch holds the rest.
    assert [len(batch.lines) for batch in server.ours] == [CLIPS - 2]
    assert "lost" not in outcomes(ledger)


@both
def test_a_batch_that_no_listing_can_find_counts_as_possibly_billed(tmp_path, clips, kind, monkeypatch, caplog):
    for server, ledger, status, page in afresh(tmp_path, monkeypatch):
        caplog.clear()
        kill_a_run(server, kind, clips, dies_after_submitting)
        server.plan.script = refusing("GET", status, page)
        rows = judged(source_at(server, kind, batch=False), clips)
        assert all(row.answer is not None for row in rows.values()), status
        assert outcomes(ledger) == {"answered": CLIPS, "lost": CLIPS - 1} and open_batches(ledger) == 0, status
        assert "it may have been billed, and its calls are sent again" in caplog.text, status


@both
def test_a_key_that_is_rejected_does_not_lose_a_batch_that_may_have_arrived(server, clips, ledger, kind):
    kill_a_run(server, kind, clips, dies_after_submitting)
    server.plan.script = [{"of": "GET", "status": 401}]
    with pytest.raises(LabelError, match="was rejected"):
        judged(source_at(server, kind, batch=False), clips)
    judged(source_at(server, kind, batch=False), clips)
    assert outcomes(ledger) == {"answered": CLIPS} and len(server.bodies) == 1


@both
def test_a_batch_under_way_is_waited_for_with_patience_and_kept_when_that_ends(
    server, clips, ledger, kind, monkeypatch
):
    monkeypatch.setattr("feedback.network.batches.PATIENCE", 4)
    server.plan.script = refusing("GET", 502, page=True)
    with pytest.raises(LabelError, match=r"HTTP 502.* after 4 attempts"):
        judged(source_at(server, kind, attempts=2), clips)
    server.plan.script = []
    judged(source_at(server, kind), clips)
    assert (len(server.ours), outcomes(ledger)) == (1, {"answered": CLIPS})


@pytest.mark.parametrize("most", [{"most_requests": 3}, {"most_bytes": 1}])
def test_a_set_that_is_too_large_goes_in_several_batches(server, clips, ledger, monkeypatch, most):
    if "most_bytes" in most:
        judged(source_at(server, "gpt", model="another"), clips, 3)
        (size,) = {len(server.files[name]) // 2 for name in server.files if name.startswith("file")}
        most, server.batches[3:] = {"most_bytes": 3 * size + 30}, []
    for name, value in most.items():
        monkeypatch.setattr(Gpt, name, value)
    rows = judged(source_at(server, "gpt"), clips)
    assert [len(batch.lines) for batch in server.ours] == [3, 3, 1]
    assert all(row.answer is not None for row in rows.values())
    assert open_batches(ledger) == 0


def test_the_budget_bounds_what_is_submitted_and_that_is_collected(server, clips, ledger):
    each = source_at(server, "gpt").estimate(requests_for(clips, 1)).dollars / CLIPS
    with pytest.raises(LabelError, match="budget_usd"):
        judged(source_at(server, "gpt", budget_usd=COST["gpt"] + 4.5 * each), clips)
    assert [len(batch.lines) for batch in server.ours] == [4]
    assert outcomes(ledger) == {"answered": 5}


def test_an_open_batch_counts_against_the_budget(server, clips, ledger):
    each = source_at(server, "gpt").estimate(requests_for(clips, 1)).dollars / CLIPS
    server.plan.looks = 0
    kill_a_run(server, "gpt", ClipSet(clips.folder, clips.manifest, clips.samples[:5]), dies_polling)
    with pytest.raises(LabelError, match="budget_usd"):
        judged(source_at(server, "gpt", budget_usd=COST["gpt"] + 4.5 * each), clips)
    assert [len(batch.lines) for batch in server.ours] == [4]
    assert outcomes(ledger) == {"answered": 5}


def test_what_the_first_call_learns_holds_for_the_batch(server, clips):
    server.behaviour.refuses = ("logprobs",)
    judged(source_at(server, "gpt"), clips)
    assert len(server.lines()) == CLIPS - 1
    assert not any("logprobs" in line for line in server.lines())


def test_a_provider_that_answers_nothing_gets_no_batch(server, clips, ledger):
    server.behaviour.script = [{"status": 400, "body": {"error": {"message": "no"}}, "times": 99}]
    assert all(row.error.startswith("failed") for row in judged(source_at(server, "gpt"), clips).values())
    assert server.calls == []


def test_a_rejected_key_stops_the_run_before_anything_is_submitted(server, clips):
    server.behaviour.script = [{"status": 401, "body": {"error": {"message": "no"}}, "times": 99}]
    with pytest.raises(LabelError, match="OPENAI_API_KEY was rejected"):
        judged(source_at(server, "gpt"), clips)
    assert (server.calls, len(server.bodies)) == ([], 1)


def test_a_clip_that_cannot_be_decoded_is_left_out(server, clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    requests = requests_for(clips, 1)
    requests[2] = replace(requests[2], path=broken, content=None)
    requests[4] = replace(requests[4], path=tmp_path / "gone.mp4", content=None)
    rows = {rows[0].sample_id: rows[0] for rows in source_at(server, "gpt").judge(requests)}
    errors = {name for name, row in rows.items() if (row.error or "").startswith(UNREADABLE_CLIP)}
    assert errors == {"clip2", "clip4"}
    assert len(server.lines()) == CLIPS - 3


def test_no_request_is_fine(server):
    requests: list[Request] = []
    assert list(source_at(server, "gpt").judge(requests)) == []


@both
def test_the_forecast_is_at_the_batch_price(server, clips, kind):
    requests = requests_for(clips, 1)
    dollars = [source_at(server, kind, batch=batch).estimate(requests).dollars for batch in (True, False)]
    assert dollars[0] == pytest.approx(dollars[1] / 2)
    assert "(batch prices of 2026-11-21)" in forecast("j", block_at(server, kind), requests)
    assert "(prices of 2026-11-21)" in forecast("j", block_at(server, kind, batch=False), requests)


def test_what_has_no_batch_endpoint_is_refused(server):
    cases = [
        ({"kind": "gpt", "mode": "decision"}, "batch is true, but"),
        ({"kind": "gemini", "mode": "decision"}, "batch is true, but"),
        ({"kind": "served"}, "batch is true, but"),
    ]
    assert_refused(lambda block: make_source("j", block_at(server, **block)), cases)
