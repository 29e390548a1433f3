"""What stops a run: keys, quotas, unknown models, long waits, a full disk; and where the key must not appear."""

import logging
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import stages.label
from data.labels import read_verdicts
from data.manifest import StoreError
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set
from feedback.core.source import LabelError
from feedback.network.ledger import Ledger
from tests.support.network import (
    CLIPS,
    KEY,
    KINDS,
    ROOT,
    VARIABLES,
    answered_as_meant,
    attempts,
    block_of,
    files_with_the_key,
    judged,
    make_clips,
    outcomes,
    source_at,
    stopped,
)


def test_a_key_that_is_missing_or_malformed_is_named_by_its_variable_only_and_nothing_is_sent(
    server, clips, monkeypatch, caplog
):
    for kind, block in KINDS.items():
        variable = VARIABLES[block["kind"]]
        for value in (None, "", "sk-secret \n 1234", "sk-secr\u00e9t", "sk-\x07secret"):
            monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
            message = stopped(source_at(server, kind), clips, 2)
            assert f"the environment variable {variable} {'holds' if value else 'is not set'}" in message, (kind, value)
            assert "secr" not in message + caplog.text, (kind, value)
        monkeypatch.setenv(variable, KEY)
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


def test_a_key_that_is_rejected_stops_the_run_at_once_and_is_named_by_its_variable_only(server, clips, ledger):
    for kind, block in KINDS.items():
        of_kind, before = block["kind"], len(server.attempts)
        body, status = REJECTED.get(of_kind, REJECTED["gpt"]), 400 if of_kind == "gemini" else 401
        server.behaviour.script = [{"status": status, "body": body, "times": 99}]
        message = stopped(source_at(server, kind), clips)
        assert f"the key in {VARIABLES[of_kind]} was rejected (HTTP {status}" in message, kind
        assert ("Incorrect" in message or "not valid: ***" in message) and KEY not in message, kind
        assert f". Set {VARIABLES[of_kind]} to a key that may use m; the answers" in message, kind
        assert "run it again" not in message, kind
        assert len(server.attempts) - before <= 4, kind  # those in flight together; none was sent again
    assert set(outcomes(ledger)) == {"refused"}


def test_a_server_that_requires_a_key_names_the_option_for_it(server, clips):
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


def test_a_spent_quota_of_the_day_or_the_account_stops_the_run_and_the_next_one_continues(server, clips):
    for kind, block in KINDS.items():
        for number, error in enumerate(QUOTA.get(block["kind"], QUOTA["gpt"])):
            model, before = f"m{number}", len(server.attempts)
            server.behaviour.script = [{"of": "scene 2.", "status": 429, "body": {"error": error}, "times": 99}]
            message = stopped(source_at(server, kind, concurrency=1, model=model), clips, 4)
            assert error["message"].rstrip(".") in message, kind
            sent = server.attempts[before:]
            assert len(sent) == 1 + sum(attempt["billed"] for attempt in sent), kind
            server.behaviour.script = []
            assert len(judged(source_at(server, kind, model=model), clips, 4)) == 4
            assert len(server.attempts) - before == 4 + 1, kind


def test_an_unknown_model_an_unpaid_bill_or_a_wrong_address_stops_the_run_after_one_call(server, clips):
    body = {"error": {"message": "There is no such thing.", "code": "x"}}
    for kind in KINDS:
        for status, page in ((402, body), (404, body), (405, "<html>no</html>"), (501, "<html>no</html>")):
            before = len(server.attempts)
            server.behaviour.script = [{"status": status, "body": page, "times": 99}]
            message = stopped(source_at(server, kind, concurrency=1), clips, 2)
            assert f"HTTP {status}{': There is no such thing.' if page is body else ''}" in message, (kind, status)
            assert len(server.attempts) == before + 1, (kind, status)
            cure = "in the provider's console" if status == 402 else "Correct the block's model (m), or its base_url"
            assert cure in message and "run it again" not in message, (kind, status)


NEVER = {  # what a 400 says where no call could succeed
    "gpt": [
        {"message": "invalid model ID", "type": "invalid_request_error"},
        {"message": "Unsupported value: 'reasoning_effort' does not support 'none' with this model.",
         "param": "reasoning_effort", "code": "unsupported_value"},
    ],
    "gemini": [
        {"message": "unexpected model name format", "status": "INVALID_ARGUMENT"},
        {"message": "User location is not supported for the API use.", "status": "FAILED_PRECONDITION"},
    ],
}  # fmt: skip


