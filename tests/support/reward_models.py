"""Reward models with random weights in the layouts that are published, as folders."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tabletop.pretraining.judge_model import CHAT_TEMPLATE, word_level_tokenizer
from tests.support.judges import WORDS

TEXT = "judge the video {text_prompt} <|VQ_reward|> the <|MQ_reward|> the <|TA_reward|> the"
SCORE_TEXT = "judge the video {text_prompt}"
NORMAL = {"VQ_mean": 1.0, "VQ_std": 2.0, "MQ_mean": -0.5, "MQ_std": 4.0, "TA_mean": 0.25, "TA_std": 0.5}
SIZES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
HIDDEN = 32


def build_base(folder: Path, words: Iterable[str] = WORDS) -> Path:
    """A folder with a random Qwen2-VL of the real class, its processor and a word-level tokenizer."""
    torch.manual_seed(0)
    tokenizer = word_level_tokenizer(words)
    Qwen2VLForConditionalGeneration(_config(tokenizer)).save_pretrained(folder)
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}  # Qwen2-VL-2B-Instruct's
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**SIZES, size=sizes),
        tokenizer,
        Qwen2VLVideoProcessor(**SIZES, size=sizes, do_sample_frames=False, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def build_videoreward(folder: Path, base: Path, outputs: int = 1, step: int = 7) -> nn.Module:
    """Write a VideoReward's folder; returns the model with its LoRA beside the weights, as its authors run it."""
    torch.manual_seed(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{one}_reward|>" for one in ("VQ", "MQ", "TA")]})
    model = Qwen2VLForConditionalGeneration.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.rm_head = nn.Linear(HIDDEN, outputs, bias=False)
    targets = r"model\.language_model\.layers.*(q_proj|v_proj|down_proj)"
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.05))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name or name.endswith("rm_head.weight"):
            nn.init.normal_(weight, std=0.3)
    tokenizer.save_pretrained(folder / f"checkpoint-{step}" / "tokenizer")
    torch.save(transformers_4(wrapped.state_dict()), folder / f"checkpoint-{step}" / "model.pth")
    write_config(folder, base, outputs)
    return wrapped.eval()


def transformers_4(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with the names that transformers 4.45 gives them."""
    renamed = {}
    for name, weight in weights.items():
        name = name.replace("model.model.language_model.", "model.model.").replace(
            "model.model.visual.", "model.visual."
        )
        renamed[name] = weight
    return renamed


def write_config(folder: Path, base: Path, outputs: int = 1, **changes: dict[str, Any]) -> None:
    """Write model_config.json with these changes of its sections."""
    config: dict[str, Any] = {
        "data_config": {"fps": 2.0, "num_frames": None, "max_frame_pixels": 200704, "eval_dim": ["VQ", "MQ", "TA"],
                        "prompt_template_type": "detailed_special", "sample_type": "uniform"},
        "model_config": {"model_name_or_path": str(base), "output_dim": outputs, "use_special_tokens": True,
                         "reward_token": "special"},
        "peft_lora_config": {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False},
        "inference_config": NORMAL,
    }  # fmt: skip
    for section, values in changes.items():
        config[section] = None if values is None else config[section] | values
    config = {section: values for section, values in config.items() if values is not None}
    (folder / "model_config.json").write_text(json.dumps(config))


def build_videoscore(folder: Path, base: Path) -> Path:
    """Write a VideoScore's folder, with transformers 4.45's names, five outputs and a bias."""
    torch.manual_seed(2)
    model = Qwen2VLForConditionalGeneration.from_pretrained(base)
    Qwen2VLProcessor.from_pretrained(base).save_pretrained(folder)
    config = Qwen2VLConfig.from_pretrained(base)
    config.num_labels = 5
    config.save_pretrained(folder)
    weights = {f"model.model.{name}": weight for name, weight in model.model.state_dict().items()}
    weights = {name.removeprefix("model."): weight.contiguous() for name, weight in transformers_4(weights).items()}
    head = {"score.weight": torch.randn(5, HIDDEN), "score.bias": torch.randn(5)}
    save_file(weights | head, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    ids = tokenizer.get_vocab()
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": 2, "patch_size": 14,
                       "mlp_ratio": 3, "initializer_range": 0.2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
