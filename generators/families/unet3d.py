"""diffusers' UNet3DConditionModel, from text (ModelScope) and from a first frame in the channels of every frame.

Reads the folder of a TextToVideoSDPipeline. Without a component vae it is in pixels: its latents are the frames in
[-1, 1]. A U-Net with twice the latents' channels takes a first frame, its latents behind those of every frame; no stock
pipeline samples such a one. Both together, epsilon and a T5 are the layout of the paper's generator.
Text is padded to max_prompt_tokens, and the denoiser attends to the padding too; a CLIP's are always all of its tokens.

diffusers loads no LoRA of the class and it cannot compute its blocks again in the backward pass, so all its weights are
trained, with all activations held.
"""

from typing import Any

import torch
from torch import Tensor

from generators.core.conditions import Conditions
from generators.core.size import check_size
from generators.decoders.decoder import FrameDecoder
from generators.families.per_frame import PIXELS, PerFrameGenerator

READS = "family unet3d reads a TextToVideoSDPipeline over a VAE or, without one, in pixels"
CLASSES = {"unet": ("UNet3DConditionModel",), "text_encoder": ("CLIPTextModel", "T5EncoderModel")}
COLOURS = 3


class UNet3DGenerator(PerFrameGenerator):
    """Generator over the components of a TextToVideoSDPipeline."""

    family = "unet3d"
    pipelines = ("TextToVideoSDPipeline",)
    takes_lora = False
    checkpoints = False

    def _check_pipeline(self) -> None:
        checkpoint = self.checkpoint
        self.in_pixels = checkpoint.class_of("vae") is None
        self._check_classes(CLASSES if self.in_pixels else CLASSES | {"vae": ("AutoencoderKL",)}, READS)
        self._check_clip_tokens()
        self.tiles = not self.in_pixels
        unet = checkpoint.component("unet")
        self.channels = COLOURS if self.in_pixels else self.vae_config["latent_channels"]
        found = f"path: {checkpoint.path} is a {checkpoint.index['_class_name']} whose unet"
        if unet["out_channels"] != self.channels:
            of = "pixels, since it has no vae," if self.in_pixels else "its vae"
            raise ValueError(
                f"{found} makes {unet['out_channels']} channels, expected {self.channels} of {of}; {READS}"
            )
        beside = unet["in_channels"] - self.channels
        if beside not in (0, self.channels):
            raise ValueError(f"{found} takes {beside} channels beside the latents, expected 0 or {self.channels}")
        self.takes_image = beside > 0

    @property
    def spatial(self) -> int:
        return 1 if self.in_pixels else super().spatial

    def _latent_shape(self) -> tuple[int, int, int, int]:
        size, spatial = self.size, self.spatial
        for name in ("height", "width"):
            check_size(name, getattr(size, name), every=max(PIXELS, spatial))
        return (self.channels, size.num_frames, size.height // spatial, size.width // spatial)

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        if "first" in conditions:
            latents = torch.cat([latents, conditions["first"].expand_as(latents)], dim=1)
        output: Tensor = denoiser(latents, timestep, encoder_hidden_states=conditions["text"], return_dict=False)[0]
        return output

    def vae_latents(self, latents: Tensor) -> Tensor:
        return latents if self.in_pixels else super().vae_latents(latents)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        if not self.in_pixels:
            return super().encode(frames)
        return frames.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1

    def _pixels(self, latents: Tensor) -> Tensor:
        if not self.in_pixels:
            return super()._pixels(latents)
        return (latents.to(self.device, torch.float32) / 2 + 0.5).permute(0, 2, 3, 4, 1)

    def frame_decoder(self) -> FrameDecoder:
        from generators.decoders.image import PixelFrameDecoder  # imports diffusers

        return PixelFrameDecoder() if self.in_pixels else super().frame_decoder()


Family = UNet3DGenerator  # the name that a family's module is asked for
