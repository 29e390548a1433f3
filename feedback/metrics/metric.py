"""Metrics as sources: a metric is a fixed function from a clip's frames and its prompt to a number.

The number is the verdict's `score`, unchanged; stage `build` computes the weights of a loss from it. A metric gives no
answer, so the label is null, unless the block has a `threshold`: then a clip is accepted if its score is above it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count
from data.records import Verdict
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Question, Rubric
from feedback.core.source import Metric, Request, decoded, frames_seen, verdict, without_answer
from feedback.core.weights import Dtype
from feedback.metrics.reduction import Reduction


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetricOptions:
    """Options of all metrics."""

    batch_size: Count = 8  # clips per batch
    threshold: float | None = None  # accept scores above it; null: a score without a label


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FrameOptions(MetricOptions):
    """Options of metrics that score a clip frame by frame."""

    reduce: Reduction = "sum"  # over frames
    frames: Count | None = None  # number of evenly spaced frames to score; null: all
    dtype: Dtype = "float32"


OptionsT = TypeVar("OptionsT", bound=MetricOptions)

# Clips, prompts, frames per second -> the scores of all metrics of a source: one sequence a metric, a number a clip.
Together = Callable[[Sequence[np.ndarray], Sequence[str], Sequence[float]], Sequence[Sequence[float]]]


def metric_kind(
    metric: str,
    options: type[OptionsT],
    measure: Callable[[str, OptionsT, str], Metric],
    needs_device: bool = False,
    needs: Callable[[OptionsT], Needs] | None = None,
) -> Kind[OptionsT]:
    """The kind of source for one metric. metric: its name, which is the question of the verdicts."""

    def load(name: str, given: OptionsT, device: str) -> MetricSource:
        return MetricSource(name, {metric: measure(name, given, device)}, given.batch_size, given.threshold)

    return Kind(options, load, needs_device, measure=measure, needs=needs or (lambda _: Needs()), labels=has_threshold)


def has_threshold(options: MetricOptions) -> bool:
    """Whether these options make a metric accept and reject clips."""
    return options.threshold is not None


def existing_file(file: str) -> str:
    """The path of a local file. Raises ValueError if it does not exist."""
    if not Path(file).is_file():
        raise ValueError(f"{file} does not exist")
    return file


def needs_model(options: Any) -> Needs:
    """The needs of a metric whose options have `path` and `revision`."""
    return Needs(model=options.path, revision=options.revision)


class MetricSource:
    """Computes metrics of clips, `batch_size` at a time. Each clip is decoded once for all metrics.

    metrics: by name. All have a verdict; a label's `score` and `label` are of the first.
    """

    repeatable = True

    def __init__(
        self,
        name: str,
        metrics: Mapping[str, Metric],
        batch_size: int,
        threshold: float | None = None,
        together: Together | None = None,
    ) -> None:
        """together: computes all metrics in one pass, in their order; None: each by its own `score`."""
        self.name, self.metrics, self.batch_size, self.threshold = name, metrics, batch_size, threshold
        self._together = together or self._one_by_one
        self.model = " + ".join(dict.fromkeys(metric.model for metric in metrics.values()))
        self.model_version = " + ".join(dict.fromkeys(metric.model_version for metric in metrics.values()))
        first = next(iter(metrics))
        above = "" if threshold is None else f" Accepted above {threshold}."
        self.rubric = Rubric(
            name="metric",
            frames=None,
            rule="all",
            instructions="{prompt}",
            questions=tuple(
                Question(
                    name=key,
                    ask=metric.definition + (above if key == first else ""),
                    affirmative="above",
                    negative="below",
                    wanted=True,
                    required=key == first,
                )
                for key, metric in metrics.items()
            ),
        )

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        """As the protocol says, in the order of the requests."""
        waiting = decoded(requests, 2 * self.batch_size)
        while batch := list(islice(waiting, self.batch_size)):
            seen = [(request, frames) for request, frames in batch if not isinstance(frames, str)]
            clips, samples = [frames for _, frames in seen], [request.sample for request, _ in seen]
            prompts, fps = [sample.prompt for sample in samples], [sample.fps for sample in samples]
            scores = self._together(clips, prompts, fps) if seen else []
            of_clips = zip(*scores, strict=True)
            for request, frames in batch:
                if isinstance(frames, str):
                    yield without_answer(self, request, frames)
                else:
                    pairs = zip(self.rubric.questions, next(of_clips), strict=True)
                    yield [self._verdict(request, question, float(score), len(frames)) for question, score in pairs]

    def _one_by_one(
        self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]
    ) -> list[Sequence[float]]:
        return [metric.score(clips, prompts, fps) for metric in self.metrics.values()]

    def status(self) -> dict[str, Any]:
        """Empty: a metric has no retries and no cost."""
        return {}

    def _verdict(self, request: Request, question: Question, score: float, frames: int) -> Verdict:
        fields: dict[str, Any] = {"score": score}
        if not math.isfinite(score):
            fields = {"error": f"{question.name} is not defined for this clip, or not finite: {score}"}
        elif question.required and self.threshold is not None:
            fields["answer"] = score > self.threshold
        seen = frames_seen(self.metrics[question.name], frames, request.sample.fps)
        return verdict(self, request.sample, 0, question, seen, **fields)
