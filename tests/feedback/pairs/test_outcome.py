import itertools
import random
from dataclasses import replace

from data.preferences import tally, win_shares
from data.records import Comparison, Preference
from feedback.core.rubric import Question, Rubric
from feedback.pairs.outcome import prefer

OTHER = {"first": "second", "second": "first", "tie": "tie", None: None}


def rubric(*names: str, rule: str = "all") -> Rubric:
    questions = tuple(Question(name, "?", "First", "Second", True, True, "Tie") for name in names)
    return Rubric("r", 8, rule, "{prompt}", questions, compares=True)


ONE = rubric("better")


def said(first: str, second: str, answer: str | None, p_first: float | None = None, question="better", vote=0):
    error = "refused: no" if answer is None else None
    return Comparison(
        first, second, "judge", question, vote, answer, p_first, None, None, "m", "1", ONE.hash, [0], [0], None, None,
        error,
    )  # fmt: skip


def both(forward: str | None, backward: str | None) -> Preference:
    """Of clips a and b: the answer for a, b in this order, and for b, a; each in terms of what was shown."""
    return prefer("p", ("a", "b"), [said("a", "b", forward), said("b", "a", backward)], ONE)


def test_a_clip_is_preferred_where_both_orders_say_so():
    table = {
        ("first", "second"): "first",  # a, then a again
        ("second", "first"): "second",
        ("first", "first"): "tie",  # whatever was shown first: its position decided
        ("second", "second"): "tie",
        ("tie", "tie"): "tie",
        ("first", "tie"): "tie",
        ("tie", "first"): "tie",
    }
    for answers, wanted in table.items():
        assert both(*answers).preferred == wanted, answers


def test_an_answer_that_is_missing_is_no_tie():
    for answers in ((None, "second"), ("first", None), (None, None), (None, "tie")):
        found = both(*answers)
        assert (found.preferred, found.p_first) == (None, None), answers
        assert found.nulls == answers.count(None) and found.reason == "refused: no"


def test_the_chance_is_the_mean_over_both_orders():
    rows = [said("a", "b", "first", 0.9), said("b", "a", "second", 0.4)]  # 0.4 for b, so 0.6 for a

    assert prefer("p", ("a", "b"), rows, ONE).p_first == 0.75


def test_votes_are_counted_and_missing_ones_left_out():
    forward = [said("a", "b", answer, vote=vote) for vote, answer in enumerate(("first", "first", None, "second"))]
    backward = [said("b", "a", answer, vote=vote) for vote, answer in enumerate(("second", "tie", "tie", None))]
    found = prefer("p", ("a", "b"), [*forward, *backward], ONE)

    assert (found.forward, found.backward, found.preferred, found.nulls) == ("first", "first", "first", 2)


def test_under_all_one_fault_of_the_first_clip_decides():
    two = rubric("whole", "sharp")

    def shown(first: str, second: str, *answers: str | None) -> list[Comparison]:
        names = ("whole", "sharp")
        return [said(first, second, answer, question=name) for name, answer in zip(names, answers, strict=True)]

    table = {
        ("first", "first"): "first", ("first", "second"): "second", ("first", "tie"): "tie", ("first", None): None,
    }  # fmt: skip
    for answers, forward in table.items():
        rows = [*shown("a", "b", *answers), *shown("b", "a", "second", "second")]
        assert prefer("p", ("a", "b"), rows, two).forward == forward, answers
    majority = rubric("whole", "sharp", rule="majority")
    rows = [*shown("a", "b", "first", "tie"), *shown("b", "a", "second", None)]
    assert prefer("p", ("a", "b"), rows, majority).preferred == "first"


def test_people_see_one_order_each_and_the_larger_number_decides():
    rows = [said("a", "b", "first", vote=0), said("b", "a", "second", vote=1), said("a", "b", "second", vote=2)]

    assert prefer("p", ("a", "b"), rows, ONE, both_orders=False).preferred == "first"  # a, a and b
    assert prefer("p", ("a", "b"), rows[1:], ONE, both_orders=False).preferred == "tie"
    assert prefer("p", ("a", "b"), rows[:1], ONE, both_orders=False).preferred == "first"


def test_swapping_all_clips_swaps_the_preference():
    rng, renamed, seen = random.Random(0), {"a": "b", "b": "a"}, set()
    for case in range(2000):
        sheet, people = rubric("x", "y", rule=("all", "majority", "mean")[case % 3]), case % 2 == 1
        rows = [
            said(
                *ids, rng.choice(("first", "second", "tie", None)), rng.choice((None, 0.0, 0.25, 0.5, 1.0)), name, vote
            )
            for ids, name, vote in itertools.product((("a", "b"), ("b", "a")), ("x", "y"), (0, 1))
        ]
        swapped = [replace(row, first=renamed[row.first], second=renamed[row.second]) for row in rows]

        found, other = (prefer("p", ("a", "b"), given, sheet, not people) for given in (rows, swapped))

        assert other.preferred == OTHER[found.preferred], rows
        assert (other.forward, other.backward) == (OTHER[found.backward], OTHER[found.forward]), rows
        seen.add(found.preferred)
    assert seen == {"first", "second", "tie", None}


def test_position_bias_is_the_part_of_pairs_whose_first_shown_clip_wins_in_both_orders():
    pairs = [both("first", "first"), both("first", "first"), both("second", "second"), both("first", "second")]
    found = tally([*pairs, both(None, "first")])

    assert (found.pairs, found.first, found.second, found.ties, found.unknown) == (5, 1, 0, 3, 1)
    assert (found.both_orders, found.first_in_both, found.second_in_both) == (4, 2, 1)
    assert found.position_bias == 0.5


def test_a_clips_share_of_wins_counts_ties_half_and_leaves_out_what_is_not_known():
    def row(first, second, preferred):
        return Preference("p", first, second, "judge", preferred, None, None, None, 0, None)

    rows = [row("a", "b", "first"), row("c", "a", "tie"), row("b", "c", None)]

    assert win_shares(rows) == {"a": 0.75, "b": 0.0, "c": 0.5}  # a won one and tied one
