"""Metrics as sources: a number for a clip by a fixed function of its frames and its prompt.

A metric's number is the verdict's `score`, as the metric defines it, and nothing shapes it here: what a loss is
weighted with is made of it by `build`. It says neither yes nor no, so the label is null, unless the block gives a
`threshold`: then the clip is accepted where the score lies above it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic.dataclasses import dataclass

from data.config import STRICT, Count
from data.records import Verdict
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import Question, Rubric
from feedback.core.source import Metric, Request, decoded, verdict, without_answer
from feedback.core.weights import Dtype

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetricOptions:
    """Options of all metrics."""

    batch_size: Count = 8  # clips whose frames go through together
    threshold: float | None = None  # accept above it; null: a number and no label


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FrameOptions(MetricOptions):
    """Options of metrics that score a clip frame by frame."""

    reduce: Reduction = "sum"  # over frames
    frames: Count | None = None  # evenly spaced ones that are scored; null: all
    dtype: Dtype = "float32"


OptionsT = TypeVar("OptionsT", bound=MetricOptions)


def metric_kind(
    metric: str,
    options: type[OptionsT],
    measure: Callable[[str, OptionsT, str], Metric],
    needs_device: bool = False,
    needs: Callable[[OptionsT], Needs] | None = None,
) -> Kind[OptionsT]:
    """The kind of source that gives this one number. metric: its name, as the question of the verdicts."""

    def load(name: str, given: OptionsT, device: str) -> MetricSource:
        return MetricSource(name, {metric: measure(name, given, device)}, given.batch_size, given.threshold)

    return Kind(options, load, needs_device, measure=measure, needs=needs or (lambda _: Needs()))


def there(file: str) -> str:
    """A local file's path. Raises ValueError where there is none."""
    if not Path(file).is_file():
        raise ValueError(f"{file} is not there")
    return file


def needs_model(options: Any) -> Needs:
    """What a metric needs whose options have `path` and `revision`."""
    return Needs(model=options.path, revision=options.revision)


class MetricSource:
    """Measures clips, `batch_size` at a time. Each clip is decoded once, however many metrics there are.

    metrics: by name. The first is the one that a label's `score` and `label` are of; all have a verdict.
    """

    repeatable = True

    def __init__(
        self, name: str, metrics: Mapping[str, Metric], batch_size: int, threshold: float | None = None
    ) -> None:
        self.name, self.metrics, self.batch_size, self.threshold = name, metrics, batch_size, threshold
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
            scores = [metric.score(clips, prompts, fps) for metric in self.metrics.values()] if seen else []
            of_clips = zip(*scores, strict=True)
            for request, frames in batch:
                if isinstance(frames, str):
                    yield without_answer(self, request, frames)
                else:
                    pairs = zip(self.rubric.questions, next(of_clips), strict=True)
                    yield [self._verdict(request, question, float(score), len(frames)) for question, score in pairs]

    def status(self) -> dict[str, Any]:
        """Nothing beside the counts of labels."""
        return {}

    def _verdict(self, request: Request, question: Question, score: float, frames: int) -> Verdict:
        fields: dict[str, Any] = {"score": score}
        if not math.isfinite(score):
            fields = {"error": f"{question.name} is not defined for this clip, or not finite: {score}"}
        elif question.required and self.threshold is not None:
            fields["answer"] = score > self.threshold
        return verdict(self, request.sample, 0, question, range(frames), **fields)


def reduced(of_frames: Sequence[float], how: Reduction) -> float:
    """One number for a clip from one for each frame: their sum, as Furuta et al. take (§3.2), or their mean."""
    total = math.fsum(of_frames)
    return total if how == "sum" else total / len(of_frames)
