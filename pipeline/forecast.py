"""Calls, tokens and dollars that labelling takes, before any call."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from data.prompts import Prompt, load_prompts
from data.records import Sample
from data.store import ClipSet
from feedback.core.kinds import make_source, read_block
from feedback.core.label import requests_for, spread
from feedback.core.source import Request
from feedback.network.api import ApiSource
from feedback.network.price import CostEstimate
from feedback.pairs.sets import pairs_of
from pipeline.configs import PromptsConfig
from pipeline.params import section

SHAPE = re.compile(r"(?P<width>\d+)x(?P<height>\d+)x(?P<frames>\d+)@(?P<fps>\d+(?:\.\d+)?)")


def dry_run_report(
    clips: Path | None, assume: str | None, count: int, limit: int | None,
    name: str, block: Mapping[str, Any], votes: int, opponents: int,
) -> str:  # fmt: skip
    """What `vfrl judge --dry-run` prints: of a clip set, of `limit` of its clips, or of `count` assumed ones.

    Assumed clips have the longest prompt of params.yaml's set. A source that compares is asked about pairs of clips,
    each in both orders; opponents: label.opponents.
    """
    if bool(clips) == bool(assume) or (assume and limit):
        raise click.UsageError("--dry-run wants --set, and --limit if you like; or --assume with --count")
    if clips and read_block(name, block).compares:
        pairs = pairs_of(ClipSet.open(clips), opponents, votes)
        shown = [one for pair in (spread(pairs, limit) if limit else pairs) for one in (pair, pair.swapped())]
        return _lines(name, block, len(shown), votes, lambda source, _: source.estimate(shown))
    if clips:
        requests = requests_for(ClipSet.open(clips), votes)
        return forecast(name, block, spread(requests, limit) if limit else requests)
    prompts = load_prompts(Path(section("prompts", PromptsConfig).path))
    return forecast_like(name, block, assumed_sample(assume or "", prompts), votes, count)


def forecast(name: str, block: Mapping[str, Any], requests: Sequence[Request]) -> str:
    """A line for each source that `feedback.sources.<name>` asks, for clips that are there."""

    def estimate(source: ApiSource, votes: int) -> CostEstimate:
        return source.estimate(replace(request, votes=votes) for request in requests)

    return _lines(name, block, len(requests), requests[0].votes if requests else 1, estimate)


def forecast_like(name: str, block: Mapping[str, Any], sample: Sample, votes: int, count: int) -> str:
    """The same for `count` clips like this one, which need not exist, none of them answered yet."""

    def estimate(source: ApiSource, votes: int) -> CostEstimate:
        return source.estimate_for(sample, votes, count)

    return _lines(name, block, count, votes, estimate)


def assumed_sample(shape: str, prompts: Sequence[Prompt]) -> Sample:
    """A clip of the shape WIDTHxHEIGHTxFRAMES@FPS and the longest of these prompts.

    Raises ValueError for another form.
    """
    if not (found := SHAPE.fullmatch(shape)):
        raise ValueError(f"assumed clips are {shape!r}, expected WIDTHxHEIGHTxFRAMES@FPS, such as 832x480x81@16")
    prompt = max(prompts, key=lambda one: len(one.prompt))
    return Sample(
        sample_id="assumed",
        prompt_id=prompt.prompt_id,
        prompt=prompt.prompt,
        category=prompt.category,
        split=prompt.split,
        policy="assumed",
        seed=0,
        num_frames=int(found["frames"]),
        fps=float(found["fps"]),
        height=int(found["height"]),
        width=int(found["width"]),
        file_name="assumed.mp4",
    )


def _lines(
    name: str, block: Mapping[str, Any], clips: int, votes: int, estimate: Callable[[ApiSource, int], CostEstimate]
) -> str:
    if members := block.get("members"):  # a panel has its own number of votes
        votes = block.get("votes", 1)
        return "\n".join(_lines(f"{name}.members.{key}", one, clips, votes, estimate) for key, one in members.items())
    read = read_block(name, block)
    if not read.kind.network:
        unit = "shown pairs" if read.compares else "clips"
        return f"{name}: {clips:,} {unit}, judged on this machine or by people; nothing to pay"
    source = make_source(name, block)
    assert isinstance(source, ApiSource)
    if problem := source.options.wrong_price:
        raise ValueError(
            f"feedback.sources.{name}: {problem}, so the cost is unknown. Give the price of {source.model} "
            f"(price.model: {source.model}), or set price: null for an estimate of calls and tokens alone"
        )
    return estimate(source, votes).line(name, source.model, source.price)