def test_a_400_that_every_call_would_have_stops_the_run_at_once(server, clips):
    for kind, block in KINDS.items():
        for error in NEVER.get(block["kind"], NEVER["gpt"]):
            before = len(server.attempts)
            server.behaviour.script = [{"status": 400, "body": {"error": error}, "times": 99}]
            message = stopped(source_at(server, kind, concurrency=1), clips, 3)
            assert error["message"].rstrip(".") in message and "run it again" not in message, kind
            assert len(server.attempts) == before + 1, kind


def test_a_part_of_the_key_in_a_providers_words_is_not_repeated(server, clips):
    masked = f"Incorrect API key provided: {KEY[:8]}****{KEY[-4:]}, or ...{KEY[-4:]}. See the page."
    server.behaviour.script = [{"status": 401, "body": {"error": {"message": masked}}, "times": 99}]
    message = stopped(source_at(server, "gpt"), clips, 1)
    assert "Incorrect API key provided: ***, or ...***. See the page" in message
    assert KEY[:8] not in message and KEY[-4:] not in message


def test_a_provider_that_asks_to_wait_an_hour_stops_the_run(server, clips):
    for kind in KINDS:
        body = {"error": {"message": "m"}}
        server.behaviour.script = [{"status": 429, "headers": {"Retry-After": "3600"}, "body": body}]
        began = time.monotonic()
        assert "the provider asks to wait 60 minutes" in stopped(source_at(server, kind), clips, 4), kind
        assert time.monotonic() - began < 60, kind


@pytest.mark.parametrize("kind", ["gpt", "gemini"])
def test_a_run_that_stops_does_not_sleep_out_the_waits_of_others(server, clips, kind):
    busy = {"status": 503, "headers": {"Retry-After": "300"}, "body": {"error": {"message": "busy"}}}
    server.behaviour.script = [
        {"of": "scene 0.", "after": 0.3, **busy},
        {"of": "scene 1.", "after": 0.8, "status": 401, "body": REJECTED["gpt"]},  # in flight while the others rest
    ]
    began = time.monotonic()
    stopped(source_at(server, kind), clips)
    assert time.monotonic() - began < 60


def test_more_clips_without_a_reply_than_max_failed_fail_the_stage(server, clips, tmp_path):
    server.behaviour.script = [{"of": f"scene {n}.", "fault": "500", "times": 99} for n in (3, 4)]
    work, out = tmp_path / "work", tmp_path / "out"
    message = (
        r"j: no reply about 2 of 12 clips, more than label.max_failed \(10.0%\) allows; the last error: failed: HTTP"
    )
    with pytest.raises(LabelError, match=message):
        label_clip_set(clips, source_at(server, attempts=2), work, out, 4, max_failed=0.1)
    counts = label_clip_set(clips, source_at(server, attempts=2), work, out, 4, max_failed=0.2)
    assert counts.failed == 2
    billed = [attempt["key"] for attempt in server.attempts if attempt["billed"]]
    assert len(billed) == len(set(billed)) == CLIPS - 2


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
    assert "feedback.sources.oracle is missing" in done.output and "gpt, served, gemini" in done.output


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


def test_the_key_is_in_no_log_ledger_table_or_exception_whatever_the_provider_says(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    clips = make_clips(tmp_path / "set", 4)
    echo = {"error": {"message": "you sent $KEY", "code": "$KEY", "type": "$KEY", "status": "$KEY"}}
    policy = {"error": {"message": "you sent $KEY", "code": "content_policy_violation"}}
    messages = []
    for kind in KINDS:
        server.behaviour.script = [{"status": status, "body": echo} for status in (400, 409, 429, 500, 503)]
        server.behaviour.script += [{"status": 400, "body": policy}, {"fault": "reset"}, {"fault": "truncated"}]
        source = source_at(server, kind, concurrency=1)
        label_clip_set(clips, source, tmp_path / "work" / kind, tmp_path / kind, 4, max_failed=1.0)
        messages += [repr(row) for row in read_verdicts(tmp_path / kind)]
        for status in (401, 403, 404):
            server.behaviour.script = [{"status": status, "body": echo, "times": 99}]
            messages.append(stopped(source_at(server, kind, model="other", concurrency=1), clips, 1))
    assert KEY in str(server.headers[0])  # the server received it
    assert "***" in "".join(messages)  # and sent it back
    assert KEY not in "".join(messages) + caplog.text
    assert not files_with_the_key(tmp_path)
