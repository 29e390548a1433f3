"""Tiny pipelines of HunyuanVideo 1.0: text to video, image to video of both kinds, and FramePack."""

from typing import Any, Literal

from generators.tiny.parts import WIDTH, WORDS, made

Kind = Literal["text", "token_replace", "latent_concat"]

LATENT_CHANNELS = 4
POOLED = 8  # width of the pooled text
LAYERS = {
    "out_channels": LATENT_CHANNELS, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
    "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1, "text_embed_dim": WIDTH,
    "pooled_projection_dim": POOLED, "rope_axes_dim": (4, 6, 6),
}  # fmt: skip
# Llama 3's own splitting, so the pipeline's template has as many tokens as it crops
SPLIT = "|".join(
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*")
    + (r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")
)
SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")


def hunyuan_video(kind: Kind) -> Any:
    """A pipeline that takes text, or text and a first frame as the transformer's image_condition_type says."""
    from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline

    parts = {"transformer": _transformer(kind), **_shared(), **_text(sees_image=kind != "text")}
    return HunyuanVideoPipeline(**parts) if kind == "text" else HunyuanVideoImageToVideoPipeline(**parts)


def framepack() -> Any:
    """A pipeline that takes text and a first frame, and makes a clip section by section."""
    from diffusers import HunyuanVideoFramepackPipeline, HunyuanVideoFramepackTransformer3DModel
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    vision = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
        patch_size=14,
    )  # fmt: skip
    config = {
        "in_channels": LATENT_CHANNELS, "guidance_embeds": True, "has_image_proj": True, "image_proj_dim": WIDTH,
        "has_clean_x_embedder": True, **LAYERS,
    }  # fmt: skip
    return HunyuanVideoFramepackPipeline(
        transformer=made(1, lambda: HunyuanVideoFramepackTransformer3DModel(**config)),
        image_encoder=made(7, lambda: SiglipVisionModel(vision)),
        feature_extractor=SiglipImageProcessor(size={"height": 28, "width": 28}),
        **_shared(),
        **_text(sees_image=False),
    )


def _shared() -> dict[str, Any]:
    """VAE and scheduler."""
    from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler

    vae = {
        "latent_channels": LATENT_CHANNELS, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1,
        "norm_num_groups": 4, "scaling_factor": 0.476986,
    }  # fmt: skip
    return {
        "vae": made(4, lambda: AutoencoderKLHunyuanVideo(**vae)),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def _transformer(kind: Kind) -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    config = {
        "in_channels": 2 * LATENT_CHANNELS + 1 if kind == "latent_concat" else LATENT_CHANNELS,
        "guidance_embeds": kind != "latent_concat", "image_condition_type": None if kind == "text" else kind, **LAYERS,
    }  # fmt: skip
    return made(1, lambda: HunyuanVideoTransformer3DModel(**config))


def _text(sees_image: bool) -> dict[str, Any]:
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        LlamaConfig,
        LlamaModel,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer, pooled = _llama_tokenizer(), _clip_tokenizer()
    layers = {"intermediate_size": 32, "num_attention_heads": 2}
    llama = LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=3, num_key_value_heads=2, vocab_size=len(tokenizer), pad_token_id=0,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=1024, **layers,
    )  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=len(pooled), hidden_size=POOLED, num_hidden_layers=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        projection_dim=POOLED, **layers,
    )  # fmt: skip
    text: dict[str, Any] = {
        "tokenizer": tokenizer,
        "tokenizer_2": pooled,
        "text_encoder_2": made(6, lambda: CLIPTextModel(clip)),
    }
    if not sees_image:
        return text | {"text_encoder": made(5, lambda: LlamaModel(llama))}
    vision = CLIPVisionConfig(  # 24 x 24 patches: the pipeline counts on 576 tokens
        hidden_size=WIDTH, num_hidden_layers=2, image_size=48, patch_size=2, projection_dim=WIDTH, **layers
    )
    llava = LlavaConfig(
        text_config=llama, vision_config=vision, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=576, pad_token_id=0,
    )  # fmt: skip
    return text | {
        "text_encoder": made(5, lambda: LlavaForConditionalGeneration(llava)),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
    }


def _llama_tokenizer() -> Any:
    """A token for each word, with and without the space before it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [form for word in WORDS.split() for form in (word, f" {word}")]
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=list(SPECIAL), padding_side="right", model_max_length=1024,
    )  # fmt: skip


def _clip_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="right", model_max_length=77,
    )  # fmt: skip
