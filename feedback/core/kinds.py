"""The kinds of source: what each takes, and who makes a source of it; `feedback.sources.<name>.kind` names one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from data.config import read_config
from data.doors import find
from feedback.core.rubric import load_rubric
from feedback.core.source import Metric, Source

OptionsT = TypeVar("OptionsT")

# Where each kind's record is: a module that defines KIND, or the dotted path of a record. Imported when it is needed:
# a module with a kind imports no torch and no transformers, so that params.yaml is checked in seconds.
KINDS = {
    "qwen": "feedback.judges.qwen",
    "physics": "tabletop.judge",
    "panel": "feedback.judges.panel",
    "human": "feedback.judges.human",
    "gemini": "feedback.network.gemini",
    "gpt": "feedback.network.gpt",
    "served": "feedback.network.served",
    "clip": "feedback.metrics.clip.CLIP",
    "pickscore": "feedback.metrics.clip.PICKSCORE",
    "hpsv2": "feedback.metrics.hpsv2",
    "optical_flow": "feedback.metrics.optical_flow",
    "optical_flow_dis": "feedback.metrics.optical_flow.DIS",
    "subject_consistency": "feedback.metrics.vbench.SUBJECT_CONSISTENCY",
    "background_consistency": "feedback.metrics.vbench.BACKGROUND_CONSISTENCY",
    "temporal_flickering": "feedback.metrics.vbench.TEMPORAL_FLICKERING",
    "dynamic_degree": "feedback.metrics.vbench.DYNAMIC_DEGREE",
    "metrics": "feedback.metrics.several",
}


@dataclass(frozen=True)
class Needs:
    """What a source needs beside its code, as its options name it; `vfrl check` and `vfrl doctor` look for it."""

    rubric: str | None = None  # its YAML file
    model: str | None = None  # a local folder, or a hub id
    revision: str | None = None  # of a hub id
    server: str | None = None  # URL of an OpenAI-compatible server
    key_variable: str | None = None  # environment variable that holds a key
    whole_clips: bool = False  # whether it is sent whole clips, whatever number of frames the rubric names
    inner: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # sources within, such as members.judge


def _no_needs(options: Any) -> Needs:
    return Needs()


@dataclass(frozen=True)
class Kind(Generic[OptionsT]):
    """A kind of source."""

    options: type[OptionsT]  # the keys beside `kind`: a dataclass of pydantic with the config data.config.STRICT
    load: Callable[[str, OptionsT, str], Source]  # of the source's name, its options, and a device as torch names it
    needs_device: bool = False  # whether it keeps a model on the device
    network: bool = False  # whether it asks over the network; its source is a feedback.network.api.ApiSource
    people: bool = False  # whether people answer
    measure: Callable[[str, OptionsT, str], Metric] | None = None  # of metrics: as `load`, the metric alone
    check_prompts: Callable[[Sequence[str]], None] | None = None  # raises ValueError for prompts that it cannot judge
    needs: Callable[[OptionsT], Needs] = _no_needs

    def __post_init__(self) -> None:
        if getattr(self.options, "__pydantic_config__", {}).get("extra") != "forbid":
            raise TypeError(f"{self.options}: expected a dataclass of pydantic with config=data.config.STRICT")

    @property
    def keeps_answers(self) -> bool:
        """Whether its answers are kept in the ledger."""
        return self.network or self.people


class SourceBlock(NamedTuple):
    """A block of `feedback.sources`, read."""

    kind: Kind[Any]
    options: Any  # an instance of kind.options

    @property
    def needs(self) -> Needs:
        """What this source needs."""
        return self.kind.needs(self.options)


def make_source(name: str, block: Mapping[str, Any], device: str = "cpu") -> Source:
    """The source that `feedback.sources.<name>` describes.

    device: where a source that runs in this process keeps its model, as torch names it.
    Raises ValueError as `read_block` does, and where the source cannot be loaded.
    """
    kind, options = read_block(name, block)
    return kind.load(name, options, device)


def resolve(name: str, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The block of `feedback.sources.<name>`, complete: a mapping of name to block where it lists sources by name.

    A panel lists its `members`, kind metrics the metrics that it computes (`of`). Raises ValueError for a name that
    `feedback.sources` does not have.
    """
    if name not in sources:
        raise ValueError(f"feedback.sources.{name} is missing; there is: {', '.join(sources)}")
    block = dict(sources[name])
    for key in ("members", "of"):
        if isinstance(listed := block.get(key), list):
            if unknown := [one for one in listed if one not in sources]:
                where = f"feedback.sources.{name}.{key}"
                raise ValueError(f"{where}: {unknown[0]!r} is unknown; feedback.sources has {', '.join(sources)}")
            block[key] = {one: dict(sources[one]) for one in listed}
    return block


def needs_device(name: str, block: Mapping[str, Any]) -> bool:
    """Whether a source, or one within it, runs a model in this process. Raises ValueError as `read_block` does."""
    read = read_block(name, block)
    inner = read.needs.inner
    return read.kind.needs_device or any(needs_device(f"{name}.{key}", inner[key]) for key in inner)


def read_block(name: str, block: Mapping[str, Any]) -> SourceBlock:
    """A source's kind, and its options as `feedback.sources.<name>` gives them.

    `kind` is a name in KINDS, or a dotted path: of a module that defines KIND, or of a Kind in a module.
    Blocks of sources within, such as a panel's members, are read too. Raises ValueError naming
    feedback.sources.<name>.<key> where a key is unknown, missing or has a wrong value.
    """
    where = f"feedback.sources.{name}"
    if not isinstance(block, Mapping) or "kind" not in block:
        raise ValueError(f"{where}.kind is missing; known are {', '.join(KINDS)}")
    kind = find_kind(block["kind"], f"{where}.kind")
    given = {key: value for key, value in block.items() if key != "kind"}
    read = SourceBlock(kind, read_config(kind.options, given, where))
    if (rubric := read.needs.rubric) is not None:
        try:
            load_rubric(Path(rubric))
        except ValueError as error:
            raise ValueError(f"{where}.rubric: {error}") from error
    for key, inner in read.needs.inner.items():
        read_block(f"{name}.{key}", inner)
    return read


def find_kind(name: Any, where: str) -> Kind[Any]:
    """The kind that a block's `kind` names. where: what errors call the key. Raises ValueError for what is none."""
    kind = find(name, KINDS, where, "KIND")
    if not isinstance(kind, Kind):
        raise ValueError(f"{where} is {name!r}, which is {kind!r}; expected a feedback.core.kinds.Kind")
    return kind
