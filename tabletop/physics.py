"""Checks a tabletop clip against its caption, from the pixels alone. It plays the human rater of this world.

It finds blobs of each colour in every frame, follows the claimed things, and asks in turn: is each there in
every frame in which it must be, in its shape, once, without jumps; did the claimed event happen; did nothing
else come or go. The first question that fails is the reason. Lengths are units of the world, two to a pixel.
"""

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tabletop.captions import COLORS, Claim, parse
from tabletop.render import PIXEL
from tabletop.scenes import SIZE, TABLE_EDGE, TABLE_TOP

HUES = {"red": 0.0, "yellow": 48.0, "green": 135.0, "blue": 226.0}  # degrees
MAX_HUE_OFF = 30.0  # degrees from a colour's own hue
MIN_CHROMA = 0.30  # of 1; the wall and the table stay below 0.12
WALL_CHROMA = 0.12  # what a decoder's ringing leaves on the wall
MIN_AREA = 24  # square units; what is smaller is a speck
MAX_SLANT = 0.22
MAX_STRETCH = 1.35  # width over height of a solid
MAX_CHANGE = 1.45  # a solid's width, or height, over an earlier one
MAX_JUMP = 11.5  # units between neighbouring frames; the quickest honest event, a fall, moves 10
MAX_JUMP_OF_TWO = 6.0  # likewise where two things share the way; each honestly moves 3
_IN_FRAME = np.stack([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])  # no links in time


class Check(NamedTuple):
    """A verdict with its reason; `ok` says whether the clip fulfils its caption."""

    ok: bool
    reason: str


class Aspects(NamedTuple):
    """What a clip does of its claim, one aspect at a time; null where an earlier one leaves nothing to look at."""

    things: tuple[Check, ...]  # each claimed thing: there when it must be, once, in its shape
    steady: tuple[Check | None, ...]  # each: without jumps or changes of size
    event: Check | None
    others: Check  # by-standers stay as they are


class Blob(NamedTuple):
    """A connected patch of one colour in one frame. x, top, bottom, width, height in units; x is its centre.

    Area, width and height are soft: pixels count by how much of the colour they hold, so that blurred or
    anti-aliased edges measure right.
    """

    area: float
    x: float
    top: float
    bottom: float
    width: float
    height: float
    fill: float  # area over width times height: a square has 1, a disc 0.79, a triangle 0.5
    taper: float  # skewness of its pixels' rows: an upright triangle has 0.57, a square or disc 0
    corners: float  # mean of x²y² over the means of x² and y², from its centre: a square has 1, a disc 0.67
    slant: float  # correlation of x and y over its pixels: an upright shape has 0
    free: bool  # neither cut by the frame's border nor touching something dark or of another colour


class _Failure(Exception):
    """The first question that a clip fails."""


def check(frames: np.ndarray, text: str) -> Check:
    """Whether frames, uint8 (F, SIZE, SIZE, 3), fulfil the caption.

    Raises ValueError for a caption outside this world or frames of another size.
    """
    claim = parse(text)
    if frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3) or frames.dtype != np.uint8:
        raise ValueError(f"frames {frames.dtype} {frames.shape}; physics reads uint8 (F, {SIZE}, {SIZE}, 3)")
    blobs = find_blobs(frames)
    try:
        tracks = [_follow(blobs, thing.color, claim, index) for index, thing in enumerate(claim.things)]
        for thing, track in zip(claim.things, tracks, strict=True):
            _same_shape(track, thing.shape)
            _continuous(track, thing.color, claim.kind)
        _EVENTS[claim.kind](tracks, _dark(frames))
        _nothing_else(blobs, claim)
    except _Failure as failure:
        return Check(False, str(failure))
    return Check(True, "the event happened as described")


def aspects(frames: np.ndarray, claim: Claim, blobs: list[dict[str, list[Blob]]]) -> Aspects:
    """What `check` asks, each question by itself.

    blobs: `find_blobs(frames)`, for whoever asks about several claims.
    """
    tracks: list[list[Blob | None] | None] = []
    things: list[Check] = []
    steady: list[Check | None] = []
    for index, thing in enumerate(claim.things):
        try:
            track = _follow(blobs, thing.color, claim, index)
        except _Failure as failure:
            tracks.append(None)
            things.append(Check(False, str(failure)))
            steady.append(None)
            continue
        tracks.append(track if any(blob and blob.free for blob in track) else None)
        things.append(_checked(_same_shape, track, thing.shape))
        steady.append(_checked(_continuous, track, thing.color, claim.kind))
    event = None if None in tracks else _checked(_EVENTS[claim.kind], tracks, _dark(frames))
    return Aspects(tuple(things), tuple(steady), event, _checked(_nothing_else, blobs, claim))


