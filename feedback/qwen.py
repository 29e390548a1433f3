"""A local video VLM as a source: Qwen2.5-VL, or whatever transformers loads for image-text-to-text with videos.

The answer is read from the distribution of the first answer token, not from sampled text: one forward pass, no
parsing, and a probability. With yes and no the sets of first tokens of the two words in all their spellings,

    p_yes = mass(yes) / (mass(yes) + mass(no)),    mass(S) = sum of softmax(logits) over S.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.video_utils import VideoMetadata

from data.records import Verdict
from data.video import sample_frames
from feedback.rubric import Question, Rubric, load_rubric
from feedback.source import Request, verdict

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DECIDES = ("*.safetensors", "*config.json", "tokenizer*", "vocab*", "merges.txt", "chat_template*")


@dataclass(frozen=True)
class Options:
    """A `qwen` block of params.yaml."""

    path: str  # a local folder, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct
    revision: str | None  # commit, tag or branch of a hub id; null for a local folder
    rubric: str  # YAML file
    batch_size: int  # clips per forward pass
    dtype: str  # float32 | bfloat16 | float16
    pixels: int | None = None  # scale each frame to about this many pixels; null: as the judge's own processor says
    min_answer_mass: float = 0.05  # probability that both answers together must hold; less is off-topic: null
    max_new_tokens: int = 0  # tokens of the judge's own words to keep as the reason; 0 is none, and much faster

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, known are {list(DTYPES)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1 clip")
        if self.local and self.revision is not None:
            raise ValueError(f"revision is {self.revision!r}, but {self.path} is a local folder: null")
        if not self.local and self.path.count("/") != 1:
            raise ValueError(f"path: {self.path} is neither a folder nor a hub id")

    @property
    def local(self) -> bool:
        """Whether the path is a folder of this machine."""
        return Path(self.path).is_dir()


class Answer(NamedTuple):
    """A judge's answer: the probability of the affirmative word, and of either word being said at all."""

    p_yes: float
    mass: float


class AnswerTokens(NamedTuple):
    """Ids of the first tokens of the two answer words, in the spellings that the tokenizer tells apart."""

    affirmative: list[int]
    negative: list[int]


def load(name: str, options: Options, device: str) -> "QwenSource":
    """The judge of this block, with its weights on the device."""
    revision = options.revision or "main"
    processor = AutoProcessor.from_pretrained(options.path, revision=revision)
    model = AutoModelForImageTextToText.from_pretrained(
        options.path, revision=revision, use_safetensors=True, dtype=DTYPES[options.dtype]
    )
    model.to(device)
    version = fingerprint(Path(options.path)) if options.local else options.revision or model.config._commit_hash
    return QwenSource(name, load_rubric(Path(options.rubric)), model, processor, version, options)


def fingerprint(folder: Path) -> str:
    """Twelve hex digits of everything in a judge's folder that decides its verdicts: weights, configs, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in DECIDES for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


class QwenSource:
    """Asks a VLM in this process, batch_size clips at a time, a rubric's questions one after the other."""

    def __init__(
        self,
        name: str,
        rubric: Rubric,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        model_version: str,
        options: Options,
    ) -> None:
        self.name, self.rubric, self.processor, self.options = name, rubric, processor, options
        self.vlm = model.eval()
        self.model, self.model_version = options.path, model_version
        self.answers = {question.name: answer_tokens(processor.tokenizer, question) for question in rubric.questions}
        for question in rubric.questions:
            if unknown := unknown_words(processor.tokenizer, rubric.text(question, "")):
                raise ValueError(f"rubric {rubric.name}: {options.path} does not know its words {unknown}")

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        size = self.options.batch_size
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [v for batch in batches for question in self.rubric.questions for v in self._ask(question, batch)]

    @torch.no_grad()
    def _ask(self, question: Question, requests: Sequence[Request]) -> list[Verdict]:
        """One question about at most batch_size clips, in one forward pass."""
        verdicts, asked = [], []
        for request in requests:
            if problem := unreadable(self.processor.tokenizer, request.sample.prompt):
                verdicts.append(verdict(self, request.sample, request.vote, question, [], error=problem))
            else:
                asked.append(request)
        if not asked:
            return verdicts
        shown = [sample_frames(len(r.frames), self.rubric.frames or len(r.frames)) for r in asked]
        inputs = build_inputs(
            self.processor,
            [request.frames[indices] for request, indices in zip(asked, shown, strict=True)],
            [self.rubric.text(question, request.sample.prompt) for request in asked],
            [sampled_fps(indices, r.sample.fps) for r, indices in zip(asked, shown, strict=True)],
            self.options.pixels,
        ).to(self.vlm.device)
        logits, replies = self._reply(inputs)
        lengths = inputs["attention_mask"].sum(-1).tolist()
        answers = read_answers(logits, self.answers[question.name])
        for request, indices, answer, reply, length in zip(asked, shown, answers, replies, lengths, strict=True):
            told = self._told(question, answer, reply) | {"tokens": length + len(reply)}
            verdicts.append(verdict(self, request.sample, request.vote, question, indices, **told))
        return verdicts

    def _reply(self, inputs: BatchFeature) -> tuple[Tensor, list[list[int]]]:
        """Logits (B, V) of the first answer token, and each clip's most probable continuation, at least that token."""
        if not self.options.max_new_tokens:
            logits = self.vlm(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            return logits, logits.argmax(-1, keepdim=True).tolist()
        out = self.vlm.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.options.max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        padding = self.processor.tokenizer.pad_token_id
        new = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return out.logits[0], [[token for token in row if token != padding] for row in new]

    def _told(self, question: Question, answer: Answer, reply: list[int]) -> dict[str, Any]:
        raw = self.processor.tokenizer.decode(reply).strip()
        if not answer.mass >= self.options.min_answer_mass:  # also when it is not a number
            least = f"at least {self.options.min_answer_mass:g} is asked for"
            words = f"{question.affirmative} or {question.negative}"
            return {"raw": raw, "error": f"unreadable: {words} has a probability of {answer.mass:.3g}, {least}"}
        said = answer.p_yes > 0.5
        word = question.affirmative if said else question.negative
        words = self.processor.tokenizer.decode(reply, skip_special_tokens=True).strip()
        reason = words.removeprefix(word).strip(" .,:;-\n") if self.options.max_new_tokens else None
        return {"answer": said, "p_yes": answer.p_yes, "raw": raw, "reason": reason or None}


def build_inputs(
    processor: ProcessorMixin,
    frames_list: Sequence[np.ndarray],
    texts: Sequence[str],
    fps: Sequence[float],
    pixels: int | None = None,
) -> BatchFeature:
    """A video VLM's inputs for a batch of clips: a user's message of the video and then the text, answer to come.

    frames_list: uint8 (F, H, W, 3) each, the frames that are shown; fps: their own rate, not that of the clip.
    pixels: scale each frame to about this many, keeping its shape; None is what the processor's configuration says.
    Padded on the left, so that the answer is predicted at the last position of every row. Holds
    `mm_token_type_ids`, without which Qwen's positions silently degrade.
    """
    conversation: list = [
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}] for text in texts
    ]
    videos = [torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2) for frames in frames_list]
    size = {} if pixels is None else {"size": {"shortest_edge": pixels, "longest_edge": pixels}, "do_resize": True}
    return processor(
        text=processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False),
        videos=videos,
        video_metadata=[
            VideoMetadata(total_num_frames=len(video), fps=rate, frames_indices=list(range(len(video))))
            for video, rate in zip(videos, fps, strict=True)
        ],
        do_sample_frames=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        **size,
    )


