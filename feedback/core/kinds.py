"""Who judges: one file a kind of source, one protocol (source.py), one question sheet (rubric.py)."""

import importlib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic.dataclasses import is_pydantic_dataclass

from data.config import read_config
from feedback.core.rubric import load_rubric
from feedback.core.source import Source

# Each module has `Options`, a frozen dataclass of what its block in params.yaml says beside `kind`, which raises
# ValueError for a value that is wrong; `load(name, options, device) -> Source`; and, where it cannot judge everything,
# `check_prompts(texts)`, which raises ValueError. `NETWORK = True` marks those that ask over the network (api.py);
# metrics have `measure(name, options, device) -> Metric` too (metric.py).
# Imported only when asked for: a VLM costs seconds.
KINDS = {
    "qwen": "feedback.judges.qwen",
    "physics": "tabletop.judge",
    "panel": "feedback.judges.panel",
    "human": "feedback.judges.human",
    "gemini": "feedback.network.gemini",
    "gpt": "feedback.network.gpt",
    "served": "feedback.network.served",
    "clip": "feedback.metrics.clip",
    "pickscore": "feedback.metrics.pickscore",
    "hpsv2": "feedback.metrics.hpsv2",
    "optical_flow": "feedback.metrics.optical_flow",
    "optical_flow_dis": "feedback.metrics.optical_flow_dis",
    "subject_consistency": "feedback.metrics.subject_consistency",
    "background_consistency": "feedback.metrics.background_consistency",
    "temporal_flickering": "feedback.metrics.temporal_flickering",
    "dynamic_degree": "feedback.metrics.dynamic_degree",
    "metrics": "feedback.metrics.several",
}
IN_PROCESS = (  # kinds that keep a model on a device
    "qwen", "clip", "pickscore", "hpsv2", "optical_flow", "subject_consistency", "background_consistency",
    "dynamic_degree",
)  # fmt: skip
TYPES: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "a section",
    type(None): "null",
}  # fmt: skip


def make_source(name: str, block: Mapping[str, Any], device: str = "cpu") -> Source:
    """The source that `feedback.sources.<name>` describes.

    device: where a source that runs in this process keeps its model, as torch names it.
    Raises ValueError as `read_block` does, and where the source cannot be loaded.
    """
    module, options = read_block(name, block)
    return module.load(name, options, device)


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


def needs_device(block: Mapping[str, Any]) -> bool:
    """Whether a source's block, or a member's, is of a kind that runs a model in this process."""
    blocks = [block, *(block.get("members") or {}).values(), *(block.get("of") or {}).values()]
    return any(given.get("kind") in IN_PROCESS for given in blocks if isinstance(given, dict))


def read_block(name: str, block: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module of a source's kind, and its Options as `feedback.sources.<name>` gives them.

    Raises ValueError naming feedback.sources.<name>.<key> where a key is unknown, missing or has a wrong value.
    """
    where = f"feedback.sources.{name}"
    if "kind" not in block:
        raise ValueError(f"{where}.kind is missing; known kinds are {sorted(KINDS)}")
    if block["kind"] not in KINDS:
        raise ValueError(f"{where}.kind is {block['kind']!r}; known kinds are {sorted(KINDS)}")
    module = importlib.import_module(KINDS[block["kind"]])
    given = {key: value for key, value in block.items() if key != "kind"}
    if is_pydantic_dataclass(module.Options):
        options = read_config(module.Options, given, where)
    else:
        _check(given, module.Options, where)
        try:
            options = module.Options(**given)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from error
    if hasattr(options, "rubric"):
        _check_rubric(options.rubric, where)
    return module, options


def _check_rubric(path: str, where: str) -> None:
    try:
        load_rubric(Path(path))
    except ValueError as error:
        raise ValueError(f"{where}.rubric: {error}") from error


def _in_words(hint: Any) -> str:
    """What a value of this type is called in params.yaml."""
    return " or ".join(TYPES.get(one, str(one)) for one in typing.get_args(hint) or (hint,))


def _check(given: Mapping[str, Any], options: type, where: str) -> None:
    known = {field.name: field for field in fields(options)}
    hints = typing.get_type_hints(options)
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{where}.{key} is not an option of this kind; known are {sorted(known)}")
        whole_for_real = isinstance(value, int) and not isinstance(value, bool) and isinstance(1.0, hints[key])
        if not (isinstance(value, hints[key]) or whole_for_real):
            raise ValueError(f"{where}.{key} is {value!r}, expected {_in_words(hints[key])}")
    for key, field in known.items():
        if key not in given and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}.{key} is missing")
