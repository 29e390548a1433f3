"""Latents to a clip's wanted frames, with gradient, in bounded memory.

Sec. 3.3 of Ask-A-Video: decoding a whole clip under autograd needs more memory than there is. Three ways:

    plain      as the VAE decodes, all activations kept
    exact      the same pixels and gradients; what the decoder carries from frame to frame is kept at a few places,
               all else is computed again in the backward pass. Grows with the logarithm of the clip's length
    windowed   temporal windows and spatial tiles, each decoded by itself and blended where they overlap; computed again
               in the backward pass. All but independent of the clip's length. An approximation, see `compare`

All three take a VAE's decoder in steps, each of a group of latent frames: one of Wan's, two or three of CogVideoX's.

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
from data.counts import Counts, count
from generators.core.generator import Generator
from generators.decoders.decoder import FrameDecoder, State
from generators.decoders.lighter import DecoderPlace, LighterDecoder, check_fit, load_lighter

# Latent frames, at least, that a window decodes before its own and drops. Wan's decoder lets its first through as one
# frame and upsamples the second in time from nothing: with a lead of 1, that frame of a tabletop clip is five times as
# wrong.
LEAD = 2

Step = Callable[[Tensor, State], tuple[Tensor, State]]  # FrameDecoder.step


@dataclass(frozen=True, config=STRICT)
class Decoding:
    """How latents become frames; configs/recipes/common.yaml says what each value means.

    window, overlap: groups of latent frames, of `windowed`. tile, tile_overlap: latent pixels, of `windowed`; tile
    None is the whole frame. offload: the state that `exact` carries waits in the host's memory.
    straight_through: a pixel beyond black or white is clamped in value alone; else it has no gradient.
    decoder: a lighter one in place of the VAE's own.
    """

    mode: Literal["plain", "windowed", "exact"]
    window: Count
    overlap: WholeNotNegative
    tile: Count | None
    tile_overlap: WholeNotNegative
    offload: bool
    straight_through: bool
    decoder: DecoderPlace | None = None

    def __post_init__(self) -> None:
        for size, overlap in (("window", "overlap"), ("tile", "tile_overlap")):
            length, shared = getattr(self, size), getattr(self, overlap)
            if length is not None and shared >= length:
                raise ValueError(f"{overlap} is {shared}, expected less than {size}, which is {length}")


class Fidelity(NamedTuple):
    """How near a way to decode comes to the plain one."""

    psnr: float  # dB over all pixels of the frames, the peak is 1; inf where they are equal
    gradient_cosine: float  # of the latents' gradients, for one random cotangent


def decode_frames(
    generator: Generator,
    latents: Tensor,
    indices: Sequence[int],
    decoding: Decoding,
    lighter: LighterDecoder | None = None,
) -> Tensor:
    """(N, H, W, 3) float32 in [0, 1]: the clip's frames at `indices` in that order, with gradient to the latents.

    latents: (1, C, F, h, w), normalised. Nothing that lies after the group of the last wanted frame is computed.
    lighter: the loaded decoder of `decoding`; None: the generator's own.
    Always float32: bfloat16 decoding flickers. Raises ValueError for more than one clip, for no indices, naming a frame
    beyond the clip, for a VAE without such a decoder and for windows where a frame needs the whole clip.
    """
    if decoding.mode == "windowed" and not (lighter.windows if lighter else generator.windows):
        raise ValueError(whole_clip_needed(generator))
    decoder = lighter.frames if lighter else generator.frame_decoder()
    count(Counts(decodes=1))
    with torch.autocast(generator.device.type, enabled=False):
        latents = _decoded_latents(generator, latents.to(generator.device, torch.float32), lighter)
        _check(latents, indices, decoder)
        wanted = sorted(set(indices))
        frames = MODES[decoding.mode](decoder, latents, wanted, decoding)
        frames = _StraightThrough.apply(frames) if decoding.straight_through else frames.clamp(0, 1)
        return frames[[wanted.index(frame) for frame in indices]]


def open_lighter(generator: Generator, decoding: Decoding, device: torch.device | str) -> LighterDecoder | None:
    """The lighter decoder that `decoding` names, where it names one; device "meta": without its weights.

    Raises ValueError as `load_lighter` does, and where its frames are not the clip's.
    """
    if decoding.decoder is None:
        return None
    lighter, size, shape = load_lighter(decoding.decoder, device), generator.size, generator.latent_shape
    if decoding.mode == "windowed" and not lighter.windows:
        raise ValueError("mode is windowed, but decoder decodes in no windows: use exact")
    channels, frames, rows, _ = shape
    check_fit(lighter, (channels, frames - generator.padding, rows), (size.num_frames, size.height))
    return lighter


@torch.no_grad()
def squared_error(generator: Generator, latents: Tensor, decoding: Decoding, lighter: LighterDecoder) -> float:
    """Mean squared difference of a clip by the lighter decoder to the clip by the generator's VAE, the peak is 1.

    latents: (1, C, F, h, w). `psnr` of a mean over clips is what a run reports.
    """
    real = generator.decode_float(latents)[0]
    return (decode_frames(generator, latents, range(len(real)), decoding, lighter) - real).square().mean().item()


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error, the peak is 1; inf where that is 0."""
    return -10 * math.log10(error) if error else math.inf