def sampled_fps(indices: Sequence[int], fps: float) -> float:
    """Frames per second of the frames at these indices of a clip of `fps`: Qwen places them in time by it."""
    span = indices[-1] - indices[0]
    return (len(indices) - 1) / span * fps if span else fps


def answer_tokens(tokenizer: Any, question: Question) -> AnswerTokens:
    """First tokens of a question's two answer words, each as written, in other cases, and after a space.

    Raises ValueError where a word is unknown to the vocabulary, or both begin with the same token.
    """
    first = {}
    for word in (question.affirmative, question.negative):
        plain = tokenizer.encode(word, add_special_tokens=False)
        if not plain or tokenizer.unk_token_id in plain:
            raise ValueError(f"question {question.name}: the vocabulary does not hold the answer {word!r}")
        first[word] = plain[0]
    if len(set(first.values())) == 1:
        words = f"{question.affirmative!r} and {question.negative!r}"
        raise ValueError(f"question {question.name}: the answers {words} begin with the same token")
    affirmative = _first_tokens(tokenizer, question.affirmative)
    negative = _first_tokens(tokenizer, question.negative)
    # What both can begin with, such as a lone space, speaks for neither.
    return AnswerTokens(sorted(affirmative - negative), sorted(negative - affirmative))


def _first_tokens(tokenizer: Any, word: str) -> set[int]:
    cases = {word, word.lower(), word.upper(), word.capitalize()}
    spellings = [tokenizer.encode(space + case, add_special_tokens=False) for case in cases for space in ("", " ")]
    return {spelling[0] for spelling in spellings if spelling} - {tokenizer.unk_token_id}


def read_answers(logits: Tensor, tokens: AnswerTokens) -> list[Answer]:
    """What the logits (B, V) of the first answer token say."""
    logs = logits.float().log_softmax(-1)
    yes = logs[:, tokens.affirmative].logsumexp(-1)
    no = logs[:, tokens.negative].logsumexp(-1)
    masses = torch.logaddexp(yes, no).exp()
    return [Answer(p, mass) for p, mass in zip((yes - no).sigmoid().tolist(), masses.tolist(), strict=True)]


def unreadable(tokenizer: Any, prompt: str) -> str | None:
    """Why a judge cannot be asked about this prompt; null if it can."""
    if control := [token for token in tokenizer.all_special_tokens if token in prompt]:
        return f"the prompt holds control tokens {control}"
    if unknown := unknown_words(tokenizer, prompt):
        return f"the prompt holds words outside the judge's vocabulary: {unknown}"
    return None


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Words of a text that the tokenizer does not know; none for tokenizers that spell out whatever they meet."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in tokenizer.encode(text, add_special_tokens=False):
        return []
    return [word for word in text.split() if unknown in tokenizer.encode(word, add_special_tokens=False)]
