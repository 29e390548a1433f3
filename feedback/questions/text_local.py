"""A language model in this process that writes texts: the text side of a video VLM, or a plain one such as Qwen2.5.

Decoding is greedy, one request at a time, so equal requests have equal replies.
"""

import logging
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image
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
from feedback.questions.texts import TextReply, TextRequest

logger = logging.getLogger(__name__)

REPLY_TOKENS = 1024  # most tokens of a reply; a reply that is cut off there cannot be read


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
        """The tokenizer, or that of the processor."""
        return self.templater.tokenizer if isinstance(self.templater, ProcessorMixin) else self.templater

    def replies(self, requests: Sequence[TextRequest], task: str) -> list[TextReply]:
        """As feedback.questions.texts.TextModel says; nothing is stored between runs."""
        return [self._reply(request) for request in tqdm(requests, unit="text", desc=self.name)]

    @torch.no_grad()
    def _reply(self, request: TextRequest) -> TextReply:
        if problem := self._unreadable(request):
            return TextReply(None, problem)
        inputs = self.templater.apply_chat_template(
            [{"role": "user", "content": self._content(request)}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        out = self.model.generate(
            **inputs,
            do_sample=False,
            repetition_penalty=1.0,  # a checkpoint's own penalty would suppress the words of the caption
            max_new_tokens=REPLY_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = out[0, inputs["input_ids"].shape[1] :]
        text = self.tokenizer.decode(new, skip_special_tokens=True).strip()
        return TextReply(text, None) if text else TextReply(None, "an empty reply")

    def _unreadable(self, request: TextRequest) -> str | None:
        """Why the model cannot take a request; None if it can."""
        if request.image is not None and not isinstance(self.templater, ProcessorMixin):
            return f"{self.name} takes no pictures, and the request has one"
        if control := [token for token in self.tokenizer.all_special_tokens if token in request.text]:
            return f"the request holds control tokens {control}"
        if unknown := unknown_words(self.tokenizer, request.text):
            return f"the request holds words outside the model's vocabulary: {', '.join(unknown[:5])}"
        return None

    def _content(self, request: TextRequest) -> Any:
        """The request as the chat template takes it."""
        if not isinstance(self.templater, ProcessorMixin):
            return request.text
        picture = [{"type": "image", "image": Image.open(BytesIO(request.image))}] if request.image else []
        return [*picture, {"type": "text", "text": request.text}]
