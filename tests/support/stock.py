"""Stock diffusers pipelines over the tiny models: what they sample, decode and ask their denoisers."""

import functools
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from generators.tiny.variants import Variant

PROMPT = "lifting red ball up"
LTX_DECODE = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}  # of Lightricks' configs
STEPS, GUIDANCE = 4, 2.0
SAMPLING_TYPES = {"framepack": "inverted_anti_drifting", "framepack_f1": "vanilla"}


def load_stock(folder: Path, image: bool = False) -> Any:
    """The folder's own pipeline, or with `image` of a text-to-video folder the one that takes a first frame."""
    from diffusers import (
        DiffusionPipeline,
        LTXImageToVideoPipeline,
        LTXPipeline,
        WanImageToVideoPipeline,
        WanPipeline,
    )

    index = json.loads((Path(folder) / "model_index.json").read_text())
    without = {"vae": None} if "vae" in index and index["vae"][0] is None else {}  # of a model in pixels
    pipeline = DiffusionPipeline.from_pretrained(folder, **without)
    if image and isinstance(pipeline, WanPipeline):
        pipeline = WanImageToVideoPipeline.from_pretrained(folder)
    if image and isinstance(pipeline, LTXPipeline):
        pipeline = LTXImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return FirstFrameLoop(pipeline) if index["_class_name"] == "TextToVideoSDPipeline" and image else pipeline


class FirstFrameLoop:
    """DDIM over the modules of a TextToVideoSDPipeline whose U-Net sees the first frame; no stock pipeline has it."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    @torch.no_grad()
    def __call__(
        self, prompt, image, num_frames, height, width, num_inference_steps, guidance_scale, generator, output_type,
        latents=None,
    ) -> Any:  # fmt: skip
        unet, vae, scheduler, tokenizer = self.unet, self.vae, self.scheduler, self.tokenizer
        settings = {"padding": "max_length", "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
        text, empty = (self.text_encoder(tokenizer([one], **settings).input_ids)[0] for one in (prompt, ""))
        first = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        if vae is not None:
            first = vae.encode(first).latent_dist.mode() * vae.config.scaling_factor
        beside = torch.stack([first] * num_frames, dim=2)
        latents = torch.randn(beside.shape, generator=generator) if latents is None else latents
        scheduler.set_timesteps(num_inference_steps)
        for timestep in scheduler.timesteps:
            seen = torch.cat([latents, beside], dim=1)
            noise = unet(seen, timestep, encoder_hidden_states=text).sample
            if guidance_scale > 1:
                without = unet(seen, timestep, encoder_hidden_states=empty).sample
                noise = without + guidance_scale * (noise - without)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        if output_type != "latent":
            decoded = self.decode_latents(latents) / 2 + 0.5
            latents = decoded.clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()
        return SimpleNamespace(frames=latents)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return latents if self.vae is None else self.pipeline.decode_latents(latents)


@functools.cache
def first_frame(seed: int = 0, height: int = 32, width: int = 32) -> Image.Image:
    """An image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def run_stock(pipeline: Any, variant: Variant, image: Image.Image | None = None, **changes: Any) -> Any:
    """What the pipeline makes of one prompt: (1, F, H, W, 3) frames in [0, 1], or latents if output_type says so."""
    arguments = {
        "prompt": PROMPT, "num_frames": variant.num_frames, "height": variant.height, "width": variant.width,
        "num_inference_steps": 2, "guidance_scale": GUIDANCE, "max_sequence_length": variant.max_prompt_tokens,
        "generator": torch.Generator().manual_seed(0), "output_type": "np",
    }  # fmt: skip
    if image is not None:
        arguments["image"] = image
    if "max_sequence_length" not in inspect.signature(type(pipeline).__call__).parameters:  # all of CLIP's tokens
        del arguments["max_sequence_length"]
    arguments |= changes
    if is_framepack(pipeline):
        arguments |= sections_of(variant)
    if is_hunyuan_video(pipeline):  # its guidance_scale is what the denoiser is told
        arguments |= {"true_cfg_scale": arguments["guidance_scale"], "negative_prompt": "", "guidance_scale": 6.0}
        arguments["num_frames"] += hidden_frames(pipeline)
    if is_ltx(pipeline):
        arguments |= {"frame_rate": 8, **LTX_DECODE}
        if "image_cond_noise_scale" in inspect.signature(type(pipeline).__call__).parameters:
            arguments["image_cond_noise_scale"] = 0.0
        torch.manual_seed(0)  # of the noise that layers of its decoder add
    if channels_last(pipeline):  # left alone, it has a negative prompt of its own
        arguments = {"negative_prompt": "", **arguments}
    return pipeline(**{name: value for name, value in arguments.items() if value is not ...}).frames


