"""Two clips in one call, through the real SDKs against a server on this machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.store import ClipSet
from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.core.source import LabelError
from feedback.network.api import ApiSource
from feedback.pairs.compare import compare_pairs
from feedback.pairs.shown import ShownPair
from tests.support.faulty_provider import Server, meant
from tests.support.first_frames import TOLD, with_first_frames
from tests.support.network import PRICE, block_of, outcomes

KINDS = ("gpt", "served", "gemini")
RUBRIC = """
name: pairs
frames: 8
rule: all
compares: true
instructions: "Which shows it better: {prompt}"
questions:
  - {name: better, ask: Reply., affirmative: Accept, negative: Reject, tie: Tie, wanted: yes, required: true}
"""


@pytest.fixture
def pairs(clips: ClipSet) -> list[ShownPair]:
    """Three pairs; the clips of the set are made clips of one prompt."""
    requests = [replace(one, sample=replace(one.sample, prompt="scene 0.")) for one in requests_for(clips, 1)[:6]]
    return [ShownPair(one, other) for one, other in zip(requests[::2], requests[1::2], strict=True)]


@pytest.fixture
def make(server: Server, tmp_path: Path):
    """A source of a kind that compares, at the server."""
    (tmp_path / "pairs.yaml").write_text(RUBRIC)

    def source(kind: str, **more) -> ApiSource:
        made = make_source("j", block_of(kind, server.base, **{"rubric": str(tmp_path / "pairs.yaml")} | more))
        assert isinstance(made, ApiSource)
        return made

    return source


@pytest.mark.parametrize("kind", KINDS)
def test_both_orders_are_calls_of_their_own_and_are_read_as_the_server_means_them(server, make, pairs, ledger, kind):
    compared = compare_pairs(pairs, make(kind), None, 16)

    assert len(server.attempts) == 6 and outcomes(ledger) == ["answered"] * 6
    words = {attempt["id"]: meant(attempt["key"]) for attempt in server.attempts}
    assert sorted(words.values()).count("Accept") == [row.answer for row in compared.comparisons].count("first")
    row = compared.comparisons[0]
    assert row.raw and row.tokens and row.error is None and row.answer in ("first", "second")
    assert row.first_frames == row.second_frames and len(row.first_frames) >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_each_clip_is_announced_and_the_first_one_is_sent_first(server, make, pairs, kind):
    list(make(kind, clip="frames").compare(pairs[:1]) if kind != "gpt" else make(kind).compare(pairs[:1]))
    (sent,) = server.bodies
    content = sent["contents"][0]["parts"] if kind == "gemini" else sent["messages"][0]["content"]
    texts = [(place, part["text"]) for place, part in enumerate(content) if "text" in part]
    frames = 8

    assert [text for _, text in texts[:2]] == ["First video:", "Second video:"]
    assert [place for place, _ in texts] == [0, frames + 1, 2 * (frames + 1)]
    alone = make(kind, clip="frames") if kind != "gpt" else make(kind)
    if kind != "gemini":  # whose SDK encodes the bytes itself
        assert content[1:9] == alone.media(pairs[0].first) and content[10:18] == alone.media(pairs[0].second)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_frame_of_both_clips_is_sent_once_before_them(server, make, clips, tmp_path, kind):
    shown = f"first_frame: {TOLD}{RUBRIC}"
    (tmp_path / "shown.yaml").write_text(shown)
    first, second = requests_for(with_first_frames(clips, tmp_path / "red"), 1)[:2]
    second = replace(second, sample=replace(second.sample, prompt=first.sample.prompt))
    pair = ShownPair(first, replace(second, first_frame=first.first_frame))
    source = make(kind, rubric=str(tmp_path / "shown.yaml"))
    compare_pairs([pair], source, None, 16)

    for body in server.bodies:
        content = body["contents"][0]["parts"] if kind == "gemini" else body["messages"][0]["content"]
        assert content[0].keys() & {"image_url", "inlineData"} and content[1]["text"] == "First video:"
    assert len({json.dumps(body["messages"][0]["content"][0]) for body in server.bodies if kind != "gemini"}) <= 1
    compare_pairs([pair], source, None, 16)
    assert len(server.bodies) == 2

    other = ShownPair(first, second)  # whose own prompt had another image
    with pytest.raises(LabelError, match="made from different first frames, and the rubric pairs shows one for both"):
        compare_pairs([other], source, None, 16)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_paid_for_twice_and_each_order_is_an_answer_of_its_own(server, make, pairs, kind):
    first = compare_pairs(pairs, make(kind), None, 16)
    again = compare_pairs([pair.swapped() for pair in pairs], make(kind), None, 16)

    assert len(server.attempts) == 6
    key = lambda row: (row.first, row.second)  # noqa: E731
    assert sorted(first.comparisons, key=key) == sorted(again.comparisons, key=key)


def test_a_tie_in_words_is_a_tie_and_a_refusal_is_none(server, make, pairs):
    server.behaviour.script = [
        {"status": 200, "body": json.dumps(_completion('{"answer": "Tie", "reason": "alike"}'))},
        {"status": 200, "body": json.dumps(_completion('{"answer": "Both", "reason": "alike"}'))},
    ]
    source = make("gpt", concurrency=1)
    rows = [row for rows in source.compare([pairs[0], pairs[0].swapped()]) for row in rows]

    assert (rows[0].answer, rows[0].reason, rows[0].error) == ("tie", "alike", None)
    assert rows[1].answer is None and rows[1].error.startswith("unreadable: ")


def test_the_probability_of_a_tie_counts_at_a_server_of_ones_own(make):
    from feedback.core.answers import word_masses

    provider = make("served").provider
    question = make("served").rubric.questions[0]
    logs = {"Accept": -2.0, "Reject": -2.0, "Tie": -0.3}
    facts = provider._by_masses(word_masses(logs, question))

    assert facts["tie"] is True and facts["p_yes"] == pytest.approx(0.5)


def test_a_budget_stops_between_the_calls_about_pairs(server, make, pairs):
    source = make("gpt", price=PRICE, budget_usd=0.002, concurrency=1)
    with pytest.raises(LabelError, match="budget_usd of"):
        compare_pairs(pairs, source, None, 16)
    sent = len(server.attempts)
    assert 0 < sent < 6
    compare_pairs(pairs, make("gpt", price=PRICE, budget_usd=1.0), None, 16)
    assert len(server.attempts) == 6


def test_an_estimate_counts_both_clips_of_every_call(make, pairs):
    shown = [one for pair in pairs for one in (pair, pair.swapped())]
    two = make("gpt").estimate(shown)
    assert (two.calls, two.answered) == (6, 0)
    assert two.input_tokens > 1.8 * make("gpt").provider.tokens(
        make("gpt").calls(pairs[0].first)[0].plan, pairs[0].first.sample, make("gpt").rubric
    )


def _completion(text: str) -> dict:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "gpt", "choices": [choice]}
