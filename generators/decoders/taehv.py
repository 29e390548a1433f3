"""TAEHV: the tiny decoders of video latents at github.com/madebyollin/taehv (MIT), a latent frame at a time.

taehv is for the latents of HunyuanVideo and FramePack, taew2_1 for those of Wan 2.1 and of Wan2.2-A14B, taew2_2 for
those of Wan2.2-TI2V-5B, taecvx for those of CogVideoX. They take latents as the denoiser sees them. Read are the files
in the repository's folder safetensors/; those named *_super have other layers and are refused.

The layers are those of `TAEHV.decoder` in taehv.py of the repository at commit 1f14a56, written anew: a block looks at
its frame and at the one before it, which is what is carried from latent frame to latent frame. On random weights of
both patch sizes the frames differ from upstream's `decode_video` by at most 1e-7. Upstream's other count of frames for
an even number of CogVideoX's latent frames is not here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from generators.decoders.decoder import State
from generators.decoders.lighter import DecoderPlace, LighterDecoder

GROWS = (1, 2, 2)  # how many frames each of the three levels makes of one
FIRST, LAST = "decoder.1.weight", "decoder.22.weight"


class _MemBlock(nn.Module):
    """A residual block over a frame and the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(fan, width, 3, padding=1) for fan in (2 * width, width, width)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        """(n, c, h, w) each; before: of each frame the one before it."""
        return functional.relu(self.conv(torch.cat([frames, before], 1)) + frames)


class _Grow(nn.Module):
    """Each frame as `times` frames."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        grown: Tensor = self.conv(frames)
        return grown.reshape(-1, frames.shape[1], *frames.shape[2:])


class _Clamp(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(latents / 3) * 3


def layers(channels: int, widths: tuple[int, int, int, int], patch: int) -> nn.Sequential:
    """The decoder's layers, under the numbers that they have in the published files."""
    found: list[nn.Module] = [_Clamp(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
    for times, width, following in zip(GROWS, widths, widths[1:], strict=False):
        found += [*(_MemBlock(width) for _ in range(3)), nn.Upsample(scale_factor=2), _Grow(width, times)]
        found.append(nn.Conv2d(width, following, 3, padding=1, bias=False))
    return nn.Sequential(*found, nn.ReLU(), nn.Conv2d(widths[-1], 3 * patch**2, 3, padding=1))


class TaehvFrameDecoder:
    """`FrameDecoder` of TAEHV's layers: a group is a latent frame, the state what each block saw last."""

    def __init__(self, decoder: Any) -> None:
        """decoder: `layers`, an nn.Sequential."""
        self.decoder = decoder
        last = decoder[-1]
        self.patch = round((last.out_channels / 3) ** 0.5)
        self.spatial = 2 ** len(GROWS) * self.patch
        self.temporal = GROWS[0] * GROWS[1] * GROWS[2]

    def groups(self, num_latent_frames: int) -> list[range]:
        return [range(index, index + 1) for index in range(num_latent_frames)]

    def frames_of(self, group: range) -> range:
        """Of the first latent frame's frames the last alone is shown."""
        return range(max(0, self.temporal * (group.start - 1) + 1), self.temporal * (group.stop - 1) + 1)

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        return self.upsample(latents[0].transpose(0, 1), state)

    def attend(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """Nothing: all layers are of the second half."""
        return latents[0].transpose(0, 1), ()

    def upsample(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        carried: list[Tensor] = []
        for layer in self.decoder:
            if isinstance(layer, _MemBlock):
                last = state[len(carried)] if state else torch.zeros_like(hidden[:1])
                carried.append(hidden[-1:])
                hidden = layer(hidden, torch.cat([last, hidden[:-1]]))
            else:
                hidden = layer(hidden)
        pixels = functional.pixel_shuffle(hidden, self.patch).permute(0, 2, 3, 1)
        return pixels if state else pixels[self.temporal - 1 :], tuple(carried)


def load_decoder(place: DecoderPlace, device: str) -> LighterDecoder:
    """The decoder of a safetensors file, or of a folder with one. Its numbers are read off the shapes of the weights.

    Raises ValueError for a place without such a file, and for layers that are not those of the base form.
    """
    from safetensors import safe_open

    file = _file(place)
    with safe_open(file, framework="pt") as given:
        names = [name for name in given.keys() if name.startswith("decoder.")]  # noqa: SIM118 (no mapping)
        shapes = {name: tuple(given.get_slice(name).get_shape()) for name in names}
        if not {FIRST, LAST} <= shapes.keys() or any(name.endswith("skip.weight") for name in names):
            raise ValueError(f"{file.name} has no layers of TAEHV's base form (*_super files are not read)")
        weights = None if device == "meta" else {name: given.get_tensor(name) for name in names}
    widths = [shapes[name][0] for name in (FIRST, "decoder.8.weight", "decoder.14.weight", "decoder.20.weight")]
    channels, patch = shapes[FIRST][1], round((shapes[LAST][0] / 3) ** 0.5)
    with torch.device("meta"):
        decoder = layers(channels, (widths[0], widths[1], widths[2], widths[3]), patch)
    if weights is not None:
        decoder.load_state_dict(_fitting(weights, decoder), assign=True)
        decoder = decoder.to(device, torch.float32)
    return LighterDecoder(TaehvFrameDecoder(decoder.eval().requires_grad_(False)), channels, normalised=True)


def _file(place: DecoderPlace) -> Path:
    if place.revision is not None:
        raise ValueError("kind taehv reads a local file; revision: null")
    path = Path(place.path, place.subfolder or "")
    found = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{len(found)} safetensors files, expected one: name the file itself")
    return found[0]


def _fitting(weights: Mapping[str, Tensor], decoder: nn.Sequential) -> dict[str, Tensor]:
    """The weights under the layers' own names; of a growth that was trained with more frames the last are taken."""
    own = {name: tensor.shape[0] for name, tensor in decoder.state_dict().items()}
    short = {name.removeprefix("decoder."): tensor for name, tensor in weights.items()}
    return {name: tensor[-own[name] :] if name in own else tensor for name, tensor in short.items()}
