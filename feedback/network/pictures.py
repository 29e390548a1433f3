"""Frames and clips in the forms in which network judges take them."""

import base64
import io
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


def mp4_url(mp4: bytes) -> str:
    """An mp4 as a data URL."""
    return f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"


def _encoded(frame: np.ndarray, picture: PictureFormat) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if picture == "jpeg" else {"compress_level": 6}
    Image.fromarray(frame).save(buffer, picture.upper(), **options)
    return buffer.getvalue()
