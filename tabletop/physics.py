"""Checks a tabletop clip against its caption, from the pixels alone. It stands for the human rater of this world.

It finds blobs of each colour in every frame, follows the claimed things, and checks in turn: each thing is there in
every frame in which it must be, in its shape, once, without jumps; the claimed event happened; nothing else came or
went. The first failure is the reason. Lengths are units of the world, two to a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple, ParamSpec

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
P = ParamSpec("P")
_IN_FRAME = np.stack([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])  # no links in time


class FailureKind(Enum):
    """What can be wrong with a clip; the value is its wording, with the fields of a Failure in braces."""

    # with a claimed thing
    TWICE = "two {color} things in frame {frame}"
    MISSING = "no {color} thing in frame {frame}"
    ABSENT = "no {color} thing anywhere"
    VANISHES = "the {color} thing vanishes"
    RAGGED = "not a {shape}: ragged"
    CUT_OFF = "the {shape} is never wholly visible"
    OTHER_SHAPE = "not a {shape} throughout: a {other}"
    SLANTED = "the {shape} is slanted"
    STRETCHED = "the {shape} is stretched"
    SHAPE_RESIZED = "the {shape} changes its size"
    # with its way through the frames
    JUMPS = "the {color} thing jumps by {units:.0f} units"
    RESIZED = "the {color} thing changes its size"
    # with the event
    GOES_BACK = "{what} goes back on itself"
    DRIFTS = "{what} drifts by {units:.0f} units"
    LEAPS = "changes by {units:.0f} units at once"
    LEAVES_TABLE = "it does not stay on the table"
    TWO_LEAVE_TABLE = "they do not stay on the table"
    STARTS_OFF_TABLE = "does not start on the table"
    STARTS_LOW = "does not start in the air"
    ENDS_OFF_TABLE = "does not end on the table"
    MOVES_TOO_LITTLE = "moves {units:.0f} units in the wanted direction, 15 would do"
    RISES_TOO_LITTLE = "rises {units:.0f} units, 14 would do"
    FALLS_TOO_LITTLE = "does not fall below the table"
    FALLS_THROUGH_TABLE = "falls through the table"
    DISTANCE_CHANGES_TOO_LITTLE = "their distance changes by {units:.0f} units in the wanted direction, 9 would do"
    ONLY_ONE_MOVES = "only one of them moves"
    NO_BOX = "there is no box"
    BOX_MOVES = "the box moves"
    NOT_IN_BOX = "it is not in the box at first"
    STAYS_IN_BOX = "it does not come out of the box"
    NO_COVER = "there is no cover"
    NOT_COVERED = "it is not covered at first"
    COVER_STARTS_HIGH = "the cover does not start on the table"
    COVER_STAYS = "the cover does not come off"
    CLOTH_OFF_TABLE = "the cloth does not lie on the table"
    WIDTH_CHANGES_TOO_LITTLE = "its width changes by a factor {factor:.2f} in the wanted direction, 1.45 would do"
    NOT_SPREAD = "not a spread cloth"
    CLOTH_SWELLS = "the cloth swells"
    SPONGE_OFF_TABLE = "the sponge does not stand on the table"
    NOT_TALL = "not a tall sponge at first"
    NOT_SQUEEZED = "is not squeezed"
    SPONGE_SPREADS = "the sponge spreads"
    # with anything else
    OTHER_COMES_OR_GOES = "a {color} thing comes or goes"
    OTHER_WANDERS = "a {color} thing wanders"
    OTHER_RESIZED = "a {color} thing changes its size"
    OTHER_RESHAPED = "a {color} thing changes its shape"


@dataclass(frozen=True)
class Failure:
    """What is wrong with a clip, with the measurements that its wording names."""

    finding: FailureKind
    fields: dict[str, str | float]

    def __str__(self) -> str:
        return self.finding.value.format(**self.fields)

    @property
    def reverse(self) -> bool:
        """Whether the event runs the wrong way, at least in part."""
        measured = (FailureKind.MOVES_TOO_LITTLE, FailureKind.DISTANCE_CHANGES_TOO_LITTLE)
        return self.finding is FailureKind.GOES_BACK or self.finding in measured and float(self.fields["units"]) < 0


@dataclass(frozen=True)
class Check:
    """A verdict: the first failure, or None."""

    failure: Failure | None

    @property
    def ok(self) -> bool:
        """Whether the clip shows what its caption says."""
        return self.failure is None

    @property
    def reason(self) -> str:
        """The verdict's reason in English."""
        return "the event happened as described" if self.failure is None else str(self.failure)


