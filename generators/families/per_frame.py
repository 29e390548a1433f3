"""What the families of U-Nets share: CLIP's or T5's text, and a VAE of images that goes through a clip frame by frame.

No family by itself: animatediff and unet3d are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from generators.core.conditions import Conditions
from generators.core.generator import Generator, ImageUse
from generators.core.text import encode_padded

PIXELS = 8  # of which the pipelines take multiples, along each side
FRAMES = 16  # that the VAE takes at once, as in the pipelines
SCALE = 0.18215  # of latents, where the VAE's config is older than the entry


class PerFrameGenerator(Generator):
    """A U-Net over the latents of an AutoencoderKL, one latent frame for a frame.

    Letters beside Generator's: C, h, w the latents' channels, height, width.
    """

    components_of = {"denoiser": ("unet",), "text": ("text_encoder", "tokenizer"), "image": (), "vae": ("vae",)}
    attention_backends = False
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    takes_image: bool

    @property
    def image(self) -> ImageUse:
        return "needed" if self.takes_image else "none"

    @property
    def vae_config(self) -> dict[str, Any]:
        return self.checkpoint.component("vae")

    @property
    def spatial(self) -> int:
        """Pixels of a latent pixel, along each side."""
        return 1 << (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def scale(self) -> float:
        """The factor from the VAE's latents to the denoiser's."""
        return float(self.vae_config.get("scaling_factor", SCALE))

    def _check_classes(self, classes: Mapping[str, tuple[str, ...]], reads: str) -> None:
        """Raises ValueError where a component is of a class that the family does not read."""
        checkpoint = self.checkpoint
        for component, wanted in classes.items():
            if (given := checkpoint.class_of(component)) not in wanted:
                raise ValueError(
                    f"path: {checkpoint.path} is a {checkpoint.index['_class_name']} whose {component} is {given}, "
                    f"expected {' or '.join(wanted)}; {reads}"
                )

    def _check_clip_tokens(self) -> None:
        """The pipelines pad to all of CLIP's positions, and the denoiser attends to the padding too."""
        if self.checkpoint.class_of("text_encoder") != "CLIPTextModel":
            return
        most = self.checkpoint.component("text_encoder").get("max_position_embeddings", 77)
        if self.max_prompt_tokens != most:
            raise ValueError(
                f"max_prompt_tokens: {self.max_prompt_tokens}, but the CLIP of {self.checkpoint.path} has {most}"
            )

    def _tokens(self) -> int:
        _, num_latents, height, width = self.latent_shape
        return num_latents * height * width

    def encode_text(self, prompts: Sequence[str], images: Tensor | None = None) -> Conditions:
        encoder, tokenizer = self.component("text_encoder"), self.component("tokenizer")
        return {"text": encode_padded(encoder, tokenizer, prompts, self.max_prompt_tokens, self.device, masked=False)}

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Conditions:
        """`first` (P, C, 1, h, w): the frame's latents, once; the denoiser sees them beside every frame."""
        return {"first": self.encode(images[:, None]).cpu()}

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        vae = self.component("vae")
        chunks = frames.flatten(0, 1).permute(0, 3, 1, 2).split(FRAMES)
        modes = [vae.encode(chunk.to(self.device).float() / 127.5 - 1).latent_dist.mode() for chunk in chunks]
        return self.scale * _clips(modes, len(frames)).transpose(1, 2)

    def vae_latents(self, latents: Tensor) -> Tensor:
        return latents / self.scale

    def _pixels(self, latents: Tensor) -> Tensor:
        vae, scaled = self.component("vae"), self.vae_latents(latents.to(self.device, torch.float32))
        chunks = scaled.transpose(1, 2).flatten(0, 1).split(FRAMES)
        pixels = _clips((vae.decode(chunk, return_dict=False)[0] for chunk in chunks), len(latents))
        return (pixels / 2 + 0.5).permute(0, 1, 3, 4, 2)


def _clips(chunks: Iterable[Tensor], count: int) -> Tensor:
    """(B, F, C, h, w) of all frames of B clips in a row, (n, C, h, w) each."""
    frames = torch.cat(list(chunks))
    return frames.view(count, -1, *frames.shape[1:])
