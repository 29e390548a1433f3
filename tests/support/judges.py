"""Judges of the real classes with random weights, as folders: what tests load in place of a trained one."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from tabletop.pretraining.judge_model import CHAT_TEMPLATE, qwen_processor, tiny_qwen_config, word_level_tokenizer

SIZE = 64  # pixels a side
PATCH, MERGE, HIDDEN, LAYERS, HEADS = 8, 2, 32, 2, 2  # of every family, in vision and in language
RANGE = 0.2  # standard deviation of the weights, large, so that the answers differ from clip to clip
WORDS = (
    "judge",
    "the",
    "video",
    "Accept",
    "accept",
    "or",
    "Reject",
    "pushing",
    "lifting",
    "red",
    "ball",
    "off",
    "table",
)


def build_judge(folder: Path, words: Iterable[str] = WORDS) -> Path:
    """A folder with a random Qwen2.5-VL, its word-level tokenizer, its processor and its chat template."""
    torch.manual_seed(0)
    tokenizer = word_level_tokenizer(words)
    config = tiny_qwen_config(
        tokenizer,
        patch=PATCH,
        merge=MERGE,
        vision_hidden=HIDDEN,
        vision_layers=LAYERS,
        vision_heads=HEADS,
        text_hidden=HIDDEN,
        text_layers=LAYERS,
        text_heads=HEADS,
        initializer_range=RANGE,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    qwen_processor(tokenizer, PATCH, MERGE, SIZE).save_pretrained(folder)
    return folder


def build_qwen3_judge(folder: Path) -> Path:
    """The same with a Qwen3-VL. It knows the seconds of 8 frames out of 9 at 8 frames per second."""
    torch.manual_seed(0)
    tokenizer = word_level_tokenizer([*WORDS, "<0.1", "<0.3", "<0.7", "<0.9", "seconds>"])
    vocabulary = tokenizer.get_vocab()
    config = Qwen3VLConfig(
        text_config=text_config(tokenizer)
        | {
            "head_dim": HIDDEN // HEADS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": LAYERS,
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_heads": HEADS,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": (SIZE // PATCH) ** 2,
            "deepstack_visual_indexes": [0],
            "initializer_range": RANGE,
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    # Of a clip, not of a frame: eight frames of SIZE are left as they are.
    sizes = {"shortest_edge": SIZE * SIZE, "longest_edge": 8 * SIZE * SIZE}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, size=sizes, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def build_internvl_judge(folder: Path) -> Path:
    """The same with an InternVL, which knows the numbers of 9 frames."""
    torch.manual_seed(0)
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    frames = [f"Frame{number}:" for number in range(1, 10)]
    plain = word_level_tokenizer([*named.values(), *WORDS, *frames])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        unk_token=plain.unk_token,
        pad_token=plain.pad_token,
        eos_token=plain.eos_token,
        extra_special_tokens=named,
        model_max_length=plain.model_max_length,
    )
    tokens = (SIZE // PATCH // MERGE) ** 2
    config = InternVLConfig(
        text_config={"model_type": "qwen2"} | text_config(tokenizer),
        vision_config={
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 3 * HIDDEN,
            "image_size": SIZE,
            "patch_size": PATCH,
            "layer_scale_init_value": 1.0,
            "initializer_range": RANGE,
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=tokens,
        downsample_ratio=1 / MERGE,
        tie_word_embeddings=False,
        initializer_range=RANGE,
    )
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=tokens,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|video_pad|><|vision_end|>", "<video>\n").replace(
            "<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n"
        ),
    ).save_pretrained(folder)
    return folder


def text_config(tokenizer: PreTrainedTokenizerFast) -> dict:
    """What the language models of all families call by the same names."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": tokenizer.model_max_length,
        "initializer_range": RANGE,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


FAMILIES = {"qwen2.5": build_judge, "qwen3": build_qwen3_judge, "internvl": build_internvl_judge}
