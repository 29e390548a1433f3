"""What a person should know of valid params before a run.

Keys that are not set, frames that no clip has, policies that are sampled otherwise than they were trained.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.policies import sampled_otherwise
from feedback.core.kinds import SourceBlock, read_block, resolve
from feedback.core.rubric import load_rubric
from generators.core.rollout import Sampling
from pipeline.configs import OnlineEntry
from pipeline.graph import needed_sources
from pipeline.params import section
from pipeline.recipes import load_recipe, sampled_as
from pipeline.replicates import SELECTED


def advice(params: Mapping[str, Any]) -> list[str]:
    """A sentence for each key that a run needs and the environment lacks, and each rubric of more frames than a clip.

    A missing key is no error: labels that are there already need none.
    """
    sources, lines = params["feedback"]["sources"], dict[str, None]()
    for name in sorted(needed_sources(params)):
        for where, read in _read(name, resolve(name, sources)):
            variable, rubric = read.needs.key_variable, read.needs.rubric
            if variable and not os.environ.get(variable, "").strip():
                lines[f"{where} needs the environment variable {variable}, which is not set"] = None
            frames = None if rubric is None or read.needs.whole_clips else load_rubric(Path(rubric)).frames
            if frames is not None and frames > (there := params["video"]["num_frames"]):
                lines[f"{where}: frames is {frames} in {rubric}, but clips have {there}, so it sees all of them"] = None
    return list(lines)


def _read(name: str, block: Mapping[str, Any]) -> Iterator[tuple[str, SourceBlock]]:
    """A source's block and those within it, by the name of each."""
    read = read_block(name, block)
    yield f"feedback.sources.{name}", read
    for key, inner in read.needs.inner.items():
        yield from _read(f"{name}.{key}", inner)


def otherwise_than_trained(params: Mapping[str, Any]) -> list[str]:
    """A sentence for each section that samples online policies otherwise than the clips of their updates.

    It names all of them that differ alike. A policy's flow shift is its own wherever it is sampled.
    """
    lines = []
    for name, policies in _sampling_sections(params).items():
        how, alike = section(name, Sampling), dict[str, list[str]]()
        for policy in policies:
            entry = online_entry(policy, params)
            if entry is None:
                continue
            trained = sampled_as(load_recipe(entry.recipe, entry.all_changes))
            if differs := sampled_otherwise(trained, how.steps, how.guidance, how.negative_prompt):
                alike.setdefault(differs, []).append(policy)
        lines += [
            f"{name} samples {', '.join(names)} with {differs}: what was learned may not show"
            for differs, names in alike.items()
        ]
    return lines


def online_entry(policy: str, params: Mapping[str, Any]) -> OnlineEntry | None:
    """The entry that a policy was trained by, itself or what it was extended or selected from; None: not online."""
    while policy in params["extend"]:
        policy = params["extend"][policy]["policy"]
    trained = policy.removesuffix(SELECTED)
    return section(f"online.policies.{trained}", OnlineEntry) if trained in params["online"]["policies"] else None


def _sampling_sections(params: Mapping[str, Any]) -> dict[str, list[str]]:
    """The policies that each section of `Sampling` samples, each once."""
    of_rounds = [entry["policy"] for key in ("rounds", "dense") for entry in params[key].values()]
    used = {
        "generate": of_rounds,
        "select.generate": params["select"]["policies"],
        "evaluate.generate": params["evaluate"]["policies"],
    }
    return {name: list(dict.fromkeys(policies)) for name, policies in used.items()}
