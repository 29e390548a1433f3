"""Another decoder of a generator's latents than its VAE's own: `decoding.decoder` of a recipe of online training.

It is used where a gradient passes, for its memory and speed. Diffusion-DRF (§4.1) trains with an H3AE decoder that its
authors trained ("24.3% less memory consumption in decoding"). Clips that people and held-out judges see are always
decoded by the generator's VAE.

A kind is a module with

    load_decoder(place, device) -> LighterDecoder

device "meta": without weights, as `vfrl check` asks for it, which looks at channels, groups and sizes alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from data.config import STRICT
from data.doors import find
from generators.decoders.decoder import FrameDecoder, frame_decoder

DECODERS = {  # `kind` -> its module
    "diffusers": "generators.decoders.lighter",
    "taehv": "generators.decoders.taehv",
}
TINY = "AutoencoderTiny"
WHOLE = ("AutoencoderKLLTXVideo",)  # classes that decode a clip in one piece


@dataclass(frozen=True, config=STRICT)
class DecoderPlace:
    """Where a decoder lies."""

    kind: str  # diffusers, a VAE class of diffusers that our decoding knows | taehv | a dotted path
    path: str  # a folder, a file, or a hub id
    revision: str | None = None  # of a hub id
    subfolder: str | None = None


class LighterDecoder(NamedTuple):
    """A decoder of latents, frozen, and what it takes."""

    frames: FrameDecoder
    channels: int  # of the latents
    normalised: bool  # whether it takes latents as the denoiser sees them; else as the generator's VAE takes them
    windows: bool = True  # whether it has the halves `attend` and `upsample`, which mode windowed needs


def load_lighter(place: DecoderPlace, device: torch.device | str) -> LighterDecoder:
    """The decoder of a place. Raises ValueError that begins with `decoder` where the kind or the path is wrong."""
    load: Callable[[DecoderPlace, str], LighterDecoder] = find(place.kind, DECODERS, "decoder.kind", "load_decoder")
    try:
        return load(place, str(device))
    except (ValueError, OSError) as error:
        raise ValueError(f"decoder: {place.path}: {error}") from error


def check_fit(decoder: LighterDecoder, latents: tuple[int, int, int], clip: tuple[int, int]) -> None:
    """Raises ValueError where the decoder does not make such clips of such latents.

    latents: their channels, frames that are decoded, and height. clip: its frames and height in pixels.
    """
    (channels, num_latents, rows), (num_frames, height) = latents, clip
    if decoder.channels != channels:
        raise ValueError(f"decoder: it takes latents of {decoder.channels} channels, the generator's have {channels}")
    groups = decoder.frames.groups(num_latents)
    made = decoder.frames.frames_of(groups[-1]).stop, rows * decoder.frames.spatial
    if made != (num_frames, height):
        raise ValueError(
            f"decoder: {num_latents} latent frames of height {rows} become {made[0]} frames of height {made[1]}, and a "
            f"clip has {num_frames} of height {height}"
        )


def load_decoder(place: DecoderPlace, device: str) -> LighterDecoder:
    """A VAE in diffusers' form, by the class that its config.json names.

    AutoencoderTiny takes latents as the denoiser sees them, every other class as the generator's VAE takes them. Reads
    safetensors only. Raises ValueError for another class.
    """
    import diffusers

    config = diffusers.AutoencoderKL.load_config(place.path, revision=place.revision, subfolder=place.subfolder)
    name = str(config.get("_class_name"))
    cls: Any = getattr(diffusers, name, None)
    if cls is None or not issubclass(cls, nn.Module):
        raise ValueError(f"config.json names the class {name}, which is no model of diffusers")
    if device == "meta":
        with torch.device("meta"):
            vae = cls.from_config(config)
    else:
        where = {"revision": place.revision, "subfolder": place.subfolder}
        vae = cls.from_pretrained(place.path, **where, use_safetensors=True, dtype=torch.float32).to(device)
    channels = vae.config.get("z_dim") or vae.config["latent_channels"]
    whole = name in WHOLE
    return LighterDecoder(frame_decoder(vae.eval().requires_grad_(False)), channels, name == TINY, not whole)
