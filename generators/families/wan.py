"""Wan 2.1 and 2.2, from text and from a first frame, with diffusers' WanPipeline and WanImageToVideoPipeline.

    checkpoint          denoisers                        the first frame enters as
    Wan2.1 T2V          transformer                      -
    Wan2.1 I2V          transformer                      channels beside the latents, and its CLIP embedding
    Wan2.2 T2V-A14B     transformer (high noise),        -
    Wan2.2 I2V-A14B       transformer_2 (low noise)      channels beside the latents
    Wan2.2 TI2V-5B      transformer, a time per token    the first latent frame, where the prompt has an image

Text, padding, the scaling of latents and the boundary between the two denoisers are those of diffusers' pipelines.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from generators.core.conditions import GIVEN, Conditions, given_frames
from generators.core.generator import Generator, ImageUse
from generators.core.size import check_size
from generators.core.text import encode_padded

READS = "family wan reads a WanPipeline or WanImageToVideoPipeline of Wan2.1 or Wan2.2"
CLASSES = {
    "transformer": "WanTransformer3DModel",
    "transformer_2": "WanTransformer3DModel",
    "text_encoder": "UMT5EncoderModel",
    "vae": "AutoencoderKLWan",
    "image_encoder": "CLIPVisionModel",
}
OPTIONAL = ("transformer_2", "image_encoder")
ENCODER_CHUNK = 4  # frames that AutoencoderKLWan encodes at a time after the first, whatever its temporal scale
CLIP_TEXT = 512  # WanAttention takes all but the last 512 tokens of its context for the image's


class WanGenerator(Generator):
    """Generator over the components of a Wan pipeline."""

    family = "wan"
    pipelines = ("WanPipeline", "WanImageToVideoPipeline")
    components_of = {
        "denoiser": ("transformer", "transformer_2"),
        "text": ("text_encoder", "tokenizer"),
        "image": ("image_encoder", "image_processor"),
        "vae": ("vae",),
    }
    lora_targets = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
        "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
        "ffn.net.0.proj", "ffn.net.2",
    )  # fmt: skip

    def _check_pipeline(self) -> None:
        checkpoint = self.checkpoint
        name = checkpoint.index["_class_name"]
        found = f"path: {checkpoint.path} is a {name}"
        for component, wanted in CLASSES.items():
            given = checkpoint.class_of(component)
            if given != wanted and not (given is None and component in OPTIONAL):
                raise ValueError(f"{found} whose {component} is {given}, expected {wanted}; {READS}")
        self.transformer_config = transformer = checkpoint.component("transformer")
        self.vae_config = vae = checkpoint.component("vae")
        self.tiles = vae.get("patch_size") is None  # with patches, neighbouring tiles of diffusers 0.42 differ
        self.time_per_token = bool(checkpoint.index.get("expand_timesteps"))
        self.boundary = self._boundary(found)
        self.extra_channels = extra = transformer["in_channels"] - vae["z_dim"]
        if extra not in (0, vae["z_dim"] + vae["scale_factor_temporal"]):
            raise ValueError(f"{found} whose transformer takes {extra} channels beside the latents; {READS}")
        if transformer["pos_embed_seq_len"] is not None:
            raise ValueError(f"{found} that also wants the last frame (pos_embed_seq_len); {READS}")
        if self.time_per_token and tuple(transformer["patch_size"]) != (1, 2, 2):
            raise ValueError(f"{found} with expand_timesteps and patches other than 1 x 2 x 2; {READS}")
        if self._takes_vision and self.max_prompt_tokens != CLIP_TEXT:
            raise ValueError(
                f"max_prompt_tokens: {self.max_prompt_tokens}, but {checkpoint.path} tells the image from the text by "
                f"{CLIP_TEXT} text tokens"
            )

    def _boundary(self, found: str) -> float | None:
        """Process time from which on it is transformer's turn, where there is a transformer_2."""
        boundary = self.checkpoint.index.get("boundary_ratio")
        second = self.checkpoint.class_of("transformer_2") is not None
        if second != (boundary is not None):
            which = "transformer_2 and no boundary_ratio" if second else "boundary_ratio and no transformer_2"
            raise ValueError(f"{found} with {which}; {READS}")
        return boundary

    @property
    def _takes_vision(self) -> bool:
        return self.transformer_config["image_dim"] is not None

    @property
    def image(self) -> ImageUse:
        if self.extra_channels:
            return "needed"
        return "optional" if self.time_per_token else "none"

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """The first latent frame holds one frame, each later one `temporal`.

        Whole patches only, and no more of them along an axis than there are rotary positions.
        """
        vae, size = self.vae_config, self.size
        temporal, spatial = vae["scale_factor_temporal"], vae["scale_factor_spatial"]
        frames, rows, columns = self.transformer_config["patch_size"]
        most = self.transformer_config["rope_max_seq_len"]
        check_size("num_frames", size.num_frames, every=temporal * frames, offset=1 - temporal, most=most)
        check_size("height", size.height, every=spatial * rows, most=most)
        check_size("width", size.width, every=spatial * columns, most=most)
        num_latents = (size.num_frames - 1) // temporal + 1
        return (vae["z_dim"], num_latents, size.height // spatial, size.width // spatial)

    def _tokens(self) -> int:
        frames, rows, columns = self.transformer_config["patch_size"]
        _, num_latents, height, width = self.latent_shape
        return int((num_latents // frames) * (height // rows) * (width // columns))

    def denoiser_at(self, timestep: float) -> str:
        if self.boundary is None:
            return "transformer"
        steps = self.scheduler_config.get("num_train_timesteps", 1000)
        return "transformer" if timestep >= self.boundary * steps else "transformer_2"

    def encode_text(self, prompts: Sequence[str], images: Tensor | None = None) -> Conditions:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean  # imports transformers; training needs neither

        texts = [prompt_clean(prompt) for prompt in prompts]
        encoder, tokenizer, length = self.component("text_encoder"), self.component("tokenizer"), self.max_prompt_tokens
        return {"text": encode_padded(encoder, tokenizer, texts, length, self.device, masked=True, zeroed=True)}

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Conditions:
        first = _pixels(images[:, None].to(self.device))
        if self.time_per_token:
            return {GIVEN: self._encode_pixels(first).cpu()}
        # The frames after the first are grey. The VAE's answer to them is not zero, so all are kept.
        grey = first.new_zeros(*first.shape[:2], self.size.num_frames - 1, *first.shape[3:])
        latents = self._encode_pixels(torch.cat([first, grey], dim=2))
        mask = latents.new_zeros(len(latents), self.vae_config["scale_factor_temporal"], *latents.shape[2:])
        mask[:, :, 0] = 1
        conditions = {"image": torch.cat([mask, latents], dim=1).cpu()}
        if self._takes_vision:
            encoder, processor = self.component("image_encoder"), self.component("image_processor")
            pixels = processor(images=list(images.cpu().numpy()), return_tensors="pt").pixel_values
            seen = encoder(pixels.to(self.device, encoder.dtype), output_hidden_states=True)
            conditions["vision"] = seen.hidden_states[-2].cpu()
        return conditions

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        if self.time_per_token:  # 0 on the tokens of the given frames
            _, rows, columns = self.transformer_config["patch_size"]
            late = torch.ones(latents.shape[2:], device=latents.device)
            late[: given_frames(conditions)] = 0
            timestep = timestep[:, None] * late[:, ::rows, ::columns].flatten()
        if "image" in conditions:
            latents = torch.cat([latents, conditions["image"]], dim=1)
        output: Tensor = denoiser(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=conditions["text"],
            encoder_hidden_states_image=conditions.get("vision"),
            return_dict=False,
        )[0]
        return output

    def vae_latents(self, latents: Tensor) -> Tensor:
        mean, std = self._latents_mean_std()
        return latents * std + mean

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents of clips given as uint8 (B, F, H, W, 3): the mode of the VAE's posterior, no sampling.

        Raises ValueError unless F is 4 k + 1: AutoencoderKLWan silently drops frames beyond, at any temporal scale.
        """
        check_size("num_frames", frames.shape[1], every=ENCODER_CHUNK, offset=1 - ENCODER_CHUNK)
        return self._encode_pixels(_pixels(frames.to(self.device)))

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, F, H, W) in [-1, 1]."""
        mean, std = self._latents_mean_std()
        mode: Tensor = self.component("vae").encode(pixels).latent_dist.mode()
        return (mode - mean) / std

    def _latents_mean_std(self) -> tuple[Tensor, Tensor]:
        """Of the VAE's latents, (1, C, 1, 1, 1) each: what normalises them for the transformer."""
        mean, std = (
            torch.tensor(self.vae_config[name], device=self.device).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return mean, std


def _pixels(frames: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) to float32 (B, 3, F, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


Family = WanGenerator  # the name that a family's module is asked for
