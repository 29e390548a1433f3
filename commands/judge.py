"""Ask a source before `dvc repro` does: what labelling costs, or its answers about a few clips."""

from pathlib import Path
from typing import Any

import click

from pipeline.command import PATH, device_option, stage_command
from pipeline.configs import LabelConfig
from pipeline.params import block, section


@stage_command
@click.option("--source", "name", required=True, help="A name in feedback.sources.")
@click.option("--set", "clips", type=PATH, help="Folder of the clip set.")
@click.option("--limit", type=click.IntRange(1), help="Ask about N clips, spread over the set, and print the answers.")
@click.option("--dry-run", is_flag=True, help="Print the calls, tokens and dollars that labelling takes; send nothing.")
@click.option("--assume", metavar="WxHxF@FPS", help="With --dry-run: clips of this shape, in place of a set.")
@click.option("--count", type=click.IntRange(1), default=1, help="With --assume: how many clips.")
@device_option
def main(
    name: str, clips: Path | None, limit: int | None, dry_run: bool, assume: str | None, count: int, device: str
) -> None:
    """Estimate the cost of a source with --dry-run, or print its answers about a few clips with --limit."""
    votes, max_failed = (config := section("label", LabelConfig)).votes, config.max_failed
    source_block = block(f"feedback.sources.{name}")
    if limit:
        source_block = unbatched(source_block)
    if dry_run:
        from pipeline.forecast import dry_run_report

        click.echo(dry_run_report(clips, assume, count, limit, name, source_block, votes))
        return
    if not (clips and limit) or assume:
        raise click.UsageError("give --dry-run, or --set with --limit")
    from cluster.devices import pick_device
    from data.store import ClipSet
    from feedback.core.kinds import make_source, needs_device
    from feedback.core.label import look_at

    source = make_source(name, source_block, str(pick_device(device)) if needs_device(name, source_block) else device)
    for look in look_at(ClipSet.open(clips), source, limit, votes, max_failed):
        click.echo(look.in_words(source.rubric))


def unbatched(source_block: dict[str, Any]) -> dict[str, Any]:
    """A source's block, and its members' where it is a panel, with `batch: false`: a first look must not take a day."""
    changes: dict[str, Any] = {"batch": False} if "batch" in source_block else {}
    if members := source_block.get("members"):
        changes["members"] = {name: unbatched(inner) for name, inner in members.items()}
    return source_block | changes