class Aspects(NamedTuple):
    """What a clip does of its claim, one aspect at a time; None where an earlier one leaves nothing to look at."""

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


Blobs = list[dict[str, list[Blob]]]  # of every frame and colour, largest first
Track = list[Blob | None]  # a thing through all frames; None where it is hidden


class _Failed(Exception):
    """Raised by the checks below with what they found."""

    def __init__(self, finding: FailureKind, **fields: str | float) -> None:
        super().__init__(finding, fields)
        self.failure = Failure(finding, fields)


def check(frames: np.ndarray, text: str) -> Check:
    """Whether frames, uint8 (F, SIZE, SIZE, 3), show what the caption says.

    Raises ValueError for a caption outside this world or frames of another size.
    """
    claim = parse(text)
    if frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3) or frames.dtype != np.uint8:
        raise ValueError(f"frames {frames.dtype} {frames.shape}; physics reads uint8 (F, {SIZE}, {SIZE}, 3)")
    return check_claim(frames, claim, find_blobs(frames))


def failing_frames(frames: np.ndarray, text: str) -> frozenset[int]:
    """The frames of a clip, by index, that show something wrong; those of `check`, all of which it would name.

    A thing that is missing or there twice is wrong in that frame, one that jumps or changes its size in the later one.
    What is wrong with the clip as a whole, such as a push that goes too short a way, is wrong in every frame.
    Raises ValueError as `check` does.
    """
    if check(frames, text).ok:
        return frozenset()
    claim, blobs = parse(text), find_blobs(frames)
    wrong: set[int] = set()
    for thing in claim.things:
        track: Track = []
        for place, found in enumerate(blobs):
            try:
                track += _follow([found], thing.color, claim)
            except _Failed as failed:
                track.append(None)
                if failed.failure.finding is not FailureKind.ABSENT:  # it may be hidden in this frame
                    wrong.add(place)
        first = next((place for place, blob in enumerate(track) if blob), 0)
        wrong |= {place for place in range(first, len(track)) if track[place] is None}  # hidden at first only
        for place, pair in enumerate(pairwise(track), 1):
            if not _checked(_continuous, list(pair), thing.color, claim.kind).ok:
                wrong.add(place)
    return frozenset(wrong or range(len(frames)))


def check_claim(frames: np.ndarray, claim: Claim, blobs: Blobs) -> Check:
    """Whether frames show the claimed event. blobs: `find_blobs(frames)`, found once for several claims."""
    return _checked(_everything, frames, claim, blobs)


def _everything(frames: np.ndarray, claim: Claim, blobs: Blobs) -> None:
    tracks = [_follow(blobs, thing.color, claim) for thing in claim.things]
    for thing, track in zip(claim.things, tracks, strict=True):
        _same_shape(track, thing.shape)
        _continuous(track, thing.color, claim.kind)
    _EVENTS[claim.kind](tracks, _dark(frames))
    _nothing_else(blobs, claim)


def aspects(frames: np.ndarray, claim: Claim, blobs: Blobs) -> Aspects:
    """What `check` looks at, each aspect by itself.

    blobs: `find_blobs(frames)`, found once for several claims.
    """
    tracks: list[Track] = []
    things: list[Check] = []
    steady: list[Check | None] = []
    for thing in claim.things:
        try:
            track = _follow(blobs, thing.color, claim)
        except _Failed as failed:
            things.append(Check(failed.failure))
            steady.append(None)
            continue
        if any(blob and blob.free for blob in track):
            tracks.append(track)
        things.append(_checked(_same_shape, track, thing.shape))
        steady.append(_checked(_continuous, track, thing.color, claim.kind))
    followed = len(tracks) == len(claim.things)
    event = _checked(_EVENTS[claim.kind], tracks, _dark(frames)) if followed else None
    return Aspects(tuple(things), tuple(steady), event, _checked(_nothing_else, blobs, claim))


