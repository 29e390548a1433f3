"""Frames to mp4 and back, and pictures of frames for people.

Frames are uint8 RGB of shape (F, H, W, 3).
"""

import importlib.util
import io
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image, ImageDraw, ImageFont

from data.manifest import atomically
from data.records import Sample

LOSSLESS_UP_TO = 256  # pixels of the shorter side
SHEET_WIDTH = 1800  # pixels, about
FRAME_WIDTH = 96  # pixels, about, of a frame on a sheet
SHEET_FRAMES = 9  # of a clip on a sheet, evenly taken

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
_SCALED = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_ROUNDING = 0.01  # of a stated rate, by which rounded times may differ from it
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED, which PyAV does not name
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)


def write_video(path: Path, frames: np.ndarray, fps: float, lossless: bool | None = None) -> None:
    """Write frames as an H.264 mp4. Arguments and errors as of `encode_video`."""
    encoded = encode_video(frames, fps, lossless, str(path))
    with atomically(Path(path)) as partial:
        partial.write_bytes(encoded)


def encode_video(frames: np.ndarray, fps: float, lossless: bool | None = None, name: str = "a clip") -> bytes:
    """Frames as an H.264 mp4; equal frames give equal bytes on one machine.

    lossless: None means yes when min(H, W) <= 256, so that a judge's frames do not depend on the codec.
        Lossless is yuv444p at qp 0 in full-range BT.709: only the rounding to 8-bit YCbCr is lost. Measured over all
        2^24 colours and over random noise, a pixel comes back within 1 of 255 (mean 0.33). RGB in H.264 (gbrp)
        would lose nothing, but browsers do not play it; Chromium plays this, within 2 of 255.
        Otherwise crf 12, yuv420p, which needs even H and W.
    name: of the clip, in errors.
    Raises ValueError for frames that are not uint8 (F, H, W, 3), for no frames, for odd sides where yuv420p is used.
    """
    _check_frames(name, frames)
    height, width = frames.shape[1:3]
    if lossless is None:
        lossless = min(height, width) <= LOSSLESS_UP_TO
    if not lossless and (height % 2 or width % 2):
        raise ValueError(f"{name}: {height}x{width} frames; without lossless, height and width must be even")
    return _encode(frames, fps, lossless)


def read_video(path: Path) -> np.ndarray:
    """All frames of a video as a player shows them, at its `read_fps`.

    Turned by its rotation flag, pixels square (the width is scaled), colours by its matrix and range (where it names no
    matrix: BT.709 for frames wider than 1279 or higher than 576, else BT.601), on black where it is transparent. Of a
    video of variable rate each frame is the one that is seen at that time.
    Raises ValueError naming the file when it is corrupt, truncated, empty or absent, when its frames differ in size,
    and for HDR, which is seen differently on every display.
    """
    try:
        with av.open(str(path)) as container:
            decoded = _decode(path, container)
    except (av.FFmpegError, IndexError) as error:  # IndexError: a container without a video stream
        raise ValueError(f"{path}: not a readable video ({error})") from error
    if decoded.announced and decoded.packets < decoded.announced:
        raise ValueError(f"{path}: truncated: {decoded.packets} of the {decoded.announced} frames that it announces")
    if not decoded.frames:
        raise ValueError(f"{path}: a video without frames")
    if len(shapes := {frame.shape for frame in decoded.frames}) > 1:
        raise ValueError(f"{path}: its frames differ in size: {sorted(shapes)}")
    shown = seen_at(decoded.times, decoded.rate)
    return np.stack([decoded.frames[place] for place in shown])


def seen_at(times: Sequence[float], rate: float) -> list[int]:
    """Which frame is seen at each of the times 0, 1 / rate, 2 / rate …, as many as there are frames.

    times: seconds at which the frames begin, rising. Frames of constant rate are each seen once: all of them, though
    their times are rounded. Without a rate, or with a time that is not known, it is the same.
    """
    count = len(times)
    begins = np.asarray(times, float) - (times[0] if times else 0.0)
    if rate <= 0 or not np.isfinite(begins).all() or np.abs(begins * rate - np.arange(count)).max(initial=0) <= 0.5:
        return list(range(count))
    asked = (np.arange(count) + 1e-3) / rate  # a little later, since times are rounded
    seen: list[int] = (np.searchsorted(begins, asked, "right") - 1).tolist()
    return seen


def read_fps(path: Path) -> float:
    """Frames per second of a video, on average. Raises ValueError for a file without a rate."""
    with av.open(str(path)) as container:
        stream = _stream(container)
        times = sorted(
            float(one.pts * one.time_base)
            for one in container.demux(stream)
            if one.size and not one.is_discard and one.pts is not None and one.time_base is not None
        )
        rate = _rate(stream, times)
    if not rate:
        raise ValueError(f"{path}: has no frame rate")
    return rate


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


