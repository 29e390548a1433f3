"""The physics check as a source: it reads all frames and gives its reason."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from data.config import STRICT
from data.records import Verdict
from feedback.core.kinds import Kind
from feedback.core.rubric import Question, Rubric
from feedback.core.source import Request, decoded, verdict, without_answer
from tabletop import captions, scenes

AHEAD = 64  # decoded clips in memory at once

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


@dataclass(frozen=True, config=STRICT)
class Options:
    """The physics check has no options."""


def check_prompts(texts: Sequence[str]) -> None:
    """Raises ValueError naming the prompts that are no captions of the tabletop world."""
    if unknown := captions.unknown_captions(texts):
        raise ValueError(
            f"physics knows the tabletop world alone, and not {len(unknown)} of these prompts: {unknown[:3]}"
        )


def load(name: str, options: Options, device: str) -> "PhysicsSource":
    """The physics check as a source; no device is used."""
    return PhysicsSource(name)


class PhysicsSource:
    """Answers yes or no, or None with an error for captions and frame sizes outside the tabletop world.

    Of a window it reads the whole clip, and says no where one of the window's frames fails (`physics.failing_frames`).
    """

    rubric = RUBRIC
    model = "tabletop.physics"
    repeatable = True

    def __init__(self, name: str) -> None:
        from tabletop import physics  # and scipy with it

        self.name, self.check, self.failing_frames = name, physics.check, physics.failing_frames
        code = "".join(inspect.getsource(module) for module in (captions, scenes, physics))
        self.model_version = hashlib.sha256(code.encode()).hexdigest()[:12]

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        for request, frames in decoded(requests, AHEAD, whole=True):
            yield without_answer(self, request, frames) if isinstance(frames, str) else [self._verdict(request, frames)]

    def status(self) -> dict[str, Any]:
        return {}

    def _verdict(self, request: Request, frames: np.ndarray) -> Verdict:
        try:
            check = self.check(frames, request.sample.prompt)
            outcome: dict[str, Any] = {"answer": check.ok, "reason": check.reason}
        except ValueError as error:
            outcome = {"error": f"cannot be checked: {error}"}
        if request.whole and outcome.get("answer") is False:
            outcome |= self._of_window(frames, request.sample.prompt, request.whole.frames, str(outcome["reason"]))
        (question,) = self.rubric.questions
        seen = request.whole.frames if request.whole else range(len(frames))
        return verdict(self, request.sample, 0, question, seen, **outcome)

    def _of_window(self, frames: np.ndarray, prompt: str, window: range, reason: str) -> dict[str, Any]:
        """What a clip's failure says of some of its frames."""
        if wrong := sorted(self.failing_frames(frames, prompt).intersection(window)):
            places = ", ".join(map(str, wrong))
            return {"answer": False, "reason": f"{reason}; wrong in this window: frames {places}"}
        return {"answer": True, "reason": f"nothing is wrong in this window; of the clip: {reason}"}


KIND = Kind(Options, load, check_prompts=check_prompts)
