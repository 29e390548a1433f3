"""The kinds of source: the options and the loader of each. `feedback.sources.<name>.kind` names one."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from data.config import read_config
from data.doors import find
from feedback.core import kept
from feedback.core.rubric import Rubric, load_rubric, questions_file
from feedback.core.source import Metric, Source

if TYPE_CHECKING:
    from feedback.core.pooled import Workers

OptionsT = TypeVar("OptionsT")
Make = Callable[[str, Mapping[str, Any]], Source]  # name, block -> the source

# Options of a network source that no answer depends on.
PACE = (
    "attempts", "batch", "budget_usd", "concurrency", "longest_wait", "poll_seconds", "price", "requests_per_minute",
    "timeout", "tokens_per_minute",
)  # fmt: skip
NESTED = ("members", "of")  # where a block has those of other sources
REWARD_MODEL = "reward_model"  # the kind of what stage reward trains
TRAINED = Path("runs/rewards")  # where that stage writes

# Names of a value, and forms of one, that are a key: those of OpenAI and its like, Google, Hugging Face, and headers.
SECRET_NAME = re.compile(
    r"key|token|(\w+[_-])?(api[_-]?key|(access|auth|bearer)[_-]?token|secret([_-]key)?|password|authorization)",
    re.IGNORECASE,
)
SECRET = re.compile(r"\b(sk|rk|pk)-[\w-]{16,}|\bAIza[\w-]{30,}|\b(hf|gsk|xai)[_-]\w{20,}|\bBearer\s+\S{8,}")

# The place of each kind's record: a module that defines KIND, or the dotted path of a record. It is imported on use.
# A module with a kind imports neither torch nor transformers, so that params.yaml is checked in seconds.
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
    "imaging_quality": "feedback.metrics.vbench.IMAGING_QUALITY",
    "videoreward": "feedback.metrics.reward_models.videoreward",
    "videoscore": "feedback.metrics.reward_models.videoscore",
    REWARD_MODEL: "feedback.metrics.reward_models.trained",
    "metrics": "feedback.metrics.several",
}


@dataclass(frozen=True)
class Needs:
    """What a source needs apart from its code, according to its options; `vfrl check` and `vfrl doctor` look for it."""

    rubric: str | None = None  # its YAML file
    model: str | None = None  # a local folder, or a hub id
    revision: str | None = None  # of a hub id
    server: str | None = None  # URL of an OpenAI-compatible server
    key_variable: str | None = None  # environment variable that holds a key
    whole_clips: bool = False  # whether it is sent whole clips, regardless of the rubric's number of frames
    inner: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # nested sources, such as members.judge


def _no_needs(options: Any) -> Needs:
    return Needs()


def _always(options: Any) -> bool:
    return True


@dataclass(frozen=True)
class Kind(Generic[OptionsT]):
    """A kind of source."""

    options: type[OptionsT]  # the keys other than `kind`: a pydantic dataclass with data.config.STRICT
    load: Callable[[str, OptionsT, str], Source]  # takes the source's name, its options and a torch device name
    needs_device: bool = False  # whether it keeps a model on the device
    network: bool = False  # whether it calls a server; its source is a feedback.network.api.ApiSource
    people: bool = False  # whether people answer
    kept: bool = True  # whether verdicts are kept (feedback.core.kept) where neither of the two is so
    compares: bool = False  # whether it takes rubrics with `compares: true`; its source is then a Comparer
    by_prompt: bool = False  # whether it takes rubrics with questions of each prompt's own (RubricByPrompt)
    first_frame: bool = False  # whether it takes rubrics that show the first frame
    members: Callable[[str, OptionsT, Make], Source] | None = None  # of other sources: as `load`, from how to make them
    measure: Callable[[str, OptionsT, str], Metric] | None = None  # for metrics: as `load`, but returns only the metric
    check_prompts: Callable[[Sequence[str]], None] | None = None  # raises ValueError for prompts it cannot judge
    needs: Callable[[OptionsT], Needs] = _no_needs
    labels: Callable[[OptionsT], bool] = _always  # whether it accepts or rejects clips, and does not only score them

    def __post_init__(self) -> None:
        if getattr(self.options, "__pydantic_config__", {}).get("extra") != "forbid":
            raise TypeError(f"{self.options}: expected a pydantic dataclass with config=data.config.STRICT")

    @property
    def keeps_answers(self) -> bool:
        """Whether the ledger keeps its answers."""
        return self.network or self.people


class SourceBlock(NamedTuple):
    """A parsed block of `feedback.sources`."""

    kind: Kind[Any]
    options: Any  # an instance of kind.options

    @property
    def needs(self) -> Needs:
        """What this source needs."""
        return self.kind.needs(self.options)

    @property
    def labels(self) -> bool:
        """Whether this source accepts or rejects clips; a metric without a threshold only scores them."""
        return self.kind.labels(self.options)

    @property
    def compares(self) -> bool:
        """Whether this source compares two clips at once: its rubric says so."""
        return self.needs.rubric is not None and load_rubric(Path(self.needs.rubric)).compares


def make_source(name: str, block: Mapping[str, Any], device: str = "cpu", workers: "Workers | None" = None) -> Source:
    """The source that `feedback.sources.<name>` describes.

    device: torch name of the device that holds the model of a source that runs in this process. workers: where such a
        model is held instead; people and servers are asked by this process all the same.
    Raises ValueError as `read_block` does, and if the source cannot be loaded.
    """
    read = read_block(name, block)
    if read.kind.members:
        source = read.kind.members(name, read.options, partial(make_source, device=device, workers=workers))
    elif workers and needs_device(name, block):
        from feedback.core.pooled import PooledSource  # and torch with it

        pooled = PooledSource(name, block, workers)
        source, device = pooled, pooled.device
    else:
        source = read.kind.load(name, read.options, device)
    if read.kind.kept and not read.kind.keeps_answers:
        on = device if needs_device(name, block) else None
        kept.mark(source, block["kind"], _modules(name, block), asdict(read.options), read.needs.rubric, on)
    return source


def open_source(name: str, block: Mapping[str, Any], device: str, engine: str, workers: str, together: int) -> Source:
    """As `make_source`, where a stage works: a model in this process, on its forks, or on the workers of a cluster.

    device: as `cluster.devices.pick_device` takes it. engine, workers: as `cluster.pool.pool_of` takes them. together:
    clips that a worker judges at a time, at least.
    """
    if not needs_device(name, block):
        return make_source(name, block, device)
    from cluster.devices import pick_device  # and torch with it, which takes seconds
    from cluster.pool import HERE, pool_of

    pool = pool_of(engine, workers, device)
    if engine == HERE and (place := pick_device(device)).type != "cpu":
        return make_source(name, block, str(place))
    from feedback.core.pooled import Workers

    return make_source(name, block, device, Workers(pool, device, together))


def _modules(name: str, block: Mapping[str, Any]) -> set[str]:
    """Dotted paths of the kinds of a source and of its nested sources."""
    inner = read_block(name, block).needs.inner
    own = KINDS.get(block["kind"], block["kind"])
    return {own}.union(*(_modules(f"{name}.{key}", one) for key, one in inner.items()))


def question_files(name: str, block: Mapping[str, Any]) -> list[str]:
    """The CSVs of questions that the rubrics of a source and of its nested sources name."""
    needs = read_block(name, block).needs
    own = needs.rubric and questions_file(Path(needs.rubric))
    inner = (file for key, one in needs.inner.items() for file in question_files(f"{name}.{key}", one))
    return [*([own] if own else []), *inner]


def resolve(name: str, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The block of `feedback.sources.<name>`, with a mapping of name to block in place of each list of source names.

    A panel lists its `members`; a source of kind `metrics` lists the metrics that it computes (`of`). Raises ValueError
    for a name that `feedback.sources` does not have.
    """
    if name not in sources:
        raise ValueError(f"feedback.sources.{name} is missing; feedback.sources has {', '.join(sources)}")
    block = dict(sources[name])
    for key in NESTED:
        if isinstance(listed := block.get(key), list):
            if unknown := [one for one in listed if one not in sources]:
                where = f"feedback.sources.{name}.{key}"
                raise ValueError(f"{where}: {unknown[0]!r} is unknown; feedback.sources has {', '.join(sources)}")
            block[key] = {one: dict(sources[one]) for one in listed}
    return block


