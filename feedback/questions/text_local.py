"""A language model in this process that writes texts: the text side of a video VLM, or a plain one such as Qwen2.5.

Greedy, one message at a time, so equal messages have equal replies.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from feedback.judges.qwen import Options
from feedback.judges.vlm import unknown_words
from feedback.questions.text_model import Message, Reply

logger = logging.getLogger(__name__)

REPLY_TOKENS = 1024  # that a reply may have; what is cut off there cannot be read


class LocalText:
    """A model of `feedback.sources.<name>`, with its weights on the device."""

    def __init__(self, name: str, options: Options, device: str) -> None:
        revision = options.revision or "main"
        sees = type(AutoConfig.from_pretrained(options.path, revision=revision)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        self.name = f"{name} ({options.path})"
        self.templater: Any = (AutoProcessor if sees else AutoTokenizer).from_pretrained(
            options.path, revision=revision
        )
        dtype = getattr(torch, options.dtype)
        model = kind.from_pretrained(options.path, revision=revision, use_safetensors=True, dtype=dtype)
        self.model = model.to(device).eval()

    @property
    def tokenizer(self) -> Any:
        return self.templater.tokenizer if isinstance(self.templater, ProcessorMixin) else self.templater

    def replies(self, messages: Sequence[Message], task: str) -> list[Reply]:
        """As feedback.questions.text_model.TextModel says; nothing is kept between runs."""
        return [self._reply(message) for message in tqdm(messages, unit="text", desc=self.name)]

    @torch.no_grad()
    def _reply(self, message: Message) -> Reply:
        if problem := self._unreadable(message):
            return Reply(None, problem)
        inputs = self.templater.apply_chat_template(
            [{"role": "user", "content": self._content(message)}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        out = self.model.generate(
            **inputs,
            do_sample=False,
            repetition_penalty=1.0,  # or a checkpoint's own keeps it from the words of the caption
            max_new_tokens=REPLY_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = out[0, inputs["input_ids"].shape[1] :]
        text = self.tokenizer.decode(new, skip_special_tokens=True).strip()
        return Reply(text, None) if text else Reply(None, "an empty reply")

    def _unreadable(self, message: Message) -> str | None:
        """Why the model cannot be sent a message; null if it can."""
        if message.image is not None and not isinstance(self.templater, ProcessorMixin):
            return f"{self.name} takes no pictures, and the message has one"
        if control := [token for token in self.tokenizer.all_special_tokens if token in message.text]:
            return f"the message holds control tokens {control}"
        if unknown := unknown_words(self.tokenizer, message.text):
            return f"the message holds words outside the model's vocabulary: {', '.join(unknown[:5])}"
        return None

    def _content(self, message: Message) -> Any:
        if not isinstance(self.templater, ProcessorMixin):
            return message.text
        picture = [{"type": "image", "path": str(message.image)}] if message.image else []
        return [*picture, {"type": "text", "text": message.text}]
