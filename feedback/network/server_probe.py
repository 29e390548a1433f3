"""Finds out, before the first clip, whether a server shows a model the frames that it is sent, at their times.

A server may take frames of its own choice from a video, or ignore the times beside it, and answers all the same. Three
questions tell, for each size of clip:

    does the prompt grow by the same number of tokens with every pair of frames?  otherwise frames are left out
    does it refuse times that cannot be right?                                    otherwise it does not read them
    do the tokens and p_yes equal those of the same model in this process?        only where the block names it

The requests are no answers: they are in no ledger and no verdict.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from feedback.core.rubric import Question
from feedback.network.openai_protocol import parsed, read_usage
from feedback.network.pictures import PictureFormat, frame_times, frames_of, frames_url

logger = logging.getLogger(__name__)

# A processor may scale the frames of a video to fit a number of pixels, so that the tokens of a pair depend on how many
# there are. At some size nothing is scaled, while a server that leaves frames out does so at every size.
SCALES = (1.0, 0.5, 0.25, 2.0, 4.0)
LARGEST = 512  # pixels a side of frames that are scaled up
LEAST_FRAMES = 6  # of the longest of the three videos
TOLERANCE = 1e-2  # of p_yes
TIMES = "media_io_kwargs"  # the key of a request that holds the times
Send = Callable[[Mapping[str, Any]], Awaitable[str]]  # the raw reply to a body


class ServerMismatch(Exception):
    """What a server shows the model, and why it is not what was sent."""


class ProbedClip(NamedTuple):
    """The first clip as it is sent, and a question about it."""

    body: Mapping[str, Any]  # of the call, without the clip
    url: str  # the clip's
    picture: PictureFormat


class LocalAnswer(NamedTuple):
    """The answer of the same model in this process."""

    tokens: int  # of the prompt
    p_yes: float


Judge = Callable[[np.ndarray, float], LocalAnswer]  # takes the frames that the model sees, and their rate


def with_clip(body: Mapping[str, Any], url: str, times: Mapping[str, Any]) -> dict[str, Any]:
    """A body with a video of frames before its text. times: of `frame_times`."""
    (message,) = body["messages"]
    content = [{"type": "video_url", "video_url": {"url": url}}, *message["content"]]
    return {**body, "messages": [{**message, "content": content}], TIMES: {"video": times}}


async def check_frames(send: Send, shown: ProbedClip) -> None:
    """Raise ServerMismatch unless every pair of frames adds tokens to the prompt; warn where they are not counted."""
    frames = frames_of(shown.url)
    counts = 2, 4, max(LEAST_FRAMES, len(frames))
    first: str | None = None
    for scale in SCALES:
        height, width = (max(1, round(side * scale)) for side in frames.shape[1:3])
        if scale > 1 and max(height, width) > LARGEST:
            break
        tokens = [await _prompt_tokens(send, shown, synthetic(count, height, width)) for count in counts]
        if None in tokens:
            logger.warning(
                "the server does not say how many tokens a prompt has (`usage`), so it is not known whether it shows "
                "the model all frames"
            )
            return
        problem = missing_frames(counts, [count or 0 for count in tokens], f"{width}x{height}")
        if problem is None:
            return
        first = first or problem
    raise ServerMismatch(first)


def missing_frames(counts: tuple[int, int, int], tokens: list[int], size: str) -> str | None:
    """Why so many tokens are not those of so many frames; None where they are, by pairs or one by one.

    counts: 2, 4 and a larger number of frames. tokens: of the three prompts, which differ in the frames alone.
    """
    two, four, most = tokens
    listed = f"{two}, {four} and {most} prompt tokens for 2, 4 and {counts[2]} frames of {size}"
    if four <= two:
        return f"the server shows the model no more of four frames than of two: {listed}"
    seen = 2 + 2 * (most - two) / (four - two)
    even = counts[2] + counts[2] % 2  # a processor that takes pairs repeats the last of an odd number
    if min(abs(seen - counts[2]), abs(seen - even)) < 0.5:
        return None
    return f"the server shows the model {seen:.3g} of {counts[2]} frames: {listed}"


async def _prompt_tokens(send: Send, shown: ProbedClip, frames: np.ndarray) -> int | None:
    indices = range(len(frames))
    url = frames_url(frames, indices, shown.picture)
    reply = await send(with_clip({**shown.body, "max_tokens": 1}, url, frame_times(indices, 8.0)))
    used: int | None = read_usage(parsed(reply))["input_tokens"]
    return used


def synthetic(count: int, height: int, width: int) -> np.ndarray:
    """Frames of a bar that moves over a gradient, no two of them equal: uint8 (count, height, width, 3)."""
    ramp = np.linspace(0, 200, height * width).astype(np.uint8).reshape(height, width, 1)
    frames = np.repeat(np.repeat(ramp, 3, axis=2)[None], count, axis=0)
    for index, frame in enumerate(frames):
        frame[:, index * width // count : (index + 1) * width // count + 1, index % 3] = 255 - index % 50
    return frames


async def check_times(send: Send, shown: ProbedClip, refuses: Callable[[Exception], bool]) -> None:
    """Raise ServerMismatch where the server answers in spite of times that cannot be right.

    refuses: whether an exception is the server's refusal of a body.
    """
    frames = synthetic(2, *frames_of(shown.url).shape[1:3])
    times = frame_times([0, 1], 8.0) | {"frames_indices": [0]}  # one time for two frames
    try:
        await send(with_clip({**shown.body, "max_tokens": 1}, frames_url(frames, [0, 1], shown.picture), times))
    except Exception as error:
        if refuses(error):
            return
        raise
    raise ServerMismatch(f"the server ignores the times of the frames: it takes one time for two frames ({TIMES})")


async def check_answers(send: Send, shown: ProbedClip, here: Judge, p_yes_of: Callable[[str], float | None]) -> None:
    """Raise ServerMismatch where tokens or p_yes differ from those of the same model in this process.

    The first clip is shown as it is, backwards, and at twice its rate: a single answer may be so certain that nothing
    changes it. p_yes_of: of a raw reply.
    """
    frames, times = frames_of(shown.url), shown.body[TIMES]["video"]
    rate = len(frames) / times["total_num_frames"] * times["fps"]
    variants = (("as it is", frames, rate), ("backwards", frames[::-1], rate), ("at twice its rate", frames, 2 * rate))
    for how, variant, fps in variants:
        indices = range(len(variant))
        url = frames_url(variant, indices, shown.picture)
        reply = await send(with_clip(shown.body, url, frame_times(indices, fps)))
        tokens, p_yes = read_usage(parsed(reply))["input_tokens"], p_yes_of(reply)
        expected = await asyncio.to_thread(here, variant, fps)
        of_clip = f"{len(variant)} frames of the first clip, {how}"
        if tokens is not None and tokens != expected.tokens:
            found = f"{tokens} prompt tokens, and {expected.tokens} in this process"
            raise ServerMismatch(
                f"the server's model is not shown what the one of check_with is: {of_clip}, are {found}"
            )
        if p_yes is not None and abs(p_yes - expected.p_yes) > TOLERANCE:
            found = f"p_yes {p_yes:.4f}, and {expected.p_yes:.4f} in this process"
            raise ServerMismatch(
                f"the server's model does not answer as the one of check_with: {of_clip}, have {found}"
            )
        if p_yes is None:
            logger.warning("the server sends no log probabilities, so its answers were not compared with check_with's")
            return


def judge_here(path: str, question: Question, text: str, device: str) -> Judge:
    """The model at this path, loaded, as it answers a question. text: as it is sent. path: a local folder or hub id."""
    import torch

    from feedback.judges.vlm import answer_tokens, build_inputs, load_model, read_answers

    model, processor, _ = load_model("check_with", path, None, "float32", None, device)
    words = answer_tokens(processor.tokenizer, question)

    @torch.no_grad()
    def answer(frames: np.ndarray, fps: float) -> LocalAnswer:
        inputs = build_inputs(processor, [frames], [text], [fps]).to(device)
        (found,) = read_answers(model(**inputs).logits[:, -1], words)
        return LocalAnswer(inputs["input_ids"].shape[1], found.p_yes)

    return answer
