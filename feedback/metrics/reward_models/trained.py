"""Kind `reward_model`: a reward model that stage `reward` has trained.

`path` is runs/rewards/<name>, where <name> is the source's own name and an entry of `reward.models`: then the stages
that ask the source wait for the model. Or it is a copy of such a folder elsewhere, which counts as any model does.
feedback/metrics/reward_models/trained_model.py defines the score. The folder has

    reward.json            what it was trained from, and what it shows the VLM
    weights.safetensors    the head and the LoRA
    log.jsonl              loss, accuracy and margin by step
"""

from pathlib import Path

from pydantic.dataclasses import dataclass

from data.config import STRICT
from data.manifest import MANIFEST
from feedback.core.kinds import TRAINED
from feedback.core.source import Metric
from feedback.metrics.metric import MetricOptions, metric_kind


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options(MetricOptions):
    """Options of kind `reward_model`."""

    path: str

    def __post_init__(self) -> None:
        folder = Path(self.path)
        if TRAINED not in folder.parents and not (folder / MANIFEST).is_file():
            raise ValueError(
                f"path: {self.path} is no folder of a trained reward model; expected {TRAINED}/<name>, which stage "
                "reward writes, or a copy of it"
            )


def measure(name: str, options: Options, device: str) -> Metric:
    """The reward model, with the weights of its VLM on the device."""
    from feedback.metrics.reward_models.trained_model import load_trained  # transformers takes seconds

    return load_trained(name, Path(options.path), device)


KIND = metric_kind("reward", Options, measure, needs_device=True)
