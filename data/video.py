"""Frames to mp4 and back, and pictures of frames for people.

Frames are uint8 RGB of shape (F, H, W, 3).
"""

import importlib.util
import io
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image, ImageDraw, ImageFont

from data.manifest import atomically

LOSSLESS_UP_TO = 256  # pixels of the shorter side

# BT.709, full range: Y = kr R + kg G + kb B, Cb = (B - Y) / (2 - 2 kb) + 128, Cr = (R - Y) / (2 - 2 kr) + 128.
_KR, _KG, _KB = 0.2126, 0.7152, 0.0722
_YCBCR_FROM_RGB = np.array(
    [
        [_KR, _KG, _KB],
        [-_KR / (2 - 2 * _KB), -_KG / (2 - 2 * _KB), 0.5],
        [0.5, -_KG / (2 - 2 * _KR), -_KB / (2 - 2 * _KR)],
    ],
    dtype=np.float32,
)
_YCBCR_OFFSET = np.array([0, 128, 128], dtype=np.float32)
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def write_video(path: Path, frames: np.ndarray, fps: float, lossless: bool | None = None) -> None:
    """Write frames as an H.264 mp4; equal frames give equal bytes on one machine.

    lossless: None means yes when min(H, W) <= 256, so that a judge's frames do not depend on the codec.
        Lossless is yuv444p at qp 0 in full-range BT.709: only the rounding to 8-bit YCbCr is lost. Measured over all
        2^24 colours and over random noise, a pixel comes back within 1 of 255 (mean 0.33). RGB in H.264 (gbrp)
        would lose nothing, but browsers do not play it; Chromium plays this, within 2 of 255.
        Otherwise crf 12, yuv420p, which needs even H and W.
    Raises ValueError for frames that are not uint8 (F, H, W, 3), for no frames, for odd sides where yuv420p is used.
    """
    _check_frames(path, frames)
    height, width = frames.shape[1:3]
    if lossless is None:
        lossless = min(height, width) <= LOSSLESS_UP_TO
    if not lossless and (height % 2 or width % 2):
        raise ValueError(f"{path}: {height}x{width} frames; without lossless, height and width must be even")
    encoded = _encode(frames, fps, lossless)
    with atomically(Path(path)) as partial:
        partial.write_bytes(encoded)


def read_video(path: Path) -> np.ndarray:
    """All frames of a video. Raises ValueError naming the file when it is corrupt, truncated, empty or absent."""
    try:
        with av.open(str(path)) as container:
            frames, packets, announced = _decode(path, container)
    except (av.FFmpegError, IndexError) as error:  # IndexError: a container without a video stream
        raise ValueError(f"{path}: not a readable video ({error})") from error
    if announced and packets < announced:
        raise ValueError(f"{path}: truncated: {packets} of the {announced} frames that it announces")
    if not frames:
        raise ValueError(f"{path}: a video without frames")
    return np.stack(frames)


def read_fps(path: Path) -> float:
    """Frames per second of a video, on average. Raises ValueError for a file without a rate."""
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    if not rate:
        raise ValueError(f"{path}: has no frame rate")
    return float(rate)


