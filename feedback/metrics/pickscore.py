"""PickScore (Kirstain et al. 2023): a CLIP trained on which of two pictures people pick for a prompt.

    score = sum over frames of T * cos(image embedding, text embedding)

with the model's own temperature T (about 100), as its authors compute it. `yuvalkirstain/PickScore_v1` is a CLIP
ViT-H/14; its tokenizer and preprocessing are those of the model that it was trained on from.
"""

from dataclasses import dataclass

from feedback.core.source import Metric
from feedback.metrics import clip
from feedback.metrics.metric import metric_kind, needs_model


@dataclass(frozen=True, kw_only=True)
class Options(clip.Options):
    """A block of kind `pickscore` in params.yaml."""

    path: str = "yuvalkirstain/PickScore_v1"
    processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device."""
    from feedback.metrics.image_text import load_image_text  # transformers takes seconds to import

    definition = f"PickScore of a frame for the prompt ({options.path}), with its temperature"
    return load_image_text(name, options, device, definition, scaled=True)


KIND = metric_kind("pickscore", Options, measure, needs_device=True, needs=needs_model)
