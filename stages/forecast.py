"""`python -m stages.label --dry-run`: what labelling would take and cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from data.prompts import load_prompts
from data.store import ClipSet
from feedback.forecast import assumed_sample, forecast, forecast_like
from feedback.label import requests_for, spread
from stages.params import PromptsConfig, section


def told(
    clips: Path | None, assume: str | None, count: int, limit: int | None,
    name: str, block: Mapping[str, Any], votes: int,
) -> str:  # fmt: skip
    """For a clip set that is there, or what a limit looks at; or for `count` clips of an assumed shape.

    Assumed clips have the longest prompt of params.yaml's set.
    """
    if bool(clips) == bool(assume) or (assume and limit):
        raise click.UsageError("--dry-run wants --set, and --limit if you like; or --assume with --count")
    if clips:
        requests = requests_for(ClipSet.open(clips), votes)
        return forecast(name, block, spread(requests, limit) if limit else requests)
    prompts = load_prompts(Path(section("prompts", PromptsConfig).path))
    return forecast_like(name, block, assumed_sample(assume or "", prompts), votes, count)
