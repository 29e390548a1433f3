"""`python -m stages.label --dry-run`: what labelling would take and cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from data.prompts import load_prompts
from data.store import ClipSet
from feedback.forecast import assumed_sample, forecast, forecast_like
from feedback.label import requests_for
from stages.params import PromptsConfig, section


def told(clips: Path | None, assume: str | None, count: int, name: str, block: Mapping[str, Any], votes: int) -> str:
    """For a clip set that is there; or for `count` clips of an assumed shape, with a prompt of params.yaml's set."""
    if bool(clips) == bool(assume):
        raise click.UsageError("--dry-run wants --set, or --assume with --count")
    if clips:
        return forecast(name, block, requests_for(ClipSet.open(clips), votes))
    prompts = load_prompts(Path(section("prompts", PromptsConfig).path))
    return forecast_like(name, block, assumed_sample(assume or "", prompts), votes, count)
