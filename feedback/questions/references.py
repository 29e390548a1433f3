"""Reference answers (Diffusion-DRF §3.3, §6.3): the judge's own answers to the same questions about a real clip.

The generator is trained towards them: the wanted answer, and the explanation that follows it. A prompt is left out of
training where the judge does not give the wanted answer to every question about its real clip: the judge cannot see
what the question is about, or the caption is wrong.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.prompts import Prompt
from data.video import read_fps, read_video, sample_frames
from feedback.core.rubric import Question
from feedback.differentiable.asks import Ask
from feedback.judges.vlm import QwenSource, VlmReply, sampled_fps
from feedback.questions.sheet import Explanation

logger = logging.getLogger(__name__)

MOST_TOKENS = 512  # of answer and explanation: L in §3.2, the judge's `max_new_tokens`
MOST_WORDS: dict[Explanation, int | None] = {"short": 50, "long": None}  # §6.4, and its discussion of chain of thought
NAMED = 3  # dropped prompts that a message names


class RealClip(NamedTuple):
    """The sampled frames of a real clip. frames: uint8 (F, H, W, 3). fps: of these frames, not of the clip."""

    frames: np.ndarray
    fps: float


class Referenced(NamedTuple):
    """The questions with the judge's explanations, and the prompts that are left out."""

    asks: dict[str, tuple[Ask, ...]]  # by prompt_id
    dropped: dict[str, str]  # prompt_id -> the question that its real clip failed, and the answer


class RealClips(Mapping[str, RealClip]):
    """The reference clips of a prompt set by prompt_id, each read on access: `frames` of it, evenly spaced."""

    def __init__(self, prompts: Sequence[Prompt], frames: int) -> None:
        self.paths = {prompt.prompt_id: Path(prompt.reference) for prompt in prompts if prompt.reference}
        self.num_frames = frames

    def __getitem__(self, prompt_id: str) -> RealClip:
        """Raises ValueError naming the file where it cannot be read or has fewer frames."""
        path = self.paths[prompt_id]
        frames, fps = read_video(path), read_fps(path)
        if len(frames) < self.num_frames:
            raise ValueError(f"{path}: {len(frames)} frames, expected at least {self.num_frames}")
        indices = sample_frames(len(frames), self.num_frames)
        return RealClip(frames[indices], sampled_fps(indices, fps))

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def real_clips(prompts: Sequence[Prompt], frames: int, fps: float) -> RealClips:
    """The reference clips of the prompt set: `references: prompts`. fps is not used, since each file has its own."""
    return RealClips(prompts, frames)


AskVlm = Callable[[Ask, RealClip], VlmReply]


def asking(judge: QwenSource) -> AskVlm:
    """The answers of a judge in this process. Where a question compares two clips, both are the real clip."""

    def ask_vlm(ask: Ask, clip: RealClip) -> VlmReply:
        question = Question(ask.name, ask.text, affirmative=ask.wanted, negative=ask.other, wanted=True, required=True)
        return judge.say(question, [clip.frames] * (1 + ask.with_reference), clip.fps)

    return ask_vlm


def reference_answers(
    asks: Mapping[str, Sequence[Ask]],
    references: Mapping[str, RealClip],
    ask_vlm: AskVlm,
    explanation: Explanation | None,
) -> Referenced:
    """The questions of the prompts for whose real clip the judge gives every wanted answer, in their order.

    explanation: which of the judge each gets: short, at most 50 words of it; long, all of it; None, none. A prompt
    without a real clip keeps the questions without comparison, without explanation. Logs what is left out, with the
    first reasons.
    Raises ValueError where no prompt is left.
    """
    kept: dict[str, tuple[Ask, ...]] = {}
    dropped: dict[str, str] = {}
    without = [prompt_id for prompt_id in asks if prompt_id not in references]
    for prompt_id, of_prompt in tqdm(asks.items(), unit="prompt", desc="reference answers"):
        if prompt_id in references:
            found = _answered(of_prompt, references[prompt_id], ask_vlm, explanation)
        else:
            found = tuple(ask for ask in of_prompt if not ask.with_reference)
            found = found or "it has no real clip, and all its questions compare with one"
        if isinstance(found, str):
            dropped[prompt_id] = found
        else:
            kept[prompt_id] = found
    reasons = "; ".join(f"{prompt_id}: {why}" for prompt_id, why in list(dropped.items())[:NAMED])
    if not kept:
        raise ValueError(f"no prompt of {len(asks)} is left to train on: {reasons}")
    if without:
        logger.warning("%d of %d prompts have no real clip: their questions are those without comparison, without "
                       "explanation", len(without), len(asks))  # fmt: skip
    if dropped:
        logger.warning("%d of %d prompts are left out: %s", len(dropped), len(asks), reasons)
    return Referenced(kept, dropped)


def _answered(
    asks: Sequence[Ask], clip: RealClip, ask_vlm: AskVlm, explanation: Explanation | None
) -> tuple[Ask, ...] | str:
    """The questions with the judge's explanations for the real clip; or the first that the clip fails, and how."""
    answered = []
    for ask in asks:
        reply = ask_vlm(ask, clip)
        if reply.answer is None:
            return f"{ask.name}: {reply.error}"
        if not reply.answer:
            found = reply.words or ask.other
            return f"{ask.name}: the judge's answer about the real clip is {found!r}, wanted is {ask.wanted}"
        if explanation is not None:
            ask = replace(ask, explanation=explanation_of(reply.words, ask.wanted, MOST_WORDS[explanation]))
        answered.append(ask)
    return tuple(answered)


def explanation_of(words: str, wanted: str, most: int | None) -> str | None:
    """The text after the wanted answer in a reply, punctuation included, so that answer + explanation is the reply.

    Of more than `most` words, the whole sentences among the first `most`; where there is none, these words; None: all
    words. Returns None where nothing follows the answer, or the reply does not begin with it.
    """
    begins = re.match(rf"{re.escape(wanted)}\b", words, re.IGNORECASE)
    rest = words[begins.end() :].strip() if begins else ""
    if not re.search(r"\w", rest):
        return None
    found = [match.end() for match in re.finditer(r"\S*\w\S*", rest)]
    if most is None or len(found) <= most:
        return rest
    cut = rest[: found[most - 1]]
    sentences = re.match(r".*\w[^\w\s]*[.!?](?=\s|$)", cut, re.DOTALL)
    return sentences[0] if sentences else cut
