"""What rounding to 8 bits inside a preprocessing changes, so that gradients can pass it by."""

from collections.abc import Callable

import torch
from torch import Tensor

WHITE = 255.0


def rounding(prepare: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """The constant that makes `prepare(frames * WHITE)` equal `prepare` of the nearest 8-bit frames, on those frames.

    prepare: of uint8 (F, H, W, 3), or of float32 in [0, 255]. frames: float32 (F, H, W, 3) in [0, 1].
    Returns what `prepare` does, without gradient, on the device of `frames`.

    A resize of 8-bit frames rounds its result to 8 bits and cuts off where it overshoots 0 or 255, and neither has a
    gradient; a resize of floats does neither. With the constant, that of floats has the values of that of bytes and
    keeps its own gradient (a straight-through estimator). Where nothing is resized the constant is 0.
    """
    with torch.no_grad():
        nearest = (frames * WHITE).round().clamp(0, WHITE)
        # Bytes on the CPU, where judges prepare their clips: a GPU's resize rounds some of them the other way.
        return prepare(nearest.to("cpu", torch.uint8)).to(frames.device) - prepare(nearest)
