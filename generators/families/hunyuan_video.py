"""HunyuanVideo 1.0, from text and from a first frame, with diffusers' HunyuanVideo pipelines.

A prompt enters as three tensors: states of a Llama three layers before its last, within the pipeline's template and
without it (`text`), their mask (`text_mask`), and CLIP's pooled text (`pooled`). The released
denoisers, except that of 33 channels, are distilled from guidance and take its scale as an input, `embedded_guidance`.

From a first frame the Llama is a Llava, so the text depends on the image, whose tokens come before the text's. The
image enters the denoiser a second time: as the first latent frame itself (`given`; config token_replace, 16 channels)
or as channels beside the latents (`image`; config latent_concat, 33 channels). And sampling starts from 0.999 of the
noise and 0.001 of the image, in every frame.

The captions of guidance come with a black image. For these the pipeline keeps every second token of the image, also
where it keeps every fourth for a prompt, so rows are padded to one length here, under mask 0. An image that is black
all over is taken for such a caption's.

With 33 channels the pipeline drops the first latent frame after decoding, so clips have one more than they show:
`num_frames` is what is shown, the pipeline's own num_frames is 4 more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from generators.core.conditions import Conditions
from generators.core.generator import Generator, ImageUse
from generators.core.size import check_size
from generators.core.text import TEXT_BATCH
from generators.decoders.decoder import FrameDecoder

READS = "family hunyuan_video reads a HunyuanVideoPipeline or HunyuanVideoImageToVideoPipeline"
CLASSES = {
    "transformer": ("HunyuanVideoTransformer3DModel",),
    "text_encoder": ("LlamaModel", "LlavaForConditionalGeneration"),
    "text_encoder_2": ("CLIPTextModel",),
    "vae": ("AutoencoderKLHunyuanVideo",),
}
START = 0.999  # of the noise in where sampling starts; the rest is the image
EVERY = 2  # tokens of the image of which one is kept
EVERY_GIVEN = 4  # the same where the image is the first latent frame, but for the captions of guidance


class HunyuanVideoGenerator(Generator):
    """Generator over the components of a HunyuanVideo pipeline."""

    family = "hunyuan_video"
    pipelines = ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline")
    components_of = {
        "denoiser": ("transformer",),
        "text": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_processor"),
        "image": (),
        "vae": ("vae",),
    }
    attention_backends = False
    default_embedded_guidance: float | None = 6.0
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj",
        "ff_context.net.2", "proj_mlp",
    )  # fmt: skip

    def _check_pipeline(self) -> None:
        found, checkpoint = self._check_classes(CLASSES, READS), self.checkpoint
        transformer, vae = self.transformer_config, self.vae_config
        self.takes_image = "ImageToVideo" in checkpoint.index["_class_name"]
        self.text_sees_image = self.takes_image
        channels, how = vae["latent_channels"], transformer["image_condition_type"] if self.takes_image else None
        expected = {None: channels, "token_replace": channels, "latent_concat": 2 * channels + 1}
        if how not in expected or (self.takes_image and how is None):
            raise ValueError(f"{found} whose image_condition_type is {how}; {READS}")
        if transformer["in_channels"] != expected[how]:
            raise ValueError(
                f"{found} whose transformer takes {transformer['in_channels']} channels, expected {expected[how]}; "
                f"{READS}"
            )
        self.beside = how == "latent_concat"  # the image's latents are channels, and the first latent frame is dropped
        self.default_embedded_guidance = 6.0 if transformer["guidance_embeds"] else None

    def _check_classes(self, classes: Mapping[str, Sequence[str]], reads: str) -> str:
        """Which pipeline it is. Raises ValueError where a component is of another class than these."""
        checkpoint = self.checkpoint
        found = f"path: {checkpoint.path} is a {checkpoint.index['_class_name']}"
        for component, wanted in classes.items():
            if (given := checkpoint.class_of(component)) not in wanted:
                raise ValueError(f"{found} whose {component} is {given}, expected {' or '.join(wanted)}; {reads}")
        self.transformer_config, self.vae_config = checkpoint.component("transformer"), checkpoint.component("vae")
        return found

    @property
    def image(self) -> ImageUse:
        return "needed" if self.takes_image else "none"

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """The first latent frame holds one frame, each later one `temporal`; one is dropped where the image is beside.

        So each clip that is shown has temporal k + 1 frames.
        """
        size, vae = self.size, self.vae_config
        temporal, spatial = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
        check_size("num_frames", size.num_frames, every=temporal, offset=1)
        check_size("height", size.height, every=spatial * self.transformer_config["patch_size"])
        check_size("width", size.width, every=spatial * self.transformer_config["patch_size"])
        frames = (size.num_frames - 1) // temporal + 1 + self.beside
        return (vae["latent_channels"], frames, size.height // spatial, size.width // spatial)

    @property
    def _dropped(self) -> int:
        """Frames that a decoded clip begins with and that are not shown."""
        return int(self.vae_config["temporal_compression_ratio"]) if self.beside else 0

    def _tokens(self) -> int:
        patch, frames = self.transformer_config["patch_size"], self.transformer_config["patch_size_t"]
        _, num_latents, height, width = self.latent_shape
        return int((num_latents // frames) * (height // patch) * (width // patch))

    def _sigmas(self, steps: int) -> list[float]:
        levels: list[float] = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].tolist()
        return levels

    # Conditions

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], images: Tensor | None = None) -> Conditions:
        """As Generator says: `text` (P, L, D), `text_mask` (P, L), `pooled` (P, D').

        L is max_prompt_tokens; from a first frame also half of the image's tokens, less the 4 of the answer's header.
        """
        if self.text_sees_image and images is None:
            raise ValueError("images: none, and the text of this pipeline depends on the prompt's first frame")
        pipeline, template = self._text_pipeline()
        most = self.max_prompt_tokens + template["crop_start"]
        for prompt in prompts:
            length = len(pipeline.tokenizer(template["template"].format(prompt)).input_ids)
            if length > most:
                raise ValueError(
                    f"prompt of {length - template['crop_start']} tokens with the end of its template, "
                    f"max_prompt_tokens is {self.max_prompt_tokens}: {prompt!r}"
                )
        options = {"device": self.device, "max_sequence_length": self.max_prompt_tokens}
        if images is None:
            starts = range(0, len(prompts), TEXT_BATCH)
            parts = [pipeline.encode_prompt(list(prompts[start : start + TEXT_BATCH]), **options) for start in starts]
        else:
            parts = [
                self._seen(pipeline, template, prompt, image, options)
                for prompt, image in zip(prompts, images, strict=True)
            ]
        text, pooled, mask = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return {"text": text.cpu(), "text_mask": mask.to(text.dtype).cpu(), "pooled": pooled.cpu()}

    def _seen(
        self, pipeline: Any, template: dict[str, Any], prompt: str, image: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A prompt's text, pooled text and mask, (1, …) each, with its image uint8 (H, W, 3); padded to one length."""
        from PIL import Image

        every = EVERY if self.beside or not image.any() else EVERY_GIVEN
        picture = Image.fromarray(image.cpu().numpy())
        text, pooled, mask = pipeline.encode_prompt(picture, prompt, image_embed_interleave=every, **options)
        missing = template["image_emb_len"] // EVERY - len(range(0, template["image_emb_len"], every))
        return functional.pad(text, (0, 0, 0, missing)), pooled, functional.pad(mask, (0, missing))

    def _text_pipeline(self) -> tuple[Any, dict[str, Any]]:
        """The stock pipeline with the parts that encode text alone, and its template."""
        from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as of_text
        from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video as of_image

        names = [name for name in self.components_of["text"] if name != "image_processor" or self.text_sees_image]
        parts: dict[str, Any] = {name: self.component(name) for name in names}
        parts |= dict.fromkeys(("transformer", "vae", "scheduler"))
        if self.text_sees_image:
            return of_image.HunyuanVideoImageToVideoPipeline(**parts), of_image.DEFAULT_PROMPT_TEMPLATE
        return of_text.HunyuanVideoPipeline(**parts), of_text.DEFAULT_PROMPT_TEMPLATE

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Conditions:
        first = self._mode(images[:, None])
        if not self.beside:
            return {"given": first.cpu()}
        known = torch.cat([first, torch.ones_like(first[:, :1])], dim=1)
        return {"image": functional.pad(known, (0, 0, 0, 0, 0, self.latent_shape[1] - 1)).cpu()}

    def start(self, noise: Tensor, conditions: Conditions) -> Tensor:
        if not self.takes_image:
            return noise
        first = conditions["image"][:, : noise.shape[1], :1] if self.beside else conditions["given"]
        return START * noise + (1 - START) * first.to(noise)

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        if self.beside:
            latents = torch.cat([latents, conditions["image"]], dim=1)
        output: Tensor = denoiser(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=conditions["text"],
            encoder_attention_mask=conditions["text_mask"],
            pooled_projections=conditions["pooled"],
            guidance=self._guidance(latents),
            return_dict=False,
        )[0]
        return output

    def _guidance(self, latents: Tensor) -> Tensor | None:
        """(B,) the guidance scale as the denoiser takes it; None where it takes none."""
        guidance = self.embedded_guidance
        return None if guidance is None else latents.new_full((len(latents),), guidance) * 1000.0

    # The VAE

    def vae_latents(self, latents: Tensor) -> Tensor:
        scaled: Tensor = latents / self.vae_config["scaling_factor"]
        return scaled

    def _pixels(self, latents: Tensor) -> Tensor:
        return super()._pixels(latents)[:, self._dropped :]

    def frame_decoder(self) -> FrameDecoder:
        from generators.decoders.hunyuan_video import HunyuanVideoFrameDecoder

        return HunyuanVideoFrameDecoder(self.component("vae"), self._dropped)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """As Generator says; where a latent frame is dropped, the first frame stands still before the clip."""
        still = frames[:, :1].expand(-1, self._dropped, -1, -1, -1)
        return self._mode(torch.cat([still, frames], dim=1))

    def _mode(self, frames: Tensor) -> Tensor:
        """Latents of uint8 (B, F, H, W, 3), normalised."""
        pixels = frames.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        mode: Tensor = self.component("vae").encode(pixels).latent_dist.mode()
        latents: Tensor = mode * self.vae_config["scaling_factor"]
        return latents


Family = HunyuanVideoGenerator  # the name that a family's module is asked for