def sample_frames(num_frames: int, wanted: int) -> list[int]:
    """Evenly spaced frame indices, the first and the last included.

    A clip with fewer frames than wanted gives all of its frames, none twice; wanted = 1 gives the middle frame.
    """
    if num_frames < 1 or wanted < 1:
        raise ValueError(f"{wanted} of {num_frames} frames; both must be at least 1")
    if wanted >= num_frames:
        return list(range(num_frames))
    if wanted == 1:
        return [num_frames // 2]
    steps = wanted - 1
    return [(2 * i * (num_frames - 1) + steps) // (2 * steps) for i in range(wanted)]  # rounded, halves up


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], columns: int = 1, scale: int = 2) -> Image.Image:
    """A picture of clips: each a caption with the clip's frames side by side below it.

    rows: caption and frames of each clip; laid out left to right, then down, in `columns` columns.
    scale: whole-number enlargement of the frames, without smoothing. Long captions are wrapped, not cut. Letters
        that no font has are written as escapes; `is_writable` tells beforehand.
    """
    if not rows:
        raise ValueError("a contact sheet of no clips")
    font = _font("".join(caption for caption, _ in rows))
    rows = [(_escaped(caption, font), frames) for caption, frames in rows]
    cell_width = max(_strip_width(frames, scale) for _, frames in rows)
    captions = [_wrapped(caption, font, cell_width) for caption, _ in rows]
    lines = [range(start, min(start + columns, len(rows))) for start in range(0, len(rows), columns)]
    heights = [
        max(len(captions[i]) * _CAPTION_LINE + rows[i][1].shape[1] * scale for i in line) + _MARGIN for line in lines
    ]
    sheet = Image.new("RGB", (columns * (cell_width + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), "white")
    top = _MARGIN
    for line, height in zip(lines, heights, strict=True):
        for column, i in enumerate(line):
            _draw_clip(sheet, (_MARGIN + column * (cell_width + _MARGIN), top), captions[i], font, rows[i][1], scale)
        top += height
    return sheet


def is_writable(text: str) -> bool:
    """Whether the captions of contact sheets can hold this text: Latin, Greek and Cyrillic letters, but no Chinese."""
    return not _missing(text, _font(text))


# Encoding and decoding


def _encode(frames: np.ndarray, fps: float, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    options = {"qp": "0", "preset": "ultrafast"} if lossless else {"crf": "12", "preset": "fast"}
    # bitexact leaves out the writer's version; the muxer writes no dates of its own.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if lossless else "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # the number of threads changes x264's bytes
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.JPEG if lossless else ColorRange.MPEG
        for image in map(_full_range_yuv444 if lossless else _limited_range_yuv420, frames):
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return buffer.getvalue()


def _full_range_yuv444(frame: np.ndarray) -> av.VideoFrame:
    """Converted here, because swscale's own RGB to YCbCr doubles the error of the round trip (2 of 255)."""
    ycbcr = np.rint(frame.astype(np.float32) @ _YCBCR_FROM_RGB.T + _YCBCR_OFFSET)
    planes = np.ascontiguousarray(np.clip(ycbcr, 0, 255).astype(np.uint8).transpose(2, 0, 1))
    image = av.VideoFrame.from_ndarray(planes, format="yuv444p")
    image.colorspace, image.color_range = Colorspace.ITU709, ColorRange.JPEG
    return image


def _limited_range_yuv420(frame: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        dst_colorspace=Colorspace.ITU709,
        interpolation=_EXACT,
        threads=1,
    )


def _decode(path: Path, container: av.container.InputContainer) -> tuple[list[np.ndarray], int, int]:
    """Frames, the number of packets that were there, and the number that the container announces (0: it does not)."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    frames: list[np.ndarray] = []
    packets = 0
    for packet in container.demux(stream):
        packets += packet.size > 0  # the last, empty one flushes the decoder
        for image in packet.decode():
            if image.is_corrupt:
                raise ValueError(f"{path}: frame {len(frames)} is corrupt")
            frames.append(image.to_ndarray(format="rgb24", interpolation=_EXACT, threads=1))
    return frames, packets, stream.frames


def _check_frames(path: Path, frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"{path}: frames are {frames.dtype} {frames.shape}, wanted uint8 (F, H, W, 3) with F >= 1")


# Contact sheets, in pixels

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CAPTION_SIZE = 15
_CAPTION_LINE = 19
_GAP = 2  # between frames
_MARGIN = 8


@cache
def _fonts() -> tuple[Font, Font]:
    """Pillow's own font, which has ASCII and little else, and DejaVu Sans, which comes with matplotlib."""
    found = importlib.util.find_spec("matplotlib")  # importing it takes half a second
    assert found and found.origin
    dejavu = Path(found.origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.load_default(size=_CAPTION_SIZE), ImageFont.truetype(str(dejavu), _CAPTION_SIZE - 1)


def _font(text: str) -> Font:
    """The first font that has all letters of a text, else the last."""
    return next((font for font in _fonts() if not _missing(text, font)), _fonts()[-1])


def _missing(text: str, font: Font) -> set[str]:
    """Characters that the font draws as it draws one that no font has."""
    none = bytes(font.getmask("\uffff"))
    return {letter for letter in set(text) if not letter.isspace() and bytes(font.getmask(letter)) == none}


def _escaped(text: str, font: Font) -> str:
    missing = _missing(text, font)
    return "".join(ascii(letter).strip("'") if letter in missing else letter for letter in text)


def _strip_width(frames: np.ndarray, scale: int) -> int:
    return int(len(frames) * (frames.shape[2] * scale + _GAP) - _GAP)


def _wrapped(caption: str, font: Font, width: int) -> list[str]:
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _draw_clip(
    sheet: Image.Image,
    corner: tuple[int, int],
    caption: list[str],
    font: Font,
    frames: np.ndarray,
    scale: int,
) -> None:
    left, top = corner
    ImageDraw.Draw(sheet).multiline_text((left, top), "\n".join(caption), fill="black", font=font, spacing=3)
    top += len(caption) * _CAPTION_LINE
    for frame in frames:
        enlarged = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        sheet.paste(Image.fromarray(enlarged), (left, top))
        left += enlarged.shape[1] + _GAP
