"""A metric as the training judge (VADER's setting, which Diffusion-DRF compares with): CLIPs and video reward models.

The metric is the one of feedback/metrics/image_text.py or reward_models/model.py, on frames with gradient.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from feedback.core.kinds import read_block
from feedback.core.source import Metric
from feedback.differentiable.augment import Augmentation
from feedback.differentiable.losses import QuestionLosses
from feedback.differentiable.resize import DifferentiableResizing

KINDS = ("clip", "pickscore", "hpsv2", "videoreward", "videoscore", "reward_model")


class DifferentiableMetric(Metric, Protocol):
    """A metric that torch differentiates. `measures`, where it has several: their names, that of `scores` first."""

    def frame_indices(self, num_frames: int, fps: float) -> Sequence[int]:
        """Indices of the frames that it sees, evenly spaced; none of a clip that it cannot score."""

    def scores(self, clips: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """(N,) of the frames that it sees, (F, H, W, 3) in [0, 1], with their gradient."""


class MetricJudge:
    """A metric's score as a judge's answer to a question; see rl.online.judging.Judge.

    The question is named after the measure that is scored, or `score` where the metric has one measure alone.
    """

    def __init__(
        self,
        name: str,
        metric: DifferentiableMetric,
        prompts: Mapping[str, str],
        augment: Augmentation,
        fps: float,
    ) -> None:
        """prompts: the metric's texts, by prompt_id. fps: of the clips."""
        self.name, self._metric, self._prompts, self._augment, self._fps = name, metric, prompts, augment, fps
        self.question: str = next(iter(getattr(metric, "measures", ())), "score")

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        """Indices of the frames that it scores: as many as the metric sees, evenly spaced but for the jitter.

        Raises ValueError for a clip of which it sees none.
        """
        seen = len(self._metric.frame_indices(num_frames, self._fps))
        if not seen:
            raise ValueError(f"{self.name} cannot score a clip of {num_frames} frames at {self._fps:g} a second")
        return self._augment.frame_indices(num_frames, seen, seed)

    def __call__(self, frames: Tensor, prompt_id: str, seed: int) -> QuestionLosses:
        """Minus the score of the frames of `frame_indices`, float32 (F, H, W, 3) in [0, 1], for this prompt.

        On 8-bit frames the score is the metric's `score`. Raises ValueError for a prompt_id without a prompt.
        """
        if prompt_id not in self._prompts:
            raise ValueError(f"{self.name}: no prompt {prompt_id!r} among its {len(self._prompts)}")
        with DifferentiableResizing():
            score = self._metric.scores([self._augment(frames, seed)], [self._prompts[prompt_id]])
        loss = -score.to(frames.device, torch.float32)
        return QuestionLosses((self.question,), loss, torch.full_like(loss, torch.nan, requires_grad=False))


def load_metric(name: str, block: Mapping[str, Any], device: str) -> DifferentiableMetric:
    """The metric of a `feedback.sources` block, its weights on the device.

    Raises ValueError as read_block does, and for a kind without gradient, naming those with one.
    """
    if block.get("kind") not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"feedback.sources.{name}.kind is {block.get('kind')!r}: no gradient; {known} have one")
    kind, options = read_block(name, block)
    assert kind.measure is not None
    return cast(DifferentiableMetric, kind.measure(name, options, device))
