"""LTX-Video 0.9 to 0.9.8, from text and from a first frame, with diffusers' LTX pipelines.

The same weights serve both: diffusers reads an LTXPipeline's folder as an LTXImageToVideoPipeline too. A first frame is
the first latent frame, whose tokens are at time 0. The denoiser's latents are a row of tokens; here they are
(B, C, F, h, w). Its positions in time are seconds, so `fps` changes what it makes.

An LTXPipeline's shift of time depends on the number of tokens where the scheduler says so (0.9, 0.9.1), and its latent
frames are evenly spaced in time. An LTXConditionPipeline (0.9.7 on) has noise levels of its own without a shift, counts
the first latent frame as one frame, and its text encoder does not attend to padding. It may add noise to the given
frame (image_cond_noise_scale); here that is 0.

VAEs from 0.9.1 on take a time and decode latents with a little noise; see generators.decoders.ltx.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from generators.core.conditions import Conditions, given_frames
from generators.core.generator import Generator, ImageUse
from generators.core.size import check_size
from generators.core.text import encode_padded

READS = "family ltx reads an LTXPipeline, LTXImageToVideoPipeline or LTXConditionPipeline"
CLASSES = {
    "transformer": "LTXVideoTransformer3DModel",
    "text_encoder": "T5EncoderModel",
    "vae": "AutoencoderKLLTXVideo",
}
LINEAR_NOISE = 0.025  # noise that the first half of LTXConditionPipeline's steps takes away, evenly


class LTXGenerator(Generator):
    """Generator over the components of an LTX pipeline."""

    family = "ltx"
    pipelines = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
    components_of = {
        "denoiser": ("transformer",),
        "text": ("text_encoder", "tokenizer"),
        "image": (),
        "vae": ("vae",),
    }
    attention_backends = False  # attention to the text has a mask
    windows = False  # every frame depends on the whole clip
    lora_targets = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
        "attn2.to_out.0", "ff.net.0.proj", "ff.net.2",
    )  # fmt: skip

    def _check_pipeline(self) -> None:
        checkpoint = self.checkpoint
        found = f"path: {checkpoint.path} is a {checkpoint.index['_class_name']}"
        for component, wanted in CLASSES.items():
            if (given := checkpoint.class_of(component)) != wanted:
                raise ValueError(f"{found} whose {component} is {given}, expected {wanted}; {READS}")
        transformer, self.vae_config = checkpoint.component("transformer"), checkpoint.component("vae")
        for key in ("patch_size", "patch_size_t"):
            if transformer.get(key, 1) != 1:
                raise ValueError(f"{found} whose transformer has {key} {transformer[key]}, expected 1; {READS}")
        if checkpoint.component("scheduler").get("stochastic_sampling"):
            raise ValueError(f"{found} whose scheduler has stochastic_sampling true, expected false; {READS}")
        self.of_conditions = checkpoint.index["_class_name"] == "LTXConditionPipeline"

    @property
    def image(self) -> ImageUse:
        return "optional"

    def _ratio(self, kind: str, patch: str) -> int:
        """Pixels or frames of a latent one, as the VAE computes it."""
        config = self.vae_config
        given = config.get(f"{kind}_compression_ratio")
        return int(given or config[patch] * 2 ** sum(config["spatio_temporal_scaling"]))

    @property
    def _spatial(self) -> int:
        return self._ratio("spatial", "patch_size")

    @property
    def _temporal(self) -> int:
        return self._ratio("temporal", "patch_size_t")

    def _latent_shape(self) -> tuple[int, int, int, int]:
        size, spatial, temporal = self.size, self._spatial, self._temporal
        check_size("num_frames", size.num_frames, every=temporal, offset=1)
        check_size("height", size.height, every=spatial)
        check_size("width", size.width, every=spatial)
        frames = (size.num_frames - 1) // temporal + 1
        return (self.vae_config["latent_channels"], frames, size.height // spatial, size.width // spatial)

    def _tokens(self) -> int:
        _, frames, height, width = self.latent_shape
        return frames * height * width

    def _sigmas(self, steps: int) -> Sequence[float]:
        if self.of_conditions:
            return linear_quadratic(steps)
        levels: list[float] = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
        return levels

    def solver(self, name: str, steps: int, even: bool = False) -> Any:
        """As Generator says. Raises ValueError for one step where shift_terminal stretches the noise levels."""
        terminal = self.scheduler_config.get("shift_terminal")
        if terminal and steps < 2:
            raise ValueError(f"steps: {steps}, but noise levels that begin at 1 and end at {terminal} are at least 2")
        return super().solver(name, steps, even)

    # Conditions

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], images: Tensor | None = None) -> Conditions:
        """As Generator says: `text` (P, L, D), and `text_mask` (P, L), true where a token is no padding."""
        tokenizer, length = self.component("tokenizer"), self.max_prompt_tokens
        encoder = self.component("text_encoder")
        text = encode_padded(encoder, tokenizer, prompts, length, self.device, masked=self.of_conditions)
        mask = tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt").attention_mask
        return {"text": text, "text_mask": mask.bool()}

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Conditions:
        return {"given": self.encode(images[:, None]).cpu()}

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        frames, height, width = latents.shape[2:]
        timestep = timestep[:, None]
        if given := given_frames(conditions):  # a time for every token
            late = timestep.new_ones(frames, height * width)
            late[:given] = 0
            timestep = timestep * late.flatten()
        where: dict[str, Any] = {"video_coords": self._positions(latents)}
        if not self.of_conditions:
            scale = (self._temporal / self.size.fps, self._spatial, self._spatial)
            where = {"num_frames": frames, "height": height, "width": width, "rope_interpolation_scale": scale}
        output: Tensor = denoiser(
            hidden_states=latents.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditions["text"],
            timestep=timestep,
            encoder_attention_mask=conditions["text_mask"],
            return_dict=False,
            **where,
        )[0]
        return output.transpose(1, 2).reshape(latents.shape)

    def _positions(self, latents: Tensor) -> Tensor:
        """(B, 3, F h w) float32: second, row and column of each token, where its first latent frame is one frame."""
        frames, height, width = (torch.arange(count, device=latents.device) for count in latents.shape[2:])
        seconds = (frames * self._temporal + 1 - self._temporal).clamp(min=0).float() / self.size.fps
        grid = torch.meshgrid(seconds, (height * self._spatial).float(), (width * self._spatial).float(), indexing="ij")
        return torch.stack(grid).flatten(1).expand(len(latents), -1, -1)

    # The VAE

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and width of the VAE's latents, (1, C, 1, 1, 1) each."""
        vae = self.component("vae")
        mean, std = (values.view(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
        return mean, std / vae.config.scaling_factor

    def vae_latents(self, latents: Tensor) -> Tensor:
        from generators.decoders.ltx import with_noise

        mean, std = self._scale()
        return with_noise(self.component("vae"), latents * std + mean)

    def _pixels(self, latents: Tensor) -> Tensor:
        from generators.decoders.ltx import decode

        return decode(self.component("vae"), self.vae_latents(latents.to(self.device, torch.float32)))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        pixels = frames.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        mean, std = self._scale()
        normalised: Tensor = (self.component("vae").encode(pixels).latent_dist.mode() - mean) / std
        return normalised


def linear_quadratic(steps: int) -> list[float]:
    """The noise levels of LTXConditionPipeline's steps, from 1 down; a last step goes to 0.

    The first half (rounded down) falls evenly by LINEAR_NOISE; the others fall faster and faster, as a parabola that
    goes on in value and slope.
    """
    if steps < 2:
        return [1.0]
    half = steps // 2
    slope = LINEAR_NOISE / half
    bend = (1 - slope * steps) / (steps - half) ** 2
    return [1 - slope * step - bend * max(step - half, 0) ** 2 for step in range(steps)]


Family = LTXGenerator  # the name that a family's module is asked for
