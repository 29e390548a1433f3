"""Kandinsky 5.0 Video, from text and from a first frame, with diffusers' Kandinsky5 pipelines.

A prompt enters as the last hidden states of Qwen2.5-VL within the pipeline's template and without it (`text`), the
number of its tokens (`length`), and CLIP's pooled text (`pooled`), of CLIP's first 77 tokens. The denoiser has no mask
of the text: it attends to padding. So each prompt is encoded by itself, as the pipeline encodes one. `text` is padded
with zeros to store it, the padding is cut off before a forward, and rows of unequal length take a forward each.

The denoiser takes latents with the channels last. Beside them are as many channels of zeros, and one that is 1 in the
given frame (config visual_cond). A first frame is the first latent frame itself (`given`).

After sampling from a first frame, the pipeline moves mean and standard deviation of the first 4 latent frames, the
given one among them, towards those of the next 5 (`normalize_first_frame`). Here that belongs to decoding: stored
latents are the denoiser's, and `vae_latents` fits them, with gradient. Each clip is fitted to its own frames; the
pipeline fits the clips of one call to all of them. Where no latent frame comes after the 4, the pipeline divides by
zero and makes NaN, so clips from a first frame have 17 frames or more. Decoding what `encode` gives fits it too.

Sparse attention (config attention_type nabla: the authors' configs of 10 seconds, and Pro's in HD) is refused. It needs
attention backend flex and a compiled denoiser. Without compilation flex ignores the blocks of its mask, so the
denoiser attends to all, without an error. That cannot be tested without a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from generators.core.conditions import Conditions, given_frames
from generators.core.generator import Generator, ImageUse
from generators.core.size import check_size

READS = "family kandinsky5 reads a Kandinsky5T2VPipeline or Kandinsky5I2VPipeline"
CLASSES = {
    "transformer": "Kandinsky5Transformer3DModel",
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    "text_encoder_2": "CLIPTextModel",
    "vae": "AutoencoderKLHunyuanVideo",
}
PATCH = [1, 2, 2]  # the pipeline counts on it where it makes positions
POSITIONS = 128  # that the denoiser has along each axis
PROMPT_TOKENS = 1024  # that the pipeline takes at most
FITTED, REFERENCE = 4, 5  # latent frames of which mean and standard deviation are moved, and those that they follow
SD = range(480, 855)  # pixels of both sides of a clip whose positions are scaled by 2; of others by 3.16


class Kandinsky5Generator(Generator):
    """Generator over the components of a Kandinsky 5 video pipeline."""

    family = "kandinsky5"
    pipelines = ("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline")
    components_of = {
        "denoiser": ("transformer",),
        "text": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        "image": (),
        "vae": ("vae",),
    }
    negative_prompt = (
        "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, ugly, deformed, "
        "walking backwards"
    )
    # out_layer alone would hit the denoiser's last layers too, one of which is no linear layer
    lora_targets = (
        "to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer",
        "feed_forward.in_layer", "feed_forward.out_layer",
    )  # fmt: skip

    def _check_pipeline(self) -> None:
        checkpoint = self.checkpoint
        found = f"path: {checkpoint.path} is a {checkpoint.index['_class_name']}"
        for component, wanted in CLASSES.items():
            if (given := checkpoint.class_of(component)) != wanted:
                raise ValueError(f"{found} whose {component} is {given}, expected {wanted}; {READS}")
        self.transformer_config = transformer = checkpoint.component("transformer")
        self.vae_config = vae = checkpoint.component("vae")
        self.takes_image = checkpoint.index["_class_name"] == "Kandinsky5I2VPipeline"
        if transformer["attention_type"] != "regular":
            raise ValueError(
                f"{found} whose attention_type is {transformer['attention_type']}, expected regular; sparse attention "
                "is not supported here, and checkpoints of 5 seconds in SD have none"
            )
        if [*transformer["patch_size"]] != PATCH:
            raise ValueError(f"{found} whose patch_size is {[*transformer['patch_size']]}, expected {PATCH}; {READS}")
        for channels in ("in_visual_dim", "out_visual_dim"):
            if transformer[channels] != vae["latent_channels"]:
                raise ValueError(
                    f"{found} whose {channels} is {transformer[channels]}, expected {vae['latent_channels']} of its "
                    f"vae; {READS}"
                )
        if self.max_prompt_tokens > PROMPT_TOKENS:
            raise ValueError(
                f"max_prompt_tokens: {self.max_prompt_tokens}, but the pipeline takes at most {PROMPT_TOKENS}"
            )

    @property
    def image(self) -> ImageUse:
        return "needed" if self.takes_image else "none"

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """The first latent frame holds one frame, each later one `temporal`, so a clip has temporal k + 1 frames."""
        size, vae = self.size, self.vae_config
        temporal, spatial = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
        check_size("num_frames", size.num_frames, every=temporal, offset=1, most=POSITIONS - 1)
        check_size("height", size.height, every=spatial * PATCH[1], most=POSITIONS)
        check_size("width", size.width, every=spatial * PATCH[2], most=POSITIONS)
        if self.takes_image and size.num_frames <= temporal * (FITTED - 1) + 1:
            raise ValueError(
                f"num_frames: {size.num_frames}, but from a first frame {self.checkpoint.path} needs "
                f"{temporal * FITTED + 1} frames or more; the stock pipeline makes NaN of shorter clips"
            )
        frames = (size.num_frames - 1) // temporal + 1
        return (vae["latent_channels"], frames, size.height // spatial, size.width // spatial)

    def _tokens(self) -> int:
        _, num_latents, height, width = self.latent_shape
        return num_latents * (height // PATCH[1]) * (width // PATCH[2])

    # Conditions

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], images: Tensor | None = None) -> Conditions:
        """As Generator says: `text` (P, L, D) padded with zeros, `length` (P,) its tokens, `pooled` (P, D').

        The tokens of a prompt are its own and the end of the template.
        """
        from diffusers.pipelines.kandinsky5 import pipeline_kandinsky as stock

        names = self.components_of["text"]
        parts: dict[str, Any] = {name: self.component(name) for name in names}
        pipeline = stock.Kandinsky5T2VPipeline(**parts, transformer=None, vae=None, scheduler=None)
        texts, pooled, lengths = [], [], []
        for prompt in prompts:
            whole = pipeline.prompt_template.format(stock.prompt_clean(prompt))
            tokens = pipeline.tokenizer(text=[whole], images=None, videos=None)["input_ids"][0]
            length = len(tokens) - pipeline.prompt_template_encode_start_idx
            if length > self.max_prompt_tokens:
                raise ValueError(
                    f"prompt of {length} tokens with the end of its template, max_prompt_tokens is "
                    f"{self.max_prompt_tokens}: {prompt!r}"
                )
            text, of_clip, _ = pipeline.encode_prompt(
                prompt, max_sequence_length=self.max_prompt_tokens, device=self.device
            )
            texts.append(functional.pad(text, (0, 0, 0, self.max_prompt_tokens - length)).cpu())
            pooled.append(of_clip.cpu())
            lengths.append(length)
        return {"text": torch.cat(texts), "length": torch.tensor(lengths), "pooled": torch.cat(pooled)}

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Conditions:
        return {"given": self.encode(images[:, None]).cpu()}

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        hidden = latents.permute(0, 2, 3, 4, 1)
        if self.transformer_config["visual_cond"]:
            is_given = torch.zeros_like(hidden[..., :1])
            is_given[:, : given_frames(conditions)] = 1
            hidden = torch.cat([hidden, torch.zeros_like(hidden), is_given], dim=-1)
        rows: dict[int, list[int]] = {}
        for row, length in enumerate(conditions["length"].tolist()):
            rows.setdefault(length, []).append(row)
        outputs = [
            denoiser(
                hidden_states=hidden[own],
                encoder_hidden_states=conditions["text"][own, :length],
                pooled_projections=conditions["pooled"][own],
                timestep=timestep[own],
                visual_rope_pos=[
                    torch.arange(count // patch, device=latents.device)
                    for count, patch in zip(latents.shape[2:], PATCH, strict=True)
                ],
                text_rope_pos=torch.arange(length, device=latents.device),
                scale_factor=self._scale_factor(),
                return_dict=False,
            )
            for length, own in rows.items()
        ]
        order = torch.tensor([row for own in rows.values() for row in own], device=latents.device)
        return torch.cat(outputs)[order.argsort()].permute(0, 4, 1, 2, 3)

    def _scale_factor(self) -> tuple[float, float, float]:
        """What the positions along time, height and width are divided by."""
        return (1, 2, 2) if self.size.height in SD and self.size.width in SD else (1, 3.16, 3.16)

    # The VAE

    def vae_latents(self, latents: Tensor) -> Tensor:
        if self.takes_image:
            latents = self._fitted(latents)
        scaled: Tensor = latents / self.vae_config["scaling_factor"]
        return scaled

    def _fitted(self, latents: Tensor) -> Tensor:
        """The latents with mean and standard deviation of each clip's first frames moved towards those of the next."""
        from diffusers import Kandinsky5I2VPipeline

        fit = Kandinsky5I2VPipeline.adaptive_mean_std_normalization
        clips = []
        for clip in latents.split(1):
            first, rest = clip[:, :, :FITTED], clip[:, :, FITTED:]
            clips.append(torch.cat([fit(first, rest[:, :, :REFERENCE]), rest], dim=2))
        return torch.cat(clips)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        pixels = frames.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        mode: Tensor = self.component("vae").encode(pixels).latent_dist.mode()
        latents: Tensor = mode * self.vae_config["scaling_factor"]
        return latents


Family = Kandinsky5Generator  # the name that a family's module is asked for
