"""The implementation of kind `hpsv2`: a CLIP of people's preferences, with its authors' preprocessing."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import numpy as np
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor
from torchvision.transforms.v2 import functional as images
from transformers import AutoTokenizer, BatchEncoding, CLIPModel, PreTrainedTokenizerBase

from feedback.core.weights import fingerprint, hub_page
from feedback.metrics.clip import VIT_H14
from feedback.metrics.hpsv2_checkpoint import converted
from feedback.metrics.image_text import WHITE, ImageText, channels_first, how_reduced
from feedback.metrics.metric import FrameOptions

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's


def load_hpsv2(
    name: str,
    path: str,
    file: str,
    revision: str,
    processor: str,
    cache: Path | None,
    options: FrameOptions,
    device: str,
) -> ImageText:
    """HPSv2 with its weights on the device; the arguments are as in feedback.metrics.hpsv2.Options.

    Raises ValueError that names feedback.sources.<name>.path or .processor if model or tokenizer cannot be loaded.
    """
    source, folder, version = _found(name, path, file, revision, cache)
    try:
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=getattr(torch, options.dtype))
    except (OSError, ValueError) as error:
        raise ValueError(f"feedback.sources.{name}.path: no CLIP could be loaded from {folder}: {error}") from error
    formula = "the cosine of their embeddings, the frame whole and padded with black"
    return ImageText(
        model.to(device),
        Tokens(_tokenizer(name, processor, model)),
        Whole(model.config.vision_config.image_size),
        name=source,
        version=version,
        definition=f"HPSv2 of a frame for the prompt ({source}): {formula}, {how_reduced(options)}.",
        reduce=options.reduce,
        frames=options.frames,
    )


class Whole:
    """HPSv2's image preprocessing: a bicubic resize of the longer side to `edge` pixels, padded with black.

    The authors' `preprocess_val` resizes float values, which may overshoot [0, 1] near an edge and are not clipped; it
    antialiases since torchvision 0.17. Deviation: it does not pad if the longer side is already `edge`, and then fails
    for an image that is not square; here such an image is padded.
    """

    def __init__(self, edge: int) -> None:
        self._edge = edge

    def __call__(self, frames: np.ndarray | Tensor) -> Tensor:
        """(F, 3, edge, edge) float32 from uint8 (F, H, W, 3), or from float32 in [0, 255] with their gradient."""
        whole = channels_first(frames) / WHITE
        scale = self._edge / max(whole.shape[-2:])
        height, width = (round(side * scale) for side in whole.shape[-2:])
        resized = images.resize(whole, [height, width], images.InterpolationMode.BICUBIC, antialias=True)
        down, right = self._edge - height, self._edge - width
        padded = images.pad(resized, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
        normalised: Tensor = images.normalize(padded, MEAN, STD)
        return normalised


class Tokens:
    """CLIP's tokenizer after OpenCLIP's cleaning of prompts: text repaired by ftfy, HTML entities decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, prompts: Sequence[str], **settings: Any) -> BatchEncoding:
        """The tokenizer's result for the cleaned prompts."""
        cleaned = [html.unescape(html.unescape(ftfy.fix_text(prompt))) for prompt in prompts]
        return self._tokenizer(cleaned, **settings)


class _Found(NamedTuple):
    """Weights in transformers' layout."""

    source: str  # the origin of the weights
    folder: Path  # for CLIPModel.from_pretrained
    version: str


def _found(name: str, path: str, file: str, revision: str, cache: Path | None) -> _Found:
    local = Path(path)
    if local.is_dir():
        return _Found(path, local, fingerprint(local))
    try:
        checkpoint = local if local.is_file() else _download(path, file, revision)
        folder, sha256 = converted(checkpoint, cache)
    except ValueError as error:
        raise ValueError(f"feedback.sources.{name}.path: {error}") from error
    return _Found(path if local.is_file() else f"{path}/{file}", folder, sha256[:12])


def _download(path: str, file: str, revision: str) -> Path:
    """The checkpoint of a hub id, from the hub or its cache. Raises ValueError with the remedy if there is none."""
    try:
        return Path(hf_hub_download(path, file, revision=revision))
    except (OSError, ValueError) as error:
        page = hub_page(path, revision, file)
        raise ValueError(f"no download ({error}). Download {page} by hand and give the file as path") from error


def _tokenizer(name: str, processor: str, model: CLIPModel) -> PreTrainedTokenizerBase:
    where = f"feedback.sources.{name}.processor"
    try:
        tokenizer = AutoTokenizer.from_pretrained(processor)
    except (OSError, ValueError) as error:
        files = "tokenizer.json, tokenizer_config.json, vocab.json and merges.txt"
        raise ValueError(
            f"{where}: no tokenizer could be loaded from {processor} ({error}). "
            f"Download {files} of https://huggingface.co/{VIT_H14} by hand and give their folder"
        ) from error
    end = model.config.text_config.eos_token_id
    if tokenizer.eos_token_id != end:
        ends = f"ends a text with token {tokenizer.eos_token_id}, but the model with {end}"
        raise ValueError(f"{where}: {processor} {ends}")
    return tokenizer
