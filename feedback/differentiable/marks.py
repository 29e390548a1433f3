"""The shapes of an overlay: boxes, points, arrows, masks and pictures, each as a colour and a coverage of each pixel.

Lines are drawn by the signed distance d of a pixel's centre from their edge, in pixels: the coverage is 1/2 - d, within
[0, 1], so edges are antialiased, and sharp where they lie between pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageColor, UnidentifiedImageError
from torch import Tensor


class Layer(NamedTuple):
    """A drawn shape."""

    color: Tensor  # (H, W, 3) in [0, 1], or (3,)
    cover: Tensor  # (H, W, 1) in [0, 1]


class Shape(Protocol):
    """Something that is drawn."""

    def layer(self, height: int, width: int) -> Layer:
        """The shape as drawn. Raises ValueError where it does not fit a picture of this size."""


@dataclass(frozen=True)
class Box:
    """A rectangle of lines, inside its four sides."""

    left: float
    top: float
    right: float
    bottom: float
    color: str
    thickness: float | None  # of the lines, pixels; None: see `line`

    def layer(self, height: int, width: int) -> Layer:
        """Pixels within `thickness` of the inside of a side."""
        _check_inside(self, [(self.left, self.top), (self.right, self.bottom)], height, width)
        if not (self.left < self.right and self.top < self.bottom):
            raise ValueError(f"{self}: expected left < right and top < bottom")
        x, y = _centres(height, width)
        outside = _largest(self.left - x, x - self.right, self.top - y, y - self.bottom)
        inside = -(outside + line(self.thickness, height, width))
        return Layer(_rgb(self.color), _covered(_largest(outside, inside)))


@dataclass(frozen=True)
class Disc:
    """A mark of one point: a disc, three lines wide."""

    x: float
    y: float
    color: str
    thickness: float | None  # a third of its diameter, pixels; None: see `line`

    def layer(self, height: int, width: int) -> Layer:
        """Pixels within 1.5 times `thickness` of it."""
        _check_inside(self, [(self.x, self.y)], height, width)
        x, y = _centres(height, width)
        distance = torch.hypot(x - self.x, y - self.y)
        return Layer(_rgb(self.color), _covered(distance - 1.5 * line(self.thickness, height, width)))


@dataclass(frozen=True)
class Arrow:
    """A line with a head at its end."""

    x: float
    y: float
    to_x: float
    to_y: float
    color: str
    thickness: float | None  # of the line, pixels; None: see `line`

    def layer(self, height: int, width: int) -> Layer:
        """A line, and a head as wide as it is long, four times the line's width; a short arrow is a head alone."""
        _check_inside(self, [(self.x, self.y), (self.to_x, self.to_y)], height, width)
        dx, dy = self.to_x - self.x, self.to_y - self.y
        length = float(np.hypot(dx, dy))
        if not length:
            raise ValueError(f"{self}: it ends where it starts")
        head = min(4 * line(self.thickness, height, width), length)
        x, y = _centres(height, width)
        ahead = ((self.to_x - x) * dx + (self.to_y - y) * dy) / length  # from a pixel to the tip, along the arrow
        aside = ((self.to_x - x) * dy - (self.to_y - y) * dx).abs() / length
        slope = 5**0.5  # of a side of the head, which goes 1 aside for every 2 along
        triangle = _largest((2 * aside - ahead) / slope, ahead - head)
        shaft = _largest(aside - head / 8, ahead - length, head / 2 - ahead)
        return Layer(_rgb(self.color), _covered(torch.minimum(triangle, shaft)))


@dataclass(frozen=True)
class Mask:
    """A colour where a picture is white."""

    path: Path
    color: str

    def layer(self, height: int, width: int) -> Layer:
        """The coverage is the brightness of the picture."""
        return Layer(_rgb(self.color), read_picture(self.path, ("L", "1"), height, width))


@dataclass(frozen=True)
class Picture:
    """A picture, where it is opaque."""

    path: Path
    mask: Path | None

    def layer(self, height: int, width: int) -> Layer:
        """The coverage is the picture's alpha times the mask."""
        picture = read_picture(self.path, ("RGB", "RGBA"), height, width)
        cover = picture[..., 3:] if picture.shape[-1] == 4 else torch.ones(height, width, 1)
        if self.mask is not None:
            cover = cover * read_picture(self.mask, ("L", "1"), height, width)
        return Layer(picture[..., :3], cover)


def line(thickness: float | None, height: int, width: int) -> float:
    """A line's width in pixels: `thickness`, or a 64th of the shorter side and at least one pixel."""
    return max(1.0, min(height, width) / 64) if thickness is None else thickness


def read_picture(path: Path, modes: Sequence[str], height: int, width: int) -> Tensor:
    """(H, W, channels) float32 in [0, 1]. Raises ValueError naming the file where it has another size or mode."""
    try:
        with Image.open(path) as file:
            picture = file.copy()
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path}: not a picture that can be read ({error})") from error
    if picture.size != (width, height):
        size = f"{picture.height}x{picture.width}, and the clip {height}x{width}, height x width"
        raise ValueError(f"{path} is {size}; resize it")
    if picture.mode not in modes:
        kinds = "grayscale" if "L" in modes else "RGB or RGBA"
        raise ValueError(f"{path} is a picture of mode {picture.mode}, expected 8-bit {kinds}")
    values = np.asarray(picture.convert("L") if picture.mode == "1" else picture, np.float32)
    return torch.from_numpy(values / 255).reshape(height, width, -1)


def _centres(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x (1, W, 1) and y (H, 1, 1) of the pixels' centres."""
    return (torch.arange(width) + 0.5).view(1, -1, 1), (torch.arange(height) + 0.5).view(-1, 1, 1)


def _largest(*distances: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*distances)).amax(0)  # type: ignore[no-untyped-call]


def _covered(distance: Tensor) -> Tensor:
    return (0.5 - distance).clamp(0, 1)


def _rgb(color: str) -> Tensor:
    return torch.tensor(ImageColor.getrgb(color)) / 255


def _check_inside(shape: Shape, corners: Sequence[tuple[float, float]], height: int, width: int) -> None:
    for x, y in corners:
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"{shape}: {x:g},{y:g} lies outside the picture, which is {width} wide and {height} high")
