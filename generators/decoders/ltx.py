"""AutoencoderKLLTXVideo's decoder: one group, the whole clip, since a last latent frame changes the first frame.

VAEs from LTX-Video 0.9.1 on take a time and latents that are partly noise; layers of 0.9.1's add noise as well. All of
it comes from SEED, so one latent always gives the same pixels on the same kind of device. Time and share of noise are
those of all of Lightricks' configs (configs/*.yaml of github.com/Lightricks/LTX-Video: decode_timestep 0.05,
decode_noise_scale 0.025).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from generators.decoders.decoder import State

DECODE_TIMESTEP, DECODE_NOISE = 0.05, 0.025
SEED = 0


def with_noise(vae: Any, latents: Tensor) -> Tensor:
    """What `decode` takes of latents in the VAE's scale, (B, C, n, h, w): a share of noise where the VAE takes a time.

    The noise is drawn on the CPU, the same for every clip.
    """
    if not vae.config.timestep_conditioning:
        return latents
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(SEED))
    return (1 - DECODE_NOISE) * latents + DECODE_NOISE * noise.to(latents.device)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """(B, F, H, W, 3) float32, black 0 and white 1, not clamped, with gradient. latents: (B, C, n, h, w).

    Raises RuntimeError where the VAE's use_framewise_decoding is on, which shifts the clip by one frame.
    """
    if vae.use_framewise_decoding:
        raise RuntimeError(
            "use_framewise_decoding is true, with which AutoencoderKLLTXVideo shifts a clip by a frame; false"
        )
    time = latents.new_full((len(latents),), DECODE_TIMESTEP) if vae.config.timestep_conditioning else None
    with _seeded(latents.device):
        pixels: Tensor = vae.decode(latents, time, return_dict=False)[0]
    return (pixels / 2 + 0.5).permute(0, 2, 3, 4, 1)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """The device's random numbers begin at SEED in the block, and go on after it as if nothing was drawn."""
    random = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    state = random.get_state()
    random.manual_seed(SEED)
    try:
        yield
    finally:
        random.set_state(state)


class LTXFrameDecoder:
    """`FrameDecoder` of a frozen AutoencoderKLLTXVideo, set to compute its blocks again in the backward pass."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        vae.enable_gradient_checkpointing()
        self.spatial = int(vae.spatial_compression_ratio)
        self.temporal = int(vae.temporal_compression_ratio)

    def groups(self, num_latent_frames: int) -> list[range]:
        return [range(num_latent_frames)]

    def frames_of(self, group: range) -> range:
        return range(self.temporal * (len(group) - 1) + 1)

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        return decode(self.vae, latents)[0], ()

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        raise NotImplementedError("a part of a clip cannot be decoded by itself")

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        raise NotImplementedError("a part of a clip cannot be decoded by itself")