def _checked(look: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Check:
    """What a check that raises _Failed finds."""
    try:
        look(*args, **kwargs)
    except _Failed as failed:
        return Check(failed.failure)
    return Check(None)


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


def find_blobs(frames: np.ndarray) -> Blobs:
    """For every frame and colour the blobs above MIN_AREA, largest first."""
    (of_color, chroma), dark = masks(frames), _dark(frames)
    anything = np.logical_or.reduce(list(of_color.values()))
    found: Blobs = [{color: [] for color in COLORS} for _ in frames]
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
    return np.asarray(frames.max(-1) < 105)


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


def _follow(blobs: Blobs, color: str, claim: Claim) -> Track:
    """The claimed thing through all frames; None where it may be hidden (in the box, under the cover)."""
    hideable = claim.kind in ("take_out", "uncover")
    track: Track = []
    for frame, found in enumerate(blobs):
        mine = found[color]
        if len(mine) > 1 and mine[1].area > 0.45 * mine[0].area and mine[1].area > 2 * MIN_AREA:
            raise _Failed(FailureKind.TWICE, color=color, frame=frame)
        if not mine and not hideable:
            raise _Failed(FailureKind.MISSING, color=color, frame=frame)
        track.append(mine[0] if mine else None)
    if not any(track):
        raise _Failed(FailureKind.ABSENT, color=color)
    seen = [blob is not None for blob in track]
    if hideable and not all(seen[seen.index(True) :]):
        raise _Failed(FailureKind.VANISHES, color=color)
    return track


def shape_of(blobs: list[Blob]) -> str:
    """cube, ball or cone, from the medians of how blobs taper and of how filled their corners are."""
    if median(blob.taper for blob in blobs) > 0.23:
        return "cone"
    return "cube" if median(blob.corners for blob in blobs) > 0.865 else "ball"


def _same_shape(track: Track, shape: str) -> None:
    """The thing has the claimed shape in either half of the frames that show the whole of it."""
    if shape in ("cloth", "sponge"):
        flat = [blob.fill for blob in track if blob]
        if np.median(flat) < 0.8:
            raise _Failed(FailureKind.RAGGED, shape=shape)
        return
    free = [blob for blob in track if blob and blob.free]
    if not free:
        raise _Failed(FailureKind.CUT_OFF, shape=shape)
    half = (len(free) + 1) // 2
    for part in (free[:half], free[-half:]):
        if shape_of(part) != shape:
            raise _Failed(FailureKind.OTHER_SHAPE, shape=shape, other=shape_of(part))
    if sum(abs(blob.slant) > MAX_SLANT for blob in free) > 1:
        raise _Failed(FailureKind.SLANTED, shape=shape)
    if not 1 / MAX_STRETCH < median(blob.width / blob.height for blob in free) < MAX_STRETCH:
        raise _Failed(FailureKind.STRETCHED, shape=shape)
    for lengths in ([blob.width for blob in free], [blob.height for blob in free]):
        if max(lengths) > MAX_CHANGE * min(lengths):
            raise _Failed(FailureKind.SHAPE_RESIZED, shape=shape)


def _continuous(track: Track, color: str, kind: str) -> None:
    """No jumps, and no swelling or shrinking of a thing that should keep its size."""
    resizes, hides = kind in ("fold", "unfold", "squeeze"), kind in ("take_out", "uncover")
    most = MAX_JUMP_OF_TWO if kind in ("closer", "apart") else MAX_JUMP
    for before, after in pairwise(track):
        if not before or not after or resizes or (hides and not (before.free and after.free)):
            continue
        jump = max(abs(after.x - before.x), abs(after.bottom - before.bottom))
        if jump > most:
            raise _Failed(FailureKind.JUMPS, color=color, units=jump)
    whole = [blob.area for blob in track if blob and blob.free]
    if not resizes and whole and min(whole) < 0.6 * max(whole):
        raise _Failed(FailureKind.RESIZED, color=color)


def _seen(track: Track) -> list[Blob]:
    """The thing in the frames that show it: in all, unless the event hides it."""
    return [blob for blob in track if blob]


def _on_table(blob: Blob) -> bool:
    return abs(blob.bottom - TABLE_TOP) <= 3 and blob.x < TABLE_EDGE + 1


def _monotone(values: list[float], what: str, slack: float = 2.5) -> None:
    """The values grow, but for `slack`."""
    highest = -np.inf
    for value in values:
        if value < highest - slack:
            raise _Failed(FailureKind.GOES_BACK, what=what)
        highest = max(highest, value)


def _steady(values: list[float], what: str, slack: float) -> None:
    """The values stay within a range of `slack`."""
    if max(values) - min(values) > slack:
        raise _Failed(FailureKind.DRIFTS, what=what, units=max(values) - min(values))


def _push(tracks: list[Track], dark: np.ndarray, direction: int) -> None:
    track = _seen(tracks[0])
    if not all(map(_on_table, track)):
        raise _Failed(FailureKind.LEAVES_TABLE)
    xs = [direction * blob.x for blob in track]
    if xs[-1] - xs[0] < 15:
        raise _Failed(FailureKind.MOVES_TOO_LITTLE, units=xs[-1] - xs[0])
    _monotone(xs, "the push")


def _lift(tracks: list[Track], dark: np.ndarray) -> None:
    track = _seen(tracks[0])
    if not _on_table(track[0]):
        raise _Failed(FailureKind.STARTS_OFF_TABLE)
    ups = [-blob.bottom for blob in track]
    if ups[-1] - ups[0] < 14:
        raise _Failed(FailureKind.RISES_TOO_LITTLE, units=ups[-1] - ups[0])
    _monotone(ups, "the lift")
    _steady([blob.x for blob in track], "the lift", 6)


def _drop(tracks: list[Track], dark: np.ndarray) -> None:
    track = _seen(tracks[0])
    if TABLE_TOP - track[0].bottom < 14:
        raise _Failed(FailureKind.STARTS_LOW)
    if not _on_table(track[-1]):
        raise _Failed(FailureKind.ENDS_OFF_TABLE)
    _monotone([blob.bottom for blob in track], "the drop")
    _steady([blob.x for blob in track], "the drop", 6)


def _fall(tracks: list[Track], dark: np.ndarray) -> None:
    track = _seen(tracks[0])
    if not _on_table(track[0]):
        raise _Failed(FailureKind.STARTS_OFF_TABLE)
    if track[-1].bottom - TABLE_TOP < 10:
        raise _Failed(FailureKind.FALLS_TOO_LITTLE)
    for blob in track:
        if blob.bottom > TABLE_TOP + 4 and blob.x - blob.width / 2 < TABLE_EDGE - 3.5:
            raise _Failed(FailureKind.FALLS_THROUGH_TABLE)
    _monotone([blob.bottom for blob in track], "the fall")
    _monotone([blob.x for blob in track], "the push")


def _two(tracks: list[Track], dark: np.ndarray, direction: int) -> None:
    a, b = map(_seen, tracks)
    if not all(map(_on_table, a + b)):
        raise _Failed(FailureKind.TWO_LEAVE_TABLE)
    gaps = [direction * abs(p.x - q.x) for p, q in zip(a, b, strict=True)]
    if gaps[-1] - gaps[0] < 9:
        raise _Failed(FailureKind.DISTANCE_CHANGES_TOO_LITTLE, units=gaps[-1] - gaps[0])
    for track in (a, b):
        if abs(track[-1].x - track[0].x) < 3.5:
            raise _Failed(FailureKind.ONLY_ONE_MOVES)
    _monotone(gaps, "the movement")


def _take_out(tracks: list[Track], dark: np.ndarray) -> None:
    track = tracks[0]
    box = _box(dark[0])
    last_box = _box(dark[-1])
    if box is None or last_box is None:
        raise _Failed(FailureKind.NO_BOX)
    if abs(box[0] - last_box[0]) > 4 or abs(box[1] - last_box[1]) > 4:
        raise _Failed(FailureKind.BOX_MOVES)
    final = _seen(track)[-1]
    if track[0] is not None and track[0].area > 0.45 * final.area:
        raise _Failed(FailureKind.NOT_IN_BOX)
    if final.bottom > last_box[1] + 2.5:
        raise _Failed(FailureKind.STAYS_IN_BOX)
    ups = [last_box[1] - blob.top if blob else 0.0 for blob in track]
    _monotone(ups, "the taking out")
    _no_leap(ups, MAX_JUMP)
    _steady([blob.x for blob in track if blob and blob.free], "the taking out", 6)


def _uncover(tracks: list[Track], dark: np.ndarray) -> None:
    track = tracks[0]
    final = _seen(track)[-1]
    first, last = _box(dark[0]), _box(dark[-1])
    if first is None or last is None:
        raise _Failed(FailureKind.NO_COVER)
    if track[0] is not None and track[0].area > 0.3 * final.area:
        raise _Failed(FailureKind.NOT_COVERED)
    if abs(first[2] - TABLE_TOP) > 4:
        raise _Failed(FailureKind.COVER_STARTS_HIGH)
    if not _on_table(final):
        raise _Failed(FailureKind.LEAVES_TABLE)
    if last[2] > final.top + 2:
        raise _Failed(FailureKind.COVER_STAYS)
    ups = [-b[2] for b in map(_box, dark) if b]
    _monotone(ups, "the cover", 3)
    _no_leap(ups, MAX_JUMP)


def _box(dark: np.ndarray) -> tuple[float, float, float] | None:
    """Centre x, top and bottom of the largest dark patch; None when there is none."""
    numbered, count = ndimage.label(dark)
    if not count:
        return None
    sizes = ndimage.sum_labels(dark, numbered, range(1, count + 1))
    if sizes.max() * PIXEL**2 < 60:
        return None
    rows, columns = ndimage.find_objects(numbered)[int(sizes.argmax())]
    return (columns.start + columns.stop) / 2 * PIXEL, rows.start * PIXEL, rows.stop * PIXEL


def _fold(tracks: list[Track], dark: np.ndarray, direction: int) -> None:
    track = _seen(tracks[0])
    if not all(abs(blob.bottom - TABLE_TOP) <= 3 for blob in track):
        raise _Failed(FailureKind.CLOTH_OFF_TABLE)
    ratio = (track[-1].width / track[0].width) ** direction
    if ratio < 1.45:
        raise _Failed(FailureKind.WIDTH_CHANGES_TOO_LITTLE, factor=ratio)
    wide = track[0] if direction < 0 else track[-1]
    if wide.width < 22 or wide.height > 0.5 * wide.width:
        raise _Failed(FailureKind.NOT_SPREAD)
    _monotone([direction * blob.width for blob in track], "the folding", 3)
    _no_leap([blob.width for blob in track], 12)
    if any(blob.height > 2.6 * min(b.height for b in track) for blob in track):
        raise _Failed(FailureKind.CLOTH_SWELLS)


def _squeeze(tracks: list[Track], dark: np.ndarray) -> None:
    track = _seen(tracks[0])
    if not all(abs(blob.bottom - TABLE_TOP) <= 3 for blob in track):
        raise _Failed(FailureKind.SPONGE_OFF_TABLE)
    if track[0].height < 16:
        raise _Failed(FailureKind.NOT_TALL)
    if track[-1].height > 0.68 * track[0].height:
        raise _Failed(FailureKind.NOT_SQUEEZED)
    _monotone([-blob.height for blob in track], "the squeezing", 3)
    _no_leap([blob.height for blob in track], 10)
    if max(blob.width for blob in track) > 1.6 * min(blob.width for blob in track):
        raise _Failed(FailureKind.SPONGE_SPREADS)
    _steady([blob.x for blob in track], "the sponge", 6)


def _no_leap(values: list[float], most: float) -> None:
    """No value differs from the one before by more than `most`."""
    leap = float(np.abs(np.diff(values)).max())
    if leap > most:
        raise _Failed(FailureKind.LEAPS, units=leap)


def _nothing_else(blobs: Blobs, claim: Claim) -> None:
    """By-standers stay as they are: nothing comes, goes or wanders."""
    for color in (c for c in COLORS if c not in {thing.color for thing in claim.things}):
        found = [frame[color][0] if frame[color] else None for frame in blobs]
        whole = [blob for blob in found if blob]
        if not whole or max(blob.area for blob in whole) < 1.6 * MIN_AREA:
            continue
        if len(whole) < len(found):
            raise _Failed(FailureKind.OTHER_COMES_OR_GOES, color=color)
        free = [blob for blob in whole if blob.free]
        if free and max(abs(b.x - free[0].x) + abs(b.bottom - free[0].bottom) for b in free) > 5:
            raise _Failed(FailureKind.OTHER_WANDERS, color=color)
        if len(free) > 2 and max(blob.area for blob in free) > 1.5 * min(blob.area for blob in free):
            raise _Failed(FailureKind.OTHER_RESIZED, color=color)
        if len(free) > 3 and shape_of(free[: len(free) // 2]) != shape_of(free[-(len(free) // 2) :]):
            raise _Failed(FailureKind.OTHER_RESHAPED, color=color)


_EVENTS: dict[str, Callable[[list[Track], np.ndarray], None]] = {
    "push_right": partial(_push, direction=1),
    "push_left": partial(_push, direction=-1),
    "lift": _lift,
    "fall": _fall,
    "drop": _drop,
    "closer": partial(_two, direction=-1),
    "apart": partial(_two, direction=1),
    "take_out": _take_out,
    "uncover": _uncover,
    "fold": partial(_fold, direction=-1),
    "unfold": partial(_fold, direction=1),
    "squeeze": _squeeze,
}
