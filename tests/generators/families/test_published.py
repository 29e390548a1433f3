"""The presets of published generators against what these publish of their layout; no weights, no network."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from ruamel.yaml import YAML

from data.doors import find
from data.prompts import Prompt
from generators.core import checkpoint as checkpoints
from generators.core.checkpoint import Checkpoint
from generators.core.encoding import check_images
from generators.core.families import FAMILIES
from generators.core.generator import Generator
from generators.core.size import VideoSize
from generators.core.solvers import check_solver

PRESETS = Path("configs/presets")
FLOW = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
V = {
    "_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing",
}  # fmt: skip


def wan(pipeline: str, in_channels: int, z_dim: int = 16, factors=(4, 8), image_dim=None, **index) -> dict[str, Any]:
    """A published Wan's small files, as far as they are read."""
    return {
        "model_index.json": {
            "_class_name": pipeline,
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
            "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            **index,
        },
        "transformer/config.json": {
            "patch_size": [1, 2, 2], "in_channels": in_channels, "image_dim": image_dim, "rope_max_seq_len": 1024,
            "pos_embed_seq_len": None,
        },
        "vae/config.json": {"z_dim": z_dim, "scale_factor_temporal": factors[0], "scale_factor_spatial": factors[1]},
        "scheduler/scheduler_config.json": FLOW,
    }  # fmt: skip


