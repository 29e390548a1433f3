"""Two clips of one prompt in the order in which they are shown, and what a source that compares answers about them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.preferences import FIRST, SECOND, TIE
from data.records import Comparison
from feedback.core.rubric import AnyRubric, Question
from feedback.core.source import UNKNOWN_VERSION, FirstFrame, LabelError, Request, shown_first_frame


@dataclass(frozen=True)
class ShownPair:
    """Two clips of one prompt, as they are shown. Raises ValueError for clips of different prompts."""

    first: Request  # its votes and its purpose hold for the pair
    second: Request
    place: int = 0  # among all that are shown of a set

    def __post_init__(self) -> None:
        one, two = self.first.sample, self.second.sample
        if one.prompt != two.prompt:
            raise ValueError(
                f"a pair of clips of different prompts: {one.sample_id} is of {one.prompt!r}, {two.sample_id} of "
                f"{two.prompt!r}; clips of one prompt are compared"
            )

    @property
    def ids(self) -> tuple[str, str]:
        """The sample_ids in this order."""
        return self.first.sample.sample_id, self.second.sample.sample_id

    @property
    def prompt(self) -> str:
        """The prompt of both clips."""
        return self.first.sample.prompt

    @property
    def votes(self) -> int:
        """Independent votes in this order."""
        return self.first.votes

    @property
    def purpose(self) -> str:
        """The same text for all pairs of a set: budgets are summed by purpose."""
        return self.first.purpose

    def first_frame(self, rubric: AnyRubric) -> FirstFrame | None:
        """The image that both clips began with, shown once; None where the rubric shows none.

        Raises LabelError where a clip has none, or the clips were made from different images.
        """
        first, second = (shown_first_frame(rubric, one) for one in (self.first, self.second))
        if first and second and first.content != second.content:
            raise LabelError(
                f"{first.path} and {second.path}: the clips of a pair were made from different first frames, and the "
                f"rubric {rubric.name} shows one for both; generate both sets again"
            )
        return first

    def swapped(self) -> "ShownPair":
        """The same clips in the other order."""
        return ShownPair(self.second, self.first, self.place)


class Comparer(Protocol):
    """A source whose rubric has `compares: true`. An unknown answer is None."""

    name: str
    model: str
    repeatable: bool

    @property
    def rubric(self) -> AnyRubric:
        """As of a Source."""

    @property
    def model_version(self) -> str | None:
        """As of a Source."""

    def compare(self, pairs: Iterable[ShownPair]) -> Iterator[Sequence[Comparison]]:
        """Yields all answers about one shown pair at a time, in any order of the pairs.

        Pairs are drawn on demand. For an answer that is missing, `error` begins with a prefix of feedback.core.source.
        """

    def status(self) -> dict[str, Any]:
        """As of a Source."""


class Named(Protocol):
    """What a comparison names of its source."""

    name: str
    model: str

    @property
    def rubric(self) -> AnyRubric:
        """As of a Source."""

    @property
    def model_version(self) -> str | None:
        """As of a Source."""


def comparison(
    source: Named,
    shown: ShownPair,
    vote: int,
    question: Question,
    frames: tuple[Sequence[int], Sequence[int]],
    facts: Mapping[str, Any],
) -> Comparison:
    """A comparison by this source. frames: indices of the frames that it saw, of the first clip and of the second.

    facts: fields as of a Verdict, in the question's terms: answer and p_yes of its affirmative word, or tie: True.
        Missing ones are None, except `model_version`, which defaults to the source's.
    """
    answer, p_yes, tie = facts.get("answer"), facts.get("p_yes"), facts.get("tie")
    better = None if answer is None else (FIRST if answer == question.wanted else SECOND)
    fields = {key: facts.get(key) for key in ("reason", "raw", "tokens", "cost", "error")}
    return Comparison(
        first=shown.ids[0],
        second=shown.ids[1],
        source=source.name,
        question=question.name,
        vote=vote,
        answer=TIE if tie else better,
        p_first=p_yes if p_yes is None or question.wanted else 1 - p_yes,
        model=source.model,
        model_version=facts.get("model_version", source.model_version) or UNKNOWN_VERSION,
        rubric_hash=source.rubric.hash,
        first_frames=list(frames[0]),
        second_frames=list(frames[1]),
        **fields,
    )


def without_comparison(source: Named, shown: ShownPair, error: str) -> list[Comparison]:
    """Comparisons without an answer, with this error, on all questions and votes of a shown pair."""
    return [
        comparison(source, shown, vote, question, ((), ()), {"error": error})
        for question in source.rubric.of(shown.prompt).questions
        for vote in range(shown.votes)
    ]
