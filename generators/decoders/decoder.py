"""The interface of a VAE's decoder that `generators.core.decoding` uses, and the decoder of each class of VAE."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

State = tuple[Tensor, ...]  # what a decoder carries from group to group; () before a clip's first


class FrameDecoder(Protocol):
    """A VAE's decoder, one group of latent frames at a time: the smallest part that it decodes by itself.

    Latents are those that the VAE's own `decode` takes, not normalised: `Generator.vae_latents`.
    Letters: n latent frames of a group, f its frames, H, W pixels; C, h, w the latents' channels, height, width.
    """

    spatial: int  # pixels of a latent pixel, along each side

    def groups(self, num_latent_frames: int) -> list[range]:
        """The latent frames of each step over a clip, in order. Neighbours share some where they are blended."""

    def frames_of(self, group: range) -> range:
        """The clip's frames that one of its `groups` decodes to."""

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """The next group's frames, and the state for the one after it; both with gradient.

        latents: (1, C, n, h, w). The frames are (f, H, W, 3) float32, black 0 and white 1, not clamped.
        """

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """The step's first half, with a state of its own: (n, channels, h, w) float32.

        All layers before the first enlarges the frame; a frame's parts are not decoded apart before.
        """

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        """The second half, with a state of its own: what `attend` gave, or a part of its rows and columns, to frames.

        A group that does not begin a clip may come with the state (): its first frames are then wrong.
        """


def frame_decoder(vae: nn.Module) -> FrameDecoder:
    """The decoder of a frozen VAE, by the name of its class. Raises ValueError for a class that has none."""
    from generators.decoders.cogvideox import CogVideoXFrameDecoder  # imports diffusers
    from generators.decoders.hunyuan_video import HunyuanVideoFrameDecoder
    from generators.decoders.image import ImageFrameDecoder, TinyImageFrameDecoder
    from generators.decoders.ltx import LTXFrameDecoder
    from generators.decoders.wan import WanFrameDecoder

    decoders: dict[str, Callable[[Any], FrameDecoder]] = {
        "AutoencoderKL": ImageFrameDecoder,
        "AutoencoderKLCogVideoX": CogVideoXFrameDecoder,
        "AutoencoderKLHunyuanVideo": HunyuanVideoFrameDecoder,
        "AutoencoderKLLTXVideo": LTXFrameDecoder,
        "AutoencoderKLWan": WanFrameDecoder,
        "AutoencoderTiny": TinyImageFrameDecoder,
    }
    name = type(vae).__name__
    if name not in decoders:
        raise ValueError(f"vae: no decoder in bounded memory for class {name}; known are {', '.join(decoders)}")
    return decoders[name](vae)
