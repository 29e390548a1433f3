"""Implements kind `qwen`: a video VLM, its inputs and the answer in its logits (see feedback/judges/qwen.py)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.video_utils import VideoMetadata

from cluster.devices import fit_threads
from data.first_frames import read_png
from data.records import Comparison, Sample, Verdict
from data.video import sample_frames
from feedback.core.answers import reason_after
from feedback.core.rubric import AnyRubric, Question, Rubric
from feedback.core.source import (
    UNREADABLE_ANSWER,
    UNREADABLE_CLIP,
    Request,
    decoded,
    shown_first_frame,
    verdict,
    without_answer,
)
from feedback.core.weights import weights_version
from feedback.pairs.shown import ShownPair

COUNT_IN_PIXELS = (
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
)  # their `size` is a number of pixels, not an edge length
ROTARY = (  # arguments of get_rope_index
    "input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts",
)  # fmt: skip


class SampledClip(NamedTuple):
    """The frames of a clip that a judge sees."""

    sample: Sample
    indices: list[int]  # of the frames in the clip
    frames: np.ndarray  # (F, H, W, 3) uint8, the frames at `indices`
    first: np.ndarray | None  # (H, W, 3) uint8, the first frame, where the rubric shows it


class AnswerProbability(NamedTuple):
    """The affirmative word's share of the two answer words, and the probability that the first token is one of them."""

    p_yes: float
    mass: float


class VlmReply(NamedTuple):
    """A judge's reply to one question, in its own words."""

    answer: bool | None  # True: the affirmative word; None: neither word
    words: str  # its reply without special tokens; at most max_new_tokens tokens
    error: str | None  # why there is no answer


class AnswerTokens(NamedTuple):
    """Ids of the first tokens of the two answer words, in all spellings that the tokenizer distinguishes."""

    affirmative: list[int]
    negative: list[int]


class Loaded(NamedTuple):
    """The model of a `qwen` block."""

    model: PreTrainedModel  # on its device, in eval mode
    processor: ProcessorMixin
    version: str


def load_model(name: str, path: str, revision: str | None, dtype: str, pixels: int | None, device: str) -> Loaded:
    """The model and the processor of `feedback.sources.<name>`, the weights on the device.

    path: a local folder or a hub id. dtype: the name of a torch dtype. pixels: see `build_inputs`.
    Raises ValueError that names the option if the processor takes no videos or has no size in pixels.
    """
    branch = revision or "main"
    processor = AutoProcessor.from_pretrained(path, revision=branch)
    if getattr(processor, "video_processor", None) is None:
        raise ValueError(f"feedback.sources.{name}.path: {path} takes no videos")
    if pixels is not None and not isinstance(processor.video_processor, COUNT_IN_PIXELS):
        kind = type(processor.video_processor).__name__
        raise ValueError(f"feedback.sources.{name}.pixels is {pixels}, but {kind} has a fixed size; expected null")
    model = AutoModelForImageTextToText.from_pretrained(
        path, revision=branch, use_safetensors=True, dtype=getattr(torch, dtype)
    )
    version = weights_version(path, revision, model.config)
    fit_threads([model])
    return Loaded(model.to(device).eval(), processor, version)


