"""What answers took: how many there are, and their dollars."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from data.counts import Counts
from data.records import Comparison, Verdict, write_rows
from feedback.core.source import FAILED, UNRATED, UNREADABLE_ANSWER, UNREADABLE_CLIP
from feedback.core.spent import spent_in, spent_on

LOCAL: Any = SimpleNamespace()
PAID: Any = SimpleNamespace(price="known")
ROW = Verdict(
    "clip0", "judge", "accept", 0, True, 0.9, None, None, "Accept", "m", "1", "r", [0, 4], None, None, None
)  # fmt: skip


def test_each_answer_is_a_call_and_what_was_not_asked_is_none():
    errors = [None, None, f"{UNREADABLE_ANSWER}?", f"{FAILED}503", f"{UNRATED}me", f"{UNREADABLE_CLIP}torn"]
    rows = [replace(ROW, sample_id=f"clip{place}", error=error) for place, error in enumerate(errors)]
    assert spent_on(rows, LOCAL) == Counts(judge_calls=3)  # an answer that could not be read was given, too


def test_dollars_are_those_of_the_answers_and_unknown_where_one_has_no_price():
    rows = [replace(ROW, cost=0.25), replace(ROW, cost=0.5), replace(ROW, error=f"{FAILED}503")]
    assert spent_on(rows, PAID) == Counts(judge_calls=2, usd=0.75)
    assert spent_on([*rows, ROW], PAID) == Counts(judge_calls=3, usd=None)
    assert spent_on([ROW], LOCAL).usd == 0.0


def test_an_answer_of_a_panel_is_those_of_its_members():
    """Two members: one asks two questions and is paid, the other asks one and is of this machine."""
    panel: Any = SimpleNamespace(members={"gpt": PAID, "physics": LOCAL})
    own = [
        replace(ROW, question="gpt", raw=json.dumps([{"question": "a"}, {"question": "b"}]), cost=0.5),
        replace(ROW, question="physics", raw=json.dumps([{"question": "accept"}])),
    ]
    assert spent_on(own, panel) == Counts(judge_calls=3, usd=0.5)
    assert spent_on([replace(own[0], cost=None), own[1]], panel) == Counts(judge_calls=3, usd=None)


def test_of_a_source_that_compares_the_comparisons_count_and_not_the_shares_made_of_them(tmp_path):
    write_rows(tmp_path / "verdicts.parquet", [ROW], Verdict)
    assert spent_in(tmp_path, LOCAL) == Counts(judge_calls=1)
    shown = Comparison(
        "a", "b", "lab", "better", 0, "first", 0.8, None, None, "m", "1", "r", [0], [0], None, None, None
    )
    both = [shown, replace(shown, first="b", second="a"), replace(shown, vote=1, error=f"{FAILED}503", answer=None)]
    write_rows(tmp_path / "comparisons.parquet", both, Comparison)
    assert spent_in(tmp_path, LOCAL) == Counts(judge_calls=2)
