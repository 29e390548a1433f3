"""A metric as the training judge (VADER's setting, which Diffusion-DRF compares with): CLIP, PickScore, HPSv2.

The metric is the one of feedback/metrics/image_text.py, on frames with gradient.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from feedback.core.kinds import read_block
from feedback.differentiable.augment import Augmentation
from feedback.differentiable.losses import QuestionLosses
from feedback.metrics.image_text import ImageText

KINDS = ("clip", "pickscore", "hpsv2")


class MetricJudge:
    """A metric's score as a judge's answer to the question `score`; see rl.online.judging.Judge."""

    def __init__(self, name: str, metric: ImageText, prompts: Mapping[str, str], augment: Augmentation) -> None:
        """prompts: the metric's texts, by prompt_id."""
        self.name, self._metric, self._prompts, self._augment = name, metric, prompts, augment

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        """Indices of the frames that it scores: as many as the metric's `frames`, evenly spaced but for the jitter."""
        return self._augment.frame_indices(num_frames, self._metric.frames or num_frames, seed)

    def __call__(self, frames: Tensor, prompt_id: str, seed: int) -> QuestionLosses:
        """Minus the score of the frames of `frame_indices`, float32 (F, H, W, 3) in [0, 1], for this prompt.

        On 8-bit frames the score is `ImageText.score`. Raises ValueError for a prompt_id without a prompt.
        """
        if prompt_id not in self._prompts:
            raise ValueError(f"{self.name}: no prompt {prompt_id!r} among its {len(self._prompts)}")
        score = self._metric.scores([self._augment(frames, seed)], [self._prompts[prompt_id]])
        loss = -score.to(frames.device, torch.float32)
        return QuestionLosses(("score",), loss, torch.full_like(loss, torch.nan, requires_grad=False))


def load_metric(name: str, block: Mapping[str, Any], device: str) -> ImageText:
    """The metric of a `feedback.sources` block, its weights on the device.

    Raises ValueError as read_block does, and for a kind without gradient, naming those with one.
    """
    if block.get("kind") not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"feedback.sources.{name}.kind is {block.get('kind')!r}: no gradient; {known} have one")
    kind, options = read_block(name, block)
    assert kind.measure is not None
    metric = kind.measure(name, options, device)
    assert isinstance(metric, ImageText)
    return metric