def _checked(question: Callable[..., None], *asked: object) -> Check:
    try:
        question(*asked)
    except _Failure as failure:
        return Check(False, str(failure))
    return Check(True, "yes")


def masks(frames: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """For each colour, where it is: bool (F, H, W); and the chroma of every pixel, (F, H, W) in [0, 1]."""
    pixels = frames.astype(np.float32) / 255
    high, low = pixels.max(-1), pixels.min(-1)
    chroma = high - low
    r, g, b = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60
    distance = np.stack([np.abs((hue - HUES[c] + 180) % 360 - 180) for c in COLORS])
    nearest = distance.argmin(0)
    vivid = (chroma > MIN_CHROMA) & (distance.min(0) < MAX_HUE_OFF)
    return {color: vivid & (nearest == index) for index, color in enumerate(COLORS)}, chroma


def find_blobs(frames: np.ndarray) -> list[dict[str, list[Blob]]]:
    """For every frame and colour the blobs above MIN_AREA, largest first."""
    (of_color, chroma), dark = masks(frames), _dark(frames)
    anything = np.logical_or.reduce(list(of_color.values()))
    found: list[dict[str, list[Blob]]] = [{color: [] for color in COLORS} for _ in frames]
    for color, mask in of_color.items():
        others = anything & ~mask
        numbered, _ = ndimage.label(mask, _IN_FRAME)
        for index, (frame, *place) in enumerate(ndimage.find_objects(numbered), 1):
            f = frame.start
            own = numbered[f][tuple(place)] == index
            if own.sum() * PIXEL**2 >= MIN_AREA:
                found[f][color].append(_blob(own, place, chroma[f], others[f], dark[f]))
        for of_frame in found:
            of_frame[color].sort(key=lambda blob: -blob.area)
    return found


def _dark(frames: np.ndarray) -> np.ndarray:
    """Where the box or the cover is: bool (F, H, W)."""
    return frames.max(-1) < 105


def _blob(own: np.ndarray, place: list[slice], chroma: np.ndarray, others: np.ndarray, dark: np.ndarray) -> Blob:
    """Measures a patch: `own` (h, w) within `place` of a frame's chroma, other colours and dark pixels, (H, W) each."""
    rows, columns = place
    wide = _ring(place, 1)
    core = np.quantile(chroma[rows, columns][own], 0.8)
    soft = np.clip((chroma[wide] - WALL_CHROMA) / (core - WALL_CHROMA), 0, 1) * ~others[wide]
    across, down = soft.sum(1), soft.sum(0)
    width, height, area = across.max(), down.max(), soft.sum()
    border = rows.start == 0 or columns.start == 0 or rows.stop == SIZE or columns.stop == SIZE
    touched = dark[_ring(place, 2)].sum() + others[wide].sum()
    return Blob(
        area=float(area) * PIXEL**2,
        x=float((down * np.arange(len(down))).sum() / area + wide[1].start + 0.5) * PIXEL,
        top=rows.start * PIXEL,
        bottom=rows.stop * PIXEL,
        width=float(width) * PIXEL,
        height=float(height) * PIXEL,
        fill=float(area / (width * height)),
        **_moments(soft)._asdict(),
        free=bool(not border and touched < 3),
    )


class _Moments(NamedTuple):
    taper: float
    corners: float
    slant: float


def _moments(weights: np.ndarray) -> _Moments:
    """Of a weighted patch (h, w) about its centre; sub-pixel shifts and blur change them little."""
    total, rows, columns = weights.sum(), weights.sum(1), weights.sum(0)
    y = np.arange(len(rows)) - (rows * np.arange(len(rows))).sum() / total
    x = np.arange(len(columns)) - (columns * np.arange(len(columns))).sum() / total
    yy, xx = max((rows * y**2).sum() / total, 1e-9), max((columns * x**2).sum() / total, 1e-9)
    return _Moments(
        taper=float(-(rows * y**3).sum() / total / yy**1.5),
        corners=float((weights * np.outer(y**2, x**2)).sum() / total / (yy * xx)),
        slant=float((weights * np.outer(y, x)).sum() / total / np.sqrt(yy * xx)),
    )


def _ring(place: list[slice], by: int) -> tuple[slice, slice]:
    """A place grown by some pixels on every side, as far as the frame goes."""
    rows, columns = place
    return slice(max(0, rows.start - by), rows.stop + by), slice(max(0, columns.start - by), columns.stop + by)


def _follow(blobs: list[dict[str, list[Blob]]], color: str, claim: Claim, index: int) -> list[Blob | None]:
    """The claimed thing through all frames; null where it may be hidden (in the box, under the cover)."""
    hideable = claim.kind in ("take_out", "uncover")
    track: list[Blob | None] = []
    for frame, found in enumerate(blobs):
        mine = found[color]
        if len(mine) > 1 and mine[1].area > 0.45 * mine[0].area and mine[1].area > 2 * MIN_AREA:
            raise _Failure(f"two {color} things in frame {frame}")
        if not mine and not hideable:
            raise _Failure(f"no {color} thing in frame {frame}")
        track.append(mine[0] if mine else None)
    if not any(track):
        raise _Failure(f"no {color} thing anywhere")
    seen = [blob is not None for blob in track]
    if hideable and not all(seen[seen.index(True) :]):
        raise _Failure(f"the {color} thing vanishes")
    return track


def shape_of(blobs: list[Blob]) -> str:
    """cube, ball or cone, from the medians of how blobs taper and of how filled their corners are."""
    if median(blob.taper for blob in blobs) > 0.23:
        return "cone"
    return "cube" if median(blob.corners for blob in blobs) > 0.865 else "ball"


def _same_shape(track: list[Blob | None], shape: str) -> None:
    """Asks for the claimed shape in either half of the frames that show the whole thing."""
    if shape in ("cloth", "sponge"):
        flat = [blob.fill for blob in track if blob]
        if np.median(flat) < 0.8:
            raise _Failure(f"not a {shape}: ragged")
        return
    free = [blob for blob in track if blob and blob.free]
    if not free:
        raise _Failure(f"the {shape} is never wholly visible")
    half = (len(free) + 1) // 2
    for part in (free[:half], free[-half:]):
        if shape_of(part) != shape:
            raise _Failure(f"not a {shape} throughout: a {shape_of(part)}")
    if sum(abs(blob.slant) > MAX_SLANT for blob in free) > 1:
        raise _Failure(f"the {shape} is slanted")
    if not 1 / MAX_STRETCH < median(blob.width / blob.height for blob in free) < MAX_STRETCH:
        raise _Failure(f"the {shape} is stretched")
    for lengths in ([blob.width for blob in free], [blob.height for blob in free]):
        if max(lengths) > MAX_CHANGE * min(lengths):
            raise _Failure(f"the {shape} changes its size")


def _continuous(track: list[Blob | None], color: str, kind: str) -> None:
    """No jumps, and no swelling or shrinking of a thing that should keep its size."""
    shown = [blob for blob in track if blob]
    resizes, hides = kind in ("fold", "unfold", "squeeze"), kind in ("take_out", "uncover")
    most = MAX_JUMP_OF_TWO if kind in ("closer", "apart") else MAX_JUMP
    for before, after in pairwise(track):
        if not before or not after or resizes or (hides and not (before.free and after.free)):
            continue
        jump = max(abs(after.x - before.x), abs(after.bottom - before.bottom))
        if jump > most:
            raise _Failure(f"the {color} thing jumps by {jump:.0f} units")
    whole = [blob.area for blob in shown if blob.free]
    if not resizes and whole and min(whole) < 0.6 * max(whole):
        raise _Failure(f"the {color} thing changes its size")


def _on_table(blob: Blob) -> bool:
    return abs(blob.bottom - TABLE_TOP) <= 3 and blob.x < TABLE_EDGE + 1


def _monotone(values: list[float], what: str, slack: float = 2.5) -> None:
    """Asks that values grow but for `slack`."""
    highest = -np.inf
    for value in values:
        if value < highest - slack:
            raise _Failure(f"{what} goes back on itself")
        highest = max(highest, value)


def _steady(values: list[float], what: str, slack: float) -> None:
    if max(values) - min(values) > slack:
        raise _Failure(f"{what} drifts by {max(values) - min(values):.0f} units")


def _push(tracks: list, dark: np.ndarray, direction: int) -> None:
    track = tracks[0]
    if not all(map(_on_table, track)):
        raise _Failure("it does not stay on the table")
    xs = [direction * blob.x for blob in track]
    if xs[-1] - xs[0] < 15:
        raise _Failure(f"moves {xs[-1] - xs[0]:.0f} units in the wanted direction, 15 would do")
    _monotone(xs, "the push")


def _lift(tracks: list, dark: np.ndarray) -> None:
    track = tracks[0]
    if not _on_table(track[0]):
        raise _Failure("does not start on the table")
    ups = [-blob.bottom for blob in track]
    if ups[-1] - ups[0] < 14:
        raise _Failure(f"rises {ups[-1] - ups[0]:.0f} units, 14 would do")
    _monotone(ups, "the lift")
    _steady([blob.x for blob in track], "the lift", 6)


def _drop(tracks: list, dark: np.ndarray) -> None:
    track = tracks[0]
    if TABLE_TOP - track[0].bottom < 14:
        raise _Failure("does not start in the air")
    if not _on_table(track[-1]):
        raise _Failure("does not end on the table")
    _monotone([blob.bottom for blob in track], "the drop")
    _steady([blob.x for blob in track], "the drop", 6)


def _fall(tracks: list, dark: np.ndarray) -> None:
    track = tracks[0]
    if not _on_table(track[0]):
        raise _Failure("does not start on the table")
    if track[-1].bottom - TABLE_TOP < 10:
        raise _Failure("does not fall below the table")
    for blob in track:
        if blob.bottom > TABLE_TOP + 4 and blob.x - blob.width / 2 < TABLE_EDGE - 3.5:
            raise _Failure("falls through the table")
    _monotone([blob.bottom for blob in track], "the fall")
    _monotone([blob.x for blob in track], "the push")


def _two(tracks: list, dark: np.ndarray, direction: int) -> None:
    a, b = tracks
    if not all(map(_on_table, a + b)):
        raise _Failure("they do not stay on the table")
    gaps = [direction * abs(p.x - q.x) for p, q in zip(a, b, strict=True)]
    if gaps[-1] - gaps[0] < 9:
        raise _Failure(f"their distance changes by {gaps[-1] - gaps[0]:.0f} units in the wanted direction, 9 would do")
    for track in tracks:
        if abs(track[-1].x - track[0].x) < 3.5:
            raise _Failure("only one of them moves")
    _monotone(gaps, "the movement")


def _take_out(tracks: list, dark: np.ndarray) -> None:
    track = tracks[0]
    box = _box(dark[0])
    last_box = _box(dark[-1])
    if box is None or last_box is None:
        raise _Failure("there is no box")
    if abs(box[0] - last_box[0]) > 4 or abs(box[1] - last_box[1]) > 4:
        raise _Failure("the box moves")
    final = track[-1]
    if track[0] is not None and track[0].area > 0.45 * final.area:
        raise _Failure("it is not in the box at first")
    if final.bottom > last_box[1] + 2.5:
        raise _Failure("it does not come out of the box")
    ups = [last_box[1] - blob.top if blob else 0.0 for blob in track]
    _monotone(ups, "the taking out")
    _no_leap(ups, MAX_JUMP)
    _steady([blob.x for blob in track if blob and blob.free], "the taking out", 6)


def _uncover(tracks: list, dark: np.ndarray) -> None:
    track = tracks[0]
    first, last = _box(dark[0]), _box(dark[-1])
    if first is None or last is None:
        raise _Failure("there is no cover")
    if track[0] is not None and track[0].area > 0.3 * track[-1].area:
        raise _Failure("it is not covered at first")
    if abs(first[2] - TABLE_TOP) > 4:
        raise _Failure("the cover does not start on the table")
    if not _on_table(track[-1]):
        raise _Failure("it does not stay on the table")
    if last[2] > track[-1].top + 2:
        raise _Failure("the cover does not come off")
    ups = [-b[2] for b in map(_box, dark) if b]
    _monotone(ups, "the cover", 3)
    _no_leap(ups, MAX_JUMP)


def _box(dark: np.ndarray) -> tuple[float, float, float] | None:
    """Centre x, top and bottom of the largest dark patch; null when there is none."""
    numbered, count = ndimage.label(dark)
    if not count:
        return None
    sizes = ndimage.sum_labels(dark, numbered, range(1, count + 1))
    if sizes.max() * PIXEL**2 < 60:
        return None
    rows, columns = ndimage.find_objects(numbered)[int(sizes.argmax())]
    return (columns.start + columns.stop) / 2 * PIXEL, rows.start * PIXEL, rows.stop * PIXEL


def _fold(tracks: list, dark: np.ndarray, direction: int) -> None:
    track = tracks[0]
    if not all(abs(blob.bottom - TABLE_TOP) <= 3 for blob in track):
        raise _Failure("the cloth does not lie on the table")
    ratio = (track[-1].width / track[0].width) ** direction
    if ratio < 1.45:
        raise _Failure(f"its width changes by a factor {ratio:.2f} in the wanted direction, 1.45 would do")
    wide = track[0] if direction < 0 else track[-1]
    if wide.width < 22 or wide.height > 0.5 * wide.width:
        raise _Failure("not a spread cloth")
    _monotone([direction * blob.width for blob in track], "the folding", 3)
    _no_leap([blob.width for blob in track], 12)
    if any(blob.height > 2.6 * min(b.height for b in track) for blob in track):
        raise _Failure("the cloth swells")


def _squeeze(tracks: list, dark: np.ndarray) -> None:
    track = tracks[0]
    if not all(abs(blob.bottom - TABLE_TOP) <= 3 for blob in track):
        raise _Failure("the sponge does not stand on the table")
    if track[0].height < 16:
        raise _Failure("not a tall sponge at first")
    if track[-1].height > 0.68 * track[0].height:
        raise _Failure("is not squeezed")
    _monotone([-blob.height for blob in track], "the squeezing", 3)
    _no_leap([blob.height for blob in track], 10)
    if max(blob.width for blob in track) > 1.6 * min(blob.width for blob in track):
        raise _Failure("the sponge spreads")
    _steady([blob.x for blob in track], "the sponge", 6)


def _no_leap(values: list[float], most: float) -> None:
    leap = float(np.abs(np.diff(values)).max())
    if leap > most:
        raise _Failure(f"changes by {leap:.0f} units at once")


def _nothing_else(blobs: list[dict[str, list[Blob]]], claim: Claim) -> None:
    """By-standers stay as they are: nothing comes, goes or wanders."""
    for color in (c for c in COLORS if c not in {thing.color for thing in claim.things}):
        found = [frame[color][0] if frame[color] else None for frame in blobs]
        whole = [blob for blob in found if blob]
        if not whole or max(blob.area for blob in whole) < 1.6 * MIN_AREA:
            continue
        if len(whole) < len(found):
            raise _Failure(f"a {color} thing comes or goes")
        free = [blob for blob in whole if blob.free]
        if free and max(abs(b.x - free[0].x) + abs(b.bottom - free[0].bottom) for b in free) > 5:
            raise _Failure(f"a {color} thing wanders")
        if len(free) > 2 and max(blob.area for blob in free) > 1.5 * min(blob.area for blob in free):
            raise _Failure(f"a {color} thing changes its size")
        if len(free) > 3 and shape_of(free[: len(free) // 2]) != shape_of(free[-(len(free) // 2) :]):
            raise _Failure(f"a {color} thing changes its shape")


_EVENTS = {
    "push_right": lambda t, d: _push(t, d, 1),
    "push_left": lambda t, d: _push(t, d, -1),
    "lift": _lift,
    "fall": _fall,
    "drop": _drop,
    "closer": lambda t, d: _two(t, d, -1),
    "apart": lambda t, d: _two(t, d, 1),
    "take_out": _take_out,
    "uncover": _uncover,
    "fold": lambda t, d: _fold(t, d, -1),
    "unfold": lambda t, d: _fold(t, d, 1),
    "squeeze": _squeeze,
}
