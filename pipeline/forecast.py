"""Calls, tokens and dollars that labelling takes, before any call."""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click

from data.dense import window_samples
from data.manifest import MANIFEST
from data.prompts import Prompt, load_prompts
from data.records import Sample
from data.store import STARTS, ClipSet
from feedback.core.kinds import make_source, read_block
from feedback.core.label import requests_for, spread
from feedback.core.source import Request
from feedback.core.windows import cut_windows
from feedback.network.api import ApiSource
from feedback.network.ledger import Ledger, ledger_path
from feedback.network.price import CostEstimate
from feedback.pairs.sets import pairs_of
from pipeline.configs import PromptsConfig
from pipeline.params import block as params_block
from pipeline.params import section, source_block
from pipeline.work import AskedSource

SHAPE = re.compile(r"(?P<width>\d+)x(?P<height>\d+)x(?P<frames>\d+)@(?P<fps>\d+(?:\.\d+)?)")


def dry_run_report(
    clips: Path | None, assume: str | None, count: int, limit: int | None,
    name: str, block: Mapping[str, Any], votes: int, opponents: int, window: int | None = None,
) -> str:  # fmt: skip
    """What `vfrl judge --dry-run` prints: of a clip set, of `limit` of its clips, or of `count` assumed ones.

    Assumed clips have the longest prompt of params.yaml's set. A source that compares is asked about pairs of clips,
    each in both orders; opponents: label.opponents. window: frames of a window; the source is asked about the windows
    of the clips, of which `limit` are counted.
    Raises ValueError for windows and a source that compares.
    """
    if bool(clips) == bool(assume) or (assume and limit):
        raise click.UsageError("--dry-run wants --set, and --limit if you like; or --assume with --count")
    if window is not None:
        if read_block(name, block).compares:
            raise ValueError(f"{name} compares two clips at once, so it cannot label windows")
        if clips:
            return _forecast_windows(name, block, ClipSet.open(clips), window, votes, limit)
    if clips and read_block(name, block).compares:
        pairs = pairs_of(ClipSet.open(clips), opponents, votes)
        shown = [one for pair in (spread(pairs, limit) if limit else pairs) for one in (pair, pair.swapped())]
        return _lines(name, block, len(shown), votes, lambda source, _: source.estimate(shown))
    if clips:
        requests = requests_for(ClipSet.open(clips), votes)
        return forecast(name, block, spread(requests, limit) if limit else requests)
    prompts = load_prompts(Path(section("prompts", PromptsConfig).path))
    return forecast_like(name, block, assumed_sample(assume or "", prompts), votes, count, window)


def window_of(clips: Path) -> int | None:
    """Frames of the windows that a set of section `dense` is labelled by; None for another clip set."""
    if not (clips / STARTS).is_file():
        return None
    name = ClipSet.open(clips).manifest["facts"]["set"]
    entry = params_block("dense").get(name)
    if entry is None:
        raise ValueError(f"{clips}: set {name} is not in section dense of params.yaml; give --window")
    return int(entry["window"])


def forecast(name: str, block: Mapping[str, Any], requests: Sequence[Request]) -> str:
    """A line for each source that `feedback.sources.<name>` asks, for clips that are there."""

    def estimate(source: ApiSource, votes: int) -> CostEstimate:
        return source.estimate(replace(request, votes=votes) for request in requests)

    return _lines(name, block, len(requests), requests[0].votes if requests else 1, estimate)


def forecast_like(
    name: str, block: Mapping[str, Any], sample: Sample, votes: int, count: int, window: int | None = None
) -> str:
    """The same for `count` clips like this one, or their windows, which need not exist, none of them answered yet."""
    shown = window_samples([sample], window) if window else [sample]

    def estimate(source: ApiSource, votes: int) -> CostEstimate:
        found = source.estimate_for(shown, votes, count)
        return found._replace(unit="windows") if window else found

    return _lines(name, block, count * len(shown), votes, estimate, "windows" if window else None)


