"""A source that compares: it prefers the brighter of two clips. `feedback.sources.<name>.kind` names this module."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from data.config import STRICT
from data.records import Comparison
from data.video import read_video
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Rubric, load_rubric
from feedback.core.source import Request
from feedback.pairs.shown import ShownPair, comparison


@dataclass(frozen=True, config=STRICT)
class Options:
    """Options of this kind."""

    rubric: str


class Brighter:
    """Prefers the brighter clip."""

    model = "brighter"
    model_version: str | None = "1"
    repeatable = True

    def __init__(self, name: str, rubric: Rubric) -> None:
        self.name, self.rubric = name, rubric

    def compare(self, pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
        for pair in pairs:
            one, other = (light(request) for request in (pair.first, pair.second))
            facts: dict[str, Any] = {"tie": True} if one == other else {"answer": one > other}
            yield [comparison(self, pair, 0, self.rubric.questions[0], ([0], [0]), facts)]

    def status(self) -> dict[str, Any]:
        return {}


def light(request: Request) -> float:
    """The mean brightness of a clip."""
    return float(read_video(request.path).mean())


def load(name: str, options: Options, device: str) -> Any:
    return Brighter(name, load_rubric(Path(options.rubric)))


KIND = Kind(Options, load, compares=True, needs=lambda given: Needs(rubric=given.rubric))
