"""Frames and clips in the forms in which network judges take them."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

PictureFormat = Literal["png", "jpeg"]


def data_urls(frames: np.ndarray, indices: Sequence[int], picture: PictureFormat) -> list[str]:
    """The frames at these indices as data URLs. frames: uint8 (F, H, W, 3).

    picture: png, lossless; or jpeg, at quality 95 with full colour resolution.
    """
    return [f"data:image/{picture};base64,{base64.b64encode(_encoded(frames[i], picture)).decode()}" for i in indices]


def png_url(png: bytes) -> str:
    """A PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def mp4_url(mp4: bytes) -> str:
    """An mp4 as a data URL."""
    return f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"


def frames_url(frames: np.ndarray, indices: Sequence[int], picture: PictureFormat) -> str:
    """The frames at these indices as one video in a data URL, which vLLM takes: pictures of any format, with commas."""
    return "data:video/jpeg;base64," + ",".join(url.partition(",")[2] for url in data_urls(frames, indices, picture))


def frames_of(url: str) -> np.ndarray:
    """The frames of a URL that `frames_url` made: uint8 (F, H, W, 3)."""
    parts = url.split(",")[1:]
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(part)))) for part in parts])


def frames_size(url: str) -> tuple[int, int, int]:
    """F, H and W of the frames of such a URL."""
    first, *others = url.split(",")[1:]
    width, height = Image.open(io.BytesIO(base64.b64decode(first))).size
    return 1 + len(others), height, width


def frame_times(indices: Sequence[int], fps: float) -> dict[str, Any]:
    """What vLLM gets beside a video of these frames of a clip, so that transformers derives their rate and times.

    It takes len(frames_indices) / total_num_frames * fps as the rate, which for n frames of a clip would be n / (n - 1)
    of the right one (`sampled_fps` in feedback/judges/vlm.py), and frames_indices / fps as the times. Frames counted in
    units of 1 / (n - 1) of the clip's give both, in whole numbers: frames 0, 4, 8 at 8 a second are 0, 1, 2 of 3 at 2.
    """
    steps, span = len(indices) - 1, indices[-1] - indices[0]
    if not span:
        steps = span = 1
    total = len(indices) * span
    shared = math.gcd(total, *(index * steps for index in indices))
    return {
        "num_frames": -1,  # all
        "fps": fps * steps / shared,
        "frames_indices": [index * steps // shared for index in indices],
        "total_num_frames": total // shared,
        "do_sample_frames": False,
    }


def _encoded(frame: np.ndarray, picture: PictureFormat) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if picture == "jpeg" else {"compress_level": 6}
    Image.fromarray(frame).save(buffer, picture.upper(), **options)
    return buffer.getvalue()