def cogvideox(pipeline: str, in_channels: int, learned: bool = False, rotary: bool = True, **changes) -> dict[str, Any]:
    """A published CogVideoX's small files, as far as they are read."""
    return {
        "model_index.json": {
            "_class_name": pipeline,
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
            "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        },
        "transformer/config.json": {
            "patch_size": 2, "patch_size_t": None, "in_channels": in_channels, "sample_height": 60, "sample_width": 90,
            "sample_frames": 49, "use_rotary_positional_embeddings": rotary, "max_text_seq_length": 226,
            "use_learned_positional_embeddings": learned, "ofs_embed_dim": None, **changes,
        },
        "vae/config.json": {
            "latent_channels": 16, "temporal_compression_ratio": 4, "block_out_channels": [128, 256, 256, 512],
        },
        "scheduler/scheduler_config.json": V | {"snr_shift_scale": 1.0 if rotary else 3.0},  # 2b: not rotary
    }  # fmt: skip


def unet(pipeline: str, unet: str, in_channels: int) -> dict[str, Any]:
    """A pipeline's small files over a U-Net and Stable Diffusion's VAE and CLIP, as far as they are read."""
    return {
        "model_index.json": {
            "_class_name": pipeline,
            "unet": ["diffusers", unet],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        },
        "unet/config.json": {"in_channels": in_channels, "out_channels": 4, "motion_max_seq_length": 32},
        "text_encoder/config.json": {"max_position_embeddings": 77},
        "vae/config.json": {"latent_channels": 4, "block_out_channels": [128, 256, 512, 512]},
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"},
    }


def hunyuan_video(pipeline: str, text: str, in_channels: int = 16, how: str | None = None) -> dict[str, Any]:
    """A published HunyuanVideo's small files, as far as they are read."""
    return {
        "model_index.json": {
            "_class_name": pipeline,
            "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
            "text_encoder": ["transformers", text],
            "text_encoder_2": ["transformers", "CLIPTextModel"],
            "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        },
        "transformer/config.json": {
            "in_channels": in_channels, "patch_size": 2, "patch_size_t": 1, "guidance_embeds": in_channels == 16,
            "image_condition_type": how,
        },
        "vae/config.json": {
            "latent_channels": 16, "temporal_compression_ratio": 4, "spatial_compression_ratio": 8,
            "scaling_factor": 0.476986,
        },
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0},
    }  # fmt: skip


def ltx(pipeline: str, vae: dict[str, Any], scheduler: dict[str, Any]) -> dict[str, Any]:
    """A published LTX-Video's small files, as far as they are read: those that diffusers' conversion script writes."""
    return {
        "model_index.json": {
            "_class_name": pipeline,
            "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "vae": ["diffusers", "AutoencoderKLLTXVideo"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        },
        "transformer/config.json": {"in_channels": 128, "patch_size": 1, "patch_size_t": 1},
        "vae/config.json": {"latent_channels": 128, "patch_size": 4, "patch_size_t": 1, **vae},
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler},
    }


# The VAE of 0.9 says nothing of its ratios; that of 0.9.7 scales four times, not always along time and sides.
LTX_VAE = {"spatio_temporal_scaling": [True, True, True, False], "timestep_conditioning": False}
LTX_VAE_097 = {
    "spatio_temporal_scaling": [True] * 4, "timestep_conditioning": True, "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}  # fmt: skip
LTX_SHIFT = {
    "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
    "max_image_seq_len": 4096, "shift_terminal": 0.1,
}  # fmt: skip


def kandinsky5(pipeline: str) -> dict[str, Any]:
    """A published Kandinsky 5.0 Video Lite's small files, as far as they are read; those of its authors' configs."""
    return {
        "model_index.json": {
            "_class_name": pipeline,
            "transformer": ["diffusers", "Kandinsky5Transformer3DModel"],
            "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
            "text_encoder_2": ["transformers", "CLIPTextModel"],
            "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        },
        "transformer/config.json": {
            "in_visual_dim": 16, "out_visual_dim": 16, "patch_size": [1, 2, 2], "visual_cond": True,
            "attention_type": "regular",
        },
        "vae/config.json": {
            "latent_channels": 16, "temporal_compression_ratio": 4, "spatial_compression_ratio": 8,
            "scaling_factor": 0.476986,
        },
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    }  # fmt: skip


def framepack(model: str) -> dict[str, dict[str, Any]]:
    """By hub id, the small files of FramePack's own components, as far as they are read."""
    transformer = {
        "_class_name": "HunyuanVideoTransformer3DModelPacked", "in_channels": 16, "patch_size": 2, "patch_size_t": 1,
        "guidance_embeds": True, "has_clean_x_embedder": True, "has_image_proj": True, "image_proj_dim": 1152,
    }  # fmt: skip
    redux = {
        "image_encoder/config.json": {"architectures": ["SiglipVisionModel"]},
        "feature_extractor/preprocessor_config.json": {"image_processor_type": "SiglipImageProcessor"},
    }
    return {model: {"config.json": transformer}, "lllyasviel/flux_redux_bfl": redux}


HY, HY_I2V = "HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"
LLAVA = "LlavaForConditionalGeneration"
TWO = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
CLIP = {"image_encoder": ["transformers", "CLIPVisionModel"]}
T2V, I2V, COG, COG_I2V = (
    "WanPipeline", "WanImageToVideoPipeline", "CogVideoXPipeline", "CogVideoXImageToVideoPipeline"
)  # fmt: skip
NEWER = {"patch_size_t": 2, "sample_height": 300, "sample_width": 300, "sample_frames": 81, "max_text_seq_length": 224}

# The hub ids of `components` -> the files there
ELSEWHERE = framepack("lllyasviel/FramePackI2V_HY") | framepack("lllyasviel/FramePack_F1_I2V_HY_20250503")

# preset -> its checkpoint's files, whether it takes a first frame, and (C, F, h, w) of its latents
PUBLISHED = {
    "wan2.1": (wan(T2V, 16), "none", (16, 21, 60, 104)),
    "generators/wan2.1-i2v": (wan(I2V, 36, image_dim=1280, **CLIP), "needed", (16, 21, 60, 104)),
    "generators/wan2.2-t2v": (wan(T2V, 16, boundary_ratio=0.875, **TWO), "none", (16, 21, 90, 160)),
    "generators/wan2.2-i2v": (wan(I2V, 36, boundary_ratio=0.9, **TWO), "needed", (16, 21, 60, 104)),
    "generators/wan2.2-ti2v": (wan(T2V, 48, 48, (4, 16), expand_timesteps=True), "optional", (48, 31, 44, 80)),
    "generators/cogvideox-2b": (cogvideox(COG, 16, rotary=False), "none", (16, 13, 60, 90)),
    "generators/cogvideox-5b": (cogvideox(COG, 16), "none", (16, 13, 60, 90)),
    "generators/cogvideox-5b-i2v": (cogvideox(COG_I2V, 32, learned=True), "needed", (16, 13, 60, 90)),
    "generators/animatediff": (unet("AnimateDiffPipeline", "UNetMotionModel", 4), "none", (4, 16, 64, 64)),
    "generators/unet3d": (unet("TextToVideoSDPipeline", "UNet3DConditionModel", 4), "none", (4, 16, 32, 32)),
    "generators/pia": (unet("PIAPipeline", "UNetMotionModel", 9), "needed", (4, 16, 64, 64)),
    # 81 frames are 21 latent frames, and one in front
    "generators/cogvideox1.5-5b": (cogvideox(COG, 16, **NEWER), "none", (16, 22, 96, 170)),
    "generators/cogvideox1.5-5b-i2v": (cogvideox(COG_I2V, 32, ofs_embed_dim=512, **NEWER), "needed", (16, 22, 96, 170)),
    "generators/hunyuan-video": (hunyuan_video(HY, "LlamaModel"), "none", (16, 33, 90, 160)),
    "generators/hunyuan-video-i2v": (hunyuan_video(HY_I2V, LLAVA, 16, "token_replace"), "needed", (16, 33, 90, 160)),
    "generators/ltx-video": (ltx("LTXPipeline", LTX_VAE, LTX_SHIFT), "optional", (128, 21, 15, 22)),
    "generators/ltx-video-13b": (
        ltx("LTXConditionPipeline", LTX_VAE_097, {"use_dynamic_shifting": False}),
        "optional",
        (128, 21, 16, 24),
    ),
    # of the 33 latent frames one is dropped after decoding
    "generators/hunyuan-video-i2v-33ch": (
        hunyuan_video(HY_I2V, LLAVA, 33, "latent_concat"),
        "needed",
        (16, 33, 90, 160),
    ),
    "generators/kandinsky5": (kandinsky5("Kandinsky5T2VPipeline"), "none", (16, 31, 64, 96)),
    "generators/kandinsky5-i2v": (kandinsky5("Kandinsky5I2VPipeline"), "needed", (16, 31, 64, 96)),
    "generators/framepack": (hunyuan_video(HY, "LlamaModel"), "needed", (16, 28, 104, 60)),
    "generators/framepack-f1": (hunyuan_video(HY, "LlamaModel"), "needed", (16, 28, 104, 60)),
}


def test_every_preset_of_a_generator_is_checked():
    there = {f"generators/{path.stem}" for path in (PRESETS / "generators").glob("*.yaml")}
    assert there | {"wan2.1"} == PUBLISHED.keys()


def published(name: str, num_frames: int | None = None) -> Generator:
    """The preset's family over what the published checkpoint says of itself; with another number of frames if given."""
    preset = YAML(typ="safe", pure=True).load(PRESETS / f"{name}.yaml")
    generator, video = preset["generator"], preset["video"] | ({"num_frames": num_frames} if num_frames else {})
    cls = find(generator["family"], FAMILIES, "generator.family", "Family")
    checkpoint = Checkpoint(generator["path"], None, None, PUBLISHED[name][0])
    with patch.object(checkpoints, "_opened", lambda path, revision: Checkpoint(path, revision, None, ELSEWHERE[path])):
        checkpoint = checkpoints.with_components(checkpoint, generator.get("components") or {}, cls.class_names)
    told = generator.get("embedded_guidance")
    made: Generator = cls(checkpoint, VideoSize(**video), generator["max_prompt_tokens"], embedded_guidance=told)
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_presets_sizes_and_solver_fit_the_published_model(name):
    _, image, latent_shape = PUBLISHED[name]
    preset, made = YAML(typ="safe", pure=True).load(PRESETS / f"{name}.yaml"), published(name)

    assert (made.image, made.latent_shape) == (image, latent_shape)
    for how in (preset["generate"], preset["evaluate"]["generate"], preset["select"]["generate"]):
        check_solver(made.process, how["solver"])
    training = preset["train"]["common"]
    assert made.takes_lora or training["full"]
    assert made.checkpoints or not training["gradient_checkpointing"]
    prompts = [Prompt("p", "a cup falls", "c", "train", "first.png" if image == "needed" else None, None)]
    assert check_images(made, prompts) is None