def stock_latents(
    pipeline: Any, variant: Variant, noise: Tensor, image: Image.Image | None = None, **changes: Any
) -> Tensor:
    """(1, C, F, h, w) latents that the pipeline makes of this noise; CogVideoX by DDIM, which draws no noise."""
    if is_ltx(pipeline):  # of these one takes no latents, and one ignores the image when it does
        with patch.object(sys.modules[type(pipeline).__module__], "randn_tensor", lambda *_, **__: noise.clone()):
            settings = {"num_inference_steps": STEPS, "output_type": "latent"} | changes
            return unpacked(run_stock(pipeline, variant, image, **settings), noise)
    if channels_last(pipeline):
        return _kandinsky5_latents(pipeline, variant, noise, image, **changes)
    cogvideox = frames_first(pipeline)
    if cogvideox:
        from diffusers import CogVideoXDDIMScheduler

        pipeline.scheduler = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
    settings = {
        "latents": noise.transpose(1, 2) if cogvideox else noise.clone(),
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    if is_framepack(pipeline):
        with sections_in_order(pipeline, variant, noise):
            return run_stock(pipeline, variant, image, **settings | changes | {"latents": ...})[-1]
    if hidden_frames(pipeline):  # it gives the latents without their first frame, so the last step's are taken
        steps: list[Tensor] = []
        settings["callback_on_step_end"] = lambda _, step, timestep, told: steps.append(told["latents"]) or told
        run_stock(pipeline, variant, image, **settings | changes)
        return steps[-1]
    latents: Tensor = run_stock(pipeline, variant, image, **settings | changes)
    return latents.transpose(1, 2) if cogvideox else latents


def _kandinsky5_latents(
    pipeline: Any, variant: Variant, noise: Tensor, image: Image.Image | None, **changes: Any
) -> Tensor:
    """Those of the last step: from a first frame, what the pipeline gives is fitted for decoding.

    The noise takes the place of what the pipeline would draw, since `latents` has to have its other channels too.
    """
    from diffusers.pipelines.kandinsky5 import pipeline_kandinsky, pipeline_kandinsky_i2v

    steps: list[Tensor] = []
    settings = {
        "num_inference_steps": STEPS, "output_type": "latent",
        "callback_on_step_end": lambda _, step, timestep, told: steps.append(told["latents"]) or told,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline_kandinsky, pipeline_kandinsky_i2v):
            patch.setattr(module, "randn_tensor", lambda *_, **__: noise.permute(0, 2, 3, 4, 1).clone())
        run_stock(pipeline, variant, image, **settings | changes)
    return steps[-1][..., : noise.shape[1]].permute(0, 4, 1, 2, 3)


def stock_decode(pipeline: Any, variant: Variant, latents: Tensor) -> Tensor:
    """(1, F, H, W, 3) pixels of (1, C, F, h, w) latents as the pipeline decodes them, not clamped.

    Black is 0 and white 1. Keeps the graph.
    """
    config = pipeline.vae.config if pipeline.vae else None
    if is_framepack(pipeline):
        return framepack_decode(pipeline, variant, latents)
    if hasattr(pipeline, "unet"):
        decoded = pipeline.decode_latents(latents)
    elif is_ltx(pipeline):
        vae = pipeline.vae
        scaled = pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, config.scaling_factor)
        time = None
        if config.timestep_conditioning:
            noise, share = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), 0.025
            scaled, time = (1 - share) * scaled + share * noise, torch.tensor([0.05])
        torch.manual_seed(0)
        decoded = vae.decode(scaled, time).sample
    elif channels_last(pipeline):
        if hasattr(pipeline, "normalize_first_frame"):
            latents = _fitted(pipeline, latents)
        decoded = pipeline.vae.decode(latents / config.scaling_factor).sample
    elif is_hunyuan_video(pipeline):
        decoded = pipeline.vae.decode(latents / config.scaling_factor).sample[:, :, hidden_frames(pipeline) :]
    elif frames_first(pipeline):
        shown = (variant.num_frames - 1) // config.temporal_compression_ratio + 1  # CogVideoX 1.5 pads in front
        decoded = pipeline.vae.decode(latents[:, :, -shown:] / config.scaling_factor).sample
    else:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        decoded = pipeline.vae.decode(latents * std + mean).sample
    pixels: Tensor = decoded.permute(0, 2, 3, 4, 1) / 2 + 0.5
    return pixels


