"""CogVideoX 1.0 and 1.5, from text and from a first frame, with diffusers' CogVideoX pipelines.

The denoiser predicts v; its latents are (B, F, C, h, w), ours (B, C, F, h, w). A first frame enters as channels beside
the latents: its own latents at the first latent frame, zeros after it. The pipeline samples them from the VAE's
posterior; here they are its mode. 1.5 takes patches of two latent frames, so it puts latent frames in front until their
number is even, and drops them before decoding.
Text is padded to max_prompt_tokens, and the denoiser attends to the padding too, so sample with the length of training
(226; 1.5: 224).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from generators.core.conditions import Conditions
from generators.core.generator import Generator, ImageUse
from generators.core.size import check_size
from generators.core.text import encode_padded

READS = "family cogvideox reads a CogVideoXPipeline or CogVideoXImageToVideoPipeline"
CLASSES = {
    "transformer": ("CogVideoXTransformer3DModel",),
    "text_encoder": ("T5EncoderModel",),
    "vae": ("AutoencoderKLCogVideoX", "AutoencoderKLWan"),  # the tabletop's generator has the latter
}
OFS = 2.0  # what the pipeline tells 1.5's image-to-video transformer


class CogVideoXGenerator(Generator):
    """Generator over the components of a CogVideoX pipeline."""

    family = "cogvideox"
    pipelines = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")
    components_of = {
        "denoiser": ("transformer",),
        "text": ("text_encoder", "tokenizer"),
        "image": (),
        "vae": ("vae",),
    }
    attention_backends = False
    lora_targets = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")

    def _check_pipeline(self) -> None:
        checkpoint = self.checkpoint
        found = f"path: {checkpoint.path} is a {checkpoint.index['_class_name']}"
        for component, wanted in CLASSES.items():
            if (given := checkpoint.class_of(component)) not in wanted:
                raise ValueError(f"{found} whose {component} is {given}, expected {' or '.join(wanted)}; {READS}")
        self.transformer_config = transformer = checkpoint.component("transformer")
        self.vae_config = vae = checkpoint.component("vae")
        beside = transformer["in_channels"] - vae["latent_channels"]
        if beside not in (0, vae["latent_channels"]):
            raise ValueError(f"{found} whose transformer takes {beside} channels beside the latents; {READS}")
        self.takes_image = beside > 0
        self._rotary: tuple[Tensor, Tensor] | None = None  # made when it is first asked for
        if not transformer["use_rotary_positional_embeddings"] or transformer["use_learned_positional_embeddings"]:
            most = transformer["max_text_seq_length"]
            if self.max_prompt_tokens != most:
                raise ValueError(
                    f"max_prompt_tokens: {self.max_prompt_tokens}, but {checkpoint.path} has positions for {most}"
                )

    @property
    def image(self) -> ImageUse:
        return "needed" if self.takes_image else "none"

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """The first latent frame holds one frame, each later one `temporal`.

        AutoencoderKLCogVideoX decodes n latent frames to that many frames only where n is odd.
        """
        transformer, size, spatial = self.transformer_config, self.size, self._spatial
        temporal, patch = self.vae_config["temporal_compression_ratio"], transformer["patch_size"]
        odd = 2 if self.checkpoint.class_of("vae") == "AutoencoderKLCogVideoX" else 1
        check_size("num_frames", size.num_frames, every=odd * temporal, offset=1)
        check_size("height", size.height, every=spatial * patch)
        check_size("width", size.width, every=spatial * patch)
        if transformer["use_learned_positional_embeddings"]:  # they are of one size
            only = {
                "num_frames": transformer["sample_frames"],
                "height": transformer["sample_height"] * spatial,
                "width": transformer["sample_width"] * spatial,
            }
            for name, value in only.items():
                if getattr(size, name) != value:
                    raise ValueError(f"{name}: {getattr(size, name)}, but {self.checkpoint.path} makes {value} alone")
        frames = (size.num_frames - 1) // temporal + 1
        self.padding = -frames % (transformer["patch_size_t"] or 1)  # latent frames in front, dropped before decoding
        channels = self.vae_config["latent_channels"]
        return (channels, frames + self.padding, size.height // spatial, size.width // spatial)

    @property
    def _spatial(self) -> int:
        return 1 << (len(self.vae_config["block_out_channels"]) - 1)

    def _tokens(self) -> int:
        patch, frames = self.transformer_config["patch_size"], self.transformer_config["patch_size_t"] or 1
        _, num_latents, height, width = self.latent_shape
        return int((num_latents // frames) * (height // patch) * (width // patch))

    def encode_text(self, prompts: Sequence[str], images: Tensor | None = None) -> Conditions:
        encoder, tokenizer = self.component("text_encoder"), self.component("tokenizer")
        return {"text": encode_padded(encoder, tokenizer, prompts, self.max_prompt_tokens, self.device, masked=False)}

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Conditions:
        scale = self.vae_config["scaling_factor"]
        if self.vae_config.get("invert_scale_latents"):  # 5b-I2V was trained so
            scale = 1 / scale
        mode = self.component("vae").encode(_pixels(images[:, None].to(self.device))).latent_dist.mode()
        return {"first": (mode * scale).cpu()}

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        if "first" in conditions:
            first = conditions["first"]
            later = first.new_zeros(*first.shape[:2], latents.shape[2] - 1, *first.shape[3:])
            latents = torch.cat([latents, torch.cat([first, later], dim=2)], dim=1)
        ofs = latents.new_full((1,), OFS) if self.transformer_config["ofs_embed_dim"] else None
        output: Tensor = denoiser(
            hidden_states=latents.transpose(1, 2),
            timestep=timestep,
            encoder_hidden_states=conditions["text"],
            ofs=ofs,
            image_rotary_emb=self._rotary_positions(),
            return_dict=False,
        )[0]
        return output.transpose(1, 2)

    def _rotary_positions(self) -> tuple[Tensor, Tensor] | None:
        """Of the clip's tokens, as the pipeline makes them; None where the transformer has other positions."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        config = self.transformer_config
        if not config["use_rotary_positional_embeddings"]:
            return None
        if self._rotary is None:
            patch, frames = config["patch_size"], config["patch_size_t"]
            grid = (self.latent_shape[2] // patch, self.latent_shape[3] // patch)
            base = (config["sample_height"] // patch, config["sample_width"] // patch)
            of_release: Mapping[str, Any]
            if frames is None:  # 1.0
                of_release = {"crops_coords": _crop(grid, base), "temporal_size": self.latent_shape[1]}
            else:  # 1.5
                of_release = {"crops_coords": None, "temporal_size": self.latent_shape[1] // frames}
                of_release |= {"grid_type": "slice", "max_size": base}
            self._rotary = get_3d_rotary_pos_embed(
                embed_dim=config["attention_head_dim"], grid_size=grid, device=self.device, **of_release
            )
        return self._rotary

    def vae_latents(self, latents: Tensor) -> Tensor:
        scaled: Tensor = latents[:, :, self.padding :] / self.vae_config["scaling_factor"]
        return scaled

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        mode: Tensor = self.component("vae").encode(_pixels(frames.to(self.device))).latent_dist.mode()
        latents = mode * self.vae_config["scaling_factor"]
        return torch.cat([latents[:, :, :1].expand(-1, -1, self.padding, -1, -1), latents], dim=2)


def _crop(grid: tuple[int, int], base: tuple[int, int]) -> Any:
    """The part of the positions of the size that was trained on that this grid gets, (height, width) each."""
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    return get_resize_crop_region_for_grid(grid, base[1], base[0])


def _pixels(frames: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) to float32 (B, 3, F, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


Family = CogVideoXGenerator  # the name that a family's module is asked for
