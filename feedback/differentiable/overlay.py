"""Visual prompting (Ask-A-Video §3.1): marks and pictures drawn over some frames before a judge sees them.

    x~ = (1 - alpha) x + alpha p    for the frames of S

x the clip's frames, p the rendered marks, alpha their soft mask, S the frames of a mark. An overlay is a YAML file

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
left and top edge of the picture to its width and height, so that pixel n covers n to n + 1. Marks are drawn in their
order, a later one over an earlier one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import yaml
from annotated_types import Interval
from PIL import ImageColor
from pydantic import AfterValidator, FiniteFloat
from pydantic.dataclasses import dataclass as strict_dataclass
from torch import Tensor

from data.config import STRICT, Positive, read_config
from data.manifest import atomically
from data.video import contact_sheet
from data.written import read_written
from feedback.differentiable.marks import Arrow, Box, Disc, Mask, Picture, Shape

COLOR = "magenta"  # of a mark without a colour; a colour that is rare in clips
GRAY = 0.5  # of the frames beneath, where none are given
PICTURE_EDGE = 128  # pixels that the frames of a saved picture have at least, a side


@dataclass(frozen=True)
class Mark:
    """A shape over some frames."""

    shape: Shape
    frames: tuple[int, ...] | None  # None: all
    opacity: float


@dataclass(frozen=True)
class Overlay:
    """The marks of a clip, the first at the bottom."""

    marks: tuple[Mark, ...]


class RenderedOverlay(NamedTuple):
    """An overlay as pictures, float32."""

    images: Tensor  # (F, H, W, 3) in [0, 1]: p
    alpha: Tensor  # (F, H, W, 1) in [0, 1]


def render(overlay: Overlay, num_frames: int, height: int, width: int) -> RenderedOverlay:
    """The overlay of a clip. Raises ValueError naming a mark whose frames, place or size do not fit the clip."""
    images, alpha = torch.zeros(num_frames, height, width, 3), torch.zeros(num_frames, height, width, 1)
    for mark in overlay.marks:
        if beyond := [index for index in mark.frames or () if index >= num_frames]:
            raise ValueError(
                f"{mark.shape}: frames {beyond} of a clip of {num_frames} frames; the last is {num_frames - 1}"
            )
        color, cover = mark.shape.layer(height, width)
        cover = mark.opacity * cover
        chosen = list(range(num_frames) if mark.frames is None else mark.frames)
        beneath = alpha[chosen] * (1 - cover)
        total = beneath + cover
        mixed = (beneath * images[chosen] + cover * color) / total.clamp(min=torch.finfo().tiny)
        images[chosen], alpha[chosen] = mixed, total
    return RenderedOverlay(images, alpha)


def unseen(overlay: Overlay, seen: Sequence[int]) -> list[Mark]:
    """The marks that are on none of the seen frames of the clip."""
    return [mark for mark in overlay.marks if mark.frames is not None and not set(mark.frames) & set(seen)]


def apply(frames: Tensor, indices: Sequence[int], rendered: RenderedOverlay) -> Tensor:
    """Frames of a clip under its overlay; their gradient is multiplied by 1 - alpha.

    frames: (N, H, W, 3) in [0, 1]. indices: of these N frames in the clip.
    Raises ValueError for frames of another size.
    """
    if frames.shape[1:] != rendered.images.shape[1:]:
        given, wanted = ("x".join(map(str, one.shape[1:3])) for one in (frames, rendered.images))
        raise ValueError(f"frames of {given} under an overlay of {wanted}, height x width")
    images, alpha = (part[list(indices)].to(frames) for part in rendered)
    return (1 - alpha) * frames + alpha * images


def save_picture(rendered: RenderedOverlay, frames: Tensor | None, path: Path) -> None:
    """Save a PNG: the first frame of each stretch of frames with equal marks, with the numbers of these frames.

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

FRAMES = "one such as 3, a range such as 0-4, some of these, or all"
Frames = int | str | tuple[int | str, ...]
Opacity = Annotated[float, Interval(gt=0, le=1)]


def _opaque_color(color: str) -> str:
    if len(ImageColor.getrgb(color)) != 3:  # raises ValueError for an unknown colour
        raise ValueError(f"{color} has an alpha of its own; use `opacity`")
    return color


