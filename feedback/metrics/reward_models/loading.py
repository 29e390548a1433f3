"""Loads the published layouts of reward models: which file and which key each part comes from."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLConfig

from data.manifest import sha256_of
from feedback.core.weights import fingerprint, is_local
from feedback.metrics.converted import converted, read_pickle
from feedback.metrics.metric import MetricOptions, MetricSource
from feedback.metrics.reward_models import videoreward, videoscore
from feedback.metrics.reward_models.frames import LEAST_PIXELS, fixed_count, frame_count, most_pixels
from feedback.metrics.reward_models.model import Head, RewardModel, Scale, Shown, backbone_name, load_backbone
from feedback.metrics.reward_models.texts import read_text

KIND = "videoreward"  # of the converted folder's manifest
HEAD = "rm_head.weight"
TOKENS = {name: f"<|{name}_reward|>" for name in ("VQ", "MQ", "TA")}
TEXT_CONSTANTS = {"detailed_special": "DETAILED_PROMPT_WITH_SPECIAL_TOKEN", "detailed": "DETAILED_PROMPT"}


class RewardMeasure:
    """One measure of a reward model, as a metric."""

    def __init__(self, model: RewardModel, measure: str) -> None:
        self._model, self._place = model, model.measures.index(measure)
        self.model, self.model_version, self.definition = model.model, model.model_version, model.define(measure)
        self.frame_indices = model.frame_indices

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]) -> Sequence[float]:
        """As feedback.core.source.Metric says."""
        return self._model.all_scores(clips, prompts, fps)[self._place]


def as_source(name: str, model: RewardModel, options: MetricOptions) -> MetricSource:
    """All measures of a reward model as one source, from one pass over each clip."""
    measures = {measure: RewardMeasure(model, measure) for measure in model.measures}
    return MetricSource(name, measures, options.batch_size, options.threshold, model.all_scores)


# videoreward


def load_videoreward(name: str, options: videoreward.Options, device: str) -> RewardModel:
    """VideoReward with its weights on the device. Raises ValueError that names feedback.sources.<name> and the key."""
    where = f"feedback.sources.{name}"
    try:
        folder = _folder(options.path, options.revision, ("model_config.json", "checkpoint-*/**"))
        config = _read_config(folder / "model_config.json")
        data, about = config["data_config"], config["model_config"]
        checkpoint = last_checkpoint(folder)
        base = options.base or about["model_name_or_path"]
        commit = None if is_local(base) else _folder(base, None, ("config.json",)).name
        lora, key = config.get("peft_lora_config", {}), _key(folder, checkpoint, base, commit)
        made = converted(KIND, key, partial(convert, checkpoint, base, commit, lora), _cache(options.cache))
        processor = AutoProcessor.from_pretrained(made)
        weights = load_file(made / "model.safetensors")
        head = Head(weights.pop(HEAD), None, _reward_tokens(about, data["eval_dim"], processor.tokenizer))
        backbone = load_backbone(Qwen2VLConfig.from_pretrained(made), weights, options.dtype, device)
        constant = TEXT_CONSTANTS.get(kind := data["prompt_template_type"], f"prompt_template_type {kind}")
    except KeyError as error:
        raise ValueError(f"{where}.path: {options.path}/model_config.json lacks the key {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}.path: no VideoReward could be loaded from {options.path}: {error}") from error
    text = _text(name, options.text, constant)
    return RewardModel(
        backbone,
        processor,
        head,
        text,
        _scales(data["eval_dim"], config.get("inference_config")),
        ("Overall", torch.sum),
        _shown(data),
        score=options.score,
        name=options.path,
        version=key[:12],
        definition=_definition("VideoReward", options, text, _frames_in_words(data)),
    )


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint of the highest step. Raises ValueError where there is none."""
    found = [one for one in folder.glob("checkpoint-*") if one.is_dir() and one.name.partition("-")[2].isdigit()]
    if not found:
        raise ValueError(f"{folder} has no folder checkpoint-<step>")
    return max(found, key=lambda one: int(one.name.partition("-")[2]))


