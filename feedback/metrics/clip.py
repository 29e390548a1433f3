"""CLIP score: how alike a clip's frames and its prompt are to CLIP (Radford et al. 2021), as Furuta et al. reward it.

    score = sum over frames of cos(image embedding, text embedding)

The paper takes ViT-B/16, `openai/clip-vit-base-patch16`, and the sum; `reduce: mean` does not depend on the length.
"""

from dataclasses import dataclass
from pathlib import Path

from feedback.core.source import Metric
from feedback.metrics.metric import REDUCTIONS, MetricOptions, metric_kind, needs_model

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class FrameOptions(MetricOptions):
    """What the blocks of metrics say that score a clip frame by frame."""

    reduce: str = "sum"  # over frames: sum | mean
    frames: int | None = None  # evenly spaced ones that are scored; null: all
    dtype: str = "float32"  # float32 | bfloat16 | float16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce not in REDUCTIONS:
            raise ValueError(f"reduce is {self.reduce!r}, known are {list(REDUCTIONS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, known are {list(DTYPES)}")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames is {self.frames}, expected at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class Options(FrameOptions):
    """A block of kind `clip` in params.yaml."""

    path: str  # a local folder, or a hub id such as openai/clip-vit-base-patch16
    revision: str | None = None  # commit, tag or branch of a hub id; null for a local folder
    processor: str | None = None  # folder or hub id of tokenizer and image preprocessing; null: the model's own

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, where in (("path", self.path), ("processor", self.processor)):
            if where is not None and not Path(where).is_dir() and where.count("/") != 1:
                raise ValueError(f"{name}: {where} is neither a folder nor a hub id")


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device."""
    from feedback.metrics.image_text import load_image_text  # transformers takes seconds to import

    definition = f"Cosine of CLIP's embeddings of a frame and of the prompt ({options.path})"
    return load_image_text(name, options, device, definition, scaled=False)


KIND = metric_kind("clip", Options, measure, needs_device=True, needs=needs_model)
