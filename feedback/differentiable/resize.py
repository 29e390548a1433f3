"""Resizing whose gradient an accelerator computes in a fixed order: as two matrix products.

torch's own backward of a bicubic or antialiased resize adds up in a random order on CUDA, and is refused within
`cluster.devices.deterministic`. Processors call it deep within their own code, so it is replaced where torch gets it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

SEPARABLE = ("bilinear", "bicubic")  # modes of interpolate that weigh rows and columns one after the other
CALL = inspect.signature(interpolate)


class DifferentiableResizing(TorchFunctionMode):
    """Within it, torch's interpolate has its own values, and the gradient of `_Resized` where frames get a new size."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is interpolate:
            given = CALL.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            wanted = given.arguments
            if wanted["mode"] in SEPARABLE and wanted["scale_factor"] is None and not wanted["align_corners"]:
                return _Resized.apply(wanted["input"], tuple(wanted["size"]), wanted["mode"], wanted["antialias"])
        return func(*args, **(kwargs or {}))


class _Resized(torch.autograd.Function):
    """Frames (F, C, H, W) at another (height, width), which is rows @ frames @ columnsᵀ for two matrices of weights."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
        ctx.lengths, ctx.way = tuple(zip(frames.shape[-2:], size, strict=True)), (mode, antialias)
        return interpolate(frames, size, mode=mode, align_corners=False, antialias=antialias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows, columns = (_weights(*lengths, *ctx.way).to(gradient) for lengths in ctx.lengths)
        return rows.T @ gradient @ columns, None, None, None


@lru_cache(64)
def _weights(before: int, after: int, mode: str, antialias: bool) -> Tensor:
    """(after, before) float32 on the CPU: what each place of a resized axis takes from each place of the axis.

    They are what torch makes of an identity matrix of which it resizes the first axis alone: its own weights, with
    their rounding (1e-4 at 800 pixels).
    """
    identity = torch.eye(before)[None, None]
    return interpolate(identity, (after, before), mode=mode, align_corners=False, antialias=antialias)[0, 0]
