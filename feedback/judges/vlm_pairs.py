"""Two clips in one message to a video VLM of kind `qwen`: which is better, read from its first answer token."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from data.records import Comparison
from feedback.core.rubric import Question
from feedback.core.source import UNREADABLE_CLIP, decoded
from feedback.judges.vlm import (
    AnswerProbability,
    SampledClip,
    answer_tokens,
    build_inputs,
    first_tokens,
    sampled_clip,
    sampled_fps,
    unreadable,
)
from feedback.pairs.shown import ShownPair, comparison, without_comparison

if TYPE_CHECKING:
    from feedback.judges.vlm import QwenSource


class SampledPair(NamedTuple):
    """Two clips as a judge sees them, the first shown first."""

    shown: ShownPair
    first: SampledClip
    second: SampledClip


class ChoiceProbability(NamedTuple):
    """What the first answer token says."""

    answer: AnswerProbability  # of the two words that name a side
    tie: float  # probability of the word for a tie; 0 where the question has none


def compare(source: "QwenSource", pairs: Iterable[ShownPair], batch_size: int) -> Iterator[list[Comparison]]:
    """The source's comparisons of each shown pair, in windows of batch_size consecutive pairs.

    A forward pass has at most batch_size clips, and two at least. Batches never span two windows, so a run that is
    resumed between windows forms the same batches.
    """
    window: list[ShownPair] = []
    for shown in pairs:
        window.append(shown)
        if len(window) == batch_size:
            yield from _compare_window(source, window, max(1, batch_size // 2))
            window = []
    yield from _compare_window(source, window, max(1, batch_size // 2))


def _compare_window(source: "QwenSource", window: Sequence[ShownPair], at_once: int) -> Iterator[list[Comparison]]:
    """The comparisons of some consecutive pairs. Pairs whose clips have as many sampled frames form batches."""
    clips = _clips(source, window)
    batches: dict[int, list[SampledPair]] = {}
    for shown in window:
        first, second = (clips[one.path] for one in (shown.first, shown.second))
        if isinstance(problem := _problem(source, shown, first, second), str):
            yield without_comparison(source, shown, problem)
        else:
            batches.setdefault(len(problem.first.indices), []).append(problem)
    for batch in batches.values():
        for start in range(0, len(batch), at_once):
            part = batch[start : start + at_once]
            questions = source.rubric.of(part[0].shown.prompt).questions  # a rubric that compares has one list
            yield from map(list, zip(*(_ask(source, one, part) for one in questions), strict=True))


def _clips(source: "QwenSource", window: Sequence[ShownPair]) -> dict[Path, SampledClip | str]:
    """By path, the frames of the window's clips that the judge sees, or why it sees none; each is decoded once."""
    requests = {one.path: one for shown in window for one in (shown.first, shown.second)}
    found: dict[Path, SampledClip | str] = {}
    for request, frames in decoded(requests.values(), len(requests)):
        if isinstance(frames, str):
            found[request.path] = frames
        else:
            found[request.path] = sampled_clip(source.rubric, request, frames)
    return found


def _problem(
    source: "QwenSource", shown: ShownPair, first: SampledClip | str, second: SampledClip | str
) -> SampledPair | str:
    """The pair as it is shown, or why it cannot be."""
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    if len(first.indices) != len(second.indices):
        return f"{UNREADABLE_CLIP}{len(first.indices)} and {len(second.indices)} frames; both clips need as many"
    return unreadable(source.processor, shown.prompt) or SampledPair(shown, first, second)


@torch.no_grad()
def _ask(source: "QwenSource", question: Question, batch: Sequence[SampledPair]) -> list[Comparison]:
    """One question about each pair of a batch, in one forward pass."""
    clips = [clip for pair in batch for clip in (pair.first, pair.second)]
    fps = [sampled_fps(clip.indices, clip.sample.fps) for clip in clips]
    inputs = build_inputs(
        source.processor,
        [clip.frames for clip in clips],
        [source.rubric.of(pair.shown.prompt).text(question, pair.shown.prompt) for pair in batch],
        fps,
        source.pixels,
        [[i * rate / clip.sample.fps for i in clip.indices] for clip, rate in zip(clips, fps, strict=True)],
        [pair.first.first for pair in batch if pair.first.first is not None],  # one for both clips
    ).to(source.vlm.device)
    logits, replies = source.reply(inputs)
    lengths = inputs["attention_mask"].sum(-1).tolist()
    rows = []
    for pair, choice, reply, length in zip(
        batch, read_choices(logits, source.processor.tokenizer, question), replies, lengths, strict=True
    ):
        facts = _facts(source, question, choice, reply) | {"tokens": length + len(reply)}
        frames = (pair.first.indices, pair.second.indices)
        rows.append(comparison(source, pair.shown, 0, question, frames, facts))
    return rows


def read_choices(logits: Tensor, tokenizer: Any, question: Question) -> list[ChoiceProbability]:
    """What each row of the first answer token's logits (B, V) says."""
    tokens = answer_tokens(tokenizer, question)
    tie = first_tokens(tokenizer, question.tie) if question.tie else set()
    logs = logits.float().log_softmax(-1)
    first, second, neither = (
        logs[:, sorted(set(words) - other)].exp().sum(-1)
        for words, other in (
            (tokens.affirmative, tie), (tokens.negative, tie),
            (tie, {*tokens.affirmative, *tokens.negative}),
        )
    )  # fmt: skip
    found = zip((first / (first + second)).tolist(), (first + second).tolist(), neither.tolist(), strict=True)
    return [ChoiceProbability(AnswerProbability(p_first, mass), tie_mass) for p_first, mass, tie_mass in found]


def _facts(source: "QwenSource", question: Question, choice: ChoiceProbability, reply: list[int]) -> dict[str, Any]:
    """Fields of a verdict, by the word with the highest probability."""
    p_yes, mass = choice.answer
    all_words = AnswerProbability(p_yes, mass + choice.tie)
    if choice.tie > mass * max(p_yes, 1 - p_yes) and all_words.mass >= source.min_answer_mass:
        share = (p_yes * mass + choice.tie / 2) / all_words.mass  # a tie counts for both sides
        return {"raw": source.processor.tokenizer.decode(reply).strip(), "tie": True, "p_yes": share}
    return source.facts(question, all_words, reply)
