"""FramePack: HunyuanVideo that predicts a clip section by section, with diffusers' HunyuanVideoFramepackPipeline.

A clip is its first frame, one latent frame, and sections of `WINDOW` latent frames after it: W n + 1 latent frames,
4 W n + 1 frames. A clip of fewer frames than one section has is one shorter section, which is the pipeline's
`latent_window_size`: 25 frames, those of Ask-A-Video, are the first frame and 6 latent frames.

A forward predicts one section. Its conditions are the first frame and the section's history, the 19 latent frames of
the clip nearest to it: one in patches of the usual size, two in patches of twice that size
(`history_2x`), sixteen of four times (`history_4x`). The families differ in where the 19 are:

    framepack       after the section: sections are sampled from the last to the first ("inverted_anti_drifting")
    framepack_f1    before it: from the first to the last, FramePack-F1 ("vanilla" in diffusers)

Where the clip has no such latent frames, they are zeros. In training they are those of the clip itself: a section is
trained with the history that it was sampled with.

The first frame enters a second time, as tokens of a SigLIP (`vision`). Text, guidance and VAE are HunyuanVideo's.
Sections are decoded two at a time and blended where they overlap, so a frame's pixels are not those of decoding the
whole clip at once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from generators.core.conditions import GIVEN, Conditions, chosen, with_given
from generators.core.generator import ImageUse
from generators.core.size import check_size
from generators.decoders.decoder import FrameDecoder
from generators.families.hunyuan_video import HunyuanVideoGenerator

CLASSES = {
    "transformer": ("HunyuanVideoFramepackTransformer3DModel",),
    "text_encoder": ("LlamaModel",),
    "text_encoder_2": ("CLIPTextModel",),
    "vae": ("AutoencoderKLHunyuanVideo",),
    "image_encoder": ("SiglipVisionModel",),
    "feature_extractor": ("SiglipImageProcessor",),
}
WINDOW = 9  # latent frames of a section, at most; the pipelines' default
HISTORY = (1, 2, 16)  # latent frames in patches of the usual size, of twice and of four times that size


class FramePackGenerator(HunyuanVideoGenerator):
    """Generator over the components of a HunyuanVideoFramepackPipeline, or of a HunyuanVideo's with FramePack's own."""

    family = "framepack"
    pipelines = ("HunyuanVideoFramepackPipeline", "HunyuanVideoPipeline")
    components_of = {
        "denoiser": ("transformer",),
        "text": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        "image": ("image_encoder", "feature_extractor"),
        "vae": ("vae",),
    }
    # The published transformers were saved by their authors' own class, which diffusers renamed.
    class_names = {"HunyuanVideoTransformer3DModelPacked": "HunyuanVideoFramepackTransformer3DModel"}
    restarts = False
    windows = False  # a group is two whole sections
    largest_shift = 7.0
    from_the_end = True  # whether the last section is sampled first

    def _check_pipeline(self) -> None:
        reads = (
            f"family {self.family} reads a HunyuanVideoFramepackPipeline, or a HunyuanVideoPipeline with "
            "generator.components as preset generators/framepack has it"
        )
        found = self._check_classes(CLASSES, reads)
        transformer, channels = self.transformer_config, self.vae_config["latent_channels"]
        if transformer["in_channels"] != channels or not transformer["has_clean_x_embedder"]:
            raise ValueError(
                f"{found} whose transformer takes {transformer['in_channels']} channels and has_clean_x_embedder "
                f"{transformer['has_clean_x_embedder']}, expected {channels} and true; {reads}"
            )
        self.takes_image, self.beside = True, False
        self.default_embedded_guidance = 6.0 if transformer["guidance_embeds"] else None

    @property
    def image(self) -> ImageUse:
        return "needed"

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """One latent frame of the first frame, and whole sections, or one shorter section."""
        size, vae = self.size, self.vae_config
        temporal, spatial = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
        short = size.num_frames < temporal * WINDOW + 1
        check_size("num_frames", size.num_frames, every=temporal if short else temporal * WINDOW, offset=1)
        self.window = (size.num_frames - 1) // temporal if short else WINDOW
        check_size("height", size.height, every=spatial * self.transformer_config["patch_size"])
        check_size("width", size.width, every=spatial * self.transformer_config["patch_size"])
        self.num_parts = (size.num_frames - 1) // (temporal * self.window)
        return (vae["latent_channels"], self.window * self.num_parts + 1, size.height // spatial, size.width // spatial)

    def _tokens(self) -> int:
        """Those of a section."""
        patch = self.transformer_config["patch_size"]
        return int(self.window * (self.latent_shape[2] // patch) * (self.latent_shape[3] // patch))

    # Conditions

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Conditions:
        encoder = self.component("image_encoder")
        pixels = images.permute(0, 3, 1, 2).float() / 255
        seen = self.component("feature_extractor")(images=pixels, return_tensors="pt", do_rescale=False).pixel_values
        vision = encoder(pixel_values=seen.to(self.device, encoder.dtype)).last_hidden_state
        return {GIVEN: self._mode(images[:, None]).cpu(), "vision": vision.cpu()}

    def start(self, noise: Tensor, conditions: Conditions) -> Tensor:
        return noise

    # Sections

    def view(self, clean: Tensor, conditions: Conditions, part: Tensor) -> tuple[Tensor, Conditions]:
        """As Generator says: the sections (B, C, W, h, w), and conditions with their history in place of `given`.

        `clean_latents` (B, C, 2, h, w) are the first frame and the nearest latent frame, `history_2x` (B, C, 2, h, w)
        and `history_4x` (B, C, 16, h, w) those farther away. `padding` (B,), where sections are sampled from the end,
        is the number of latent frames between the first frame and the section, by the position that it gets.
        """
        clean = with_given(clean, conditions)
        starts = [1 + self.window * number for number in part.tolist()]
        histories = [self._history(row, start) for row, start in zip(clean, starts, strict=True)]
        one, two, four = (torch.stack(tensors) for tensors in zip(*histories, strict=True))
        own = {name: tensor for name, tensor in conditions.items() if name != GIVEN}
        own |= {"clean_latents": torch.cat([clean[:, :, :1], one], dim=2), "history_2x": two, "history_4x": four}
        if self.from_the_end:
            own["padding"] = torch.tensor([self._padding(number) for number in part.tolist()])
        sections = [row[:, start : start + self.window] for row, start in zip(clean, starts, strict=True)]
        return torch.stack(sections), own

    def _history(self, clip: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """(C, n, h, w) a section's history: the nearest latent frame, the next two, the farthest sixteen."""
        count = sum(HISTORY)
        if self.from_the_end:
            after = clip[:, start + self.window :][:, :count]
            one, two, four = functional.pad(after, (0, 0, 0, 0, 0, count - after.shape[1])).split(HISTORY, dim=1)
        else:
            before = clip[:, max(0, start - count) : start]
            padded = functional.pad(before, (0, 0, 0, 0, count - before.shape[1], 0))
            four, two, one = padded.split(HISTORY[::-1], dim=1)
        return one, two, four

    def _padding(self, part: int) -> int:
        """Latent frames between the first frame and a section, as diffusers counts: in a long clip, at most 3 W."""
        after = self.num_parts - 1 - part  # sections that are sampled before it
        if self.num_parts <= 4:
            return self.window * part
        return self.window * [3, *[2] * (self.num_parts - 3), 1, 0][after]

    def with_part(self, clean: Tensor, predicted: Tensor, part: int) -> Tensor:
        start = 1 + self.window * part
        return torch.cat([clean[:, :, :start], predicted, clean[:, :, start + self.window :]], dim=2)

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        empty: Mapping[str, Tensor],
        noise: Tensor,
        steps: int,
        guidance: float,
        solver: str,
    ) -> Tensor:
        """As Generator says, one section after another, each with those sampled before it as its history."""
        noise = noise.to(self.device, torch.float32)
        clean = with_given(noise, conditions)
        order = range(self.num_parts)
        for part in reversed(order) if self.from_the_end else order:
            place = torch.full((len(noise),), part)
            start, _ = self.view(noise, conditions, place)
            _, own = self.view(clean, conditions, place)
            clean = self.with_part(clean, super().sample(own, empty, start, steps, guidance, solver), part)
        return clean

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """Rows at different distances from the first frame go through it apart: it takes one for all."""
        places = conditions["padding"].tolist() if self.from_the_end else [0] * len(latents)
        if len(distances := set(places)) == 1:
            return self._forward(denoiser, latents, timestep, conditions, places[0])
        rows = [[row for row, place in enumerate(places) if place == distance] for distance in sorted(distances)]
        answers = [
            self._forward(denoiser, latents[own], timestep[own], chosen(conditions, own), places[own[0]])
            for own in rows
        ]
        order = torch.tensor([row for own in rows for row in own], device=latents.device)
        return torch.cat(answers)[order.argsort()]

    def _forward(
        self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions, padding: int
    ) -> Tensor:
        one, two, four = HISTORY
        if self.from_the_end:
            lengths = [1, padding, self.window, one, two, four]
            first, _, section, near, twice, fourfold = torch.arange(sum(lengths)).split(lengths)
        else:
            lengths = [1, four, two, one, self.window]
            first, fourfold, twice, near, section = torch.arange(sum(lengths)).split(lengths)
        output: Tensor = denoiser(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=conditions["text"],
            encoder_attention_mask=conditions["text_mask"],
            pooled_projections=conditions["pooled"],
            image_embeds=conditions["vision"],
            indices_latents=section,
            guidance=self._guidance(latents),
            latents_clean=conditions["clean_latents"],
            indices_latents_clean=torch.cat([first, near]),
            latents_history_2x=conditions["history_2x"],
            indices_latents_history_2x=twice,
            latents_history_4x=conditions["history_4x"],
            indices_latents_history_4x=fourfold,
            return_dict=False,
        )[0]
        return output

    # The VAE

    def _pixels(self, latents: Tensor) -> Tensor:
        decoder = self.frame_decoder()
        scaled = self.vae_latents(latents.to(self.device, torch.float32))
        return torch.stack([self._decoded(decoder, clip[None]) for clip in scaled])

    def _decoded(self, decoder: FrameDecoder, clip: Tensor) -> Tensor:
        """(F, H, W, 3) of a clip."""
        parts: list[Tensor] = []
        state: tuple[Tensor, ...] = ()
        for group in decoder.groups(clip.shape[2]):
            frames, state = decoder.step(clip[:, :, group.start : group.stop], state)
            parts.append(frames[: len(decoder.frames_of(group))])
        return torch.cat(parts)

    def frame_decoder(self) -> FrameDecoder:
        from generators.decoders.framepack import FramePackFrameDecoder

        return FramePackFrameDecoder(self.component("vae"), self.window, self.num_parts, self.from_the_end)


Family = FramePackGenerator  # the name that a family's module is asked for
