"""AutoencoderKLLTXVideo's decoder: one group, the whole clip, since a last latent frame changes the first frame."""

from typing import Any

import torch
from torch import Tensor

from generators.decoders.decoder import State

DECODE_TIMESTEP = 0.05  # what a timestep-conditioned VAE (0.9.1 and later) is told
SEED = 0  # of the noise that layers of such a VAE add, the same for every clip


def decode(vae: Any, latents: Tensor) -> Tensor:
    """(B, F, H, W, 3) float32, black 0 and white 1, not clamped, with gradient. latents: (B, C, n, h, w)."""
    told = latents.new_full((len(latents),), DECODE_TIMESTEP) if vae.config.timestep_conditioning else None
    devices = [latents.device] if latents.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED)
        pixels: Tensor = vae.decode(latents, told, return_dict=False)[0]
    return (pixels / 2 + 0.5).permute(0, 2, 3, 4, 1)


class LTXFrameDecoder:
    """`FrameDecoder` of a frozen AutoencoderKLLTXVideo, set to compute its blocks again in the backward pass.

    The VAE's own framewise decoding is a frame late, so it is never used.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        vae.enable_gradient_checkpointing()
        self.spatial = int(vae.spatial_compression_ratio)

    def groups(self, num_latent_frames: int) -> list[range]:
        return [range(num_latent_frames)]

    def frames_of(self, group: range) -> range:
        return range(int(self.vae.temporal_compression_ratio) * (len(group) - 1) + 1)

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        return decode(self.vae, latents)[0], ()

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        raise RuntimeError("mode: windowed, but AutoencoderKLLTXVideo needs the whole clip for every frame; exact")

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        raise RuntimeError("mode: windowed, but AutoencoderKLLTXVideo needs the whole clip for every frame; exact")
