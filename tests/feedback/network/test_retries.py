"""Calls that fail: what is sent again, after which wait, and what the ledger and the log record of it."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.core.source import FAILED, UNREADABLE_ANSWER, LabelError
from feedback.network.calls import FIRST_CONTACT
from feedback.network.pace import CONNECT, Pace, jitter, retry_after
from tests.support.faulty_provider import BILLED, EMPTY, TRANSPORT, serving
from tests.support.network import (
    CLIPS,
    answered_as_meant,
    attempts,
    block_of,
    every_kind,
    judged,
    of_clip,
    outcomes,
    source_at,
    stopped,
)


@every_kind
def test_a_call_that_fails_on_its_way_is_sent_again_and_recorded_as_lost_where_it_may_have_been_billed(
    server, clips, ledger, kind
):
    server.behaviour.script = [{"of": f"scene {n}.", "fault": fault} for n, fault in enumerate(TRANSPORT)]
    rows = judged(source_at(server, kind, timeout=1.5), clips, len(TRANSPORT))
    assert answered_as_meant(server, rows)
    recorded = {row.id: row.outcome for row in attempts(ledger)}
    reached = {attempt["id"] for attempt in server.attempts}
    assert recorded.keys() >= reached
    assert all(recorded[never] == "refused" for never in recorded.keys() - reached)  # slow to connect
    for n, fault in enumerate(TRANSPORT):
        sent = of_clip(server, f"clip{n}")
        assert [attempt["delivered"] for attempt in sent] == [fault not in BILLED, True], fault
        lost = "lost" if fault in BILLED else "refused"
        assert [recorded[attempt["id"]] for attempt in sent] == [lost, "answered"], fault


@every_kind
def test_an_answer_delivered_twice_is_not_taken_for_the_next_ones(server, clips, kind):
    server.behaviour.script = [{"fault": "twice", "times": CLIPS}]
    rows = judged(source_at(server, kind, concurrency=1), clips)
    assert answered_as_meant(server, rows)
    assert len(server.attempts) == CLIPS


def test_a_server_that_was_never_reached_stops_the_run_within_seconds_and_bills_nothing(
    clips, ledger, monkeypatch, caplog
):
    assert FIRST_CONTACT + CONNECT + 2 <= 10  # s; a connection that times out, a wait of at most 1.1 s, and another
    monkeypatch.setattr("feedback.network.calls.FIRST_CONTACT", 0.2)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):  # a proxy would answer for a name that it cannot find
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    for kind in ("gpt", "served", "gemini"):
        for base in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
            caplog.clear()
            message = stopped(make_source("j", block_of(kind, base)), clips)
            url = base + ("" if kind == "gemini" else "/v1")
            assert re.match(
                rf"j: no reply from {url} \(.+\); it took no connection for \d+ s. Start the server", message
            )
            assert "run it again" not in message
            (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
            assert warning.endswith("it was not reached yet: waiting up to 0 s"), (kind, base)
    assert set(outcomes(ledger)) == {"refused"}


def test_a_server_that_is_restarted_in_the_middle_is_waited_for(clips, ledger, monkeypatch, caplog):
    monkeypatch.setattr("feedback.network.calls.FIRST_CONTACT", 0.0)
    monkeypatch.setattr("feedback.network.calls.RESTART", 30.0)
    with serving() as first:
        source = source_at(first, "served", concurrency=2, attempts=1)
        verdicts = source.judge(requests_for(clips, 1))
        rows = {row.sample_id: row for row in next(verdicts)}
        port = int(first.base.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(lambda: {row.sample_id: row for of_clip in verdicts for row in of_clip})
        while "may be restarting: waiting up to 30 s" not in caplog.text:
            assert not others.done(), others.result()
            time.sleep(0.02)
        with serving(port=port) as second:
            rows |= others.result(60)
    in_between = [row for row in rows.values() if row.answer is None]  # sent, and cut off: attempts is 1
    assert len(rows) == CLIPS and len(in_between) <= 2
    assert second.attempts


def test_a_server_that_does_not_come_back_stops_the_run(clips, monkeypatch):
    monkeypatch.setattr("feedback.network.calls.RESTART", 0.5)
    with serving() as server:
        verdicts = source_at(server, "served", concurrency=1).judge(requests_for(clips, 1))
        next(verdicts)
    with pytest.raises(
        LabelError, match=r"it took no connection for \d+ s. The answers so far are kept: run it again to"
    ):
        list(verdicts)


def test_the_first_fault_of_each_kind_and_every_rest_are_logged(server, clips, caplog):
    busy = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
    server.behaviour.script = [{"fault": fault, "times": 2} for fault in ("500", "truncated")]
    server.behaviour.script += [{"status": 413, "body": {"error": {"message": "too large"}}, "times": 2}]
    server.behaviour.script += [{"status": 429, "headers": {"Retry-After": "1"}, "body": busy, "times": 2}]
    judged(source_at(server, concurrency=1), clips, 4)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "j: HTTP 500: a fault of the server: 500; tried again, 8 times at most",
        "j: the reply is not whole JSON; tried again, 8 times at most",
        "j: HTTP 413: too large; not tried again",
        "j: no call starts for 1 s: HTTP 429: slow down",
        "j: HTTP 429: slow down; tried again, 8 times at most",
        "j: no call starts for 1 s: HTTP 429: slow down",
    ]


@pytest.mark.parametrize("kind", ["gpt", "gemini"])
def test_a_call_that_keeps_failing_is_null_with_the_reason_and_asked_again_by_the_next_run(server, clips, ledger, kind):
    server.behaviour.script = [{"fault": "500", "times": 3}]
    (row,) = judged(source_at(server, kind, attempts=3), clips, 1).values()
    assert (row.answer, row.raw) == (None, None)
    assert row.error == f"{FAILED}HTTP 500: a fault of the server: 500 after 3 attempts"
    assert answered_as_meant(server, judged(source_at(server, kind), clips, 1))
    assert outcomes(ledger) == ["refused"] * 3 + ["answered"]


@pytest.mark.parametrize("kind", ["gpt", "gemini", "gemini-decision"])
def test_a_request_that_the_provider_cannot_take_fails_at_once_and_leaves_the_others_alone(server, clips, kind):
    error = {"error": {"message": "The image is too large.", "code": "too_large", "status": "INVALID_ARGUMENT"}}
    server.behaviour.script = [{"of": "scene 1.", "status": 413, "body": error, "times": 9}]
    rows = judged(source_at(server, kind), clips, 3)
    assert rows["clip1"].error == f"{FAILED}HTTP 413: The image is too large."
    assert rows["clip0"].error is rows["clip2"].error is None
    assert len(server.attempts) == 3


@pytest.mark.parametrize("kind", ["gpt", "served"])
def test_a_parameter_that_the_model_refuses_is_left_out_from_then_on(server, clips, ledger, kind):
    server.behaviour.refuses = ("logprobs",)
    rows = judged(source_at(server, kind, concurrency=1), clips, 4)
    assert all(row.answer is not None and row.p_yes is None for row in rows.values())
    refused = outcomes(ledger).count("refused")
    assert 1 <= refused <= 2  # it is asked for less, before it is asked for none
    assert outcomes(ledger) == ["refused"] * refused + ["answered"] * 4
    assert ["logprobs" in body for body in server.bodies] == [True] * refused + [False] * 4


@every_kind
def test_an_error_of_any_shape_is_an_error(server, clips, kind):
    bodies = ["", "null", "[]", '"no"', '{"error": "no"}', '{"error": null}', '{"error": {"details": 7}}', b"\xe9\xff"]
    server.behaviour.script = [
        {"of": f"scene {n}.", "status": status, "body": body}
        for n, body in enumerate(bodies)
        for status in (429, 500, 400)
    ]
    rows = judged(source_at(server, kind, attempts=3), clips)
    for n, body in enumerate(bodies):
        expected = (
            ("HTTP 400", "an error page that is no UTF-8 after 3 attempts") if body == b"\xe9\xff" else "HTTP 400"
        )
        assert rows[f"clip{n}"].error.removeprefix(FAILED).startswith(expected), body
    assert answered_as_meant(server, {name: row for name, row in rows.items() if row.raw})
    assert sum(attempt["billed"] for attempt in server.attempts) == CLIPS - len(bodies)


@every_kind
def test_a_reply_without_words_is_requested_again_and_counts_as_possibly_billed(server, clips, ledger, kind):
    server.behaviour.script = [{"odd": EMPTY}]
    assert answered_as_meant(server, judged(source_at(server, kind), clips, 1))
    assert outcomes(ledger) == ["lost", "answered"]
    server.behaviour.script = [{"odd": EMPTY, "times": 2}]
    (row,) = judged(source_at(server, kind, attempts=2, model="other"), clips, 1).values()
    assert row.answer is row.raw is None and row.error.startswith(FAILED) and row.error.endswith(" after 2 attempts")
    (row,) = judged(source_at(server, kind, model="other"), clips, 1).values()  # and by the next run
    assert row.answer is not None
    assert outcomes(ledger)[2:] == ["lost", "lost", "answered"]


USED = {"promptTokenCount": 1000, "totalTokenCount": 1000}
EMPTY_REPLIES = {  # beside those of EMPTY, as the providers send them
    "gemini": [{"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}], "usageMetadata": USED}],
    "gpt": [{"choices": [{"message": {"content": text}, "finish_reason": "stop"}]} for text in ("", " \n", None)],
    "served": [{"choices": [{"message": {"content": None, "reasoning_content": ""}, "finish_reason": "stop"}]}],
}


@pytest.mark.parametrize("kind", EMPTY_REPLIES)
def test_a_message_that_is_empty_is_no_answer(server, clips, ledger, kind):
    bodies = EMPTY_REPLIES[kind]
    server.behaviour.script = [{"body": body} for body in bodies]
    assert answered_as_meant(server, judged(source_at(server, kind), clips, 1))
    assert outcomes(ledger) == ["lost"] * len(bodies) + ["answered"]


def test_a_reply_that_ends_at_its_token_limit_before_any_word_is_final_and_says_what_to_raise(server, clips, ledger):
    cut = {
        "gemini": {"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]},
        "gpt": {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]},
    }
    for kind, body in cut.items():
        server.behaviour.script = [{"body": body}]
        (row,) = judged(source_at(server, kind), clips, 1).values()
        assert row.error.startswith(UNREADABLE_ANSWER) and "a larger one leaves room" in row.error, kind
    assert outcomes(ledger) == ["answered", "answered"]


def test_an_error_under_the_status_of_a_success_is_asked_again_and_counts_as_possibly_billed(server, clips, ledger):
    server.behaviour.script = [{"body": {"error": {"message": "upstream is overloaded", "code": 502}}}]
    rows = judged(source_at(server, concurrency=1), clips, 1)
    assert answered_as_meant(server, rows)
    assert outcomes(ledger) == ["lost", "answered"]


def test_a_429_rests_all_calls_for_as_long_as_it_says(server, clips):
    body = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
    server.behaviour.script = [{"of": "scene 1.", "status": 429, "headers": {"Retry-After": "0.6"}, "body": body}]
    server.behaviour.latency = 0.05
    judged(source_at(server, concurrency=2), clips)
    at = [attempt["at"] for attempt in server.attempts]
    refused = next(index for index, attempt in enumerate(server.attempts) if not attempt["billed"])
    later = [moment - at[refused] for moment in at if moment > at[refused] + 0.05]
    assert len(later) >= CLIPS - 3
    assert min(later) >= 0.59


def test_rests_without_a_given_time_double_and_are_short_again_after_a_success(monkeypatch):
    monkeypatch.setattr("feedback.network.pace.FIRST_REST", 1.0)
    now = 0.0
    monkeypatch.setattr("feedback.network.pace.time.monotonic", lambda: now)
    pace, ends = Pace(4, None, None), []
    for _ in range(8):
        began = pace.rest(None)
        assert pace.rest(None) == pace.rest(0.5) == 0  # others that were in flight with it begin none
        assert began == pace._rest_until - now
        ends.append(pace._rest_until - now)
        now = pace._rest_until
    assert ends == [1, 2, 4, 8, 16, 32, 60, 60]
    pace.went_well()
    pace.rest(None)
    assert pace._rest_until - now == 1


def test_waits_before_a_further_attempt_are_drawn_up_to_a_bound_that_doubles(monkeypatch):
    monkeypatch.setattr("feedback.network.pace.FIRST_REST", 1.0)
    drawn = {attempt: [jitter(attempt) for _ in range(500)] for attempt in range(2, 10)}
    for attempt, bound in zip(drawn, (1, 2, 4, 8, 16, 32, 60, 60), strict=True):
        assert 0 <= min(drawn[attempt]) < 0.1 * bound
        assert 0.9 * bound < max(drawn[attempt]) <= bound


def test_retry_after_is_read_in_all_its_forms():
    for headers, seconds in (
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Fri, 01 Jan 2021 00:00:00 GMT"}, 0.0),
        ({"retry-after": "in a while"}, None),
        ({"retry-after": ""}, None),
    ):
        assert retry_after(headers) == seconds, headers
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    assert retry_after({"retry-after": date}) == pytest.approx(90, abs=2)


def test_the_wait_in_the_body_of_a_gemini_error_is_kept(server, clips):
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.5s"}]
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down", "details": details}
    server.behaviour.script = [{"status": 429, "body": {"error": error}}]
    judged(source_at(server, "gemini", concurrency=1), clips, 1)
    first, second = server.attempts
    assert second["at"] - first["at"] >= 0.49


@pytest.mark.parametrize("rate", [{"requests_per_minute": 600.0}, {"tokens_per_minute": 600_000.0}])
def test_calls_start_no_faster_than_the_given_rates(server, clips, rate):
    source = source_at(server, concurrency=CLIPS, **rate)
    (call,) = source.calls_about(clips.samples[0], 1, "")
    apart = 0.1 if "requests_per_minute" in rate else call.tokens / 10_000
    began = time.monotonic()
    judged(source, clips, 6)
    at = sorted(attempt["at"] for attempt in server.attempts)
    # However late the machine is: so many have not come before so many could start.
    assert len(at) == 6 and all(come - began >= place * apart - 0.01 for place, come in enumerate(at))