def whole_clip_needed(generator: Generator) -> str:
    """What is wrong with `windowed` for a generator without `windows`."""
    return f"mode is windowed, but the VAE of a {generator.family} clip decodes in no windows: use exact"


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
    return Fidelity(psnr(error), cosine)


# The ways


def _plain(decoder: FrameDecoder, latents: Tensor, wanted: Sequence[int], _: Decoding) -> Tensor:
    groups = decoder.groups(latents.shape[2])
    keep = _kept(decoder, groups, wanted)
    return _steps(decoder.step, _parts(latents, groups), keep)[0]


def _exact(decoder: FrameDecoder, latents: Tensor, wanted: Sequence[int], decoding: Decoding) -> Tensor:
    groups = decoder.groups(latents.shape[2])
    keep = _kept(decoder, groups, wanted)
    step = _on_host(decoder.step) if decoding.offload else decoder.step
    return _recomputed(step, _parts(latents, groups), keep)[0]


def _windowed(decoder: FrameDecoder, latents: Tensor, wanted: Sequence[int], decoding: Decoding) -> Tensor:
    """Windows and tiles of the decoder's second half; the first half goes through the clip whole, as `exact` does.

    Deviations from the paper, which cuts the latents: a tile's own attention would give it a look of its own that no
    ramp hides, and a window's first half would miss most of what it looks back on. That half is a few hundredths of the
    work and of the memory, and its output for a latent frame less than a thousandth. Weights are the product of the
    ramps along the axes, which sums to 1; the paper takes their minimum.
    """
    num_frames, height, width = latents.shape[2:]
    groups = decoder.groups(num_frames)
    features = _attended(decoder, latents, groups, wanted)
    tiles = _tiles(height, width, decoder.spatial, decoding)
    windows = spans(len(groups), decoding.window, decoding.overlap)
    decoded = [
        range(decoder.frames_of(groups[window[0]]).start, decoder.frames_of(groups[window[-1]]).stop)
        for window in windows
    ]
    frames = latents.new_zeros(len(wanted), height * decoder.spatial, width * decoder.spatial, 3)
    for window, seen, ramp in zip(windows, decoded, ramps(decoded), strict=True):
        places = [place for place, frame in enumerate(wanted) if frame in seen]
        if not places:
            continue
        own = [wanted[place] for place in places]
        start = _lead(groups, window[0])
        keep = [*([] for _ in range(start, window[0])), *_kept(decoder, groups[window.start : window.stop], own)]
        weight_N = ramp[[frame - seen[0] for frame in own]]
        for tile in tiles:
            parts = [part[..., tile.rows, tile.columns] for part in features[start : start + len(keep)]]
            pixels = checkpoint(_recomputed, decoder.upsample, parts, keep, **CHECKPOINT)[0]
            weight = (weight_N[:, None, None] * tile.weight_HW)[..., None].to(pixels.device)
            placed = functional.pad(pixels * weight, (0, 0, *tile.margins))
            frames = frames.index_add(0, torch.tensor(places, device=frames.device), placed)
    return frames


