"""Agreement of several votes: small examples worked by hand, and changes that do not affect the figures."""

import random

import pytest

from data.records import Verdict
from feedback.core.agreement import Agreement, agreement, vote_agreement
from feedback.core.rubric import Question, Rubric

Y, N, NULL = True, False, None


def votes_on(sample: str, name: str, *votes: bool | None) -> list[Verdict]:
    return [
        Verdict(
            sample, "judge", name, vote, answer, None, None, None, None, "m", "1", "h", [0], None, None,
            "refused" if answer is None else None,
        )
        for vote, answer in enumerate(votes)
    ]  # fmt: skip


def figures(found: Agreement) -> tuple:
    return (found.clips, found.not_unanimous, pytest.approx(found.observed), pytest.approx(found.kappa))


def test_two_votes_a_clip():
    # Three of four clips agree. 5 of 8 votes are yes, so two votes agree by chance in (5/8)^2 + (3/8)^2 = 34/64.
    # kappa = (48/64 - 34/64) / (30/64) = 14/30.
    ballots = {"a": [Y, Y], "b": [Y, Y], "c": [N, N], "d": [Y, N]}

    assert figures(agreement(ballots)) == (4, 1, 3 / 4, 14 / 30)


def test_unequal_votes_with_nulls_left_out():
    # Pairs that agree: a 3 of 3, b 1 of 3 (the two yes), c 1 of 1, e 0 of 1; d has one answer and is left out.
    # Observed (1 + 1/3 + 1 + 0) / 4 = 7/12. Parts of yes: 1, 2/3, 0, 1/2, on average 13/24;
    # by chance (13/24)^2 + (11/24)^2 = 290/576 = 145/288. kappa = (168 - 145) / (288 - 145) = 23/143.
    ballots = {"a": [Y, Y, Y], "b": [Y, N, Y], "c": [N, NULL, N], "d": [NULL, Y, NULL], "e": [Y, N, NULL]}

    assert figures(agreement(ballots)) == (4, 2, 7 / 12, 23 / 143)


def test_votes_that_always_differ_are_below_chance():
    # No pair agrees, one in two would by chance: kappa = (0 - 1/2) / (1/2).
    assert figures(agreement({"a": [Y, N], "b": [N, Y]})) == (2, 2, 0, -1)


def test_where_all_votes_are_the_same_kappa_is_undefined():
    assert agreement({"a": [Y, Y], "b": [Y, Y, NULL]}) == Agreement(2, 0, 1.0, None)


def test_without_two_answers_on_any_clip_nothing_is_known():
    assert agreement({"a": [Y, NULL], "b": [NULL, NULL], "c": [N]}) == Agreement(0, 0, None, None)


def test_the_order_of_votes_and_what_yes_means_change_nothing():
    draw = random.Random(1)
    ballots = {f"clip{i}": [draw.choice([Y, Y, N, NULL]) for _ in range(draw.randint(1, 6))] for i in range(40)}
    shuffled = {clip: draw.sample(votes, len(votes)) for clip, votes in sorted(ballots.items(), reverse=True)}
    negated = {clip: [vote if vote is None else not vote for vote in votes] for clip, votes in ballots.items()}

    assert agreement(shuffled) == agreement(ballots)
    assert figures(agreement(negated)) == figures(agreement(ballots))


def test_a_question_that_all_answer_the_same_does_not_raise_kappa():
    # Without `easy`, `hard` agrees on 1 of 2 clips; a quarter is yes, by chance 1/16 + 9/16 = 5/8:
    # kappa (4/8 - 5/8) / (3/8).
    # With `easy`, where all 2 clips agree, as they would by chance: observed 3/4, by chance (1 + 1 + 5/8 + 5/8) / 4
    # = 13/16: kappa (12/16 - 13/16) / (3/16), again -1/3.
    easy, hard = {"a": [Y, Y], "b": [Y, Y]}, {"a": [Y, N], "b": [N, N]}

    assert figures(agreement(hard)) == (2, 1, 1 / 2, -1 / 3)
    assert figures(agreement(easy, hard)) == (2, 1, 3 / 4, -1 / 3)


def test_votes_that_differ_in_their_answers_may_agree_on_the_label():
    # The wanted answers are yes on good and no on flaw. Both votes reject clip a, each for another reason; both accept
    # b. c's second vote has no answer on good: it makes no label, but its answer on flaw counts.
    questions = (Question("good", "?", "yes", "no", True, True), Question("flaw", "?", "yes", "no", False, True))
    rows = [
        *votes_on("a", "good", N, Y), *votes_on("a", "flaw", N, Y),
        *votes_on("b", "good", Y, Y), *votes_on("b", "flaw", N, N),
        *votes_on("c", "good", Y, NULL), *votes_on("c", "flaw", N, N),
    ]  # fmt: skip

    found = vote_agreement(rows, dict.fromkeys("abc", Rubric("r", None, "all", "{prompt}", questions)))

    # Labels: a no, no; b yes, yes. By chance 1/2.
    assert figures(found.label) == (2, 0, 1, 1)
    # good: a 0, b 1; yes 3/4, by chance 10/16. kappa (8/16 - 10/16) / (6/16) = -1/3.
    assert figures(found.questions["good"]) == (2, 1, 1 / 2, -1 / 3)
    # flaw: a 0, b 1, c 1; yes 1/6, by chance 26/36. kappa (24/36 - 26/36) / (10/36) = -1/5.
    assert figures(found.questions["flaw"]) == (3, 1, 2 / 3, -1 / 5)
    # Both: 3 of 5 agree; by chance (2 * 10/16 + 3 * 26/36) / 5 = (15/12 + 26/12) / 5 = 41/60.
    # kappa (36/60 - 41/60) / (19/60) = -5/19. Only a is not unanimous.
    assert figures(found.answers) == (3, 1, 3 / 5, -5 / 19)
