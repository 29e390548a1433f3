"""What judges are to the online trainer, and how their answers become a gradient of latents.

Memory: the graphs of a clip's decoding and of one judge are all that is held at a time. Each is cut off from the next
by a leaf, whose gradient is handed on when the judge's graph is gone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rl.training.policies import NonFiniteLossError

Decode = Callable[[Tensor, Sequence[int]], Tensor]
"""Latents (1, C, F, h, w) and frame indices, rising -> those frames (len(indices), H, W, 3) in [0, 1], with graph."""


class Answers(Protocol):
    """What a judge was asked of one clip, and what it said; a NamedTuple of these fields will do."""

    @property
    def questions(self) -> tuple[str, ...]:
        """N names, each once."""

    @property
    def loss(self) -> Tensor:
        """(N,) nats, or minus a metric's score, with gradient."""

    @property
    def p_wanted(self) -> Tensor:
        """(N,) detached probability of the wanted answer; NaN where a metric has none."""


class Judge(Protocol):
    """A frozen judge that torch can differentiate."""

    name: str

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        """Indices of the clip's frames that it looks at. seed: of its frame jitter."""

    def __call__(self, frames: Tensor, prompt_id: str, seed: int) -> Answers:
        """Its answers on one clip.

        frames: (F, H, W, 3) float32 in [0, 1], those of `frame_indices`, in that order. seed: as given to it.
        """


class WeightedJudge(NamedTuple):
    """A judge, and what its losses count for beside those of the others."""

    judge: Judge
    weight: float  # above 0


class Answered(NamedTuple):
    """One answer, as a number."""

    question: str  # judge/question
    loss: float
    p_wanted: float  # NaN where a metric has none


class Judged(NamedTuple):
    """What all judges say of one clip."""

    gradient: Tensor  # (1, C, F, h, w) of `scale` times the loss, by the clip's latents
    loss: float  # summed over questions, weighted over judges
    answers: tuple[Answered, ...]


def judge_clip(
    latents: Tensor,
    prompt_id: str,
    judges: Sequence[WeightedJudge],
    seeds: Sequence[int],
    decode: Decode,
    num_frames: int,
    scale: float,
) -> Judged:
    """The judges' answers on one clip, each judge's summed over its questions, and their gradient.

    latents: (1, C, F, h, w), taken without their graph. seeds: one for each judge. num_frames: of the clip, of which
    only those are decoded that some judge looks at. scale: of the gradient alone.
    Eq. 3 of Diffusion-DRF sums over tokens and questions; weights over several judges are ours.
    Raises NonFiniteLossError naming the prompt, judge and question; ValueError for a judge that asks nothing.
    """
    shown = [judge.frame_indices(num_frames, seed) for (judge, _), seed in zip(judges, seeds, strict=True)]
    indices = sorted({index for looked_at in shown for index in looked_at})
    clip = latents.detach().requires_grad_()
    decoded = decode(clip, indices)
    _check(decoded, f"prompt {prompt_id}: its decoded frames are not finite")
    frames = decoded.detach().requires_grad_()
    loss = 0.0
    answered: list[Answered] = []
    for (judge, weight), looked_at, seed in zip(judges, shown, seeds, strict=True):
        answers = judge(frames[[indices.index(index) for index in looked_at]], prompt_id, seed)
        if not answers.questions:
            raise ValueError(f"judge {judge.name} has no question for prompt {prompt_id}: leave the prompt out")
        for question, value in zip(answers.questions, answers.loss, strict=True):
            _check(value, f"judge {judge.name}, question {question}, prompt {prompt_id}: loss {value.item()}")
        total = weight * answers.loss.sum()
        (scale * total).backward()
        assert frames.grad is not None
        _check(frames.grad, f"judge {judge.name}, prompt {prompt_id}: the gradient of its loss is not finite")
        loss += total.item()
        names = [f"{judge.name}/{question}" for question in answers.questions]
        answered += map(Answered, names, answers.loss.tolist(), answers.p_wanted.tolist())
    decoded.backward(frames.grad)
    assert clip.grad is not None
    _check(clip.grad, f"prompt {prompt_id}: the gradient of its decoding is not finite")
    return Judged(clip.grad, loss, tuple(answered))


def _check(values: Tensor, message: str) -> None:
    if not torch.isfinite(values).all():
        raise NonFiniteLossError(message)
