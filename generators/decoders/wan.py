"""AutoencoderKLWan's decoder one latent frame at a time, with its cache as a tuple of tensors.

The same layers in the same order as diffusers' WanDecoder3d.forward, in two halves; tests compare both.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import CACHE_T, WanCausalConv3d, unpatchify
from torch import Tensor, nn

from generators.decoders.decoder import State

FIRST_PASSED = "Rep"  # diffusers' mark of a temporal upsampling that has let the first latent frame through


class WanFrameDecoder:
    """`FrameDecoder` of a frozen AutoencoderKLWan of Wan2.1 or Wan2.2 (patches, residual): a group is a latent frame.

    The carried state is diffusers' feat_cache: the last two frames that each causal convolution took in; FIRST_PASSED
    becomes an empty tensor.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.temporal: int = vae.config.scale_factor_temporal  # frames of a latent frame but the first, which has one
        self.spatial: int = vae.config.scale_factor_spatial
        self.attending = 1 + _count(vae.decoder.mid_block)
        self.upsampling = _count(vae.decoder.up_blocks) + 1

    def groups(self, num_latent_frames: int) -> list[range]:
        return [range(index, index + 1) for index in range(num_latent_frames)]

    def frames_of(self, group: range) -> range:
        return range(max(0, self.temporal * (group.start - 1) + 1), self.temporal * (group.stop - 1) + 1)

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, attended = self.attend(latents, state[: self.attending])
        frames, upsampled = self.upsample(hidden, state[self.attending :])
        return frames, attended + upsampled

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        decoder, cache = self.vae.decoder, _cache(state, self.attending)
        hidden = self.vae.post_quant_conv(latents)
        hidden, cache[0] = _convolved(decoder.conv_in, hidden, cache[0])
        place = [1]
        hidden = decoder.mid_block(hidden, feat_cache=cache, feat_idx=place)
        return hidden[0].transpose(0, 1), _state(cache[: place[0]])

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        decoder, cache, place = self.vae.decoder, _cache(state, self.upsampling), [0]
        hidden = hidden.transpose(0, 1)[None]
        for block in decoder.up_blocks:
            hidden = block(hidden, feat_cache=cache, feat_idx=place, first_chunk=not state)
        hidden = decoder.nonlinearity(decoder.norm_out(hidden))
        last = place[0]
        pixels, cache[last] = _convolved(decoder.conv_out, hidden, cache[last])
        if self.vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=self.vae.config.patch_size)
        return (pixels / 2 + 0.5)[0].permute(1, 2, 3, 0), _state(cache[: last + 1])


def _count(blocks: nn.Module) -> int:
    """Places in the cache that these blocks use at most: their shortcuts are causal convolutions that use none."""
    return sum(isinstance(module, WanCausalConv3d) for module in blocks.modules())


def _cache(state: State, places: int) -> list[Any]:
    kept = [part if part.numel() else FIRST_PASSED for part in state]
    return kept + [None] * (places - len(kept))


def _state(cache: list[Any]) -> State:
    return tuple(torch.empty(0) if isinstance(part, str) else part for part in cache)


def _convolved(convolution: WanCausalConv3d, hidden: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """The causal convolution of the next frames, and the last two of all its frames so far."""
    seen = hidden if before is None else torch.cat([before, hidden], dim=2)
    return convolution(hidden, before), seen[:, :, -CACHE_T:].clone()
