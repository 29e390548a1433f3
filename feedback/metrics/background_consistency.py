"""Whether a clip's scene stays what it is, VBench-style (feedback.metrics.consistency). VBench loads CLIP ViT-B/32."""

from dataclasses import dataclass

from feedback.metrics import subject_consistency
from feedback.metrics.metric import Metric, MetricSource


@dataclass(frozen=True, kw_only=True)
class Options(subject_consistency.Options):
    """A block of kind `background_consistency` in params.yaml."""

    path: str = "openai/clip-vit-base-patch32"


def load(name: str, options: Options, device: str) -> MetricSource:
    """The metric of this block as a source."""
    metrics = {"vbench_style_background_consistency": measure(name, options, device)}
    return MetricSource(name, metrics, options.batch_size, options.threshold)


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device. Raises ValueError where there are none."""
    from feedback.metrics.consistency import background  # transformers takes seconds to import

    return background(name, options, device)