def small_frames(frames: np.ndarray, first: np.ndarray | None = None) -> np.ndarray:
    """At most SHEET_FRAMES frames about FRAME_WIDTH wide: enlarged without smoothing, or reduced, by a whole number.

    first: uint8 (H, W, 3), a first frame, which stands before them, with a white frame between.
    """
    chosen = frames[sample_frames(len(frames), SHEET_FRAMES)]
    if first is not None:
        chosen = np.concatenate([first[None], np.full_like(first[None], 255), chosen])
    width = frames.shape[2]
    if width < FRAME_WIDTH:
        scale = FRAME_WIDTH // width
        return chosen.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.stack([np.asarray(Image.fromarray(frame).reduce(max(1, width // FRAME_WIDTH))) for frame in chosen])


def save_sheet(rows: Sequence[tuple[str, np.ndarray]], out: Path) -> None:
    """Write a contact sheet about SHEET_WIDTH wide as a PNG. rows: caption and `small_frames` of each clip."""
    widest = max(_strip_width(frames, 1) for _, frames in rows)
    sheet = contact_sheet(rows, columns=max(1, min(len(rows), SHEET_WIDTH // (widest + _GAP))), scale=1)
    with atomically(out) as partial:
        sheet.save(partial, "PNG")


def is_writable(text: str) -> bool:
    """Whether the captions of contact sheets can hold this text: Latin, Greek and Cyrillic letters, but no Chinese."""
    return not _missing(text, _font(text))


def prompt_caption(sample: Sample) -> str:
    """A clip's prompt for a contact sheet; its id where the captions' font lacks a letter of it."""
    return sample.prompt if is_writable(sample.prompt) else sample.prompt_id


# Encoding and decoding


def _encode(frames: np.ndarray, fps: float, lossless: bool) -> bytes:
    buffer = io.BytesIO()
    # With B-frames x264's lookahead reads memory that it has not set, and equal frames have other bytes each time.
    options = {"qp": "0", "preset": "ultrafast"} if lossless else {"crf": "12", "preset": "fast", "bf": "0"}
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


class _Decoded(NamedTuple):
    frames: list[np.ndarray]  # (H, W, 3) each
    times: list[float]  # seconds, nan where the file does not say
    rate: float  # frames per second, 0 where the file does not say
    packets: int  # that were there
    announced: int  # by the container; 0: it does not


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video that a player shows, which is not a cover picture. Raises IndexError where there is none."""
    best = container.streams.best("video")
    return best if isinstance(best, av.VideoStream) else container.streams.video[0]


def _decode(path: Path, container: av.container.InputContainer) -> _Decoded:
    stream = _stream(container)
    stream.codec_context.thread_count = 1
    frames: list[np.ndarray] = []
    times: list[float] = []
    packets = 0
    for packet in container.demux(stream):
        packets += packet.size > 0  # the last, empty one flushes the decoder
        for image in packet.decode():
            if image.is_corrupt:
                raise ValueError(f"{path}: frame {len(frames)} is corrupt")
            if image.color_trc in _HDR:
                cure = "zscale=t=linear:npl=100,tonemap=hable,zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
                raise ValueError(f"{path}: HDR, which has no single SDR picture; make one first: ffmpeg -vf {cure}")
            frames.append(_as_seen(image, stream.sample_aspect_ratio))
            times.append(float("nan") if image.time is None else float(image.time))
    announced = min(stream.frames, len(stream.index_entries) or stream.frames)  # an edit list may hide some
    return _Decoded(frames, times, _rate(stream, times), packets, announced)


def _rate(stream: av.VideoStream, times: Sequence[float]) -> float:
    """Frames per second, 0 where it is not known: as the file states it, unless the times say otherwise.

    times: seconds, rising. Where the rate varies, what an mp4 states may be far from the mean.
    """
    stated, span = float(stream.average_rate or 0), times[-1] - times[0] if times else 0.0
    found = (len(times) - 1) / span if span > 0 else 0.0
    return found if found and abs(found - stated) > _ROUNDING * stated else stated


def _as_seen(image: av.VideoFrame, pixel: Fraction | None) -> np.ndarray:
    """uint8 (H, W, 3). pixel: width of a pixel over its height; None: 1."""
    how: dict[str, Any] = {"interpolation": _EXACT, "threads": 1}
    if image.colorspace == _UNSPECIFIED and not image.format.is_rgb:
        how["src_colorspace"] = Colorspace.ITU709 if image.width > 1279 or image.height > 576 else Colorspace.ITU601
    if pixel and pixel != 1:
        how |= {"width": round(image.width * pixel), "interpolation": _SCALED}
    clear = any(component.is_alpha for component in image.format.components)
    frame = image.to_ndarray(format="rgba" if clear else "rgb24", **how)
    if clear:
        frame = np.rint(frame[..., :3] * (frame[..., 3:] / np.float32(255))).astype(np.uint8)
    return np.rot90(frame, round(image.rotation / 90))


def _check_frames(name: str, frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"{name}: frames are {frames.dtype} {frames.shape}, wanted uint8 (F, H, W, 3) with F >= 1")


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
