"""First frames: the images that image-to-video generators start from, as a person sees them, at the clip's size.

    turned       as the EXIF tag says
    colours      8 bits a channel: palettes and greyscale as RGB, 16 bits by their high byte, CMYK, and colours of an
                 embedded ICC profile as sRGB
    transparent  on white
    moving       an animation or a file of several pages: its first picture, with a warning. The further pictures of a
                 phone's JPEG (MPO: depth, gain map) are no pages and are left out
    cropped      around the centre to the clip's ratio of sides
    resized      by Lanczos' filter to the clip's size

A first frame that loses at least one pixel of the clip by the crop, or that is enlarged, is named in a warning.
data/video.py reads videos, to the same end.
"""

import io
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data.prompts import Prompt

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000")  # those that render no vectors
NAMED = 3  # files in a warning, prompts in an error
BACKGROUND = (255, 255, 255)  # of transparent pixels, RGB
PAGES = "hold several pictures, of which the first is taken"
SEE_THROUGH = "are transparent in places, shown on white"
PROFILE = "have a colour profile that cannot be read, and are taken for sRGB"
CROPPED = "are cropped to the clip's ratio of sides"
ENLARGED = "are smaller than the clip and are enlarged"
# What a damaged file raises in Pillow's readers.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class _Fitted(NamedTuple):
    pixels: np.ndarray  # uint8 (H, W, 3)
    remarks: dict[str, str]  # what a person should know of the file -> how much; may be empty


def load_first_frame(path: Path, height: int, width: int) -> np.ndarray:
    """An image as the first frame of a clip: uint8 (height, width, 3), by the rules of this module.

    Logs a warning that names the file where it is cropped or enlarged, and for the other remarks above.
    Raises ValueError naming the file where it is no readable image.
    """
    found = _fitted(Path(path), height, width)
    _warn({remark: [_named(path, detail)] for remark, detail in found.remarks.items()})
    return found.pixels


def first_frames(prompts: Sequence[Prompt], height: int, width: int) -> dict[str, np.ndarray]:
    """The first frames of prompts by prompt_id, uint8 (height, width, 3) each; empty where no prompt has an image.

    Warns as `load_first_frame` does, once for all files. Raises ValueError naming the prompts without an image where
    others have one, and naming prompt and file where an image cannot be read.
    """
    check_all_or_none(prompts)
    read = dict(_read(prompts, height, width))
    return {prompt.prompt_id: read[str(prompt.image)] for prompt in prompts if prompt.image}


def check_first_frames(prompts: Sequence[Prompt], height: int, width: int) -> None:
    """Warn and raise as `first_frames` does, with one image in memory at a time."""
    for _ in _read(prompts, height, width):
        continue


