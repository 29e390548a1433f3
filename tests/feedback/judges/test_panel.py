import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data.labels import read_labels, read_verdicts
from data.records import Sample, Verdict
from feedback.core.kinds import make_source, read_block
from feedback.core.label import label_clip_set
from feedback.core.rubric import AnyRubric, Question, Rubric, RubricByPrompt, combine
from feedback.core.source import FAILED, REFUSED, UNREADABLE_CLIP, LabelError, Request, verdict
from feedback.judges import panel
from feedback.judges.panel import PanelSource, Shaping
from tests.feedback.core.test_label import CLIPS, contents, make_clips

GOOD = Question("good", "Is it good?", "yes", "no", True, True)
GLITCH = Question("glitch", "Is there a glitch?", "yes", "no", False, True)


def sheet(*questions: Question, rule: str = "all") -> Rubric:
    return Rubric("sheet", 8, rule, "{prompt}", questions or (GOOD,))


class Member:
    """Answers with `opinion(sample, vote, question)`, the fields of a Verdict. Records the clips that it judges."""

    def __init__(
        self, name: str, opinion: Callable[..., dict], rubric: Rubric | None = None, repeatable: bool = True
    ) -> None:
        self.name, self.opinion, self.repeatable = name, opinion, repeatable
        self.rubric: AnyRubric = rubric or sheet()
        self.model: str = f"model of {name}"
        self.model_version: str | None = "1"
        self.judged: list[str] = []
        self.random = random.Random(0)

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        requests = list(requests)
        self.random.shuffle(requests)
        for request in requests:
            self.judged.append(request.sample.sample_id)
            rows = [
                verdict(
                    self, request.sample, vote, question, [0, vote + 1], **self.opinion(request.sample, vote, question)
                )
                for question in self.rubric.of(request.sample.prompt).questions
                for vote in range(request.votes)
            ]
            yield self.random.sample(rows, len(rows))

    def status(self) -> dict:
        return {"judged": len(self.judged)}


def steady(name: str, p_yes: float | None, **more) -> Member:
    """A member with the same answer to every question; no answer if p_yes is None."""
    fields = {"answer": None, "error": f"{REFUSED}no"} if p_yes is None else {"answer": p_yes > 0.5, "p_yes": p_yes}
    return Member(name, lambda sample, vote, question: fields | {"reason": f"{name} says so"} | more)


def of(*members: Member, rule: str = "majority", votes: int = 1) -> PanelSource:
    return PanelSource("panel", {member.name: member for member in members}, rule, votes)


def test_a_member_with_questions_of_a_prompts_own_is_combined_by_those_and_another_question_is_another_panel():
    def own(ask: str = "Is it clean?") -> RubricByPrompt:
        asked = (
            Question("bright", "Is it bright?", "yes", "no", True, True),
            Question("clean", ask, "yes", "no", True, True),
        )
        return RubricByPrompt("own", None, "all", "", "own.csv", {"a ball": asked, "a cup": asked[:1]})

    member = steady("one", 0.5)
    member.rubric = own()
    member.opinion = lambda sample, vote, question: {"answer": True, "p_yes": 0.9 if question.name == "bright" else 0.8}
    panel = of(member, steady("two", 0.7), rule="mean")
    first, second = rows_of(panel)
    assert (first.answer, first.p_yes) == (True, pytest.approx(0.9 * 0.8)) and second.p_yes == 0.7
    other = steady("one", 0.5)
    other.rubric = own("Is the picture clean?")
    assert of(other, steady("two", 0.7), rule="mean").rubric.hash != panel.rubric.hash


def requests(count: int = 1) -> list[Request]:
    facts = ("p", "a ball", "c", "train", "base", 0, 9, 8.0, 32, 32, "v.mp4")
    return [Request(Sample(f"clip{index}", *facts), Path("v.mp4")) for index in range(count)]


def rows_of(source: PanelSource) -> list[Verdict]:
    """Its verdicts on one clip."""
    (rows,) = source.judge(requests())
    return rows


