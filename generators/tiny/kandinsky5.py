"""Tiny pipelines of Kandinsky 5.0 Video: text to video, and image to video."""

from typing import Any

from generators.tiny.parts import WIDTH, WORDS, made, word_tokenizer

LATENT_CHANNELS = 4
POOLED = 8  # width of the pooled text
# Qwen 2's own splitting of text into words, and three words that it has in two tokens, so the pipeline's template has
# as many tokens as it crops.
SPLIT = "|".join(
    (r" dynam(?=ism)", r" sc(?=ren)", r" post(?=processing)", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)")
    + (r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def kandinsky5(image: bool, visual_cond: bool = True) -> Any:
    """A pipeline that takes text, or text and a first frame.

    visual_cond: whether the transformer takes channels beside the latents, as all that are published do.
    """
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        Kandinsky5I2VPipeline,
        Kandinsky5T2VPipeline,
        Kandinsky5Transformer3DModel,
    )

    transformer = {
        "in_visual_dim": LATENT_CHANNELS, "out_visual_dim": LATENT_CHANNELS, "in_text_dim": WIDTH,
        "in_text_dim2": POOLED, "time_dim": 16, "patch_size": (1, 2, 2), "model_dim": 32, "ff_dim": 32,
        "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6), "visual_cond": visual_cond,
        "attention_type": "regular",
    }  # fmt: skip
    vae = {
        "latent_channels": LATENT_CHANNELS, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1,
        "norm_num_groups": 4, "scaling_factor": 0.476986,
    }  # fmt: skip
    pipeline = Kandinsky5I2VPipeline if image else Kandinsky5T2VPipeline
    return pipeline(
        transformer=made(1, lambda: Kandinsky5Transformer3DModel(**transformer)),
        vae=made(4, lambda: AutoencoderKLHunyuanVideo(**vae)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        **_qwen(),
        **_clip(),
    )


def _qwen() -> dict[str, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer()
    text = {
        "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 0,
        "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {  # never run, but part of the class
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "patch_size": 2, "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
    )
    return {"tokenizer": processor, "text_encoder": made(5, lambda: Qwen2_5_VLForConditionalGeneration(config))}


def _clip() -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = word_tokenizer(77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=POOLED, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=POOLED, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    return {"tokenizer_2": tokenizer, "text_encoder_2": made(6, lambda: CLIPTextModel(config))}


def _tokenizer() -> Any:
    """A token for each word, with and without the space before it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [form for word in WORDS.split() for form in (word, f" {word}")]
    vocabulary = {word: index for index, word in enumerate(["<|endoftext|>", "<unk>", *SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<unk>",
        additional_special_tokens=list(SPECIAL), padding_side="right", model_max_length=1024,
    )  # fmt: skip