def _attended(
    decoder: FrameDecoder, latents: Tensor, groups: Sequence[range], wanted: Sequence[int]
) -> tuple[Tensor, ...]:
    """The decoder's first half of each group up to the last that is needed, (n, channels, h, w) each."""
    needed = groups[: len(_kept(decoder, groups, wanted))]
    whole = [list(range(len(group))) for group in needed]
    features = checkpoint(_recomputed, decoder.attend, _parts(latents, groups), whole, **CHECKPOINT)[0]
    return tuple(features.split([len(group) for group in needed]))


def _lead(groups: Sequence[range], first: int) -> int:
    """The group that a window begins with whose own first is `first`: LEAD latent frames earlier, or the clip's."""
    return max(place for place in range(first + 1) if place == 0 or groups[place].start <= groups[first].start - LEAD)


MODES: dict[str, Callable[[FrameDecoder, Tensor, Sequence[int], Decoding], Tensor]] = {
    "plain": _plain,
    "windowed": _windowed,
    "exact": _exact,
}
# A decoder draws nothing, or begins at its own seed each time (LTX), so no state needs to be restored.
CHECKPOINT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}


# From group to group


def _parts(latents: Tensor, groups: Sequence[range]) -> tuple[Tensor, ...]:
    """(1, C, n, h, w) of each group; neighbours may share latent frames."""
    return tuple(latents[:, :, group.start : group.stop] for group in groups)


def _kept(decoder: FrameDecoder, groups: Sequence[range], wanted: Sequence[int]) -> list[list[int]]:
    """For each group up to the last that is needed, which of its frames are wanted, counted from its first."""
    keep = []
    for group in groups:
        frames = decoder.frames_of(group)
        keep.append([frames.index(frame) for frame in wanted if frame in frames])
    last = max(number for number, offsets in enumerate(keep) if offsets)
    return keep[: last + 1]


def _steps(step: Step, parts: Sequence[Tensor], keep: Sequence[list[int]], *state: Tensor) -> tuple[Tensor, ...]:
    """The kept frames of the first groups, one for each of `keep`, and the state after them. keep: see `_kept`."""
    kept = []
    for part, offsets in zip(parts, keep, strict=False):
        frames, state = step(part, state)
        kept.append(frames[offsets])
    return torch.cat(kept), *state


def _recomputed(step: Step, parts: Sequence[Tensor], keep: Sequence[list[int]], *state: Tensor) -> tuple[Tensor, ...]:
    """As `_steps`, in the memory of one step and of log2 of their number of states.

    The first half is computed again in the backward pass and keeps nothing but the state before it, then half of what
    is left, and so on; within each the same: recursive bisection, the simple form of Griewank and Walther's
    checkpointing. Of 5 steps each is computed at most 2.4 times, of 21 (81 frames of Wan) 3.4 times.
    """
    kept, carried, start = [], list(state), 0
    while start < len(keep):
        stop = start + max(1, (len(keep) - start) // 2)
        within = _recomputed if stop - start > 1 else _steps
        frames, *carried = checkpoint(within, step, parts[start:stop], keep[start:stop], *carried, **CHECKPOINT)
        kept.append(frames)
        start = stop
    return torch.cat(kept), *carried


def _on_host(step: Step) -> Step:
    """The step with its state in the host's memory before and after."""

    def moving(part: Tensor, state: State) -> tuple[Tensor, State]:
        frames, state = step(part, tuple(one.to(part.device) for one in state))
        return frames, tuple(one.cpu() for one in state)

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


def _decoded_latents(generator: Generator, latents: Tensor, lighter: LighterDecoder | None) -> Tensor:
    """(B, C, F', h, w) the latents that the decoder takes, without those in front that only fill a patch."""
    if lighter is None or not lighter.normalised:
        return generator.vae_latents(latents)
    return latents[:, :, generator.padding :]


def _check(latents: Tensor, indices: Sequence[int], decoder: FrameDecoder) -> None:
    """Raises ValueError for several clips, no frames, or a frame that the clip does not have."""
    if latents.shape[0] != 1:
        raise ValueError(f"latents: found {latents.shape[0]} clips; they are decoded one at a time")
    if not indices:
        raise ValueError("indices: empty, at least one frame is decoded")
    num_frames = decoder.frames_of(decoder.groups(latents.shape[2])[-1]).stop
    for frame in indices:
        if not 0 <= frame < num_frames:
            raise ValueError(f"frame {frame} is beyond the clip, whose {num_frames} frames are 0 to {num_frames - 1}")
