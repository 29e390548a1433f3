"""AutoencoderKLCogVideoX's decoder one group of latent frames at a time, with its cache as a tuple of tensors.

The same layers in the same order as diffusers' CogVideoXDecoder3D.forward, in two halves; tests compare both.
"""

import re
from functools import reduce
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from torch import Tensor

from generators.decoders.decoder import State

GROUP = 2  # latent frames that AutoencoderKLCogVideoX decodes at a time; an odd one more goes into the first group

Cache = dict[str, Any]  # diffusers' conv_cache: tensors in nested dictionaries
Path = list[str]  # the keys of one of its tensors


class CogVideoXFrameDecoder:
    """`FrameDecoder` of a frozen AutoencoderKLCogVideoX.

    The carried state is the last two frames that each causal convolution took in. diffusers also keeps the inputs of
    convolutions over one frame, as large as the group's frames, and never reads them; here they are left out.

    Each group norm takes its mean and variance over all of a group's frames and pixels, so a part of the picture that
    is decoded by itself has a contrast of its own.

    The VAE is set to compute its blocks again in the backward pass: eight frames of 480 x 720 pixels would hold 108 GiB
    of activations of the published decoder (counted from shapes), and hold 20 GiB so.
    """

    def __init__(self, vae: AutoencoderKLCogVideoX) -> None:
        self.vae = vae
        vae.enable_gradient_checkpointing()
        self.temporal = int(vae.config.temporal_compression_ratio)
        self.spatial = 2 ** (len(vae.config.block_out_channels) - 1)
        paths = [
            re.sub(r"s\.(\d+)", r"_\1", name).split(".")  # up_blocks.0.resnets.1.conv1 is in up_block_0, resnet_1
            for name, module in vae.decoder.named_modules()
            if isinstance(module, CogVideoXCausalConv3d) and module.time_kernel_size > 1
        ]
        self.attending = [path for path in paths if path[0] in ("conv_in", "mid_block")]
        self.upsampling = [path for path in paths if path not in self.attending]

    def groups(self, num_latent_frames: int) -> list[range]:
        odd = num_latent_frames % GROUP
        starts = [0, *range(GROUP + odd, num_latent_frames, GROUP)]
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], num_latent_frames], strict=True)]

    def frames_of(self, group: range) -> range:
        """The first latent frame of an odd number of them decodes to one frame, every other to `temporal` frames."""
        missing = (self.temporal - 1) * (group.stop % GROUP)  # an odd clip's groups end with an odd number of frames
        return range(max(0, self.temporal * group.start - missing), self.temporal * group.stop - missing)

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, attended = self.attend(latents, state[: len(self.attending)])
        frames, upsampled = self.upsample(hidden, state[len(self.attending) :])
        return frames, attended + upsampled

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """As FrameDecoder says; the latents follow the channels, since every later norm reads them."""
        decoder, before, after = self.vae.decoder, _nested(self.attending, state), Cache()
        if self.vae.post_quant_conv is not None:
            latents = self.vae.post_quant_conv(latents)
        hidden, after["conv_in"] = decoder.conv_in(latents, conv_cache=before.get("conv_in"))
        hidden, after["mid_block"] = decoder.mid_block(hidden, None, latents, conv_cache=before.get("mid_block"))
        return torch.cat([hidden, latents], 1)[0].transpose(0, 1), _flat(self.attending, after)

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        decoder, before, after = self.vae.decoder, _nested(self.upsampling, state), Cache()
        whole, channels = hidden.transpose(0, 1)[None], self.vae.config.latent_channels
        hidden, latents = whole[:, :-channels], whole[:, -channels:]
        for place, block in enumerate(decoder.up_blocks):
            name = f"up_block_{place}"
            hidden, after[name] = block(hidden, None, latents, conv_cache=before.get(name))
        hidden, _ = decoder.norm_out(hidden, latents)
        pixels, after["conv_out"] = decoder.conv_out(decoder.conv_act(hidden), conv_cache=before.get("conv_out"))
        return (pixels / 2 + 0.5)[0].permute(1, 2, 3, 0), _flat(self.upsampling, after)


def _nested(paths: list[Path], state: State) -> Cache:
    """The cache whose tensors at these paths are the state's; empty before the first group."""
    cache: Cache = {}
    for (*outer, last), tensor in zip(paths if state else [], state, strict=True):
        reduce(lambda inner, key: inner.setdefault(key, {}), outer, cache)[last] = tensor
    return cache


def _flat(paths: list[Path], cache: Cache) -> State:
    """The cache's tensors at these paths."""
    found: list[Any] = [reduce(lambda inner, key: inner[key], path, cache) for path in paths]
    return tuple(found)
