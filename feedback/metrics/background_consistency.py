"""Whether a clip's scene stays what it is, VBench-style (feedback.metrics.consistency). VBench loads CLIP ViT-B/32."""

from dataclasses import dataclass

from feedback.core.source import Metric
from feedback.metrics import subject_consistency
from feedback.metrics.metric import metric_kind, needs_model


@dataclass(frozen=True, kw_only=True)
class Options(subject_consistency.Options):
    """A block of kind `background_consistency` in params.yaml."""

    path: str = "openai/clip-vit-base-patch32"


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device. Raises ValueError where there are none."""
    from feedback.metrics.consistency import background  # transformers takes seconds to import

    return background(name, options, device)


KIND = metric_kind("vbench_style_background_consistency", Options, measure, needs_device=True, needs=needs_model)