def what_is_asked(block: Mapping[str, Any]) -> dict[str, Any]:
    """A source's block without how fast and for how much money it asks: with that changed, its answers stay valid."""
    asked = {key: value for key, value in block.items() if key not in PACE}
    for key in NESTED:
        if isinstance(asked.get(key), Mapping):
            asked[key] = {name: what_is_asked(inner) for name, inner in asked[key].items()}
    return asked


def needs_device(name: str, block: Mapping[str, Any]) -> bool:
    """Whether a source or a nested source runs a model in this process. Raises ValueError as `read_block` does."""
    read = read_block(name, block)
    needs = read.needs
    nested = any(needs_device(f"{name}.{key}", inner) for key, inner in needs.inner.items())
    return read.kind.needs_device or needs.model is not None or nested


def keeps_answers(name: str, block: Mapping[str, Any]) -> bool:
    """Whether the ledger keeps answers of a source or of a nested one: it asks people, or calls a server.

    A ledger is a file of one machine: of many processes one alone asks. Raises ValueError as `read_block` does.
    """
    read = read_block(name, block)
    nested = any(keeps_answers(f"{name}.{key}", inner) for key, inner in read.needs.inner.items())
    return read.kind.keeps_answers or nested


def read_block(name: str, block: Mapping[str, Any]) -> SourceBlock:
    """The kind and the options in the block of `feedback.sources.<name>`.

    `kind` is a name in KINDS, or a dotted path of a module that defines KIND, or of a Kind in a module.
    The blocks of nested sources, such as a panel's members, are read too. Raises ValueError that names
    feedback.sources.<name>.<key> if a key is unknown or missing or has a wrong value.
    """
    where = f"feedback.sources.{name}"
    if not isinstance(block, Mapping) or "kind" not in block:
        raise ValueError(f"{where}.kind is missing; known are {', '.join(KINDS)}")
    kind = find_kind(block["kind"], f"{where}.kind")
    _refuse_keys(block, where, kind)
    given = {key: value for key, value in block.items() if key != "kind"}
    read = SourceBlock(kind, read_config(kind.options, given, where))
    if (rubric := read.needs.rubric) is not None:
        try:
            found = load_rubric(Path(rubric))
        except ValueError as error:
            raise ValueError(f"{where}.rubric: {error}") from error
        if found.compares and not kind.compares:
            raise ValueError(f"{where}.rubric: {rubric} is about two clips at once, which kind {block['kind']} is not")
        if not isinstance(found, Rubric) and not kind.by_prompt:
            raise ValueError(
                f"{where}.rubric: {rubric} has questions of each prompt's own, which kind {block['kind']} does not ask"
            )
        if found.first_frame and not kind.first_frame:
            raise ValueError(
                f"{where}.rubric: {rubric} shows the first frame, and kind {block['kind']} sees the clip alone; take "
                "first_frame out of the rubric"
            )
    for key, inner in read.needs.inner.items():
        if read_block(f"{name}.{key}", inner).compares:
            raise ValueError(f"{where}.{key}: a source that compares clips cannot be part of another source")
    return read