Color = Annotated[str, AfterValidator(_opaque_color)]


@strict_dataclass(frozen=True, config=STRICT)
class BoxMark:
    """A box in the YAML."""

    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]  # left, top, right, bottom
    frames: Frames
    color: Color = COLOR
    opacity: Opacity = 1.0
    thickness: Positive | None = None

    def shape(self, _: Path) -> Shape:
        """The box that is drawn."""
        return Box(*self.box, self.color, self.thickness)


@strict_dataclass(frozen=True, config=STRICT)
class PointMark:
    """A point in the YAML."""

    point: tuple[FiniteFloat, FiniteFloat]  # x, y
    frames: Frames
    color: Color = COLOR
    opacity: Opacity = 1.0
    thickness: Positive | None = None

    def shape(self, _: Path) -> Shape:
        """The disc that is drawn."""
        return Disc(*self.point, self.color, self.thickness)


@strict_dataclass(frozen=True, config=STRICT)
class ArrowMark:
    """An arrow in the YAML."""

    arrow: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]  # from x, y to x, y
    frames: Frames
    color: Color = COLOR
    opacity: Opacity = 1.0
    thickness: Positive | None = None

    def shape(self, _: Path) -> Shape:
        """The arrow that is drawn."""
        return Arrow(*self.arrow, self.color, self.thickness)


@strict_dataclass(frozen=True, config=STRICT)
class MaskMark:
    """A mask in the YAML."""

    mask: str  # a grayscale picture beside the YAML
    frames: Frames
    color: Color = COLOR
    opacity: Opacity = 1.0

    def shape(self, folder: Path) -> Shape:
        """The mask that is drawn."""
        return Mask(_file(folder, self.mask), self.color)


@strict_dataclass(frozen=True, config=STRICT)
class ImageMark:
    """A picture in the YAML."""

    image: str  # an RGB or RGBA picture beside the YAML
    frames: Frames
    mask: str | None = None  # a grayscale picture beside the YAML
    opacity: Opacity = 1.0

    def shape(self, folder: Path) -> Shape:
        """The picture that is drawn."""
        return Picture(_file(folder, self.image), None if self.mask is None else _file(folder, self.mask))


MarkSettings = BoxMark | PointMark | ArrowMark | MaskMark | ImageMark
MARKS: dict[str, type[MarkSettings]] = {
    "image": ImageMark,
    "box": BoxMark,
    "point": PointMark,
    "arrow": ArrowMark,
    "mask": MaskMark,
}


def load_overlay(path: Path) -> Overlay:
    """The overlay of a YAML file; paths in it are relative to its folder.

    Raises ValueError naming the file, the mark and the key.
    """
    try:
        given = yaml.safe_load(read_written(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a readable YAML file ({error})") from error
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
        raise ValueError(f"{kind} {text}: no frames; end it in @ and its frames: {FRAMES}")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError as error:
        raise ValueError(f"{kind} {text}: {error}") from error
    return _mark(f"{kind} {text}", {kind: values, "frames": frames}, Path())


def _mark(where: str, given: Any, folder: Path) -> Mark:
    kinds = [kind for kind in MARKS if isinstance(given, dict) and kind in given]
    if kinds[:1] != ["image"] and len(kinds) != 1:  # the key mask may stand beside image
        raise ValueError(f"{where}: {given!r}, expected one of {', '.join(MARKS)}, and frames")
    read: MarkSettings = read_config(MARKS[kinds[0]], given, where)
    try:
        return Mark(read.shape(folder), _frames(read.frames), read.opacity)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return path


def _frames(given: Frames) -> tuple[int, ...] | None:
    if given == "all":
        return None
    frames: list[int] = []
    for part in (
        part.strip() for one in (given if isinstance(given, tuple) else [given]) for part in str(one).split(",")
    ):
        if not (match := re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part, re.ASCII)):
            raise ValueError(f"frames are {given!r}, expected {FRAMES}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"frames {part} end before they start")
        frames += range(first, last + 1)
    if not frames:
        raise ValueError(f"no frames, expected {FRAMES}")
    return tuple(sorted(set(frames)))