def label_of(*opinions: float | None, rule: str = "majority"):
    source = of(*(steady(f"m{index}", p_yes) for index, p_yes in enumerate(opinions)), rule=rule)
    return combine(rows_of(source), source.rubric)


# Verdicts and labels


def test_a_panel_has_one_row_per_member_with_the_members_answer():
    rows = rows_of(of(steady("bold", 0.9, tokens=3, cost=0.5), steady("shy", 0.2), steady("mute", None)))
    assert [(row.question, row.answer, row.p_yes, row.reason) for row in rows] == [
        ("bold", True, 0.9, "bold says so"),
        ("shy", False, 0.2, "shy says so"),
        ("mute", None, None, None),
    ]
    assert rows[2].error == f"{REFUSED}no"
    assert {(row.source, row.vote, row.model) for row in rows} == {
        ("panel", 0, "model of bold + model of shy + model of mute")
    }


def test_a_rule_combines_the_members_labels():
    mean = (0.9 + 0.8 + 0.1) / 3
    for rule, label, p_accept in (("all", False, 0.9 * 0.8 * 0.1), ("majority", True, mean), ("mean", True, mean)):
        found = label_of(0.9, 0.8, 0.1, rule=rule)
        assert (found.label, found.p_accept) == (label, pytest.approx(p_accept)), rule


def metric(name: str, score: float | None) -> Member:
    """A member with a score and no label; an error if the score is None."""
    fields = {"error": "not finite"} if score is None else {"score": score}
    return Member(name, lambda sample, vote, question: fields)


SHAPING = {"judge": Shaping(scale=0.5), "flow": Shaping(scale=0.1, shift=0.25)}


@pytest.mark.parametrize(
    ("rule", "p_yes", "flow", "label", "score"),
    [
        # the judge's 0.8 becomes 0.4, the flow's 5 becomes 0.75, the second metric's 2 stays
        ("mean", 0.8, 5.0, True, (0.4 + 0.75 + 2) / 3),
        ("majority", 0.8, 5.0, True, (0.4 + 0.75 + 2) / 3),
        ("product", 0.8, 5.0, True, 0.4 * 0.75 * 2),
        ("lexicographic", 0.8, 5.0, True, (0.75 + 2) / 2),
        ("mean", 0.2, 5.0, False, (0.1 + 0.75 + 2) / 3),
        ("product", 0.2, 5.0, False, 0.1 * 0.75 * 2),
        ("lexicographic", 0.2, 5.0, False, 0.0),
        ("mean", None, 5.0, None, None),
        ("product", None, 5.0, None, None),
        ("lexicographic", None, 5.0, None, None),
        ("lexicographic", 0.8, None, None, None),
        ("product", 0.8, None, None, None),
    ],
)
def test_judges_and_metrics_are_combined_in_one_score(rule, p_yes, flow, label, score):
    members = {"judge": steady("judge", p_yes), "flow": metric("flow", flow), "other": metric("other", 2.0)}
    source = PanelSource("panel", members, rule, shaping=SHAPING)
    found = combine(rows_of(source), source.rubric)
    assert found.label is label
    assert found.score == (None if score is None else pytest.approx(score))


def test_a_panel_of_metrics_has_a_score_and_no_label():
    source = PanelSource("panel", {"a": metric("a", 3.0), "b": metric("b", 4.0)}, "product")
    found = combine(rows_of(source), source.rubric)
    assert (found.label, found.p_accept, found.score, found.nulls, found.reason) == (None, None, 12.0, 0, None)


def test_shaping_is_in_the_hash_of_a_panel():
    members = {"a": metric("a", 3.0), "b": metric("b", 4.0)}
    plain, shaped = (
        PanelSource("p", members, "mean"),
        PanelSource("p", members, "mean", shaping={"a": Shaping(scale=2.0)}),
    )
    assert (
        plain.rubric.hash
        == PanelSource("p", members, "mean", shaping={"a": Shaping()}).rubric.hash
        != shaped.rubric.hash
    )


