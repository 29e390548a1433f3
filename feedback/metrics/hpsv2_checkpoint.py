"""Converts HPSv2's checkpoint, a pickle in OpenCLIP's layout, to safetensors for transformers' CLIPModel."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from data.manifest import sha256_of
from feedback.metrics.converted import converted as converted_once
from feedback.metrics.converted import read_pickle

KIND = "hpsv2"  # of the converted folder's manifest
# A checkpoint does not contain the number of heads, and the shapes of attention weights do not depend on it. OpenCLIP's
# config of ViT-H-14 has 1280 / 80 (`head_width`) in the image tower and 16 (`heads`) in the text tower.
HEADS = 16

TOWERS = {"visual.transformer.resblocks": "vision_model", "transformer.resblocks": "text_model"}
BLOCK = re.compile(rf"({'|'.join(map(re.escape, TOWERS))})\.(\d+)\.(.+)\.(weight|bias)")
IN_A_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
QUERIES_KEYS_VALUES = re.compile(rf"({'|'.join(map(re.escape, TOWERS))})\.(\d+)\.attn\.in_proj_(weight|bias)")
OUTSIDE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}  # x @ W there


def converted(checkpoint: Path, cache: Path | None = None) -> tuple[Path, str]:
    """The folder of a checkpoint's converted copy, and the checkpoint's sha256. Converts the checkpoint on first use.

    cache: folder of the copies, each under its checkpoint's sha256; None: `hpsv2` in the user's cache folder.
    Raises ValueError as `convert` does.
    """
    sha256 = sha256_of(checkpoint)
    return converted_once(KIND, sha256, partial(convert, checkpoint), cache), sha256


def convert(checkpoint: Path, out: Path) -> None:
    """Write a folder for CLIPModel.from_pretrained: model.safetensors in the checkpoint's dtype, config.json.

    Raises ValueError that names the checkpoint if it contains more than tensors or has another layout.
    """
    weights = read_checkpoint(checkpoint)
    try:
        config, renamed = config_of(weights), transformers_layout(weights)
        check_layout(config, renamed)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: not a CLIP in OpenCLIP's layout: {error}") from error
    out.mkdir(parents=True)
    save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)


def read_checkpoint(checkpoint: Path) -> dict[str, Tensor]:
    """The weights in a file of HPSv2's published form: `state_dict` with OpenCLIP's names.

    Never runs code from the pickle. Raises ValueError if there is any, or if the file is not a pickle.
    """
    document = read_pickle(checkpoint)
    weights = document.get("state_dict") if isinstance(document, dict) else None
    if not (isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())):
        raise ValueError(f"{checkpoint}: no tensors under `state_dict`, where HPSv2 has them")
    return weights


def config_of(weights: Mapping[str, Tensor]) -> CLIPConfig:
    """The sizes of a CLIP, from the shapes of its weights; HEADS heads in both towers.

    OpenCLIP uses the exact GELU. It takes the text embedding at the position of the highest token id, which is the end
    of text, the last token of the vocabulary; `eos_token_id` is therefore that token. This position does not attend to
    later ones, so padding has no effect.
    """
    if lacking := [name for name in (*OUTSIDE, *TRANSPOSED) if name not in weights]:
        raise ValueError(f"{', '.join(lacking[:3])} and {len(lacking[3:])} more are missing")
    vocabulary, text_width = weights["token_embedding.weight"].shape
    width, _, _, patch = weights["visual.conv1.weight"].shape
    if indivisible := [size for size in (text_width, width) if size % HEADS]:
        raise ValueError(f"a width of {indivisible[0]} cannot have ViT-H/14's {HEADS} heads")
    patches = len(weights["visual.positional_embedding"]) - 1  # without the class token
    return CLIPConfig(
        text_config=_tower(weights, "transformer.resblocks", text_width)
        | {
            "vocab_size": vocabulary,
            "max_position_embeddings": len(weights["positional_embedding"]),
            "pad_token_id": 0,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        vision_config=_tower(weights, "visual.transformer.resblocks", width)
        | {"image_size": patch * round(patches**0.5), "patch_size": patch},
        projection_dim=weights["visual.proj"].shape[1],
    )


def transformers_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with transformers' names; a name that is not OpenCLIP's is unchanged."""
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if inside := QUERIES_KEYS_VALUES.fullmatch(name):
            tower, layer, part = inside.groups()
            for letter, third in zip("qkv", weight.chunk(3), strict=True):
                renamed[f"{TOWERS[tower]}.encoder.layers.{layer}.self_attn.{letter}_proj.{part}"] = third.clone()
        elif inside := BLOCK.fullmatch(name):
            tower, layer, module, part = inside.groups()
            renamed[f"{TOWERS[tower]}.encoder.layers.{layer}.{IN_A_BLOCK.get(module, module)}.{part}"] = weight
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = weight.T.contiguous()
        else:
            renamed[OUTSIDE.get(name, name)] = weight.contiguous()
    return renamed


def check_layout(config: CLIPConfig, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names missing, unknown and differently shaped weights for a CLIPModel of this config."""
    with torch.device("meta"):
        wanted = {name: weight.shape for name, weight in CLIPModel(config).state_dict().items()}
    found = {name: weight.shape for name, weight in weights.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        sizes = [f"{name}: {_shape(found.get(name))}, expected {_shape(wanted.get(name))}" for name in wrong[:3]]
        raise ValueError(f"{'; '.join(sizes)}; and {len(wrong[3:])} more")


def _tower(weights: Mapping[str, Tensor], blocks: str, width: int) -> dict[str, Any]:
    first = f"{blocks}.0.mlp.c_fc.weight"
    if first not in weights:
        raise ValueError(f"{first} is missing")
    numbers = {int(found[2]) for name in weights if (found := BLOCK.fullmatch(name)) and found[1] == blocks}
    return {
        "hidden_size": width,
        "intermediate_size": len(weights[first]),
        "num_hidden_layers": len(numbers),
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
    }


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))
