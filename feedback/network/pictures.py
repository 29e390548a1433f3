"""Frames as the still pictures that network judges take."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

FORMATS = ("png", "jpeg")


def data_urls(frames: np.ndarray, indices: Sequence[int], picture: str) -> list[str]:
    """The frames at these indices as data URLs. frames: uint8 (F, H, W, 3).

    picture: png loses nothing; jpeg is at quality 95 with full colour resolution.
    """
    return [f"data:image/{picture};base64,{base64.b64encode(_encoded(frames[i], picture)).decode()}" for i in indices]


def mp4_url(mp4: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"


def _encoded(frame: np.ndarray, picture: str) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if picture == "jpeg" else {"compress_level": 6}
    Image.fromarray(frame).save(buffer, picture.upper(), **options)
    return buffer.getvalue()
