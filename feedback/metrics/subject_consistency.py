"""Whether a clip's subject stays what it is, VBench-style (consistency.py). VBench loads DINO ViT-B/16."""

from dataclasses import dataclass
from pathlib import Path

from feedback.core.source import Metric
from feedback.metrics.metric import MetricOptions, metric_kind, needs_model


@dataclass(frozen=True, kw_only=True)
class Options(MetricOptions):
    """A block of kind `subject_consistency` in params.yaml."""

    path: str = "facebook/dino-vitb16"
    revision: str | None = None  # commit, tag or branch of a hub id; null for a local folder

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.path).is_dir() and self.path.count("/") != 1:
            raise ValueError(f"path: {self.path} is neither a folder nor a hub id")


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device. Raises ValueError where there are none."""
    from feedback.metrics.consistency import subject  # transformers takes seconds to import

    return subject(name, options, device)


KIND = metric_kind("vbench_style_subject_consistency", Options, measure, needs_device=True, needs=needs_model)