def frames_first(pipeline: Any) -> bool:
    """Whether its transformer takes latents as (B, F, C, h, w)."""
    return "CogVideoX" in type(pipeline).__name__


def is_ltx(pipeline: Any) -> bool:
    """Whether it is of LTX-Video."""
    return type(pipeline).__name__.startswith("LTX")


def unpacked(latents: Tensor, like: Tensor) -> Tensor:
    """(1, C, F, h, w) latents of that shape that are a row of tokens or no longer are; others as they are."""
    return latents.transpose(1, 2).reshape(like.shape) if latents.ndim == 3 else latents


def _fitted(pipeline: Any, latents: Tensor) -> Tensor:
    """Kandinsky 5's `normalize_first_frame`, which writes into its input, with gradient."""
    moved = pipeline.adaptive_mean_std_normalization(latents[:, :, :4], latents[:, :, 4:9])
    fitted = torch.cat([moved, latents[:, :, 4:]], dim=2)
    expected = pipeline.normalize_first_frame(latents.detach().permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(fitted.detach(), expected)
    return fitted


def channels_first(pipeline: Any, latents: Tensor) -> Tensor:
    """(B, C, F, h, w) of what its transformer takes."""
    if channels_last(pipeline):
        return latents.permute(0, 4, 1, 2, 3)
    return latents.transpose(1, 2) if frames_first(pipeline) else latents


def channels_last(pipeline: Any) -> bool:
    """Whether its transformer takes latents as (B, F, h, w, C)."""
    return "Kandinsky5" in type(pipeline).__name__


def is_hunyuan_video(pipeline: Any) -> bool:
    """Whether it is of HunyuanVideo."""
    return "HunyuanVideo" in type(pipeline).__name__


def is_framepack(pipeline: Any) -> bool:
    """Whether it samples a clip section by section."""
    return "Framepack" in type(pipeline).__name__


def sections_of(variant: Variant) -> dict[str, Any]:
    """FramePack's arguments for a clip: it rounds up to whole sections, and counts the frames of one as four fewer."""
    window = min(9, (variant.num_frames - 1) // 4)
    sections = (variant.num_frames - 1) // (4 * window)
    return {
        "num_frames": sections * (4 * window - 3),
        "latent_window_size": window,
        "sampling_type": SAMPLING_TYPES[variant.family],
    }


@contextmanager
def sections_in_order(pipeline: Any, variant: Variant, noise: Tensor) -> Iterator[None]:
    """FramePack's pipeline takes no latents: it draws those of each section when it comes to it."""
    sections = list(noise[:, :, 1:].split(9, dim=2))
    if variant.family == "framepack":
        sections.reverse()
    pipeline.prepare_latents = lambda *_, **__: sections.pop(0)
    try:
        yield
    finally:
        del pipeline.prepare_latents
    assert not sections


def framepack_decode(pipeline: Any, variant: Variant, latents: Tensor) -> Tensor:
    """As FramePack's pipeline decodes while it samples, with a denoiser and a step that change no section."""
    pipeline.transformer.forward = lambda hidden_states, **_: (hidden_states,)
    pipeline.prepare_image_latents = lambda *_, **__: latents[:, :, :1]
    pipeline.scheduler.step = lambda prediction, timestep, sample, **_: (sample,)
    call = inspect.unwrap(type(pipeline).__call__)  # without no_grad
    arguments = {
        "prompt": PROMPT, "image": first_frame(0, variant.height, variant.width), "height": variant.height,
        "width": variant.width, "num_inference_steps": 1, "output_type": "pt",
        "max_sequence_length": variant.max_prompt_tokens, **sections_of(variant),
    }  # fmt: skip
    with sections_in_order(pipeline, variant, latents):
        frames: Tensor = call(pipeline, **arguments).frames
    return frames.permute(0, 1, 3, 4, 2)


def hidden_frames(pipeline: Any) -> int:
    """Frames that it makes and does not show: 4 of HunyuanVideo's pipeline with 33 channels."""
    concat = is_hunyuan_video(pipeline) and pipeline.transformer.config.image_condition_type == "latent_concat"
    return 4 if concat else 0


@contextmanager
def asked(denoiser: Any) -> Iterator[list[dict[str, Any]]]:
    """What the denoiser is called with in the block, call by call, by argument name, a U-Net's latents as others'.

    Tensors are copies: Kandinsky 5's pipelines write each step into the latents.
    """
    calls: list[dict[str, Any]] = []

    def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*arguments, **named).arguments
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in bound.items()}
        calls.append({"hidden_states" if name == "sample" else name: value for name, value in copies.items()})

    hook = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()