def test_one_certain_member_outweighs_two_uncertain_ones_under_mean_but_not_under_majority():
    # (0.6 + 0.6 + 0) / 3 is 0.4
    assert label_of(0.6, 0.6, 0.0, rule="mean").label is False
    assert label_of(0.6, 0.6, 0.0, rule="majority").label is True


def test_a_member_without_a_label_is_not_a_vote_against():
    assert label_of(0.9, 0.8, None).label is True
    assert label_of(0.9, None).label is True  # half of the members is enough
    assert label_of(0.9, None, None).label is None
    assert label_of(0.9, 0.8, None, rule="all").label is None


def test_a_tie_of_members_leaves_the_clip_unlabelled_with_the_tally_as_reason():
    found = label_of(0.9, 0.2, None)
    assert (found.label, found.p_accept) == (None, pytest.approx(0.55))
    assert found.reason == f"1 for and 1 against, of 3 required questions; m2: no answer ({REFUSED}no)"


def test_a_reject_gives_the_reasons_of_the_rejecting_members():
    assert label_of(0.1, 0.2, 0.9).reason == "m0 says so; m1 says so"


def test_a_members_label_follows_its_own_rubric():
    # good 0.9 and glitch 0.2 are both as wanted: 0.9 * (1 - 0.2); their mean would be 0.85
    chances = {"good": 0.9, "glitch": 0.2}
    member = Member(
        "careful",
        lambda sample, vote, question: {"answer": chances[question.name] > 0.5, "p_yes": chances[question.name]},
        sheet(GOOD, GLITCH),
    )
    row = rows_of(of(member, steady("other", 0.5)))[0]
    assert (row.answer, row.p_yes) == (True, pytest.approx(0.72))


def test_tokens_and_cost_are_summed_and_the_members_verdicts_are_kept():
    member = Member(
        "two",
        lambda sample, vote, question: {
            "answer": question is GOOD,
            "raw": f"«{question.name}»",
            "tokens": 3,
            "cost": 0.25,
        },
        sheet(GOOD, GLITCH),
    )
    row, free = rows_of(of(member, steady("free", 0.9)))
    assert (row.tokens, row.cost, free.tokens, free.cost) == (6, 0.5, None, None)
    assert (row.frames, row.model_version) == ([0, 1], "1")
    assert [(one["question"], one["raw"]) for one in json.loads(row.raw)] == [
        ("good", "«good»"),
        ("glitch", "«glitch»"),
    ]
    assert {one["rubric_hash"] for one in json.loads(row.raw)} == {member.rubric.hash}


# Votes


def test_only_members_that_sample_their_answer_vote_more_than_once():
    # Yes, no, yes: the majority says yes, at 2/3.
    wavering = Member("wavering", lambda sample, vote, question: {"answer": vote != 1}, repeatable=False)
    rows = rows_of(of(wavering, steady("firm", 0.9), votes=3))
    assert [(row.question, row.vote, row.answer) for row in rows] == [("wavering", 0, True), ("firm", 0, True)]
    assert rows[0].p_yes == pytest.approx(2 / 3)
    assert [len(json.loads(row.raw)) for row in rows] == [3, 1]
    assert rows[0].frames == [0, 1, 2, 3]


def test_a_member_whose_votes_tie_has_no_label():
    tied = Member("tied", lambda sample, vote, question: {"answer": vote == 0}, repeatable=False)
    row = rows_of(of(tied, steady("firm", 0.9), votes=2))[0]
    assert (row.answer, row.error) == (None, "good: 2 votes tied")


def test_several_votes_of_repeatable_members_are_an_error():
    with pytest.raises(ValueError, match="panel: votes is 2, but all of its members are repeatable"):
        of(steady("a", 0.9), steady("b", 0.9), votes=2)


# Failure


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("set") / "samples")


