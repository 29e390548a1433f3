"""Several metrics as one source, which decodes every clip once for all metrics.

    metrics: {kind: metrics, of: {clip: {kind: clip, …}, flow: {kind: optical_flow_dis}}}

Each metric has a verdict on every clip; a label's score is that of the first metric. Intended for `evaluate.judges`,
where one stage then computes all metrics. A metric for training needs its own source.
"""

from collections.abc import Mapping
from typing import Any

from pydantic.dataclasses import dataclass

from data.config import STRICT
from feedback.core.kinds import Kind, Needs, find_kind, read_block
from feedback.core.source import Metric
from feedback.metrics.metric import MetricOptions, MetricSource, has_threshold


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options(MetricOptions):
    """Options of kind `metrics`."""

    of: dict[str, dict[str, Any]]  # name -> whole block of each metric; the label's score is the first one's

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of is empty, expected at least one metric")
        for name, block in self.of.items():
            if "kind" in block and find_kind(block["kind"], f"of.{name}.kind").measure is None:
                raise ValueError(f"of.{name}.kind is {block['kind']!r}, which is not a metric")


def load(name: str, options: Options, device: str) -> MetricSource:
    """The metrics of this block as one source, with their weights on the device."""
    metrics = {key: _metric(f"{name}.of.{key}", block, device) for key, block in options.of.items()}
    return MetricSource(name, metrics, options.batch_size, options.threshold)


def _metric(name: str, block: Mapping[str, Any], device: str) -> Metric:
    kind, options = read_block(name, block)
    assert kind.measure is not None  # Options checks it
    return kind.measure(name, options, device)


KIND = Kind(
    Options,
    load,
    needs=lambda given: Needs(inner={f"of.{key}": block for key, block in given.of.items()}),
    labels=has_threshold,
)
