"""AnimateDiff, and PIA from a first frame, with diffusers' pipelines over a UNetMotionModel.

AnimateDiff puts motion modules between the layers of a Stable Diffusion 1.5: published are the two apart, so save the
pipeline that joins them, and name its folder:

    AnimateDiffPipeline.from_pretrained(base, motion_adapter=adapter).save_pretrained(folder)

The folder's unet is then a UNetMotionModel, the adapter inside it; a component motion_adapter beside it is not read.
The motion modules have positions for motion_max_seq_length frames, 32 as published.

PIA takes the first frame as channels beside the latents: its latents in every frame, behind one channel that says how
much the frame is like it. That is the pipeline's motion_scale 0; the pipeline samples the latents from the VAE's
posterior, here they are its mode. CLIP's text is padded to all its tokens (77).
"""

from typing import Any

import torch
from torch import Tensor

from generators.core.conditions import Conditions
from generators.core.size import check_size
from generators.families.per_frame import PIXELS, PerFrameGenerator

READS = (
    "family animatediff reads a folder that AnimateDiffPipeline or PIAPipeline saved, with its motion modules in unet"
)
CLASSES = {"unet": ("UNetMotionModel",), "text_encoder": ("CLIPTextModel",), "vae": ("AutoencoderKL",)}
# How much each frame is like the first, of PIA's smallest motion (the pipeline's motion_scale 0); later: as the last
LIKENESS = (1.0, 0.9, 0.85, 0.85, 0.85, 0.8)


class AnimateDiffGenerator(PerFrameGenerator):
    """Generator over the components of an AnimateDiffPipeline or a PIAPipeline."""

    family = "animatediff"
    pipelines = ("AnimateDiffPipeline", "PIAPipeline")

    def _check_pipeline(self) -> None:
        self._check_classes(CLASSES, READS)
        self._check_clip_tokens()
        checkpoint = self.checkpoint
        self.unet_config = unet = checkpoint.component("unet")
        latents = self.vae_config["latent_channels"]
        beside = unet["in_channels"] - latents
        self.takes_image = checkpoint.index["_class_name"] == "PIAPipeline"
        if beside != (wanted := latents + 1 if self.takes_image else 0):
            raise ValueError(
                f"path: {checkpoint.path} is a {checkpoint.index['_class_name']} whose unet takes {beside} channels "
                f"beside the latents, expected {wanted}; {READS}"
            )

    def _latent_shape(self) -> tuple[int, int, int, int]:
        size, spatial = self.size, self.spatial
        most = self.unet_config.get("motion_max_seq_length", 32)
        if size.num_frames > most:
            raise ValueError(f"num_frames: {size.num_frames}, but {self.checkpoint.path} has positions for {most}")
        for name in ("height", "width"):
            check_size(name, getattr(size, name), every=max(PIXELS, spatial))
        return (self.vae_config["latent_channels"], size.num_frames, size.height // spatial, size.width // spatial)

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        num_frames = latents.shape[2]
        if "first" in conditions:
            first = conditions["first"].expand(-1, -1, num_frames, -1, -1)
            coefficients = [LIKENESS[min(place, len(LIKENESS) - 1)] for place in range(num_frames)]
            likeness = latents.new_tensor(coefficients).view(1, 1, -1, 1, 1).expand_as(first[:, :1])
            latents = torch.cat([latents, likeness, first], dim=1)
        output: Tensor = denoiser(
            latents,
            timestep,
            encoder_hidden_states=conditions["text"].repeat_interleave(num_frames, dim=0),
            return_dict=False,
        )[0]
        return output


Family = AnimateDiffGenerator  # the name that a family's module is asked for
