"""Frames with gradient, prepared as a video VLM's own processor prepares a clip (feedback/judges/pixels.py).

Where the processor resizes, an accelerator computes the gradient in a fixed order (feedback/differentiable/resize.py).
"""

from collections.abc import Callable

from torch import Tensor
from transformers import ProcessorMixin

from feedback.differentiable.resize import DifferentiableResizing
from feedback.judges import pixels as plain


def make_pixels(processor: ProcessorMixin, pixels: int | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
    """As `feedback.judges.pixels.make_pixels`, with a gradient that is added up in a fixed order."""
    prepare = plain.make_pixels(processor, pixels)

    def prepared(frames: Tensor) -> dict[str, Tensor]:
        with DifferentiableResizing():
            return prepare(frames)

    return prepared
