"""Visual prompting (Ask-A-Video §3.1): marks and pictures that are laid over some frames before a judge sees them.

    x~ = (1 - alpha) x + alpha p    for the frames of S

x the clip's frames, p the rendered marks, alpha their soft mask, S the frames that a mark is for. An overlay is a YAML

    marks:
      - box: [8, 8, 20, 20]      # left, top, right, bottom
        frames: 0-4              # one, a range with both its ends, some of these (0-2,7), or all
        color: red               # a name or #rrggbb
        opacity: 0.8
        thickness: 2
      - arrow: [4, 16, 24, 16]   # from x, y to x, y
        frames: all
      - point: [12, 30]
        frames: [0, 3]
      - mask: region.png         # a grayscale picture: where it is white, `color`
        frames: all
      - image: goal.png          # an RGB or RGBA picture; `mask` may name a grayscale one beside it
        frames: 8

or, for a box, a point or an arrow, a text such as `8,8,20,20@0-4`. Coordinates are pixels of the clip, from 0 at the
left and top edge of the picture to its width and height, so that pixel n reaches from n to n + 1. Marks are drawn in
their order, the later over the earlier.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import ImageColor
from torch import Tensor

from data.manifest import atomically
from data.video import contact_sheet
from feedback.differentiable.marks import Arrow, Box, Mask, Picture, Point, Shape

COLOR, OPACITY = "magenta", 1.0  # of a mark that says nothing else; a colour that hardly any clip has
GRAY = 0.5  # of the frames beneath, where there are none
PICTURE_EDGE = 128  # pixels that the frames of a saved picture have at least, a side


@dataclass(frozen=True)
class Mark:
    """Something that is laid over some frames."""

    shape: Shape
    frames: tuple[int, ...] | None  # None: all
    opacity: float


@dataclass(frozen=True)
class Overlay:
    """The marks of a clip, the first at the bottom."""

    marks: tuple[Mark, ...]


class Rendered(NamedTuple):
    """An overlay as pictures, float32."""

    images: Tensor  # (F, H, W, 3) in [0, 1]: p
    alpha: Tensor  # (F, H, W, 1) in [0, 1]


def render(overlay: Overlay, num_frames: int, height: int, width: int) -> Rendered:
    """The overlay of a clip. Raises ValueError naming the mark and its frames, place or size where it does not fit."""
    images, alpha = torch.zeros(num_frames, height, width, 3), torch.zeros(num_frames, height, width, 1)
    for mark in overlay.marks:
        if beyond := [index for index in mark.frames or () if index >= num_frames]:
            raise ValueError(
                f"{mark.shape}: frames {beyond} of a clip of {num_frames}, the last of which is {num_frames - 1}"
            )
        color, cover = mark.shape.layer(height, width)
        cover = mark.opacity * cover
        chosen = list(range(num_frames) if mark.frames is None else mark.frames)
        beneath = alpha[chosen] * (1 - cover)
        total = beneath + cover
        mixed = (beneath * images[chosen] + cover * color) / total.clamp(min=torch.finfo().tiny)
        images[chosen], alpha[chosen] = mixed, total
    return Rendered(images, alpha)


def apply(frames: Tensor, indices: Sequence[int], rendered: Rendered) -> Tensor:
    """Frames of a clip under its overlay; their gradient is multiplied by 1 - alpha.

    frames: (N, H, W, 3) in [0, 1]. indices: of these N frames in the clip.
    Raises ValueError for frames of another size.
    """
    if frames.shape[1:] != rendered.images.shape[1:]:
        given, wanted = ("x".join(map(str, one.shape[1:3])) for one in (frames, rendered.images))
        raise ValueError(f"frames of {given} under an overlay of {wanted}, height x width")
    images, alpha = (part[list(indices)].to(frames) for part in rendered)
    return (1 - alpha) * frames + alpha * images


def save_picture(rendered: Rendered, frames: Tensor | None, path: Path) -> None:
    """A PNG of the overlay: the first frame of each stretch that has the same one, with the numbers of its frames.

    frames: (F, H, W, 3) in [0, 1] of the whole clip; None: grey.
    """
    beneath = torch.full_like(rendered.images, GRAY) if frames is None else frames.detach().cpu()
    whole = apply(beneath, range(len(beneath)), rendered)
    starts = [0] + [n for n in range(1, len(whole)) if not all(torch.equal(part[n], part[n - 1]) for part in rendered)]
    ends = [*(start - 1 for start in starts[1:]), len(whole) - 1]
    pictures = (whole * 255).round().to(torch.uint8).numpy()
    rows = [(_stretch(start, end), pictures[start : start + 1]) for start, end in zip(starts, ends, strict=True)]
    sheet = contact_sheet(rows, columns=min(4, len(rows)), scale=-(-PICTURE_EDGE // min(pictures.shape[1:3])))
    with atomically(path) as partial:
        sheet.save(partial, format="PNG")


def _stretch(start: int, end: int) -> str:
    return f"frame {start}" if start == end else f"frames {start}-{end}"


# Reading

NUMBERS = {"box": (Box, 4), "point": (Point, 2), "arrow": (Arrow, 4)}  # how many a kind of mark has
FILES = ("mask", "image")
KEYS = {kind: {"color", "opacity", "thickness"} for kind in NUMBERS} | {
    "mask": {"color", "opacity"}, "image": {"mask", "opacity"},
}  # fmt: skip
FRAMES = "frames: one such as 3, a range such as 0-4, some of these, or all"


def load_overlay(path: Path) -> Overlay:
    """The overlay of a YAML, beside which the pictures lie that it names.

    Raises ValueError naming the file, the mark and the key.
    """
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a YAML that can be read ({error})") from error
    if not isinstance(given, dict) or set(given) != {"marks"} or not isinstance(given["marks"], list):
        raise ValueError(f"{path}: expected the one key `marks` with a list of marks")
    if not given["marks"]:
        raise ValueError(f"{path}: no marks")
    return Overlay(tuple(_mark(f"{path}, mark {n}", mark, path.parent) for n, mark in enumerate(given["marks"], 1)))


def parse_mark(kind: str, text: str) -> Mark:
    """A box, point or arrow of a text such as `8,8,20,20@0-4`: its numbers, and after the @ its frames.

    Raises ValueError naming the text.
    """
    numbers, at, frames = text.partition("@")
    if not at:
        raise ValueError(f"{kind} {text}: without frames; end it in @ and its {FRAMES}")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError as error:
        raise ValueError(f"{kind} {text}: {error}") from error
    return _mark(f"{kind} {text}", {kind: values, "frames": frames}, Path())


def _mark(where: str, given: Any, folder: Path) -> Mark:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: {given!r}, expected one of {sorted(KEYS)} and its frames")
    kinds = [kind for kind in KEYS if kind in given and not (kind == "mask" and "image" in given)]
    if len(kinds) != 1:
        raise ValueError(f"{where}: it has {kinds or 'none'} of {sorted(KEYS)}, expected one")
    (kind,) = kinds
    if unknown := sorted(map(str, given.keys() - {kind, "frames"} - KEYS[kind])):
        raise ValueError(f"{where}: {unknown} is unknown; a {kind} has {sorted({'frames', *KEYS[kind]})}")
    if "frames" not in given:
        raise ValueError(f"{where}: a {kind} without frames; {FRAMES}")
    options = {key: _OPTIONS[key](where, given.get(key)) for key in KEYS[kind] - {"mask"}}
    opacity = options.pop("opacity")
    if kind in NUMBERS:
        shape_of, count = NUMBERS[kind]
        values = given[kind]
        if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
            raise ValueError(f"{where}: {kind} is {values!r}, expected {count} numbers")
        shape: Shape = shape_of(*values, **options)
    else:
        files = {key: _file(where, key, given[key], folder) for key in FILES if key in given}
        shape = Picture(files["image"], files.get("mask")) if kind == "image" else Mask(files["mask"], **options)
    return Mark(shape, _frames(where, given["frames"]), opacity)


def _file(where: str, key: str, value: Any, folder: Path) -> Path:
    path = folder / str(value)
    if not path.is_file():
        raise ValueError(f"{where}: {key}: {path} is not there")
    return path


def _frames(where: str, given: Any) -> tuple[int, ...] | None:
    if given == "all":
        return None
    parts = [part.strip() for one in (given if isinstance(given, list) else [given]) for part in str(one).split(",")]
    frames: list[int] = []
    for part in parts:
        if not (match := re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part, re.ASCII)):
            raise ValueError(f"{where}: frames are {given!r}; {FRAMES}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{where}: frames {part} end before they start")
        frames += range(first, last + 1)
    if not frames:
        raise ValueError(f"{where}: no frames; {FRAMES}")
    return tuple(sorted(set(frames)))


def _color(where: str, given: Any) -> str:
    color = COLOR if given is None else str(given)
    try:
        channels = len(ImageColor.getrgb(color))
    except ValueError as error:
        raise ValueError(f"{where}: color: {error}") from error
    if channels != 3:
        raise ValueError(f"{where}: color {color} has an alpha of its own; that is `opacity`")
    return color


def _opacity(where: str, given: Any) -> float:
    opacity = OPACITY if given is None else given
    if not _is_number(opacity) or not 0 < opacity <= 1:
        raise ValueError(f"{where}: opacity is {opacity!r}, expected more than 0 and at most 1")
    return float(opacity)


def _thickness(where: str, given: Any) -> float | None:
    if given is not None and not (_is_number(given) and given > 0):
        raise ValueError(f"{where}: thickness is {given!r}, expected more than 0 pixels, or null")
    return given


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


_OPTIONS: Mapping[str, Callable[[str, Any], Any]] = {"color": _color, "opacity": _opacity, "thickness": _thickness}
