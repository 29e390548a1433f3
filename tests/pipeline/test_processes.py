"""An online run on several hosts: what is paid for is asked by the first process alone, and handed to the others.

Two real processes on this machine stand for two hosts: each has a ledger of its own.
"""

import json

import pytest

from tests.support.faulty_provider import Behaviour, serving
from tests.support.hosts import PROMPTS, RULES, ledger_of, run_part
from tests.support.network import attempts

OF_WRITER = "A video model is to carry out a task"  # stands in a call of the writer, and of no judge
REPLY = {"choices": [{"message": {"content": json.dumps(RULES)}, "finish_reason": "stop"}],
         "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}  # fmt: skip


@pytest.fixture
def server():
    """Writes a question about any prompt, and judges clips by their content."""
    with serving(Behaviour(script=[{"of": OF_WRITER, "times": 99, "body": REPLY}])) as running:
        yield running


def of_writer(server) -> int:
    return sum(OF_WRITER in json.dumps(body) for body in server.bodies)


@pytest.mark.ci  # 10 s
def test_what_the_first_process_makes_or_raises_every_process_has(tmp_path):
    first, second = run_part("ask_the_first", tmp_path, "")
    (rank, _), *errors = first["result"]
    assert rank == 0 and errors == [["ValueError", "no writer is known"], ["Odd", "the provider is odd"]]
    assert second["result"] == [*first["result"][:2], ["RuntimeError", "Odd: the provider is odd"]]


@pytest.mark.ci  # 10 s
def test_a_paid_writer_is_called_once_for_hosts_with_a_ledger_each(server, tmp_path):
    first, second = run_part("write_questions", tmp_path, server.base)

    assert first == second and [*first["result"]] == [prompt.prompt_id for prompt in PROMPTS]
    assert of_writer(server) == len(server.attempts) == len(PROMPTS)
    assert len(attempts(ledger_of(tmp_path, 0))) == len(PROMPTS)
    assert not ledger_of(tmp_path, 1).exists()


@pytest.mark.ci  # 10 s
def test_a_writer_that_refuses_ends_all_processes_with_its_reason(server, tmp_path):
    server.behaviour.script = [
        {"of": OF_WRITER, "times": 99, "status": 401, "body": {"error": {"message": "no such key"}}}
    ]
    first, second = run_part("write_questions", tmp_path, server.base)

    assert first == second and first["error"] == "LabelError"
    assert not ledger_of(tmp_path, 1).exists()


@pytest.mark.ci  # 60 s
def test_a_paid_held_out_judge_is_asked_by_the_first_process_and_scores_as_with_one(server, tmp_path):
    (alone,) = run_part("train", tmp_path / "alone", server.base, processes=1)
    asked_alone = len(server.attempts)
    server.attempts.clear()
    server.bodies.clear()
    server.behaviour.script = [{"of": OF_WRITER, "times": 99, "body": REPLY}]
    first, second = run_part("train", tmp_path / "both", server.base)

    assert first == second and "result" in first, first
    start_alone, start = alone["result"][0]["held_out"], first["result"][0]["held_out"]
    assert start["held_out"] == start_alone["held_out"]
    assert start["training"] == pytest.approx(start_alone["training"], abs=1e-6)
    assert [row["step"] for row in first["result"]] == [0, 1]
    assert of_writer(server) == len(PROMPTS)
    assert len(server.attempts) == asked_alone == len(PROMPTS) * (1 + 2)  # the writer's, and those of two checks
    assert len(attempts(ledger_of(tmp_path / "both", 0))) == asked_alone
    assert not ledger_of(tmp_path / "both", 1).exists()
    assert not list((tmp_path / "both/work/looks").glob("*/*"))


@pytest.mark.ci  # 10 s
def test_a_paid_judge_of_rollouts_is_asked_by_the_first_process_about_the_clips_of_all(server, tmp_path):
    (alone,) = run_part("reward_clips", tmp_path / "alone", server.base, processes=1)
    assert len(server.attempts) == 4
    first, second = run_part("reward_clips", tmp_path / "both", server.base)

    assert first == second == alone and [*first["result"]] == ["0", "1", "2", "3"]
    assert None not in first["result"].values()
    assert len(server.attempts) == 4 + 4 == 4 + len(attempts(ledger_of(tmp_path / "both", 0)))
    assert not ledger_of(tmp_path / "both", 1).exists()