def _refuse_keys(value: Any, where: str, kind: Kind[Any]) -> None:
    """Raises ValueError for a key or password within a block, by its name or its form. The error does not show it."""
    if isinstance(value, Mapping):
        options = {one.name for one in fields(kind.options)}
        for name, inner in value.items():
            if isinstance(inner, str) and name not in options and SECRET_NAME.fullmatch(str(name)):
                raise ValueError(_no_key_here(f"{where}.{name}", kind))
            _refuse_keys(inner, f"{where}.{name}", kind)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_keys(inner, f"{where}[{index}]", kind)
    elif isinstance(value, str) and SECRET.search(value):
        raise ValueError(_no_key_here(where, kind))


def _no_key_here(where: str, kind: Kind[Any]) -> str:
    variable = next((one.default for one in fields(kind.options) if one.name == "key_variable"), MISSING)
    cure = f"put it into the environment variable {variable}"
    if not isinstance(variable, str):
        cure = "put it into an environment variable"
        cure += "" if variable is MISSING else " and give the variable's name as key_variable"
    return f"{where} holds a key. params.yaml is committed and holds none: {cure}, and take it out of here"


def find_kind(name: Any, where: str) -> Kind[Any]:
    """The kind that a block's `kind` names. where: the key's name in errors. Raises ValueError if it names no kind."""
    kind = find(name, KINDS, where, "KIND")
    if not isinstance(kind, Kind):
        raise ValueError(f"{where} is {name!r}, which is {kind!r}; expected a feedback.core.kinds.Kind")
    return kind