def _read(prompts: Sequence[Prompt], height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Path and first frame of each image of these prompts, once; warns after the last."""
    seen: set[str] = set()
    remarks: dict[str, list[str]] = {}
    for prompt in prompts:
        image = prompt.image
        if not image or image in seen:
            continue
        seen.add(image)
        try:
            found = _fitted(Path(image), height, width)
        except ValueError as error:
            raise ValueError(f"prompt {prompt.prompt_id}: {error}") from error
        for remark, detail in found.remarks.items():
            remarks.setdefault(remark, []).append(_named(image, detail))
        yield image, found.pixels
    _warn(remarks)


def check_all_or_none(prompts: Sequence[Prompt]) -> None:
    """Raises ValueError naming the prompts without an image where others have one."""
    lacking = [prompt.prompt_id for prompt in prompts if not prompt.image]
    if 0 < len(lacking) < len(prompts):
        raise ValueError(
            f"{len(lacking)} of {len(prompts)} prompts have no image and the others have one: {_listed(lacking)}. The "
            "clips of a set start from an image for every prompt or for none: fill the column image, or leave it out"
        )


def check_image(path: Path) -> None:
    """Raises ValueError naming the file where its beginning is not that of an image. Reads no pixels."""
    _opened(path).close()


def png_bytes(pixels: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as PNG; equal pixels give equal bytes on one machine."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def read_png(path: Path) -> np.ndarray:
    """Pixels of a PNG that `png_bytes` made: uint8 (H, W, 3). Raises ValueError naming a file that is damaged."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.array(image.convert("RGB"))
    except _DAMAGED as error:
        raise ValueError(f"{path}: not a readable PNG ({error})") from error


def _fitted(path: Path, height: int, width: int) -> _Fitted:
    """The image at the clip's size, and what a person should know of it."""
    remarks: dict[str, str] = {}
    with _opened(path) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            remarks[PAGES] = f"of {image.n_frames}"  # type: ignore[attr-defined]
        try:
            image.load()
            seen = _on_background(_in_srgb(ImageOps.exif_transpose(image), remarks), remarks)
        except _DAMAGED as error:
            raise ValueError(f"{path}: not a readable image: {error}") from error
    box = _centre(seen.width, seen.height, width / height)
    kept_width, kept_height = box[2] - box[0], box[3] - box[1]
    for side, whole, kept, pixels in (
        ("width", seen.width, kept_width, width),
        ("height", seen.height, kept_height, height),
    ):
        if (whole - kept) * pixels >= kept:  # at least one pixel of the clip
            remarks[CROPPED] = f"{seen.width}x{seen.height} loses {1 - kept / whole:.0%} of its {side}"
    if kept_width < width or kept_height < height:
        remarks[ENLARGED] = f"{kept_width}x{kept_height} for {width}x{height}"
    return _Fitted(np.array(seen.crop(box).resize((width, height), Image.Resampling.LANCZOS)), remarks)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=[name for name in FORMATS if _is_built_in(name)])
    except UnidentifiedImageError as error:
        known = ", ".join(name for name in FORMATS if name != "MPO" and _is_built_in(name))
        raise ValueError(f"{path}: not a readable image; read are {known}") from error
    except _DAMAGED as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


def _is_built_in(name: str) -> bool:
    """Whether this build of Pillow reads a format."""
    Image.init()
    return name in Image.OPEN


def _in_srgb(image: Image.Image, remarks: dict[str, str]) -> Image.Image:
    """The image as RGB, or RGBA where some pixels may be transparent. Raises ValueError for values without a white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, for which no white is agreed; save it with 8 or 16 bits a channel")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = _by_profile(image, profile, remarks) if profile else image.convert("RGB")
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _by_profile(image: Image.Image, profile: bytes, remarks: dict[str, str]) -> Image.Image:
    """An image as sRGB by its ICC profile; as without one where that cannot be read or is of other channels."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        modes = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
        mode = modes.get(given.profile.xcolor_space.strip(), "")
        if mode in ("CMYK", "LAB") and image.mode != mode:
            raise ImageCms.PyCMSError(f"a profile of {mode} in an image of {image.mode}")
        plain = image if image.mode == mode else image.convert("RGB").convert(mode)
        made = ImageCms.profileToProfile(plain, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        remarks[PROFILE] = str(error)
        return image.convert("RGB")
    assert made is not None  # None is for a conversion in place
    return made


def _on_background(image: Image.Image, remarks: dict[str, str]) -> Image.Image:
    """The image as RGB, on white where it is transparent."""
    if image.mode != "RGBA":
        return image
    if image.getchannel("A").getextrema() != (255, 255):
        remarks[SEE_THROUGH] = ""
    below = Image.new("RGBA", image.size, BACKGROUND)
    return Image.alpha_composite(below, image).convert("RGB")


def _centre(width: int, height: int, ratio: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest centred part of a picture whose width is `ratio` of its height."""
    kept_width = min(width, max(1, round(height * ratio)))
    kept_height = min(height, max(1, round(width / ratio)))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return left, top, left + kept_width, top + kept_height


def _warn(remarks: Mapping[str, Sequence[str]]) -> None:
    for remark, files in remarks.items():
        logger.warning("first frames that %s: %s", remark, _listed(files, "; "))


def _named(path: Path | str, detail: str) -> str:
    return f"{path} ({detail})" if detail else str(path)


def _listed(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - NAMED
    return between.join(names[:NAMED]) + (f"{between}and {more} more" if more > 0 else "")
