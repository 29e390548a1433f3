"""What judging costs: prices, estimates before it, and the budget that bounds it."""

from datetime import date

import pytest

from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.network.ledger import Ledger
from feedback.network.price import CostEstimate, Price
from pipeline.forecast import forecast
from tests.support.network import CLIPS, PRICE, block_of, judged, source_at, stopped


def test_the_budget_stops_before_the_call_that_would_exceed_it_and_says_how_to_go_on(server, clips, ledger):
    priced = {"price": PRICE | {"output_tokens": 100}, "concurrency": 3}
    source = source_at(server, **priced)
    (call,) = source.calls_about(clips.samples[0], 1, "")
    expected = source.price.of(call.tokens, 100)
    cost = source.price.of(1000, 20, 400)  # what each reply of the server uses
    budget = 6.5 * cost
    assert cost < expected
    message = stopped(source_at(server, budget_usd=budget, **priced), clips)
    assert "raise feedback.sources.j.budget_usd" in message
    with Ledger(ledger) as opened:
        (purpose,) = {f"{request.purpose} j" for request in requests_for(clips, 1)}
        spent = opened.spent(purpose)
    assert budget - expected < spent.dollars + 1e-9 <= budget
    before = len(server.attempts)
    assert before == spent.calls == round(spent.dollars / cost)
    assert len(judged(source_at(server, budget_usd=1.0, **priced), clips)) == CLIPS
    assert len(server.attempts) == CLIPS


def test_a_budget_counts_what_earlier_runs_spent_and_what_may_have_been_billed(server, clips):
    priced = {"price": PRICE | {"output_tokens": 100}, "concurrency": 1}
    source = source_at(server, **priced)
    (call,) = source.calls_about(clips.samples[0], 1, "")
    expected, cost = source.price.of(call.tokens, 100), source.price.of(1000, 20, 400)
    server.behaviour.script = [{"fault": "truncated"}]
    judged(source, clips, 2)  # two answers and one that did not arrive
    budget = 3 * cost + 1.5 * expected
    stopped(source_at(server, budget_usd=budget, **priced), clips)
    assert len(server.attempts) - 3 == int((budget - 2 * cost - 2 * expected) / cost) + 1


def test_replies_that_do_not_say_what_they_used_count_against_the_budget_as_expected(server, clips):
    message = {"role": "assistant", "content": "Accept"}
    server.behaviour.script = [{"body": {"choices": [{"message": message}]}, "times": 99}]
    priced = {"price": PRICE | {"output_tokens": 100}, "concurrency": 1}
    source = source_at(server, **priced)
    (call,) = source.calls_about(clips.samples[0], 1, "")
    budget = 3.5 * source.price.of(call.tokens, 100)
    for _ in range(2):
        stopped(source_at(server, budget_usd=budget, **priced), clips)
        assert len(server.attempts) == 3


def test_a_budget_holds_where_replies_cost_more_than_estimated(server, clips, ledger):
    priced = {"price": PRICE | {"output": 100.0, "output_tokens": 0}, "concurrency": 3}
    source = source_at(server, **priced)
    cost = source.price.of(1000, 20, 400)
    # The first three are in flight before any reply shows what they cost; from then on all are expected to cost that.
    stopped(source_at(server, budget_usd=4.5 * cost, **priced), clips)
    assert len(server.attempts) == 4


def test_cached_input_and_halves_of_batches_are_paid_at_their_price():
    price = Price("m", 2.0, 10.0, 0.5, 0.5, 60, date(2026, 11, 21))
    # 600 fresh at 2, 400 cached at 0.5 and 20 out at 10 dollars a million: 1200 + 200 + 200 millionths.
    assert price.of(1000, 20, 400) == pytest.approx(0.0016)
    assert price.of(1000, 20, 400, batch=True) == pytest.approx(0.0008)


def test_a_budget_without_a_price_is_an_error():
    with pytest.raises(
        ValueError, match=r"feedback.sources.j: budget_usd is 5, but price is null, .* Give the price of m "
    ):
        make_source("j", block_of("gpt", "http://127.0.0.1:9", budget_usd=5.0))


def test_a_price_of_another_model_is_not_used(server, clips):
    other = {"model": "gpt-4o-mini", "price": PRICE}
    for kind in ("gpt", "gemini", "served"):
        block = block_of(kind, "http://127.0.0.1:9", **other)
        problem = "price is of m and model is gpt-4o-mini, so the budget could not be kept"
        with pytest.raises(ValueError, match=f"feedback.sources.j: budget_usd is 5, but {problem}"):
            make_source("j", block | {"budget_usd": 5.0})
        with pytest.raises(ValueError, match="feedback.sources.j: price is of m and model is gpt-4o-mini, so the cost"):
            forecast("j", block, requests_for(clips, 1))
    row = judged(source_at(server, **other), clips, 1)["clip0"]  # without both it runs
    assert (row.answer is not None, row.cost) == (True, None)
    own = source_at(server, **other | {"price": PRICE | {"model": "gpt-4o-mini"}}, budget_usd=5.0)
    assert own.estimate(requests_for(clips, 1)).dollars > 0


def test_the_price_of_a_model_changes_no_key_of_a_call(clips):
    for kind in ("gpt", "gemini", "served"):
        known, unknown = (make_source("j", block_of(kind, "http://127.0.0.1:9", price=one)) for one in (PRICE, None))
        assert known.calls(requests_for(clips, 1)[0])[0].key == unknown.calls(requests_for(clips, 1)[0])[0].key


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


def test_an_estimate_is_written_to_the_digits_that_matter():
    for estimate, line in (
        (CostEstimate(20, 20, 0, 8425, 1200, 0.00144, None), "8,425 tokens in, 1,200 out, $0.0014"),
        (CostEstimate(20, 20, 20, 0, 0, 0.0, None), "0 tokens in, 0 out, $0.00"),
        (CostEstimate(9, 9, 0, 63_810_000, 920_000, 6.841, None), "63.81 M tokens in, 0.92 M out, $6.84"),
        (CostEstimate(9, 9, 0, 63_810_000, 920_000, None, None), "0.92 M out, cost unknown: no price of m given"),
    ):
        assert estimate.line("gpt", "m", None).endswith(line)