class QwenSource:
    """Judges with a VLM in this process, batch_size clips at a time, a rubric's questions one after the other."""

    repeatable = True

    def __init__(
        self,
        name: str,
        rubric: AnyRubric,
        path: str,
        loaded: Loaded,
        batch_size: int,
        pixels: int | None,
        min_answer_mass: float,
        max_new_tokens: int,
    ) -> None:
        """path: the model's origin. pixels: see `build_inputs`.

        min_answer_mass: least probability of both answers together; below it the answer is unreadable.
        max_new_tokens: number of tokens of the judge's reply to keep as the reason.
        """
        self.name, self.rubric, self.model, self.model_version = name, rubric, path, loaded.version
        self.vlm, self.processor = loaded.model, loaded.processor
        self._batch_size, self.pixels = batch_size, pixels
        self.min_answer_mass, self._max_new_tokens = min_answer_mass, max_new_tokens
        self.answers: dict[tuple[str, str], AnswerTokens] = {}  # by the words of a question
        if rubric.first_frame and not takes_pictures(self.processor):
            raise ValueError(f"rubric {rubric.name} shows the first frame, but {path} takes no picture beside a video")
        for one in [rubric] if isinstance(rubric, Rubric) else map(rubric.of, rubric.own):
            self._learn(one)

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        """As the protocol says, in windows of batch_size consecutive clips."""
        window: list[tuple[Request, np.ndarray | str]] = []
        for one in decoded(requests, 2 * self._batch_size):
            window.append(one)
            if len(window) == self._batch_size:
                yield from self._judge_window(window)
                window = []
        yield from self._judge_window(window)

    def compare(self, pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
        """As a Comparer (feedback.pairs.shown), for a rubric that compares; at most batch_size clips at once."""
        from feedback.judges.vlm_pairs import compare  # which imports this module

        return compare(self, pairs, self._batch_size)

    def status(self) -> dict[str, Any]:
        """Empty: a local model has no retries and no cost."""
        return {}

    @torch.no_grad()
    def say(self, question: Question, clips: Sequence[np.ndarray], fps: float) -> VlmReply:
        """Its answer to one question about several clips in one message, without the rubric's instructions.

        clips: the frames that the judge sees, uint8 (F, H, W, 3) each, F the same for all. fps: their rate.
        """
        if problem := unreadable(self.processor, question.ask):
            return VlmReply(None, "", problem)
        inputs = build_inputs(self.processor, clips, [question.ask], [fps] * len(clips), self.pixels)
        logits, (reply,) = self.reply(inputs.to(self.vlm.device))
        (answer,) = read_answers(logits, answer_tokens(self.processor.tokenizer, question))
        facts = self.facts(question, answer, reply)
        words = self.processor.tokenizer.decode(reply, skip_special_tokens=True).strip()
        return VlmReply(facts.get("answer"), words, facts.get("error"))

    def _learn(self, rubric: Rubric) -> None:
        """Find the tokens of its answers. Raises ValueError for words that the tokenizer does not know."""
        tokenizer = self.processor.tokenizer
        for question in rubric.questions:
            if words_of(question) not in self.answers:
                self.answers[words_of(question)] = answer_tokens(tokenizer, question)
            if unknown := unknown_words(tokenizer, rubric.text(question, "")):
                raise ValueError(f"rubric {rubric.name}: {self.model} does not know its words {unknown}")

    def _judge_window(self, window: Sequence[tuple[Request, np.ndarray | str]]) -> Iterator[list[Verdict]]:
        """The verdicts on some consecutive clips. Clips with the same number of sampled frames form one batch.

        A pass asks each clip of a batch one question: the first of its prompt, then the second, and so on. The other
        clips in a pass change the last digits of p_yes. Batches therefore never span two windows: a run that is resumed
        between windows forms the same batches.
        """
        batches: dict[int, list[SampledClip]] = {}
        for request, frames in window:
            clip = frames if isinstance(frames, str) else sampled_clip(self.rubric, request, frames)
            problem = clip if isinstance(clip, str) else unreadable(self.processor, request.sample.prompt)
            if isinstance(clip, str) or problem:
                yield without_answer(self, request, str(problem))
            else:
                batches.setdefault(len(clip.indices), []).append(clip)
        for batch in batches.values():
            yield from self._judge_batch(batch)

    def _judge_batch(self, batch: Sequence[SampledClip]) -> Iterator[list[Verdict]]:
        """The verdicts on clips with the same number of frames, in as many passes as a clip has questions at most."""
        rows: list[list[Verdict]] = [[] for _ in batch]
        questions = [self.rubric.of(clip.sample.prompt).questions for clip in batch]
        for turn in range(max(map(len, questions))):
            places = [place for place, own in enumerate(questions) if turn < len(own)]
            asked = self._ask([batch[place] for place in places], [questions[place][turn] for place in places])
            for place, one in zip(places, asked, strict=True):
                rows[place].append(one)
        yield from rows

    @torch.no_grad()
    def _ask(self, batch: Sequence[SampledClip], questions: Sequence[Question]) -> list[Verdict]:
        """One question about each clip of a batch, in one forward pass."""
        fps = [sampled_fps(clip.indices, clip.sample.fps) for clip in batch]
        prompts = [clip.sample.prompt for clip in batch]
        inputs = build_inputs(
            self.processor,
            [clip.frames for clip in batch],
            [self.rubric.of(prompt).text(one, prompt) for prompt, one in zip(prompts, questions, strict=True)],
            fps,
            self.pixels,
            [[i * rate / clip.sample.fps for i in clip.indices] for clip, rate in zip(batch, fps, strict=True)],
            [clip.first for clip in batch if clip.first is not None],
        ).to(self.vlm.device)
        logits, replies = self.reply(inputs)
        lengths = inputs["attention_mask"].sum(-1).tolist()
        answers = self._read(logits, questions)
        verdicts = []
        for clip, question, answer, reply, length in zip(batch, questions, answers, replies, lengths, strict=True):
            facts = self.facts(question, answer, reply) | {"tokens": length + len(reply)}
            verdicts.append(verdict(self, clip.sample, 0, question, clip.indices, **facts))
        return verdicts

    def _read(self, logits: Tensor, questions: Sequence[Question]) -> list[AnswerProbability]:
        """The answer probabilities of each row of the first answer token's logits (B, V), by its question's words."""
        found: dict[int, AnswerProbability] = {}
        for words in dict.fromkeys(map(words_of, questions)):
            rows = [row for row, question in enumerate(questions) if words_of(question) == words]
            found |= zip(rows, read_answers(logits[rows], self.answers[words]), strict=True)
        return [found[row] for row in range(len(questions))]

    def reply(self, inputs: BatchFeature) -> tuple[Tensor, list[list[int]]]:
        """Logits (B, V) of the first answer token, and each clip's greedy continuation of at least one token."""
        padding = self.processor.tokenizer.pad_token_id
        out = self.vlm.generate(  # also for one token: only generate computes each model's positions beside padding
            **inputs,
            do_sample=False,
            repetition_penalty=1.0,  # a checkpoint's own penalty would suppress the words of the question
            max_new_tokens=max(1, self._max_new_tokens),
            pad_token_id=padding,
            return_dict_in_generate=True,
            output_logits=True,
        )
        new = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return out.logits[0], [row[:1] + [token for token in row[1:] if token != padding] for row in new]

    def facts(self, question: Question, answer: AnswerProbability, reply: list[int]) -> dict[str, Any]:
        """Fields of a verdict. reply: the tokens of its reply."""
        raw = self.processor.tokenizer.decode(reply).strip()
        if not answer.mass >= self.min_answer_mass:  # also true for nan
            least = f"at least {self.min_answer_mass:g} is asked for"
            words = f"{question.affirmative} or {question.negative}"
            return {"raw": raw, "error": f"{UNREADABLE_ANSWER}{words} has a probability of {answer.mass:.3g}, {least}"}
        affirmative = answer.p_yes > 0.5
        words = self.processor.tokenizer.decode(reply, skip_special_tokens=True)
        reason = reason_after(words, question, affirmative) if self._max_new_tokens else None
        return {"answer": affirmative, "p_yes": answer.p_yes, "raw": raw, "reason": reason}


def build_inputs(
    processor: ProcessorMixin,
    frames_list: Sequence[np.ndarray],
    texts: Sequence[str],
    fps: Sequence[float],
    pixels: int | None = None,
    places: Sequence[Sequence[float]] | None = None,
    firsts: Sequence[np.ndarray] = (),
) -> BatchFeature:
    """A video VLM's inputs for a batch of texts: one user message each, with the videos and then the text.

    frames_list: the frames that the model sees, uint8 (F, H, W, 3) per video, F the same for all. Every text has the
        same number of videos: first all videos of the first text, then those of the next text.
    fps: the rate of these frames, not of the clip. places: time of each frame in units of 1 / fps; None: 0, 1, 2...
    pixels: scale each frame to about this number of pixels and keep its aspect ratio; None: the processor's default.
    firsts: a picture before the videos of each text, uint8 (H, W, 3), scaled as a frame; empty: none.
    Inputs are padded on the left, so that the answer is predicted at the last position of every row. Qwen's inputs
    include `mm_token_type_ids`; without it the positions are silently wrong.
    """
    (num_frames,) = {len(frames) for frames in frames_list}
    order = frame_order(processor, num_frames)
    videos = [torch.from_numpy(np.ascontiguousarray(frames[order])).permute(0, 3, 1, 2) for frames in frames_list]
    metadata = [
        VideoMetadata(total_num_frames=len(order), fps=rate, frames_indices=[place[index] for index in order])
        for place, rate in zip(places or [range(num_frames)] * len(videos), fps, strict=True)
    ]
    scaled: dict[str, Any] = sizes(processor, pixels, len(order))
    if firsts:
        pictures = {"size": {"shortest_edge": pixels, "longest_edge": pixels}, "do_resize": True} if pixels else {}
        scaled = {"images": list(firsts), "images_kwargs": pictures, "videos_kwargs": scaled}
    return processor(
        text=[templated(processor, text, len(videos) // len(texts), pictures=bool(firsts)) for text in texts],
        videos=videos,
        video_metadata=metadata,
        do_sample_frames=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        **scaled,
    )


def positions_of(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """(R, T) positions of one sequence's tokens: the model's own (3, T) where it has these, else 0, 1, … as (1, T).

    inputs: a processor's, of one text: input_ids (1, T) and the others.
    """
    if not hasattr(model.model, "get_rope_index"):
        return torch.arange(inputs["input_ids"].shape[1])[None]
    known = {key: value for key, value in inputs.items() if key in ROTARY}
    positions: Tensor = model.model.get_rope_index(**known)[0]
    return positions[:, 0]


def templated(processor: ProcessorMixin, text: str, videos: int = 1, answering: bool = True, pictures: int = 0) -> str:
    """A user message of pictures, videos and a text in the judge's chat template, with one placeholder for each.

    answering: whether to append the tokens that begin the judge's turn, if the template has them.
    """
    content: list[dict[str, str]] = [*[{"type": "image"}] * pictures, *[{"type": "video"}] * videos]
    content.append({"type": "text", "text": text})
    message = [{"role": "user", "content": content}]
    rendered: str = processor.apply_chat_template(message, add_generation_prompt=answering, tokenize=False)
    if not isinstance(processor, Qwen3VLProcessor):
        return rendered
    # The processor puts brackets around each pair of frames. transformers 5 keeps the template's brackets around all
    # pairs; Qwen's own code, in transformers 4.57, removes them.
    bracketed = f"{processor.vision_start_token}{processor.video_token}{processor.vision_end_token}"
    return rendered.replace(bracketed, processor.video_token)


def takes_pictures(processor: ProcessorMixin) -> bool:
    """Whether a message may have a picture before its video, by the processor and its chat template."""
    token = getattr(processor, "image_token", None)
    has_processor = getattr(processor, "image_processor", None) is not None
    return has_processor and token is not None and templated(processor, "", pictures=1).count(token) == 1


def sampled_clip(rubric: AnyRubric, request: Request, frames: np.ndarray) -> SampledClip | str:
    """What a judge sees of a clip by its rubric, or why it sees none. frames: all of the clip's, uint8 (F, H, W, 3)."""
    indices = sample_frames(len(frames), rubric.frames or len(frames))
    first = shown_first_frame(rubric, request)
    try:
        picture = None if first is None else read_png(first.path)
    except ValueError as error:
        return f"{UNREADABLE_CLIP}{error}"
    return SampledClip(request.sample, indices, frames[indices], picture)


def frame_order(processor: ProcessorMixin, num_frames: int) -> list[int]:
    """Indices of the frames for the processor: each of `num_frames` once, but a single frame as often as it requires.

    Qwen3-VL's processor rejects a single frame; the others repeat it. All repeat the last of an odd number of frames.
    """
    least = getattr(processor.video_processor, "temporal_patch_size", 1)
    return [min(index, num_frames - 1) for index in range(max(num_frames, least))]


def sizes(processor: ProcessorMixin, pixels: int | None, num_frames: int) -> dict[str, Any]:
    """Arguments of the processor's call that scale each frame to about `pixels`."""
    if pixels is None:
        return {}
    if isinstance(processor.video_processor, Qwen3VLVideoProcessor):
        pixels *= num_frames  # it counts the pixels of a clip, not of a frame
    size = {"shortest_edge": pixels, "longest_edge": pixels}
    return {"size": size, "do_resize": True, "cap_pixels_per_frame": False}


def sampled_fps(indices: Sequence[int], fps: float) -> float:
    """Mean rate of the frames at these indices of a clip with rate `fps`; Qwen2.5-VL derives frame times from it."""
    span = indices[-1] - indices[0]
    return (len(indices) - 1) / span * fps if span else fps


def words_of(question: Question) -> tuple[str, str]:
    """A question's two answer words."""
    return question.affirmative, question.negative


def answer_tokens(tokenizer: Any, question: Question) -> AnswerTokens:
    """First tokens of a question's two answer words: as written, in other cases, and after a space.

    Raises ValueError if the vocabulary lacks a word, or if both words begin with the same token.
    """
    first = {}
    for word in (question.affirmative, question.negative):
        plain = tokenizer.encode(word, add_special_tokens=False)
        if not plain or tokenizer.unk_token_id in plain:
            raise ValueError(f"question {question.name}: the vocabulary lacks the answer {word!r}")
        first[word] = plain[0]
    if len(set(first.values())) == 1:
        words = f"{question.affirmative!r} and {question.negative!r}"
        raise ValueError(f"question {question.name}: the answers {words} begin with the same token")
    affirmative = first_tokens(tokenizer, question.affirmative)
    negative = first_tokens(tokenizer, question.negative)
    # A token that begins both, such as a single space, counts for neither.
    return AnswerTokens(sorted(affirmative - negative), sorted(negative - affirmative))


def first_tokens(tokenizer: Any, word: str) -> set[int]:
    """Ids of the tokens that begin a word: as written, in other cases, and after a space."""
    cases = {word, word.lower(), word.upper(), word.capitalize()}
    spellings = [tokenizer.encode(space + case, add_special_tokens=False) for case in cases for space in ("", " ")]
    return {spelling[0] for spelling in spellings if spelling} - {tokenizer.unk_token_id}


def read_answers(logits: Tensor, tokens: AnswerTokens) -> list[AnswerProbability]:
    """The answer probabilities of each row of the first answer token's logits (B, V)."""
    logs = logits.float().log_softmax(-1)
    yes = logs[:, tokens.affirmative].logsumexp(-1)
    no = logs[:, tokens.negative].logsumexp(-1)
    masses = torch.logaddexp(yes, no).exp()
    return [AnswerProbability(p, mass) for p, mass in zip((yes - no).sigmoid().tolist(), masses.tolist(), strict=True)]


def unreadable(processor: ProcessorMixin, prompt: str) -> str | None:
    """Why a judge cannot judge this prompt; None if it can."""
    tokens = dict.fromkeys([*processor.tokenizer.all_special_tokens, *processor.all_special_multimodal_tokens])
    if control := [token for token in tokens if token in prompt]:
        return f"the prompt holds control tokens {control}"
    if unknown := unknown_words(processor.tokenizer, prompt):
        return f"the prompt holds words outside the judge's vocabulary: {unknown}"
    return None


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Words of a text that the tokenizer does not know; empty for tokenizers that can encode any text."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in tokenizer.encode(text, add_special_tokens=False):
        return []
    return [word for word in text.split() if unknown in tokenizer.encode(word, add_special_tokens=False)]
