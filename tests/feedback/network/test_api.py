"""Network judges against a server that misbehaves on command, through the real SDKs."""

import contextlib
import copy
import json
import logging
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

import feedback.network.ledger
import feedback.network.pace
import stages.label
from data.labels import read_verdicts
from data.manifest import StoreError
from data.records import Sample, Verdict
from data.store import ClipSet, ClipSetWriter
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set, requests_for
from feedback.core.source import FAILED, REFUSED, UNREADABLE_ANSWER, UNREADABLE_CLIP, LabelError, Request
from feedback.network.api import ApiSource
from feedback.network.ledger import Ledger
from feedback.network.pace import Pace, jitter, retry_after
from feedback.network.price import Estimate, Price
from tests.conftest import hear_ctrl_c
from tests.support.faulty_provider import BILLED, NULL, ODD, TRANSPORT, Server, meant, odd_of, reply, serving

ROOT = Path(__file__).parents[3]
KEY = "sk-proj-1234567890abcdefghij"
KINDS: dict[str, dict[str, Any]] = {
    "gpt": {"kind": "gpt"},
    "gpt-decision": {"kind": "gpt", "mode": "decision"},
    "served": {"kind": "served", "key_variable": "SERVED_KEY"},
    "gemini": {"kind": "gemini"},
    "gemini-decision": {"kind": "gemini", "mode": "decision"},
}
VARIABLES = {"gpt": "OPENAI_API_KEY", "served": "SERVED_KEY", "gemini": "GEMINI_API_KEY"}
PRICE = {"input": 1.0, "output": 4.0, "cached_input": 0.1, "batch": 0.5, "as_of": "2026-11-21"}
CLIPS = 12
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    return make_clips(tmp_path_factory.mktemp("set") / "samples", CLIPS)


def make_clips(folder: Path, count: int) -> ClipSet:
    """Clips of noise, each of its own prompt, so that the server can tell them apart."""
    frames = np.random.default_rng(0).integers(0, 255, (count, 9, 32, 32, 3)).astype(np.uint8)
    samples = [
        Sample(f"clip{n}", f"p{n}", f"scene {n}.", "c", "train", "base", n, 9, 8.0, 32, 32, f"videos/clip{n}.mp4")
        for n in range(count)
    ]
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, frames, torch.zeros(count, 1, 1, 1, 1))
    embeddings = {sample.prompt_id: torch.zeros(1, 1) for sample in samples}
    writer.finish(embeddings, torch.zeros(1, 1), {})
    return ClipSet.open(folder)


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch) -> Path:
    """A ledger of the test's own, keys in the environment, and short waits."""
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("FEEDBACK_LEDGER", str(path))
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, KEY)
    monkeypatch.setattr("feedback.network.pace.FIRST_REST", 0.02)
    monkeypatch.setattr("feedback.network.api.POLL", 0.02)
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def block_of(kind: str, base: str, **more) -> dict[str, Any]:
    of_kind = KINDS[kind]
    facts = {"model": "m", "rubric": str(ROOT / "feedback/rubrics/review.yaml"), "concurrency": 4, "timeout": 10.0}
    return facts | of_kind | {"base_url": base + ("" if of_kind["kind"] == "gemini" else "/v1")} | more


def source_at(server: Server, kind: str = "gpt", **more) -> ApiSource:
    return make_source("j", block_of(kind, server.base, **more))


def judged(source: ApiSource, clips: ClipSet, count: int = CLIPS) -> dict[str, Verdict]:
    """The verdict on each of the first clips. All rubrics here have one question."""
    return {rows[0].sample_id: rows[0] for rows in source.judge(requests_for(clips, 1)[:count])}


@dataclass
class Row:
    """An attempt, as the ledger has it."""

    id: str
    key: str
    outcome: str | None
    answered: bool  # whether its request has an answer


def attempts(ledger: Path) -> list[Row]:
    """All attempts in the order in which they were begun."""
    query = "SELECT id, key, outcome, EXISTS (SELECT 1 FROM answers WHERE key = a.key) FROM attempts a ORDER BY id"
    with sqlite3.connect(ledger) as db:
        return [Row(str(row[0]), row[1], row[2], bool(row[3])) for row in db.execute(query)]


def outcomes(ledger: Path) -> list[str | None]:
    return [row.outcome for row in attempts(ledger)]


def said(row: Verdict) -> str | None:
    return {True: "Accept", False: "Reject", None: None}[row.answer]


def answered_as_meant(server: Server, rows: Mapping[str, Verdict]) -> bool:
    """Whether each clip, known by its prompt, has the verdict that the server meant."""
    for row in rows.values():
        scene = f"scene {row.sample_id.removeprefix('clip')}."
        (key,) = {a["key"] for a, body in zip(server.attempts, server.bodies, strict=True) if scene in json.dumps(body)}
        if said(row) != meant(key):
            return False
    return True


