"""Latents to a clip's wanted frames, with gradient, in bounded memory.

Sec. 3.3 of Ask-A-Video: decoding a whole clip under autograd needs more memory than there is. Three ways:

    plain      as the VAE decodes, all activations kept
    exact      the same pixels and gradients; what the decoder carries from frame to frame is kept at a few places,
               all else is computed again in the backward pass. Grows with the logarithm of the clip's length
    windowed   temporal windows and spatial tiles, each decoded by itself and blended where they overlap; computed again
               in the backward pass. All but independent of the clip's length. An approximation, see `compare`

Letters: C, F, h, w the latents' channels, frames, height, width; N wanted frames, H, W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from data.config import STRICT, Count, WholeNotNegative
from generators.core.generator import FrameDecoder, Generator

# Latent frames that a window decodes before its own and drops. A causal decoder lets its first through as one frame and
# upsamples the second in time from nothing: with a lead of 1, that frame of a tabletop clip is five times as wrong.
LEAD = 2

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]  # FrameDecoder.step


@dataclass(frozen=True, config=STRICT)
class Decoding:
    """How latents become frames; configs/recipes/common.yaml says what each value means.

    window, overlap: latent frames, of `windowed`. tile, tile_overlap: latent pixels, of `windowed`; tile None is the
    whole frame. offload: the state that `exact` carries waits in the host's memory.
    straight_through: a pixel beyond black or white is clamped in value alone; else it has no gradient.
    """

    mode: Literal["plain", "windowed", "exact"]
    window: Count
    overlap: WholeNotNegative
    tile: Count | None
    tile_overlap: WholeNotNegative
    offload: bool
    straight_through: bool

    def __post_init__(self) -> None:
        for size, overlap in (("window", "overlap"), ("tile", "tile_overlap")):
            length, shared = getattr(self, size), getattr(self, overlap)
            if length is not None and shared >= length:
                raise ValueError(f"{overlap} is {shared}, expected less than {size}, which is {length}")


class Fidelity(NamedTuple):
    """How near a way to decode comes to the plain one."""

    psnr: float  # dB over all pixels of the frames, the peak is 1; inf where they are equal
    gradient_cosine: float  # of the latents' gradients, for one random cotangent


def decode_frames(generator: Generator, latents: Tensor, indices: Sequence[int], decoding: Decoding) -> Tensor:
    """(N, H, W, 3) float32 in [0, 1]: the clip's frames at `indices` in that order, with gradient to the latents.

    latents: (1, C, F, h, w), normalised. Nothing that lies after the last wanted frame is computed. Always float32:
    bfloat16 decoding flickers. Raises ValueError for more than one clip, for no indices and naming a frame beyond
    the clip.
    """
    decoder = generator.frame_decoder()
    _check(latents, indices, decoder)
    wanted = sorted(set(indices))
    with torch.autocast(generator.device.type, enabled=False):
        latents = latents.to(generator.device, torch.float32)
        frames = MODES[decoding.mode](decoder, latents, wanted, decoding)
        frames = _StraightThrough.apply(frames) if decoding.straight_through else frames.clamp(0, 1)
        return frames[[wanted.index(frame) for frame in indices]]


def compare(generator: Generator, latents: Tensor, indices: Sequence[int], decoding: Decoding) -> Fidelity:
    """How near `decoding` comes to the plain decode, by way of `exact`, which equals it and fits into memory.

    latents: (1, C, F, h, w). The cotangent is white noise, the same in every call of the same shape.
    """
    results = []
    for way in (decoding, replace(decoding, mode="exact")):
        leaf = latents.detach().clone().requires_grad_()
        frames = decode_frames(generator, leaf, indices, way)
        cotangent = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0)).to(frames.device)
        results.append((frames.detach(), torch.autograd.grad(frames, leaf, cotangent)[0].flatten()))
    (frames, gradient), (plain_frames, plain_gradient) = results
    error = (frames - plain_frames).square().mean().item()
    cosine = functional.cosine_similarity(gradient, plain_gradient, dim=0).item()
    return Fidelity(psnr=-10 * math.log10(error) if error else math.inf, gradient_cosine=cosine)


# The ways


def _plain(decoder: FrameDecoder, latents: Tensor, wanted: Sequence[int], _: Decoding) -> Tensor:
    keep = _kept(decoder, range(latents.shape[2]), wanted)
    return _steps(decoder.step, latents[:, :, : len(keep)], keep)[0]


def _exact(decoder: FrameDecoder, latents: Tensor, wanted: Sequence[int], decoding: Decoding) -> Tensor:
    keep = _kept(decoder, range(latents.shape[2]), wanted)
    step = _on_host(decoder.step) if decoding.offload else decoder.step
    return _recomputed(step, latents[:, :, : len(keep)], keep)[0]


def _windowed(decoder: FrameDecoder, latents: Tensor, wanted: Sequence[int], decoding: Decoding) -> Tensor:
    """Windows and tiles of the decoder's second half; the first half goes through the clip whole, as `exact` does.

    Deviations from the paper, which cuts the latents: a tile's own attention would give it a look of its own that no
    ramp hides, and a window's first half would miss most of what it looks back on. That half is a few hundredths of the
    work and of the memory, and its output for a latent frame less than a thousandth. Weights are the product of the
    ramps along the axes, which sums to 1; the paper takes their minimum.
    """
    num_frames, height, width = latents.shape[2:]
    tiles = _tiles(height, width, decoder.spatial, decoding)
    windows = spans(num_frames, decoding.window, decoding.overlap)
    decoded = [range(decoder.frames_of(window[0])[0], decoder.frames_of(window[-1])[-1] + 1) for window in windows]
    read = len(_kept(decoder, range(num_frames), wanted))
    features = checkpoint(_recomputed, decoder.attend, latents[:, :, :read], [[0]] * read, **CHECKPOINT)[0]
    frames = latents.new_zeros(len(wanted), height * decoder.spatial, width * decoder.spatial, 3)
    for window, seen, ramp in zip(windows, decoded, ramps(decoded), strict=True):
        places = [place for place, frame in enumerate(wanted) if frame in seen]
        if not places:
            continue
        own = [wanted[place] for place in places]
        start = max(0, window[0] - LEAD)
        keep = [*([] for _ in range(start, window[0])), *_kept(decoder, window, own)]
        part = features[start : start + len(keep)].transpose(0, 2)
        weight_N = ramp[[frame - seen[0] for frame in own]]
        for tile in tiles:
            pixels = checkpoint(_recomputed, decoder.upsample, part[..., tile.rows, tile.columns], keep, **CHECKPOINT)[
                0
            ]
            weight = (weight_N[:, None, None] * tile.weight_HW)[..., None].to(pixels.device)
            placed = functional.pad(pixels * weight, (0, 0, *tile.margins))
            frames = frames.index_add(0, torch.tensor(places, device=frames.device), placed)
    return frames


MODES: dict[str, Callable[[FrameDecoder, Tensor, Sequence[int], Decoding], Tensor]] = {
    "plain": _plain,
    "windowed": _windowed,
    "exact": _exact,
}
CHECKPOINT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # a decoder draws nothing


# From latent frame to latent frame


def _kept(decoder: FrameDecoder, latent_frames: range, wanted: Sequence[int]) -> list[list[int]]:
    """For each latent frame up to the last that is needed, which of its frames are wanted, counted from its first."""
    keep = []
    for index in latent_frames:
        frames = decoder.frames_of(index)
        keep.append([frames.index(frame) for frame in wanted if frame in frames])
    last = max(number for number, offsets in enumerate(keep) if offsets)
    return keep[: last + 1]


def _steps(step: Step, latents: Tensor, keep: Sequence[list[int]], *state: Tensor) -> tuple[Tensor, ...]:
    """The kept frames of consecutive latent frames, and the state after them. keep: see `_kept`."""
    kept = []
    for latent, offsets in zip(latents.split(1, dim=2), keep, strict=True):
        frames, state = step(latent, state)
        kept.append(frames[offsets])
    return torch.cat(kept), *state


def _recomputed(step: Step, latents: Tensor, keep: Sequence[list[int]], *state: Tensor) -> tuple[Tensor, ...]:
    """As `_steps`, in the memory of one step and of log2 of their number of states.

    The first half is computed again in the backward pass and keeps nothing but the state before it, then half of what
    is left, and so on; within each the same: recursive bisection, the simple form of Griewank and Walther's
    checkpointing. Of 5 steps each is computed at most 2.4 times, of 21 (81 frames of Wan) 3.4 times.
    """
    kept, carried, start = [], list(state), 0
    while start < len(keep):
        stop = start + max(1, (len(keep) - start) // 2)
        within = _recomputed if stop - start > 1 else _steps
        part = latents[:, :, start:stop]
        frames, *carried = checkpoint(within, step, part, keep[start:stop], *carried, **CHECKPOINT)
        kept.append(frames)
        start = stop
    return torch.cat(kept), *carried


def _on_host(step: Step) -> Step:
    """The step with its state in the host's memory before and after."""

    def moving(latent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        frames, state = step(latent, tuple(part.to(latent.device) for part in state))
        return frames, tuple(part.cpu() for part in state)

    return moving


# Blending


def spans(length: int, size: int, overlap: int) -> list[range]:
    """Windows of that size over an axis, neighbours sharing `overlap` places; the last is moved back to end with it."""
    if size >= length:
        return [range(length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [range(start, start + size) for start in starts]


def ramps(windows: Sequence[range]) -> list[Tensor]:
    """Blending weights of each window's places: float32, linear where neighbours overlap, in sum 1 at every place.

    windows: in order, covering an axis from 0. Over an overlap of n places the later window's weights are 0.5 / n,
    1.5 / n, … , so neither window's outermost place is left out (the paper's x / n begins at 0).
    """
    weights = [torch.ones(len(window)) for window in windows]
    for (left, falling), (right, rising) in zip(
        zip(windows, weights, strict=True), zip(windows[1:], weights[1:], strict=True), strict=False
    ):
        shared = left.stop - right.start
        if shared > 0:
            ramp = (torch.arange(shared) + 0.5) / shared
            rising[:shared] = torch.minimum(rising[:shared], ramp)
            falling[-shared:] = torch.minimum(falling[-shared:], ramp.flip(0))
    total = torch.zeros(windows[-1].stop)
    for window, weight in zip(windows, weights, strict=True):
        total[window.start : window.stop] += weight
    return [weight / total[window.start : window.stop] for window, weight in zip(windows, weights, strict=True)]


class _Tile(NamedTuple):
    """A part of the picture."""

    rows: slice  # of the latents
    columns: slice
    weight_HW: Tensor  # of its pixels
    margins: tuple[int, int, int, int]  # pixels of the picture to its left, right, above and below


def _tiles(height: int, width: int, scale: int, decoding: Decoding) -> list[_Tile]:
    """The tiles of a picture whose latents are height x width; their weights sum to 1 at every pixel."""
    axes = []
    for length in (height, width):
        parts = spans(length, decoding.tile or length, decoding.tile_overlap)
        pixels = [range(scale * part.start, scale * part.stop) for part in parts]
        axes.append(list(zip(parts, pixels, ramps(pixels), strict=True)))
    return [
        _Tile(
            slice(row.start, row.stop),
            slice(column.start, column.stop),
            weight_H[:, None] * weight_W,
            (x.start, scale * width - x.stop, y.start, scale * height - y.stop),
        )
        for row, y, weight_H in axes[0]
        for column, x, weight_W in axes[1]
    ]


# Pixels


class _StraightThrough(torch.autograd.Function):
    """clamp(0, 1) whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        return frames.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _check(latents: Tensor, indices: Sequence[int], decoder: FrameDecoder) -> None:
    """Raises ValueError for several clips, no frames, or a frame that the clip does not have."""
    if latents.shape[0] != 1:
        raise ValueError(f"latents: found {latents.shape[0]} clips; they are decoded one at a time")
    if not indices:
        raise ValueError("indices: empty, at least one frame is decoded")
    num_frames = decoder.frames_of(latents.shape[2] - 1).stop
    for frame in indices:
        if not 0 <= frame < num_frames:
            raise ValueError(f"frame {frame} is beyond the clip, whose {num_frames} frames are 0 to {num_frames - 1}")
