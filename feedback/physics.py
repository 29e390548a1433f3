"""The tabletop world's own physics as a source: it reads all frames, and gives its reason."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.records import Verdict
from data.tabletop import captions, physics, scenes
from feedback.rubric import Question, Rubric
from feedback.source import Request, verdict

RUBRIC = Rubric(
    name="physics",
    frames=None,
    rule="all",
    instructions="{prompt}",
    questions=(
        Question(
            name="fulfilled",
            ask="Does the clip fulfil its caption?",
            affirmative="yes",
            negative="no",
            wanted=True,
            required=True,
        ),
    ),
)


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def check_prompts(texts: Sequence[str]) -> None:
    """Raises ValueError naming the prompts that are no captions of the tabletop world."""
    foreign = []
    for text in texts:
        try:
            captions.parse(text)
        except ValueError:
            foreign.append(text)
    if foreign:
        told = f"not {len(foreign)} of these prompts: {foreign[:3]}"
        raise ValueError(f"physics knows the tabletop world alone, and {told}")


def load(name: str, options: Options, device: str) -> "PhysicsSource":
    """The physics check as a source; no device is used."""
    return PhysicsSource(name)


class PhysicsSource:
    """Answers yes or no with certainty; null for captions and frame sizes outside the tabletop world."""

    rubric = RUBRIC
    model = "data.tabletop.physics"

    def __init__(self, name: str) -> None:
        self.name = name
        code = "".join(inspect.getsource(module) for module in (captions, scenes, physics))
        self.model_version = hashlib.sha256(code.encode()).hexdigest()[:12]

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        return [self._verdict(request) for request in requests]

    def _verdict(self, request: Request) -> Verdict:
        try:
            check = physics.check(request.frames, request.sample.prompt)
            told: dict[str, Any] = {"answer": check.ok, "reason": check.reason}
        except ValueError as error:
            told = {"error": f"cannot be checked: {error}"}
        (question,) = self.rubric.questions
        return verdict(self, request.sample, request.vote, question, range(len(request.frames)), **told)