# What befalls a call on its way


@every_kind
def test_every_clip_is_judged_as_the_server_means_it(server, clips, ledger, kind):
    rows = judged(source_at(server, kind, price=PRICE), clips)
    assert len(rows) == len(server.attempts) == CLIPS
    assert {said(row) for row in rows.values()} == {"Accept", "Reject"}
    assert answered_as_meant(server, rows)
    row = rows["clip0"]
    assert row.raw and row.cost and row.tokens and row.error is None
    assert row.frames == list(range(9)) if kind.startswith("gemini") else len(row.frames) == 8
    assert outcomes(ledger) == ["answered"] * CLIPS


@every_kind
@pytest.mark.parametrize("fault", TRANSPORT)
def test_a_call_that_fails_on_its_way_is_sent_again_and_noted_as_billed_where_it_may_have_been(
    server, clips, ledger, kind, fault
):
    server.behaviour.script = [{"fault": fault}]
    rows = judged(source_at(server, kind, timeout=0.4 if fault == "hang" else 10.0), clips, 1)
    assert answered_as_meant(server, rows)
    assert [attempt["delivered"] for attempt in server.attempts] == [fault not in BILLED, True]
    assert outcomes(ledger) == ["lost" if fault in BILLED else "refused", "answered"]
    assert [attempt["id"] for attempt in server.attempts] == [row.id for row in attempts(ledger)]


@every_kind
def test_an_answer_delivered_twice_is_not_taken_for_the_next_ones(server, clips, kind):
    server.behaviour.script = [{"fault": "twice", "times": CLIPS}]
    rows = judged(source_at(server, kind, concurrency=1), clips)
    assert answered_as_meant(server, rows)
    assert len(server.attempts) == CLIPS


@pytest.mark.parametrize("kind", ["gpt", "gemini"])
def test_a_server_that_cannot_be_reached_bills_nothing_and_fails_the_call(server, clips, ledger, kind):
    source = source_at(server, kind, base_url="http://127.0.0.1:9/v1", attempts=2)
    (row,) = judged(source, clips, 1).values()
    assert row.answer is None
    assert re.fullmatch(rf"{FAILED}no reply from http://127.0.0.1:9/v1 \(.+\) after 2 attempts", row.error)
    assert outcomes(ledger) == ["refused", "refused"]


@pytest.mark.parametrize("kind", ["served", "gemini"])
def test_a_server_that_is_down_is_told_of_once_and_not_met_with_silence(server, clips, caplog, kind):
    rows = judged(source_at(server, kind, base_url="http://127.0.0.1:9/v1", attempts=3), clips, 4)
    assert all(row.answer is None for row in rows.values())
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.fullmatch(r"j: no reply from http://127.0.0.1:9/v1 \(.+\); tried again, 3 times at most", told)


def test_the_first_fault_of_each_kind_is_told_and_whether_it_is_tried_again(server, clips, caplog):
    server.behaviour.script = [{"fault": fault, "times": 2} for fault in ("500", "truncated")]
    server.behaviour.script += [{"status": 413, "body": {"error": {"message": "too large"}}, "times": 2}]
    judged(source_at(server, concurrency=1), clips, 3)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "j: HTTP 500: a fault of the server: 500; tried again, 8 times at most",
        "j: the reply is not whole JSON; tried again, 8 times at most",
        "j: HTTP 413: too large; not tried again",
    ]


def test_every_rest_is_told(server, clips, caplog):
    body = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
    server.behaviour.script = [{"status": 429, "headers": {"Retry-After": "1"}, "body": body, "times": 2}]
    judged(source_at(server, concurrency=1), clips, 2)
    told = [record.getMessage() for record in caplog.records if "rest for" in record.getMessage()]
    assert told == ["j: all calls rest for 1 s: HTTP 429: slow down"] * 2


@pytest.mark.parametrize("kind", ["gpt", "gemini"])
@pytest.mark.parametrize("status", [405, 501])
def test_an_address_that_takes_no_such_calls_stops_the_run(server, clips, kind, status):
    server.behaviour.script = [{"status": status, "body": "<html>no</html>", "times": 99}]
    assert f"HTTP {status}" in stopped(source_at(server, kind, concurrency=1), clips)
    assert len(server.attempts) == 1


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
        told = ("HTTP 400", "an error page that is no UTF-8 after 3 attempts") if body == b"\xe9\xff" else "HTTP 400"
        assert rows[f"clip{n}"].error.removeprefix(FAILED).startswith(told), body
    assert answered_as_meant(server, {name: row for name, row in rows.items() if row.raw})
    assert sum(attempt["billed"] for attempt in server.attempts) == CLIPS - len(bodies)


# What is answered


def expected_null(kind: str, odd: str) -> str:
    """How the error of an odd answer begins."""
    if kind.endswith("decision"):
        return REFUSED
    return REFUSED if odd in ("refusal", "filtered", "policy") else UNREADABLE_ANSWER