def convert(checkpoint: Path, base: str, commit: str | None, lora: Mapping[str, Any], out: Path) -> None:
    """Write a folder with model.safetensors (LoRA merged, HEAD the head), Qwen2-VL's config and the processor.

    commit: of the base, where that is a hub id.
    Raises ValueError for a checkpoint of another layout, and for weights that belong nowhere.
    """
    weights = {_plain(name): weight for name, weight in _weights(checkpoint, base, commit)}
    merged = merge_lora(weights, lora)
    if HEAD not in merged:
        raise ValueError(f"{checkpoint}: no {HEAD}, the head of a VideoReward")
    tokenizer = _tokenizer(checkpoint, base, commit)
    config = Qwen2VLConfig.from_pretrained(base, revision=commit or "main")
    config.text_config.vocab_size = len(merged["language_model.embed_tokens.weight"])
    processor = AutoProcessor.from_pretrained(base, revision=commit or "main")
    processor.tokenizer = tokenizer
    out.mkdir(parents=True)
    save_file(merged, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)
    processor.save_pretrained(out)


def merge_lora(weights: Mapping[str, Tensor], lora: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights with each LoRA added: W + B A s, in float32, s = lora_alpha / lora_r, or over its root (use_rslora).

    weights: by backbone names, a LoRA's as peft names it; the language-model head is left out.
    Raises ValueError for a LoRA whose weight is not there.
    """
    merged = {
        name.replace(".base_layer.", "."): weight
        for name, weight in weights.items()
        if ".lora_" not in name and not name.startswith("lm_head.")
    }
    for name, down in weights.items():
        if (module := name.removesuffix(".lora_A.default.weight")) == name:
            continue
        up = weights.get(f"{module}.lora_B.default.weight")
        target = f"{module}.weight"
        if up is None or target not in merged:
            raise ValueError(f"{name} is a LoRA without {'lora_B' if up is None else target}")
        rank = lora["lora_r"]
        scale = lora["lora_alpha"] / (math.sqrt(rank) if lora.get("use_rslora") else rank)
        exact = merged[target].float() + scale * up.float() @ down.float()
        merged[target] = exact.to(merged[target].dtype)
    return {name: weight.contiguous().clone() for name, weight in merged.items()}


def _weights(checkpoint: Path, base: str, commit: str | None) -> Iterator[tuple[str, Tensor]]:
    """The names and the weights of a checkpoint, as its files have them."""
    whole, adapter = checkpoint / "model.pth", checkpoint / "adapter_model.safetensors"
    if whole.is_file():
        yield from _tensors(whole)
        return
    if not adapter.is_file():
        raise ValueError(f"{checkpoint} has neither {whole.name} nor {adapter.name}")
    for shard in sorted(_folder(base, commit, ("*.safetensors",)).glob("*.safetensors")):
        yield from load_file(shard).items()
    yield from _tensors(checkpoint / "non_lora_state_dict.pth")
    for name, weight in load_file(adapter).items():  # peft leaves the adapter's name out of a file
        yield (
            name.replace(".lora_A.weight", ".lora_A.default.weight").replace(
                ".lora_B.weight", ".lora_B.default.weight"
            ),
            weight,
        )


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    document = read_pickle(file)
    if not (isinstance(document, Mapping) and all(isinstance(one, Tensor) for one in document.values())):
        raise ValueError(f"{file}: expected a mapping of names to tensors")
    yield from document.items()


def _plain(name: str) -> str:
    """A backbone name, from the name that peft and transformers gave a weight."""
    return backbone_name(name.removeprefix("base_model.model.").replace(".base_layer.", "."))


def _tokenizer(checkpoint: Path, base: str, commit: str | None) -> PreTrainedTokenizerBase:
    if (folder := checkpoint / "tokenizer").is_dir():
        return AutoTokenizer.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base, revision=commit or "main")
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS.values())})
    return tokenizer


def _reward_tokens(
    about: Mapping[str, Any], dimensions: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...] | None:
    """The token that each dimension is read at; None: the last token."""
    kind = "special" if about.get("use_special_tokens") else about["reward_token"]
    if kind == "last":
        return None
    if kind != "special":
        raise ValueError(f"model_config.reward_token is {kind!r}; special and last are read here")
    if unknown := [one for one in dimensions if one not in TOKENS]:
        raise ValueError(f"data_config.eval_dim has {unknown[0]!r}; {', '.join(TOKENS)} have a token")
    ids = tokenizer.convert_tokens_to_ids([TOKENS[one] for one in dimensions])
    if lacking := [one for one, token in zip(dimensions, ids, strict=True) if token in (None, tokenizer.unk_token_id)]:
        raise ValueError(f"its tokenizer lacks the token {TOKENS[lacking[0]]}")
    return tuple(ids)


def _scales(dimensions: list[str], normalised: Mapping[str, float] | None) -> dict[str, Scale]:
    if normalised is None:
        return {name: Scale() for name in dimensions}
    return {name: Scale(normalised[f"{name}_mean"], normalised[f"{name}_std"]) for name in dimensions}


def _shown(data: Mapping[str, Any]) -> Shown:
    if (kind := data.get("sample_type", "uniform")) != "uniform":
        raise ValueError(f"data_config.sample_type is {kind!r}; uniform is read here")
    frames, rate, most = data.get("num_frames"), data["fps"], int(data["max_frame_pixels"])
    if frames is not None:
        return Shown(lambda count, _: fixed_count(count, int(frames)), lambda _: (LEAST_PIXELS, most))
    return Shown(lambda count, fps: frame_count(count, fps, rate), lambda _: (LEAST_PIXELS, most))


def _frames_in_words(data: Mapping[str, Any]) -> str:
    frames = data.get("num_frames")
    rate = f"{data['fps']:g} frames a second" if frames is None else f"{frames} frames"
    return f"{rate} of at most {data['max_frame_pixels']} pixels"


def _key(folder: Path, checkpoint: Path, base: str, commit: str | None) -> str:
    """sha256 of what a converted checkpoint and its numbers depend on. commit: of the base, where that is a hub id."""
    files = sorted({folder / "model_config.json", *(one for one in checkpoint.rglob("*") if one.is_file())})
    stated = [[str(one.relative_to(folder)), sha256_of(one)] for one in files]
    named = f"{base}@{commit}" if commit else fingerprint(Path(base))
    return hashlib.sha256(json.dumps([stated, named]).encode()).hexdigest()


def _cache(cache: str | None) -> Path | None:
    return Path(cache) if cache else None


# videoscore


def load_videoscore(name: str, options: videoscore.Options, device: str) -> RewardModel:
    """VideoScore with its weights on the device. Raises ValueError that names feedback.sources.<name> and the key."""
    where = f"feedback.sources.{name}.path"
    try:
        folder = _folder(options.path, options.revision, ("*.json", "*.safetensors", "*.jinja", "merges.txt"))
        if not (shards := sorted(folder.glob("*.safetensors"))):
            raise ValueError(
                f"{folder} has no *.safetensors; a pickle is not read here: save the model with transformers"
            )
        config = Qwen2VLConfig.from_pretrained(folder)
        if (kind := getattr(config, "score_type", None)) == "special_token":
            raise ValueError(f"config.json has score_type {kind}; a head at the last token is read here")
        weights = {backbone_name(key): one for shard in shards for key, one in load_file(shard).items()}
        if "score.weight" not in weights:
            raise ValueError("no score.weight, the head of a VideoScore")
        head = Head(weights.pop("score.weight"), weights.pop("score.bias", None), None)
        if len(head.weight) != len(videoscore.DIMENSIONS):
            raise ValueError(
                f"score.weight has {len(head.weight)} rows, expected one for each of {', '.join(videoscore.DIMENSIONS)}"
            )
        processor = AutoProcessor.from_pretrained(folder)
        backbone = load_backbone(config, weights, options.dtype, device)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: no VideoScore could be loaded from {options.path}: {error}") from error
    text = _text(name, options.text, "REGRESSION_QUERY_PROMPT")
    return RewardModel(
        backbone,
        processor,
        head,
        text,
        {dimension: Scale() for dimension in videoscore.DIMENSIONS},
        ("overall", torch.mean),
        Shown(
            lambda count, fps: frame_count(count, fps, options.fps), lambda count: (LEAST_PIXELS, most_pixels(count))
        ),
        score=options.score,
        name=options.path,
        version=fingerprint(folder) if is_local(options.path) else folder.name,
        definition=_definition("VideoScore", options, text, f"{options.fps:g} frames a second"),
    )


# both


def _folder(path: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """A local folder, or a hub id's files in the hub's cache."""
    if is_local(path):
        return Path(path)
    return Path(snapshot_download(path, revision=revision, allow_patterns=list(patterns)))


def _text(name: str, file: str | None, constant: str) -> str:
    try:
        return read_text(file or "", constant)
    except ValueError as error:
        raise ValueError(f"feedback.sources.{name}.text: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    return read


def _definition(what: str, options: videoreward.Options | videoscore.Options, text: str, frames: str) -> str:
    asked = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{what} of a clip and its prompt ({options.path}), {frames}, text {asked}, in {options.dtype}"
