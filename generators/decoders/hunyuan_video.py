"""AutoencoderKLHunyuanVideo's decoder by the VAE's own temporal tiles, which overlap and are blended.

Its group norms and its attention see a whole tile, so a tile is the smallest part that it decodes by itself. The same
layers in the same order as diffusers' `_temporal_tiled_decode`; tests compare both.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from generators.decoders.decoder import State


class HunyuanVideoFrameDecoder:
    """`FrameDecoder` of a frozen AutoencoderKLHunyuanVideo.

    A group is a tile: `tile` + 1 latent frames, of which each later one shares `tile` + 1 - `stride` with the one
    before it. The first latent frame of a later tile decodes to one frame, which is dropped. The carried state is what
    a tile decodes to beyond its own frames: the next one's first frames are blended with it. A clip of no more than
    `tile` latent frames is one group.

    A group's frames change with all of its latent frames, so the first with the fifth, and nothing after them. The
    attention has a mask of (n h w)² numbers, 20 GB for a tile of 720 x 1280 pixels; with the VAE's spatial tiling
    `step` decodes such a tile in parts, as the VAE does.

    The VAE is set to compute its blocks again in the backward pass. dropped: frames at a clip's beginning that are not
    shown, fewer than its first tile's.
    """

    def __init__(self, vae: AutoencoderKLHunyuanVideo, dropped: int = 0) -> None:
        self.vae: Any = vae
        self.dropped = dropped
        vae.enable_gradient_checkpointing()
        self.temporal = int(vae.temporal_compression_ratio)
        self.spatial = int(vae.spatial_compression_ratio)
        self.tile = vae.tile_sample_min_num_frames // self.temporal
        self.stride = vae.tile_sample_stride_num_frames // self.temporal

    def groups(self, num_latent_frames: int) -> list[range]:
        """The VAE's tiles, but for a last one of a single latent frame, all of whose frames the VAE drops."""
        if num_latent_frames <= self.tile:
            return [range(num_latent_frames)]
        starts = range(0, num_latent_frames - 1, self.stride)
        return [range(start, min(start + self.tile + 1, num_latent_frames)) for start in starts]

    def frames_of(self, group: range) -> range:
        first = self.temporal * group.start + 1 if group.start else 0
        last = self.temporal * (group.stop - 1)
        if group.start or len(group) > self.tile:
            last = min(last, self.temporal * (group.start + self.stride))
        return range(max(0, first - self.dropped), last + 1 - self.dropped)

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """As FrameDecoder says; in the VAE's own spatial tiles where these are enabled."""
        if self._is_tiled(latents):
            return self._blended(self.vae.tiled_decode(latents).sample, latents.shape[2], state)
        hidden, _ = self.attend(latents, ())
        return self.upsample(hidden, state)

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        decoder = self.vae.decoder
        hidden = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(latents)))
        return hidden[0].transpose(0, 1), ()

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        """As FrameDecoder says; a later group with the state () has one frame more, which is to be dropped."""
        decoder, whole = self.vae.decoder, hidden.transpose(0, 1)[None]
        for block in decoder.up_blocks:
            whole = block(whole)
        pixels = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(whole)))
        return self._blended(pixels, len(hidden), state)

    def _is_tiled(self, latents: Tensor) -> bool:
        vae, (height, width) = self.vae, latents.shape[3:]
        rows, columns = vae.tile_sample_min_height // self.spatial, vae.tile_sample_min_width // self.spatial
        return bool(vae.use_tiling and (height > rows or width > columns))

    def _blended(self, pixels: Tensor, num_latent_frames: int, state: State) -> tuple[Tensor, State]:
        """A tile's own frames, and those that the next one is blended with.

        pixels: (1, 3, f, H, W) of the whole tile. state: the frames before it that it is blended with, (n, H, W, 3).
        """
        frames = (pixels / 2 + 0.5)[0].permute(1, 2, 3, 0)
        if not state:
            own = self.temporal * self.stride + 1 if num_latent_frames > self.tile else len(frames)
            return frames[self.dropped : own], (frames[own:],)
        (before,) = state
        shared, frames = len(before), frames[1:]
        rising = (torch.arange(shared, device=frames.device) / max(shared, 1)).view(-1, 1, 1, 1)
        frames = torch.cat([before * (1 - rising) + frames[:shared] * rising, frames[shared:]])
        own = self.temporal * self.stride
        return frames[:own], (frames[own:],)
