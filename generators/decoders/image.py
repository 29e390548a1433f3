"""Decoders of clips whose frames are images of their own: AutoencoderKL's, AutoencoderTiny's, and none for pixels.

The same layers in the same order as diffusers' Decoder.forward, in two halves; tests compare both.
"""

from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from generators.decoders.decoder import State


class _FrameByFrame:
    """One frame a group, and nothing carried from one to the next."""

    def groups(self, num_latent_frames: int) -> list[range]:
        return [range(place, place + 1) for place in range(num_latent_frames)]

    def frames_of(self, group: range) -> range:
        return group

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        return self.upsample(self.attend(latents, state)[0], state)

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        raise NotImplementedError

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        raise NotImplementedError


class ImageFrameDecoder(_FrameByFrame):
    """`FrameDecoder` of a frozen AutoencoderKL.

    Its group norms take mean and variance over a whole frame, so a part of it that is decoded by itself has a contrast
    of its own.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        self.spatial = 2 ** (len(vae.config.block_out_channels) - 1)

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = latents[0].transpose(0, 1)
        if self.vae.post_quant_conv is not None:
            hidden = self.vae.post_quant_conv(hidden)
        return self.vae.decoder.mid_block(self.vae.decoder.conv_in(hidden), None), ()

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        decoder = self.vae.decoder
        for block in decoder.up_blocks:
            hidden = block(hidden, None)
        pixels = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))
        return (pixels / 2 + 0.5).permute(0, 2, 3, 1), ()


class TinyImageFrameDecoder(_FrameByFrame):
    """`FrameDecoder` of a frozen AutoencoderTiny, which takes latents as the denoiser sees them."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        self.decoder = vae.decoder
        self.spatial = 2 ** (len(vae.config.num_decoder_blocks) - 1)

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """Nothing: all layers are of the second half."""
        return latents[0].transpose(0, 1), ()

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        return (self.decoder(hidden) / 2 + 0.5).permute(0, 2, 3, 1), ()


class PixelFrameDecoder(_FrameByFrame):
    """`FrameDecoder` of clips whose latents are their pixels in [-1, 1]."""

    spatial = 1

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        return latents[0].transpose(0, 1), ()

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        return (hidden / 2 + 0.5).permute(0, 2, 3, 1), ()
