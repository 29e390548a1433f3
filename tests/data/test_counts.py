"""Amounts of work that a caller collects."""

from dataclasses import fields

from data.counts import Counts, collected_counts, count, current_counts, uncounted


def test_what_is_counted_within_a_block_is_the_blocks_and_no_outer_ones():
    count(Counts(clips=100))
    with collected_counts() as outer:
        count(Counts(clips=1))
        with collected_counts() as inner:
            count(Counts(forwards=2))
        with uncounted():
            count(Counts(clips=10))
        count(Counts(clips=3, usd=0.5))
    assert outer == Counts(clips=4, usd=0.5) and inner == Counts(forwards=2)
    assert current_counts() is None


def test_a_sum_with_an_amount_that_is_unknown_is_unknown_and_the_other_amounts_are_sums():
    known, unknown = Counts(*(1 for _ in fields(Counts))), Counts(usd=None, clips=2)
    for one, other in ((known, unknown), (unknown, known)):
        total = Counts()
        total.add(one)
        total.add(other)
        assert total == Counts(clips=3, judge_calls=1, usd=None, forwards=1, backwards=1, decodes=1)