def _forecast_windows(
    name: str, block: Mapping[str, Any], clip_set: ClipSet, length: int, votes: int, limit: int | None
) -> str:
    """The same for the windows of a clip set."""
    count = len(window_samples(clip_set.samples, length))

    def estimate(source: ApiSource, votes: int) -> CostEstimate:
        return estimate_windows(source, clip_set, length, votes, limit)

    return _lines(name, block, min(count, limit or count), votes, estimate, "windows")


def estimate_windows(
    source: ApiSource, clip_set: ClipSet, length: int, votes: int, limit: int | None = None
) -> CostEstimate:
    """What a source would be sent about the windows of a clip set, or about `limit` of them, evenly spread.

    Which calls are answered is known by the bytes of the windows. They are cut for it, in a folder that is deleted,
    where the source was asked about this set before; otherwise none is answered, and nothing is cut.
    """
    with Ledger(ledger_path()) as ledger:
        asked_before = ledger.spent(f"{clip_set.fingerprint()} {source.name}").calls > 0
    if not asked_before:
        rows = window_samples(clip_set.samples, length)
        return source.estimate_for(spread(rows, limit) if limit else rows, votes)._replace(unit="windows")
    with tempfile.TemporaryDirectory(prefix="windows-") as folder:
        cut = cut_windows(clip_set, length, Path(folder), limit)
        return source.estimate(requests_for(cut.clip_set, votes, cut.windows))._replace(unit="windows")


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
    name: str,
    block: Mapping[str, Any],
    clips: int,
    votes: int,
    estimate: Callable[[ApiSource, int], CostEstimate],
    unit: str | None = None,
) -> str:
    """unit: what `clips` counts; None: clips, or of a source that compares shown pairs."""
    return "\n".join(_line(one, clips, votes, estimate, unit) for one in members(name, block, votes))


class Member(NamedTuple):
    """A source that answers itself: one that was named, or one that a panel asks."""

    name: str
    block: Mapping[str, Any]
    votes: int


def members(name: str, block: Mapping[str, Any], votes: int) -> list[Member]:
    """The sources that are asked behind a name; a panel has its own number of votes."""
    if inner := block.get("members"):
        votes = block.get("votes", 1)
        return [one for key, each in inner.items() for one in members(f"{name}.members.{key}", each, votes)]
    return [Member(name, block, votes)]


def _line(
    member: Member, clips: int, votes: int, estimate: Callable[[ApiSource, int], CostEstimate], unit: str | None
) -> str:
    name, read = member.name, read_block(member.name, member.block)
    if not read.kind.network:
        unit = unit or ("shown pairs" if read.compares else "clips")
        return f"{name}: {clips:,} {unit}, judged on this machine or by people; nothing to pay"
    source = api_source(member)
    if problem := source.options.wrong_price:
        raise ValueError(
            f"feedback.sources.{name}: {problem}, so the cost is unknown. Give the price of {source.model} "
            f"(price.model: {source.model}), or set price: null for an estimate of calls and tokens alone"
        )
    return estimate(source, member.votes).line(name, source.model, source.price)


def api_source(member: Member) -> ApiSource:
    """The source of a member whose kind calls a server. No call is sent."""
    source = make_source(member.name, member.block)
    assert isinstance(source, ApiSource)
    return source


def estimates(asked: AskedSource, prompts: Sequence[Prompt], there: bool) -> Iterator[tuple[ApiSource, CostEstimate]]:
    """What the paid sources behind a name would be sent. there: whether `asked.clips` is a set that stays as it is."""
    for member in members(asked.source, source_block(asked.source), asked.votes):
        if not read_block(member.name, member.block).kind.network:
            continue
        source = api_source(member)
        is_there = there and asked.clips is not None and (asked.clips / MANIFEST).is_file()
        if is_there and asked.clips and asked.window:
            yield source, estimate_windows(source, ClipSet.open(asked.clips), asked.window, member.votes)
        elif is_there and asked.clips and not source.rubric.compares:
            yield source, source.estimate(requests_for(ClipSet.open(asked.clips), member.votes))
        else:
            sample = assumed_sample("{width}x{height}x{num_frames}@{fps}".format(**params_block("video")), prompts)
            shown = window_samples([sample], asked.window) if asked.window else [sample]
            yield source, source.estimate_for(shown, member.votes, asked.amount // len(shown))
