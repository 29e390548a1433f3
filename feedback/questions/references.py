"""Reference answers (Diffusion-DRF §3.3, §6.3): what the judge itself says to the same questions about a real clip.

That is what the generator is trained towards: the wanted answer, and the explanation that follows it. A
prompt of whose real clip the judge denies the wanted answer to any question is not trained on: the judge does not see
what it is asked about, or the caption is wrong.
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
from feedback.judges.vlm import QwenSource, Said, sampled_fps

logger = logging.getLogger(__name__)

MOST_TOKENS = 512  # of answer and explanation: L in §3.2, the `max_new_tokens` that the judge is to be loaded with
MOST_WORDS = 50  # of an explanation: §6.4
SHOWN = 3  # dropped prompts that a message names


class RealClip(NamedTuple):
    """The frames of a real clip that are shown. frames: uint8 (F, H, W, 3). fps: their own rate."""

    frames: np.ndarray
    fps: float


class Referenced(NamedTuple):
    """The questions with the judge's explanations, and the prompts that are left out."""

    asks: dict[str, tuple[Ask, ...]]  # by prompt_id
    dropped: dict[str, str]  # prompt_id -> which question its real clip failed, and how


class RealClips(Mapping[str, RealClip]):
    """The reference clips of a prompt set by prompt_id, read as they are asked for, `frames` of each, evenly spaced."""

    def __init__(self, prompts: Sequence[Prompt], frames: int) -> None:
        self.paths = {prompt.prompt_id: Path(prompt.reference) for prompt in prompts if prompt.reference}
        self.num_frames = frames

    def __getitem__(self, prompt_id: str) -> RealClip:
        """Raises ValueError naming the file where it is not readable or has fewer frames."""
        path = self.paths[prompt_id]
        frames, fps = read_video(path), read_fps(path)
        if len(frames) < self.num_frames:
            raise ValueError(f"{path}: {len(frames)} frames, and {self.num_frames} are to be shown")
        indices = sample_frames(len(frames), self.num_frames)
        return RealClip(frames[indices], sampled_fps(indices, fps))

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def real_clips(prompts: Sequence[Prompt], frames: int, fps: float) -> RealClips:
    """The reference clips of the prompt set: `references: prompts`. fps is not used, since each file has its own."""
    return RealClips(prompts, frames)


AskVlm = Callable[[Ask, RealClip], Said]


def asking(judge: QwenSource) -> AskVlm:
    """Asks a judge in this process. Where a question compares two clips, the real one stands in both places."""

    def ask_vlm(ask: Ask, clip: RealClip) -> Said:
        question = Question(ask.name, ask.text, affirmative=ask.wanted, negative=ask.other, wanted=True, required=True)
        return judge.say(question, [clip.frames] * (1 + ask.with_reference), clip.fps)

    return ask_vlm


def reference_answers(
    asks: Mapping[str, Sequence[Ask]], references: Mapping[str, RealClip], ask_vlm: AskVlm, explain: bool
) -> Referenced:
    """The questions of those prompts of whose real clip the judge gives every wanted answer, in their order.

    explain: whether each gets the judge's explanation, at most 50 words of it. A prompt without a real clip keeps the
    questions that compare with none, unexplained. What is left out is logged, with the first reasons.
    Raises ValueError where no prompt is left.
    """
    kept: dict[str, tuple[Ask, ...]] = {}
    dropped: dict[str, str] = {}
    without = [prompt_id for prompt_id in asks if prompt_id not in references]
    for prompt_id, of_prompt in tqdm(asks.items(), unit="prompt", desc="reference answers"):
        if prompt_id in references:
            told = _told(of_prompt, references[prompt_id], ask_vlm, explain)
        else:
            told = tuple(ask for ask in of_prompt if not ask.with_reference)
            told = told or "it has no real clip, and all its questions compare with one"
        if isinstance(told, str):
            dropped[prompt_id] = told
        else:
            kept[prompt_id] = told
    reasons = "; ".join(f"{prompt_id}: {why}" for prompt_id, why in list(dropped.items())[:SHOWN])
    if not kept:
        raise ValueError(f"no prompt of {len(asks)} is left to train on: {reasons}")
    if without:
        logger.warning("%d of %d prompts have no real clip: they are asked about alignment alone, without comparison "
                       "and without explanation", len(without), len(asks))  # fmt: skip
    if dropped:
        logger.warning("%d of %d prompts are left out: %s", len(dropped), len(asks), reasons)
    return Referenced(kept, dropped)


def _told(asks: Sequence[Ask], clip: RealClip, ask_vlm: AskVlm, explain: bool) -> tuple[Ask, ...] | str:
    """The questions with what the judge says of the real clip; or the first that it fails, in words."""
    told = []
    for ask in asks:
        said = ask_vlm(ask, clip)
        if said.answer is None:
            return f"{ask.name}: {said.error}"
        if not said.answer:
            return f"{ask.name}: of the real clip the judge says {said.words or ask.other!r}, wanted is {ask.wanted}"
        told.append(replace(ask, explanation=explanation_of(said.words, ask.wanted)) if explain else ask)
    return tuple(told)


def explanation_of(words: str, wanted: str, most: int = MOST_WORDS) -> str | None:
    """What follows the wanted answer in a reply, marks included, so that answer and explanation make the reply again.

    Of more than `most` words, the whole sentences among the first `most`; where there is none, just those words. Null
    where nothing follows the answer, or the reply does not begin with it.
    """
    begins = re.match(rf"{re.escape(wanted)}\b", words, re.IGNORECASE)
    rest = words[begins.end() :].strip() if begins else ""
    if not re.search(r"\w", rest):
        return None
    found = [match.end() for match in re.finditer(r"\S*\w\S*", rest)]
    if len(found) <= most:
        return rest
    cut = rest[: found[most - 1]]
    sentences = re.match(r".*\w[^\w\s]*[.!?](?=\s|$)", cut, re.DOTALL)
    return sentences[0] if sentences else cut