@every_kind
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_is_read_if_it_can_mean_one_thing_only_and_is_never_asked_for_again(
    server, clips, ledger, kind, odd
):
    server.behaviour.script = [{"odd": odd}]
    (row,) = judged(source_at(server, kind), clips, 1).values()
    if odd in NULL:
        assert row.answer is None
        assert row.error.startswith(expected_null(kind, odd)) and len(row.error) > len(REFUSED) + 3
    else:
        assert said(row) == meant(server.attempts[0]["key"])
    assert row.raw
    assert judged(source_at(server, kind), clips, 1) == {"clip0": row}
    assert len(server.attempts) == 1
    assert outcomes(ledger) == ["answered"]


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all that is in a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*path, key))


def with_node(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return value


@every_kind
def test_json_of_any_shape_is_read_without_an_exception_and_is_null_where_no_answer_is_left(clips, kind):
    source = make_source("j", block_of(kind, "http://127.0.0.1:9", price=PRICE))
    (asked,) = source.asked(clips.samples[0], 1, "")
    request = Request(clips.samples[0], clips.video(clips.samples[0]))
    path = {"gemini": "m:generateContent", "gpt": "chat/completions", "served": "chat/completions"}
    sent = asked.plan.body | {"model": "m", "logprobs": True}
    _, good = reply(f"/{path.get(kind, 'decisions')}", sent, "0" * 15 + "1", None)
    for node in nodes(good):
        for new in (None, True, 7, -1.5, float("nan"), "x", "", [], [7], [None], {}, {"x": 7}, [{"x": []}]):
            raw = json.dumps(with_node(good, node, new))
            cost = source.cost(asked, raw)
            (row,) = source.verdicts(request, {0: feedback.network.ledger.Answer(raw, cost)}, [asked])
            probable = "top_logprobs" in node  # another word there may well say something else
            assert row.answer is True or (row.answer is None and row.error) or probable, (node, new)
            assert cost is None or cost >= 0, (node, new)
            assert isinstance(row.model_version, str) and isinstance(row.tokens, int | None), (node, new)


def test_a_reply_with_half_a_character_can_be_written_to_the_tables(server, clips, tmp_path):
    content = '{"answer": "Accept", "reason": "half of \\ud83d"}'
    message = {"role": "assistant", "content": content}
    server.behaviour.script = [{"body": {"choices": [{"message": message}]}, "times": 99}]
    label_clip_set(clips, source_at(server), tmp_path / "work", tmp_path / "out", 64)
    assert {row.answer for row in read_verdicts(tmp_path / "out")} == {True}


def test_an_answer_that_could_not_be_read_is_read_again_for_nothing_by_a_better_parser(server, clips, monkeypatch):
    server.behaviour.script = [{"odd": "foreign"}]
    assert judged(source_at(server), clips, 1)["clip0"].answer is None
    monkeypatch.setattr("feedback.network.gpt.read_answer", lambda text, question: {"answer": "nicht" not in text})
    assert judged(source_at(server), clips, 1)["clip0"].answer is False
    assert len(server.attempts) == 1


def test_clips_of_the_same_bytes_and_prompt_are_asked_about_once(server, clips):
    request = requests_for(clips, 1)[0]
    twins = [replace(request, sample=replace(request.sample, sample_id=f"twin{n}")) for n in range(3)]
    rows = [rows[0] for rows in source_at(server).judge(twins)]
    assert {row.sample_id for row in rows} == {"twin0", "twin1", "twin2"}
    assert len(server.attempts) == 1


def test_every_vote_is_an_asking_of_its_own(server, clips):
    (rows,) = source_at(server).judge(requests_for(clips, 3)[:1])
    assert [row.vote for row in rows] == [0, 1, 2]
    assert len(server.attempts) == 3


@every_kind
def test_whatever_decides_an_answer_is_in_its_key(clips, tmp_path, kind):
    sample, base = clips.samples[0], "http://127.0.0.1:9"
    rubric = yaml.safe_load((ROOT / "feedback/rubrics/review.yaml").read_text())
    changes: list[dict[str, Any]] = [{"model": "n"}, {"parameters": {"temperature": 0.5}}, {"base_url": "http://other"}]
    for key, value in {"frames": 4, "instructions": "Judge: {prompt}"}.items():
        path = tmp_path / f"{key}.yaml"
        path.write_text(yaml.safe_dump(rubric | {key: value}))
        if (kind, key) != ("gemini", "frames"):
            changes.append({"rubric": str(path)})
    changes += {
        "gpt": [{"detail": "low"}, {"picture": "jpeg"}],
        "served": [{"clip": "frames"}, {"server_frames": 3}, {"max_tokens": 1}],
        "gemini": [{"clip": "frames"}, {"fps": 2.0}, {"resolution": "low"}],
    }[KINDS[kind]["kind"]]
    if kind.startswith("gemini"):
        changes = [change for change in changes if "frames.yaml" not in change.get("rubric", "")]

    def key_of(sample: Sample = sample, clip: str = "content", **more) -> set[str]:
        return {asked.key for asked in make_source("j", block_of(kind, base, **more)).asked(sample, 2, clip)}

    keys = [key_of(), key_of(clip="other"), key_of(replace(sample, prompt="another scene"))]
    keys += [key_of(**change) for change in changes]
    assert len(set().union(*keys)) == 2 * len(keys)  # two votes each
    same = {"concurrency": 9, "timeout": 3.0, "attempts": 2, "budget_usd": 5.0, "price": PRICE}
    assert key_of(replace(sample, sample_id="other", policy="other", seed=9), **same) == key_of()


# What stops a run


def stopped(source: ApiSource, clips: ClipSet) -> str:
    """What a run that must stop says."""
    with pytest.raises(LabelError) as raised:
        judged(source, clips)
    told = str(raised.value)
    assert told.endswith("The answers so far are kept: run it again to go on")
    return told


@every_kind
def test_a_key_that_is_missing_is_named_by_its_variable_and_nothing_is_sent(server, clips, monkeypatch, kind):
    variable = VARIABLES[KINDS[kind]["kind"]]
    for value in ("", None):
        monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(variable)
        assert f"the environment variable {variable} is not set" in stopped(source_at(server, kind), clips)
    assert not server.attempts


@every_kind
@pytest.mark.parametrize("value", ["sk-secret \n 1234", "sk-secr\u00e9t", "sk-\x07secret"])
def test_a_key_with_characters_that_no_key_has_is_named_by_its_variable_only(
    server, clips, monkeypatch, caplog, kind, value
):
    variable = VARIABLES[KINDS[kind]["kind"]]
    monkeypatch.setenv(variable, value)
    told = stopped(source_at(server, kind), clips)
    assert variable in told
    assert "secr" not in told + caplog.text
    assert not server.attempts


def test_answers_that_are_there_need_no_key(server, clips, monkeypatch):
    rows = judged(source_at(server), clips)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert judged(source_at(server), clips) == rows


REJECTED = {
    "gpt": {"error": {"message": "Incorrect API key provided: $KEY.", "code": "invalid_api_key", "type": "x"}},
    "gemini": {
        "error": {
            "code": 400, "status": "INVALID_ARGUMENT", "message": "API key not valid: $KEY.",
            "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
        }
    },
}  # fmt: skip


@every_kind
def test_a_key_that_is_rejected_stops_the_run_at_once_and_is_named_by_its_variable_only(server, clips, ledger, kind):
    of_kind = KINDS[kind]["kind"]
    body, status = REJECTED.get(of_kind, REJECTED["gpt"]), 400 if of_kind == "gemini" else 401
    server.behaviour.script = [{"status": status, "body": body, "times": 99}]
    told = stopped(source_at(server, kind), clips)
    assert f"the key in {VARIABLES[of_kind]} was rejected (HTTP {status}" in told
    assert KEY not in told
    assert len(server.attempts) <= 4  # those that were in flight together; none was sent again
    assert set(outcomes(ledger)) == {"refused"}


def test_a_server_that_wants_a_key_where_none_is_named_says_where_to_name_it(server, clips):
    server.behaviour.script = [{"status": 401, "body": {"error": "Unauthorized"}, "times": 99}]
    assert "key_variable" in stopped(source_at(server, "served", key_variable=None), clips)


QUOTA = {
    "gpt": [
        {"message": "You exceeded your current quota, please check your plan.", "code": "insufficient_quota"},
        {
            "message": "Rate limit reached for m in organization o on requests per day (RPD): Limit 200, Used 200, "
            "Requested 1. Please try again in 7m12s.", "code": "rate_limit_exceeded", "type": "requests",
        },
    ],
    "gemini": [
        {
            "code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota.",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure",
                 "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "33s"},
            ],
        },
        {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Your project has exceeded its monthly spending cap."},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "error"), [(kind, error) for kind in KINDS for error in QUOTA.get(KINDS[kind]["kind"], QUOTA["gpt"])]
)
def test_a_spent_quota_of_the_day_or_the_purse_stops_the_run_and_says_how_to_go_on(server, clips, kind, error):
    server.behaviour.script = [{"of": "scene 2.", "status": 429, "body": {"error": error}, "times": 99}]
    told = stopped(source_at(server, kind, concurrency=1), clips)
    assert error["message"] in told
    answered = len([attempt for attempt in server.attempts if attempt["billed"]])
    assert len(server.attempts) == answered + 1
    server.behaviour.script = []
    assert len(judged(source_at(server, kind), clips)) == CLIPS
    assert len(server.attempts) == CLIPS + 1


@every_kind
@pytest.mark.parametrize("status", [402, 404])
def test_an_unknown_model_or_an_unpaid_bill_stops_the_run(server, clips, kind, status):
    body = {"error": {"message": "There is no such thing.", "code": "x"}}
    server.behaviour.script = [{"status": status, "body": body, "times": 99}]
    assert f"HTTP {status}: There is no such thing." in stopped(source_at(server, kind, concurrency=1), clips)
    assert len(server.attempts) == 1


@every_kind
def test_a_provider_that_wants_to_be_asked_again_in_an_hour_stops_the_run(server, clips, kind):
    server.behaviour.script = [{"status": 429, "headers": {"Retry-After": "3600"}, "body": {"error": {"message": "m"}}}]
    began = time.monotonic()
    assert "to be asked again in 60 minutes" in stopped(source_at(server, kind), clips)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["gpt", "gemini"])
def test_a_run_that_stops_does_not_sleep_out_the_waits_of_others(server, clips, kind):
    busy = {"status": 503, "headers": {"Retry-After": "300"}, "body": {"error": {"message": "busy"}}}
    server.behaviour.script = [
        {"of": "scene 0.", "after": 0.3, **busy},
        {"of": "scene 1.", "after": 0.8, "status": 401, "body": REJECTED["gpt"]},  # in flight while the others rest
    ]
    began = time.monotonic()
    stopped(source_at(server, kind), clips)
    assert time.monotonic() - began < 5


# How fast


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


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Fri, 01 Jan 2021 00:00:00 GMT"}, 0.0),
        ({"retry-after": "in a while"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    told = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    assert retry_after({"retry-after": told}) == pytest.approx(90, abs=2)


def test_gemini_tells_how_long_to_wait_in_its_body(server, clips):
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.5s"}]
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down", "details": details}
    server.behaviour.script = [{"status": 429, "body": {"error": error}}]
    judged(source_at(server, "gemini", concurrency=1), clips, 1)
    first, second = server.attempts
    assert second["at"] - first["at"] >= 0.49


@pytest.mark.parametrize("kind", ["gpt", "gemini"])
def test_no_more_calls_are_in_flight_than_concurrency_and_no_fewer(server, clips, kind):
    server.behaviour.latency = 0.1
    judged(source_at(server, kind, concurrency=3), clips)
    assert server.most_in_flight == 3


@pytest.mark.parametrize("rate", [{"requests_per_minute": 600.0}, {"tokens_per_minute": 600_000.0}])
def test_calls_start_no_faster_than_the_given_rates(server, clips, rate):
    source = source_at(server, concurrency=CLIPS, **rate)
    (asked,) = source.asked(clips.samples[0], 1, "")
    apart = 0.1 if "requests_per_minute" in rate else asked.tokens / 10_000
    began = time.monotonic()
    judged(source, clips, 6)
    at = sorted(attempt["at"] for attempt in server.attempts)
    # However late the machine is: so many have not come before so many could start.
    assert len(at) == 6 and all(come - began >= place * apart - 0.01 for place, come in enumerate(at))


# What it may cost


def test_the_budget_stops_before_the_call_that_would_exceed_it_and_says_how_to_go_on(server, clips, ledger):
    priced = {"price": PRICE, "output_tokens": 100, "concurrency": 3}
    source = source_at(server, **priced)
    (asked,) = source.asked(clips.samples[0], 1, "")
    expected = source.price.of(asked.tokens, 100)
    cost = source.price.of(1000, 20, 400)  # what each reply of the server uses
    budget = 6.5 * cost
    assert cost < expected
    told = stopped(source_at(server, budget_usd=budget, **priced), clips)
    assert "raise feedback.sources.j.budget_usd" in told
    with Ledger(ledger) as opened:
        (purpose,) = {f"{request.purpose} j" for request in requests_for(clips, 1)}
        spent = opened.spent(purpose)
    assert budget - expected < spent.dollars + 1e-9 <= budget
    before = len(server.attempts)
    assert before == spent.calls == round(spent.dollars / cost)
    assert len(judged(source_at(server, budget_usd=1.0, **priced), clips)) == CLIPS
    assert len(server.attempts) == CLIPS


def test_a_budget_counts_what_earlier_runs_spent_and_what_may_have_been_billed(server, clips):
    priced = {"price": PRICE, "output_tokens": 100, "concurrency": 1}
    source = source_at(server, **priced)
    (asked,) = source.asked(clips.samples[0], 1, "")
    expected, cost = source.price.of(asked.tokens, 100), source.price.of(1000, 20, 400)
    server.behaviour.script = [{"fault": "truncated"}]
    judged(source, clips, 2)  # two answers and one that did not arrive
    budget = 3 * cost + 1.5 * expected
    stopped(source_at(server, budget_usd=budget, **priced), clips)
    assert len(server.attempts) - 3 == int((budget - 2 * cost - 2 * expected) / cost) + 1


def test_an_error_under_the_status_of_a_success_is_asked_again_and_counts_as_possibly_billed(server, clips, ledger):
    server.behaviour.script = [{"body": {"error": {"message": "upstream is overloaded", "code": 502}}}]
    rows = judged(source_at(server, concurrency=1), clips, 1)
    assert answered_as_meant(server, rows)
    assert outcomes(ledger) == ["lost", "answered"]


def test_replies_that_do_not_say_what_they_used_count_against_the_budget_as_expected(server, clips):
    message = {"role": "assistant", "content": "Accept"}
    server.behaviour.script = [{"body": {"choices": [{"message": message}]}, "times": 99}]
    priced = {"price": PRICE, "output_tokens": 100, "concurrency": 1}
    source = source_at(server, **priced)
    (asked,) = source.asked(clips.samples[0], 1, "")
    budget = 3.5 * source.price.of(asked.tokens, 100)
    for _ in range(2):
        stopped(source_at(server, budget_usd=budget, **priced), clips)
        assert len(server.attempts) == 3


def test_a_budget_holds_where_replies_are_dearer_than_expected(server, clips, ledger):
    priced = {"price": PRICE | {"output": 100.0}, "output_tokens": 0, "concurrency": 3}
    source = source_at(server, **priced)
    cost = source.price.of(1000, 20, 400)
    # The first three are in flight before any reply tells what they cost; from then on all are expected to cost that.
    stopped(source_at(server, budget_usd=4.5 * cost, **priced), clips)
    assert len(server.attempts) == 4


def test_cached_input_and_halves_of_batches_are_paid_at_their_price():
    price = Price(input=2.0, output=10.0, cached_input=0.5, batch=0.5, as_of="2026-11-21")
    # 600 fresh at 2, 400 cached at 0.5 and 20 out at 10 dollars a million: 1200 + 200 + 200 millionths.
    assert price.of(1000, 20, 400) == pytest.approx(0.0016)
    assert price.of(1000, 20, 400, batch=True) == pytest.approx(0.0008)


def test_a_budget_without_a_price_is_an_error():
    with pytest.raises(ValueError, match=r"feedback.sources.j.budget_usd is 5.0, but price is null"):
        make_source("j", block_of("gpt", "http://127.0.0.1:9", budget_usd=5.0))


def test_an_estimate_knows_what_is_answered_already_and_sends_nothing(server, clips):
    requests = requests_for(clips, 1)
    source = source_at(server, price=PRICE, requests_per_minute=6000.0)
    before = source.estimate(requests)
    assert (before.clips, before.calls, before.answered) == (CLIPS, CLIPS, 0)
    assert not server.attempts
    judged(source, clips, 5)
    after = source.estimate(requests)
    assert (after.calls, after.answered) == (CLIPS, 5)
    assert after.dollars == pytest.approx(before.dollars * 7 / 12, rel=0.01)


@pytest.mark.parametrize(
    ("estimate", "told"),
    [
        (Estimate(20, 20, 0, 8425, 1200, 0.00144, None), "8,425 tokens in, 1,200 out, $0.0014"),
        (Estimate(20, 20, 20, 0, 0, 0.0, None), "0 tokens in, 0 out, $0.00"),
        (Estimate(9, 9, 0, 63_810_000, 920_000, 6.841, None), "63.81 M tokens in, 0.92 M out, $6.84"),
        (Estimate(9, 9, 0, 63_810_000, 920_000, None, None), "0.92 M out, no price given"),
    ],
)
def test_an_estimate_is_told_to_the_digits_that_matter(estimate, told):
    assert estimate.line("gpt", "m", None).endswith(told)


def test_a_dry_run_says_what_it_would_cost_and_sends_nothing(home, server, monkeypatch):
    make_clips(home / "set", 3)
    write_params(home, server.base, price=PRICE)
    monkeypatch.chdir(home)
    monkeypatch.delenv("OPENAI_API_KEY")
    done = CliRunner().invoke(stages.label.main, ["--set", "set", "--source", "gpt", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "3 clips, 3 calls" in done.output and "prices of 2026-11-21" in done.output
    assert not server.attempts


def run_label(*options: str) -> str:
    """What the label command says about the set here, for the source gpt."""
    done = CliRunner().invoke(stages.label.main, ["--set", "set", "--source", "gpt", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_limit_shows_the_answers_and_asks_one_by_one_what_a_dry_run_priced(home, server, monkeypatch):
    clips = make_clips(home / "set", 6)
    write_params(home, server.base, sources=("gpt",), price=PRICE, batch=True)
    monkeypatch.chdir(home)
    assert "2 clips, 2 calls" in (priced := run_label("--limit", "2", "--dry-run"))
    assert "(prices of 2026-11-21)" in priced  # and not those of batches
    assert "(batch prices of 2026-11-21)" in run_label("--dry-run")
    told = run_label("--limit", "2")
    assert len(server.attempts) == 2  # at the path of calls: there is no other here
    for n, attempt in zip((0, 3), sorted(server.attempts, key=lambda one: one["id"]), strict=True):
        assert f"videos/clip{n}.mp4: scene {n}." in told
        assert f"accept: {meant(attempt['key'])}" in told
    assert told.count(": as the hash says") == 2
    assert "2 clips, 2 calls, 2 answered before" in run_label("--limit", "2", "--dry-run")
    assert len(clips.samples) == 6 and not (home / "labels").exists()


def test_a_limit_of_assumed_clips_is_their_count(home, monkeypatch):
    monkeypatch.chdir(home)
    options = ["--source", "gpt", "--dry-run", "--assume", "32x32x9@8", "--limit", "2"]
    done = CliRunner().invoke(stages.label.main, options)
    assert done.exit_code == 2 and "--assume with --count" in done.output


def test_more_clips_without_a_reply_than_max_failed_fail_the_stage(server, clips, tmp_path):
    server.behaviour.script = [{"of": f"scene {n}.", "fault": "500", "times": 99} for n in (3, 4)]
    work, out = tmp_path / "work", tmp_path / "out"
    told = r"j: no reply about 2 of 12 clips, more than label.max_failed \(10.0%\) allows; the last error: failed: HTTP"
    with pytest.raises(LabelError, match=told):
        label_clip_set(clips, source_at(server, attempts=2), work, out, 4, max_failed=0.1)
    counts = label_clip_set(clips, source_at(server, attempts=2), work, out, 4, max_failed=0.2)
    assert counts.failed == 2
    billed = [attempt["key"] for attempt in server.attempts if attempt["billed"]]
    assert len(billed) == len(set(billed)) == CLIPS - 2


# Who else is there


def test_two_stages_at_once_ask_about_each_clip_once_and_both_get_all_answers(server, clips, tmp_path):
    server.behaviour.latency = 0.05

    def label(name: str) -> None:
        label_clip_set(clips, source_at(server), tmp_path / f"work-{name}", tmp_path / name, 64)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(label, ("one", "two")))
    assert len(server.attempts) == CLIPS
    one, two = (read_verdicts(tmp_path / name) for name in ("one", "two"))
    assert one == two


def test_what_the_environment_tells_the_sdks_does_not_send_the_clips_elsewhere(monkeypatch):
    for variable in ("OPENAI_BASE_URL", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.setenv(variable, "http://elsewhere.example/v1")
    places = {"gpt": "https://api.openai.com/v1/", "gemini": "https://generativelanguage.googleapis.com/"}
    for kind, official in places.items():
        provider = make_source("j", {k: v for k, v in block_of(kind, "").items() if k != "base_url"}).provider
        provider.open()
        client = provider.chat.client if kind == "gpt" else provider.client
        assert str(client.base_url if kind == "gpt" else client._api_client._http_options.base_url) == official


def test_gemini_takes_as_many_connections_as_concurrency_says(server, tmp_path):
    count = 120
    clips = make_clips(tmp_path / "many", count)
    server.behaviour.together = count
    judged(source_at(server, "gemini", concurrency=count), clips, count)
    assert server.most_in_flight == count


# Bad input


@every_kind
@pytest.mark.parametrize("content", [b"", b"\0" * 2000, None])
def test_a_clip_that_cannot_be_read_is_null_with_its_error_and_not_sent(server, tmp_path, kind, content):
    clips = make_clips(tmp_path / "set", 2)
    broken = clips.video(clips.samples[1])
    broken.write_bytes(content) if content is not None else broken.unlink()
    rows = judged(source_at(server, kind), clips)
    assert rows["clip0"].answer is not None
    assert rows["clip1"].answer is None
    assert rows["clip1"].error.startswith(UNREADABLE_CLIP) and "clip1.mp4" in rows["clip1"].error
    assert len(server.attempts) == 1


def test_a_video_without_frames_is_null_with_its_error_and_not_sent(server, tmp_path):
    import av

    clips = make_clips(tmp_path / "set", 2)
    with av.open(str(clips.video(clips.samples[0])), "w") as container:
        container.add_stream("libx264", rate=8)
        container.start_encoding()
    rows = judged(source_at(server), clips)
    assert rows["clip0"].error.startswith(UNREADABLE_CLIP)
    assert len(server.attempts) == 1


def test_a_rubric_that_does_not_say_which_answer_is_wanted_is_an_error(tmp_path):
    rubric = yaml.safe_load((ROOT / "feedback/rubrics/review.yaml").read_text())
    del rubric["questions"][0]["wanted"]
    path = tmp_path / "rubric.yaml"
    path.write_text(yaml.safe_dump(rubric))
    with pytest.raises(ValueError, match=r"rubric.yaml: questions\[0\].wanted is missing"):
        make_source("j", block_of("gpt", "http://127.0.0.1:9", rubric=str(path)))


def test_a_source_that_is_unknown_is_an_error_that_lists_the_known_ones(home, monkeypatch):
    monkeypatch.chdir(home)
    done = CliRunner().invoke(stages.label.main, ["--set", "x", "--source", "oracle", "--out", "o", "--metrics", "m"])
    assert done.exit_code == 1
    assert "feedback.sources.oracle is missing; in feedback.sources there is: gpt, served, gemini" in done.output


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with the params that the stage reads."""
    folder = tmp_path / "home"
    folder.mkdir()
    write_params(folder, "http://127.0.0.1:9")
    return folder


def write_params(home: Path, base: str, sources: Iterable[str] = ("gpt", "served", "gemini"), **more) -> None:
    blocks = {kind: block_of(kind, base, **more) for kind in sources}
    label = {"batch_size": 16, "votes": 1, "max_failed": 0.0}
    params = {"label": label, "feedback": {"sources": blocks}}
    (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_a_full_disk_stops_the_run_with_an_error_and_keeps_the_answers(server, clips, ledger, monkeypatch):
    judged(source_at(server), clips, 2)
    opened = Ledger.__init__

    def full(self: Ledger, path: Path) -> None:
        opened(self, path)
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        self._db.execute(f"PRAGMA max_page_count = {pages + 1}")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "__init__", full)
        with pytest.raises(StoreError, match=r"ledger.sqlite: the ledger could not be .* full"):
            judged(source_at(server), clips)
    kept = [row for row in attempts(ledger) if row.outcome == "answered"]
    assert len(kept) >= 2
    rows = judged(source_at(server), clips)
    assert answered_as_meant(server, rows)
    asked_again = len(server.attempts) - CLIPS
    assert asked_again == outcomes(ledger).count("lost") <= 4


# Where the key must not be


def test_the_key_is_in_no_log_ledger_table_or_exception_whatever_the_provider_says(
    server, clips, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    said = {"error": {"message": "you sent $KEY", "code": "$KEY", "type": "$KEY", "status": "$KEY"}}
    policy = {"error": {"message": "you sent $KEY", "code": "content_policy_violation"}}
    told = []
    for kind in KINDS:
        server.behaviour.script = [{"status": status, "body": said} for status in (400, 409, 429, 500, 503)]
        server.behaviour.script += [{"status": 400, "body": policy}, {"fault": "reset"}, {"fault": "truncated"}]
        source = source_at(server, kind, concurrency=1)
        label_clip_set(clips, source, tmp_path / "work" / kind, tmp_path / kind, 4, max_failed=1.0)
        told += [repr(row) for row in read_verdicts(tmp_path / kind)]
        for status in (401, 403, 404):
            server.behaviour.script = [{"status": status, "body": said, "times": 99}]
            told.append(stopped(source_at(server, kind, model="other", concurrency=1), clips))
    header = server.headers[0]
    assert KEY in str(header)  # the server did get it
    assert "***" in "".join(told)  # and said it
    assert KEY not in "".join(told) + caplog.text
    assert not files_with_the_key(tmp_path)


def files_with_the_key(folder: Path) -> list[Path]:
    """Ledger, tables, manifests, metrics, locks and logs below a folder in which it stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "ledger.sqlite" for path in files)
    return [path for path in files if KEY.encode() in path.read_bytes()]


# Kills


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
def apart() -> Iterator[Any]:
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
    import urllib.request

    with urllib.request.urlopen(f"{base}/truth") as response:
        return json.load(response)["attempts"]


@pytest.mark.parametrize(
    ("kind", "kills", "count"),
    [
        pytest.param("gpt", 20, 300, marks=pytest.mark.slow),
        pytest.param("served", 20, 300, marks=pytest.mark.slow),
        pytest.param("gemini", 20, 300, marks=pytest.mark.slow),
        ("gpt", 2, 48),
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
        (asked,) = source.asked(request.sample, 1, feedback.network.api._hash(request.path.read_bytes()))
        (key,) = {seen[a.id]["key"] for a in known if a.key == asked.key and a.id in seen}
        row, odd = rows[request.sample.sample_id], odd_of(key, behaviour["odd"])
        if odd in NULL:
            assert row.answer is None and row.error.startswith(expected_null(kind, odd))
        else:
            assert said(row) == meant(key)
    assert not files_with_the_key(tmp_path)


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


def check_books(known: Iterable[Row], seen: Mapping[str, Mapping[str, Any]], in_flight: set[str]) -> None:
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
    assert stage.wait(20) != 0
    assert set(outcomes(ledger)) == {"answered"}
    assert len(attempts(ledger)) == len(server.attempts) < 40
