"""FramePack's decoding: two sections at a time with HunyuanVideo's VAE, neighbours blended where they overlap.

The same frames as diffusers' HunyuanVideoFramepackPipeline, which decodes while it samples; tests compare both.
"""

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from generators.decoders.decoder import State
from generators.decoders.hunyuan_video import HunyuanVideoFrameDecoder


class FramePackFrameDecoder:
    """`FrameDecoder` of clips of so many sections of `window` latent frames after the first latent frame.

    A group is what the pipeline decodes after a section was sampled: this section and the neighbour that was sampled
    before it, with the first latent frame where the clip begins. So there are as many groups as sections. That which
    the pipeline decodes first is one section alone: the clip's last where sections are sampled `from_the_end`, else its
    first. Each shares 4 (window - 1) + 1 frames with the next, over which one fades into the other. The carried state
    is these frames.

    Within a group, the VAE decodes by its own temporal tiles; each is computed again in the backward pass.
    """

    def __init__(self, vae: AutoencoderKLHunyuanVideo, window: int, sections: int, from_the_end: bool) -> None:
        self.tiles = HunyuanVideoFrameDecoder(vae)
        self.spatial, self.temporal = self.tiles.spatial, self.tiles.temporal
        self.shared = self.temporal * (window - 1) + 1
        ends = [
            1 + window * section for section in range(sections + 1)
        ]  # where a section begins, and where the last ends
        if from_the_end:
            self.ranges = [range(ends[n] if n else 0, ends[min(n + 2, sections)]) for n in range(sections)]
        else:
            self.ranges = [range(ends[n - 1] if n else 0, ends[n + 1]) for n in range(sections)]

    def groups(self, num_latent_frames: int) -> list[range]:
        """As FrameDecoder says. Raises ValueError for another number of latent frames than the sections have."""
        if num_latent_frames != (length := self.ranges[-1].stop):
            raise ValueError(f"latents: found {num_latent_frames} latent frames, expected the {length} of the clip")
        return list(self.ranges)

    def frames_of(self, group: range) -> range:
        """Without those that are shared with the next group."""
        starts = [self.temporal * one.start for one in self.ranges]
        ends = [*starts[1:], self.temporal * (self.ranges[-1].stop - 1) + 1]
        number = self.ranges.index(group)
        return range(starts[number], ends[number])

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """As FrameDecoder says; the frames shared with the next group, not yet blended with it, come last."""
        parts: list[Tensor] = []
        carried: State = ()
        for tile in self.tiles.groups(latents.shape[2]):
            frames, carried = checkpoint(
                self.tiles.step, latents[:, :, tile.start : tile.stop], carried,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
            parts.append(frames)
        whole = torch.cat(parts)
        if state:
            (before,) = state
            falling = torch.linspace(1, 0, self.shared, device=whole.device).view(-1, 1, 1, 1)
            blended = falling * before + (1 - falling) * whole[: self.shared]
            whole = torch.cat([blended, whole[self.shared :]])
        return whole, (whole[-self.shared :],)

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """Nothing: all layers are of the second half, and the family takes no windows."""
        return latents[0].transpose(0, 1), state

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        return self.step(hidden.transpose(0, 1)[None], state)