def unreachable(name: str, *seeds: int) -> Member:
    """A member without a reply about the clips with these seeds in the second of its two votes."""

    def opinion(sample: Sample, vote: int, question: Question) -> dict:
        return {"error": f"{FAILED}timed out"} if vote and sample.seed in seeds else {"answer": True}

    return Member(name, opinion, repeatable=False)


def test_the_next_run_judges_a_clip_again_if_a_members_call_failed(clips, tmp_path):
    work, out = tmp_path / "work", tmp_path / "labels"
    with pytest.raises(LabelError, match="panel: no reply about 1 of 10 clips.*failed: timed out"):
        label_clip_set(clips, of(unreachable("far", 3, 7), steady("near", 0.9), votes=2), work, out, 2)
    again = [unreachable("far"), steady("near", 0.9)]
    label_clip_set(clips, of(*again, votes=2), work, out, 2)
    assert [sorted(member.judged) for member in again] == 2 * [[f"clip{index}" for index in range(3, CLIPS)]]
    assert [label.label for label in read_labels(out)] == [True] * CLIPS


def test_an_allowed_failure_is_null_and_the_other_members_decide(clips, tmp_path):
    source = of(unreachable("far", 3), steady("near", 0.1), votes=2)
    counts = label_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", 2, max_failed=0.1)
    assert (counts.failed, counts.rejected) == (1, 1)  # on the other clips one accepts and one rejects
    row = next(row for row in read_verdicts(tmp_path / "labels") if (row.sample_id, row.question) == ("clip3", "far"))
    assert (row.answer, row.p_yes, row.error) == (None, None, f"{FAILED}timed out")


def test_a_clip_that_no_member_could_decode_is_counted_as_unreadable(clips, tmp_path):
    def blind(sample: Sample, vote: int, question: Question) -> dict:
        return {"error": f"{UNREADABLE_CLIP}torn"} if sample.seed == 5 else {"answer": True}

    source = of(Member("a", blind), Member("b", blind))
    counts = label_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", 2)
    assert counts == (CLIPS - 1, 0, 1, 1, 0, 0)


class Quitting(Member):
    """Stops with an error at the clip `at`."""

    at = "clip5"

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        for rows in super().judge(requests):
            if rows[0].sample_id == self.at:
                raise LabelError("the money is spent")
            yield rows


