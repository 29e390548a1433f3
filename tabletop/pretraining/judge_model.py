"""The embedded judges: a Qwen2.5-VL and a Qwen3-VL of the real classes, small enough for a CPU, of few words."""

from collections.abc import Iterable
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tabletop.pretraining.tokenizers import word_level

TEMPORAL_PATCH = 2  # frames in one patch, as in every published Qwen2.5-VL
VISION_ROPE_THETA = 10000.0
UNKNOWN = "<|unk|>"
SPECIAL = (
    "<|endoftext|>",
    UNKNOWN,
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ROLES = ("user", "assistant")

# Qwen2.5-VL's own template without its system message, whose words the closed vocabulary lacks.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_level_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of Qwen's special tokens, the chat template's roles and `words`, in this order.

    Split on whitespace only: any other pre-tokenizer cuts `<|video_pad|>` to pieces. A word outside the vocabulary
    becomes `<|unk|>`. Pads on the left, so that the last position of every row is where the answer is predicted.
    """
    vocabulary = dict.fromkeys([*SPECIAL, *ROLES, *words])
    if spaced := [word for word in vocabulary if word.split() != [word]]:
        raise ValueError(f"a word of the vocabulary may hold no whitespace: {spaced}")
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level(vocabulary, UNKNOWN),
        unk_token=UNKNOWN,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[token for token in SPECIAL if token not in (UNKNOWN, "<|endoftext|>", "<|im_end|>")],
        padding_side="left",
        model_max_length=4096,
    )


def qwen_processor(tokenizer: PreTrainedTokenizerFast, patch: int, merge: int, size: int) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor for square frames of `size` pixels a side, every size stated, with our chat template.

    Frames of other sizes are scaled to about size * size pixels, a multiple of patch * merge a side;
    frames of this size are left as they are.
    """
    if size % (patch * merge):
        raise ValueError(f"size {size} is no multiple of patch * merge = {patch * merge}")
    sizes: dict[str, Any] = {
        "patch_size": patch,
        "merge_size": merge,
        "temporal_patch_size": TEMPORAL_PATCH,
        "size": {"shortest_edge": size * size, "longest_edge": size * size},  # pixels of a frame, not of an edge
    }
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        tokenizer,
        Qwen2VLVideoProcessor(**sizes, do_sample_frames=False, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen_config(
    tokenizer: PreTrainedTokenizerFast,
    patch: int,
    merge: int,
    vision_hidden: int,
    vision_layers: int,
    vision_heads: int,
    text_hidden: int,
    text_layers: int,
    text_heads: int,
    rope_theta: float = 5.0,
    initializer_range: float = 0.02,
) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's configuration at another size; feed-forward layers are 3 times as wide as the hidden size.

    rope_theta: base of the language model's rotary embedding; the published 1e6 leaves a grid of a few patches a side
        almost without positions. The vision tower's is the published 1e4, since vLLM knows no other.
    Every vision block attends to the whole frame: windows of 112 pixels mean nothing at this size.
    Raises ValueError where a head's size does not suit the rotary embeddings.
    """
    head, vision_head = text_hidden // text_heads, vision_hidden // vision_heads
    if head * text_heads != text_hidden or head % 2:
        raise ValueError(f"text_hidden {text_hidden} must be text_heads {text_heads} times an even number")
    if vision_head * vision_heads != vision_hidden or vision_head % 4:
        raise ValueError(f"vision_hidden {vision_hidden} must be vision_heads {vision_heads} times a multiple of 4")
    third = head // 2 // 3
    return Qwen2_5_VLConfig(
        text_config={
            **_text_config(tokenizer, text_hidden, text_layers, text_heads, initializer_range),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": rope_theta,
                "mrope_section": [head // 2 - 2 * third, third, third],  # frequencies for time, height, width
            },
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": 3 * vision_hidden,
            "num_heads": vision_heads,
            "patch_size": patch,
            "spatial_merge_size": merge,
            "temporal_patch_size": TEMPORAL_PATCH,
            "out_hidden_size": text_hidden,
            "fullatt_block_indexes": list(range(vision_layers)),
            "initializer_range": initializer_range,
            "rope_parameters": {"rope_type": "axial", "rope_theta": VISION_ROPE_THETA},
        },
        **_token_ids(tokenizer),
    )


def qwen3_processor(
    tokenizer: PreTrainedTokenizerFast, patch: int, merge: int, size: int, frames: int
) -> Qwen3VLProcessor:
    """Qwen3-VL's processor for up to `frames` square frames of `size` pixels a side, with our chat template.

    Those are left as they are; larger clips are scaled to about as many pixels together.
    """
    if size % (patch * merge):
        raise ValueError(f"size {size} is no multiple of patch * merge = {patch * merge}")
    sizes: dict[str, Any] = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": TEMPORAL_PATCH}
    of_clip = {"shortest_edge": size * size, "longest_edge": frames * size * size}  # pixels of a clip, not of an edge
    of_frame = {"shortest_edge": size * size, "longest_edge": size * size}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**sizes, size=of_frame),
        tokenizer,
        Qwen3VLVideoProcessor(**sizes, size=of_clip, do_sample_frames=False, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen3_config(
    tokenizer: PreTrainedTokenizerFast,
    size: int,
    patch: int,
    merge: int,
    vision_hidden: int,
    vision_layers: int,
    vision_heads: int,
    text_hidden: int,
    text_layers: int,
    text_heads: int,
    rope_theta: float = 5.0,
    initializer_range: float = 0.02,
) -> Qwen3VLConfig:
    """Qwen3-VL's configuration at another size, for frames of `size` pixels; see `tiny_qwen_config`.

    Its first vision layer feeds the language model too (deepstack), as layers of the published ones do.
    """
    head = text_hidden // text_heads
    if head * text_heads != text_hidden or head % 2 or vision_hidden % (4 * vision_heads):
        raise ValueError(f"heads: {text_heads} and {vision_heads} do not divide {text_hidden} and {vision_hidden}")
    third = head // 2 // 3
    return Qwen3VLConfig(
        text_config={
            **_text_config(tokenizer, text_hidden, text_layers, text_heads, initializer_range),
            "head_dim": head,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": rope_theta,
                "mrope_section": [head // 2 - 2 * third, third, third],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": 3 * vision_hidden,
            "num_heads": vision_heads,
            "patch_size": patch,
            "spatial_merge_size": merge,
            "temporal_patch_size": TEMPORAL_PATCH,
            "out_hidden_size": text_hidden,
            "num_position_embeddings": (size // patch) ** 2,
            "deepstack_visual_indexes": [0],
            "initializer_range": initializer_range,
        },
        **_token_ids(tokenizer),
    )


def _text_config(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, heads: int, initializer_range: float
) -> dict[str, Any]:
    """The keys that the language models of both families have in common."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": tokenizer.model_max_length,
        "initializer_range": initializer_range,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Which tokens stand for pictures."""
    vocabulary = tokenizer.get_vocab()
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {key: vocabulary[f"<|{name}|>"] for key, name in zip(keys, names, strict=True)}
