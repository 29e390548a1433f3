"""The interface of a judge in online training, and the gradient of its answers by a clip's latents.

Memory: no more than the graphs of one clip's decoding and of one judge are held at a time. A leaf separates them; its
gradient is back-propagated through the decoding when the judge's graph is freed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data.counts import Counts, count
from rl.training.run import NonFiniteLossError

Decode = Callable[[Tensor, Sequence[int]], Tensor]
"""Latents (1, C, F, h, w) and frame indices, rising -> those frames (len(indices), H, W, 3) in [0, 1], with graph."""


class JudgeAnswers(Protocol):
    """A judge's questions about one clip and its answers; any NamedTuple with these fields."""

    @property
    def questions(self) -> tuple[str, ...]:
        """N names, each once."""

    @property
    def loss(self) -> Tensor:
        """(N,) nats, or the negative of a metric's score, with gradient."""

    @property
    def p_wanted(self) -> Tensor:
        """(N,) detached probability of the wanted answer in one spelling; NaN where a metric has none.

        p_yes of a Verdict sums over all spellings of the answer, so the two differ.
        """


class Judge(Protocol):
    """A frozen judge that torch can differentiate."""

    name: str

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        """Indices of the clip's frames that it sees. seed: of its frame jitter."""

    def __call__(self, frames: Tensor, prompt_id: str, seed: int) -> JudgeAnswers:
        """Its answers about one clip.

        frames: (F, H, W, 3) float32 in [0, 1], those of `frame_indices`, in that order. seed: as given to it.
        """


class WeightedJudge(NamedTuple):
    """A judge and the weight of its losses."""

    judge: Judge
    weight: float  # above 0


class QuestionResult(NamedTuple):
    """The answer to one question about one clip, as numbers."""

    question: str  # judge/question
    loss: float
    p_wanted: float  # NaN where a metric has none


class JudgedClip(NamedTuple):
    """All judges' answers about one clip, and their gradient."""

    gradient: Tensor  # (1, C, F, h, w) of `scale` times the loss, by the clip's latents
    loss: float  # summed over questions, weighted over judges
    results: tuple[QuestionResult, ...]


def judge_clip(
    latents: Tensor,
    prompt_id: str,
    judges: Sequence[WeightedJudge],
    seeds: Sequence[int],
    decode: Decode,
    num_frames: int,
    scale: float,
) -> JudgedClip:
    """The judges' answers about one clip, each judge's losses summed over its questions, and their gradient.

    latents: (1, C, F, h, w), taken without their graph. seeds: one for each judge. num_frames: of the clip, of which
    only those that a judge sees are decoded. scale: of the gradient alone.
    Eq. 3 of Diffusion-DRF sums over tokens and questions; weights over several judges are ours.
    Raises NonFiniteLossError naming the prompt, judge and question; ValueError for a judge without a question.
    """
    frames_of = [judge.frame_indices(num_frames, seed) for (judge, _), seed in zip(judges, seeds, strict=True)]
    indices = sorted({index for own in frames_of for index in own})
    clip = latents.detach().requires_grad_()
    decoded = decode(clip, indices)
    _check(decoded, f"prompt {prompt_id}: its decoded frames are not finite")
    frames = decoded.detach().requires_grad_()
    loss = 0.0
    results: list[QuestionResult] = []
    for (judge, weight), own, seed in zip(judges, frames_of, seeds, strict=True):
        answers = judge(frames[[indices.index(index) for index in own]], prompt_id, seed)
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
        results += map(QuestionResult, names, answers.loss.tolist(), answers.p_wanted.tolist())
        count(Counts(judge_calls=len(names)))
    decoded.backward(frames.grad)
    assert clip.grad is not None
    _check(clip.grad, f"prompt {prompt_id}: the gradient of its decoding is not finite")
    return JudgedClip(clip.grad, loss, tuple(results))


def _check(values: Tensor, message: str) -> None:
    if not torch.isfinite(values).all():
        raise NonFiniteLossError(message)