def test_a_stop_loses_at_most_one_chunk_and_the_resumed_run_produces_the_same_bytes(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(panel, "CHUNK", 4)

    def bright(sample: Sample, vote: int, question: Question) -> dict:
        return {"answer": sample.seed > 4}

    first, work = Member("local", bright), tmp_path / "work"
    with pytest.raises(LabelError, match="money"):
        label_clip_set(clips, of(first, Quitting("paid", bright)), work, tmp_path / "labels", 2)
    assert len(first.judged) == 8  # two chunks; the first is kept
    second = Member("local", bright)
    label_clip_set(clips, of(second, Member("paid", bright)), work, tmp_path / "labels", 3)
    assert sorted(second.judged) == [f"clip{index}" for index in range(4, CLIPS)]
    whole = of(Member("local", bright), Member("paid", bright))
    label_clip_set(clips, whole, tmp_path / "other", tmp_path / "whole", 5)
    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")


def test_members_alternate_by_chunk_and_clips_are_drawn_on_demand(monkeypatch):
    monkeypatch.setattr(panel, "CHUNK", 2)
    turns: list[str] = []

    def noted(name: str) -> Member:
        return Member(
            name, lambda sample, vote, question: turns.append(f"{name} {sample.sample_id}") or {"answer": True}
        )

    source, drawn = of(noted("a"), noted("b")), []
    answers = source.judge(drawn.append(one) or one for one in requests(5))
    assert next(answers)[0].sample_id == "clip0"
    assert len(drawn) == 2
    assert [turn.split()[0] for turn in turns] == ["a", "a", "b", "b"]
    assert [rows[0].sample_id for rows in answers] == ["clip1", "clip2", "clip3", "clip4"]
    assert source.status() == {"a judged": 5, "b judged": 5}


class Forgetful(Member):
    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        yield from list(super().judge(requests))[1:]


class Repetitive(Member):
    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        yield from 2 * list(super().judge(requests))


class Incomplete(Member):
    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        yield from ([row for row in rows if row.question == "good"] for rows in super().judge(requests))


FAULTY_MEMBERS = (
    (Forgetful, "odd left out 1 clips"),
    (Repetitive, "odd answered about clip0, which was not requested, or answered twice"),
    (Incomplete, "odd: 1 verdicts on clip0 do not match the 2 requested"),
)


def test_a_member_that_breaks_the_protocol_is_named():
    for cls, problem in FAULTY_MEMBERS:
        odd = cls("odd", lambda sample, vote, question: {"answer": True}, sheet(GOOD, GLITCH))
        with pytest.raises(ValueError, match=problem):
            rows_of(of(steady("fine", 0.9), odd))


# The hash


def test_the_hash_covers_the_rule_and_each_members_model_and_rubric():
    def hash_of(rule: str = "majority", votes: int = 1, **changes) -> str:
        members = [steady("a", 0.9), Member("b", lambda *_: {}, repeatable=False)]
        for key, value in changes.items():
            setattr(members[1], key, value)
        return of(*members, rule=rule, votes=votes).rubric.hash

    others = [
        hash_of(rule="mean"),
        hash_of(votes=2),
        hash_of(model="another"),
        hash_of(model_version="2"),
        hash_of(rubric=sheet(replace(GOOD, ask="Is it very good?"))),
        hash_of(rubric=sheet(replace(GOOD, wanted=False))),
        hash_of(rubric=sheet(rule="mean")),
    ]
    assert hash_of() == hash_of()
    assert len({hash_of(), *others}) == 1 + len(others)


# Its block in params.yaml

PHYSICS = {"kind": "physics"}


def test_a_panel_is_loaded_from_its_members_blocks():
    block = {"kind": "panel", "rule": "all", "members": {"one": PHYSICS, "two": PHYSICS}}
    source = make_source("panel", block)
    assert [member.name for member in source.members.values()] == ["panel.members.one", "panel.members.two"]
    assert source.repeatable
    assert source.rubric.rule == "all"
    assert "{prompt}" in source.rubric.text(source.rubric.questions[0], "{prompt}")


def test_a_wrong_block_is_named():
    wrong = [
        ({"shaping": {"c": {"scale": 2.0}}}, ": shaping.c names no member; members are a, b"),
        ({"shaping": {"a": {"eta": 2.0}}}, ".shaping.a.eta .* is unknown"),
        ({"shaping": {"a": {"scale": 0.0}}}, ".shaping.a.scale is 0.0, expected greater than 0"),
        ({"shaping": {"a": {"shift": -1.0}}}, ".shaping.a.shift is -1.0, expected greater than or equal to 0"),
        ({"rule": "most"}, ".rule is 'most', expected .*'product' or 'lexicographic'"),
        ({"votes": 0}, ".votes is 0"),
        ({"members": ["judge"]}, r".members is \['judge'\], expected a section"),
        ({"members": {"judge": PHYSICS}}, r": members are \['judge'\], expected at least two"),
        ({"members": {"a": PHYSICS, "b": "judge"}}, ".members.b is 'judge', expected a section"),
        ({"members": {"a": PHYSICS, "My B": PHYSICS}}, ": members.My B: a name is made of"),
        (
            {"members": {"a": PHYSICS, "b": {"kind": "panel"}}},
            ": members.b.kind is 'panel'; a panel cannot be a member",
        ),
        ({"members": {"a": PHYSICS, "b": {"kind": "physics", "votes": 1}}}, ".members.b.votes .* is unknown"),
    ]
    for changes, problem in wrong:
        block = {"kind": "panel", "rule": "all", "members": {"a": PHYSICS, "b": PHYSICS}} | changes
        with pytest.raises(ValueError, match=f"feedback.sources.panel{problem}"):
            read_block("panel", block)
