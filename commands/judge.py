"""What labelling with a source costs, or its answers about a few clips, before `dvc repro`."""

import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline.command import PATH, device_option, stage_command


@stage_command
@click.option("--source", "name", required=True, help="A name in feedback.sources.")
@click.option("--set", "clips", type=PATH, help="Folder of the clip set.")
@click.option(
    "--limit", type=click.IntRange(1), help="Ask about N clips (pairs, windows) of the set; print the answers."
)
@click.option("--window", type=click.IntRange(1), help="Windows of so many frames; of a set of `dense` its own.")
@click.option("--dry-run", is_flag=True, help="Print the calls, tokens and dollars that labelling takes; send nothing.")
@click.option("--assume", metavar="WxHxF@FPS", help="With --dry-run: clips of this shape, in place of a set.")
@click.option("--count", type=click.IntRange(1), default=1, help="With --assume: how many clips.")
@device_option
def main(
    name: str, clips: Path | None, limit: int | None, window: int | None, dry_run: bool, assume: str | None,
    count: int, device: str,
) -> None:  # fmt: skip
    """Estimate the cost of a source with --dry-run, or print its answers about a few clips with --limit."""
    from pipeline.configs import LabelConfig
    from pipeline.forecast import dry_run_report, window_of
    from pipeline.params import section, source_block

    votes, max_failed = (config := section("label", LabelConfig)).votes, config.max_failed
    given = source_block(name)
    if limit:
        given = unbatched(given)
    window = window or (window_of(clips) if clips else None)
    if dry_run:
        click.echo(dry_run_report(clips, assume, count, limit, name, given, votes, config.opponents, window))
        return
    if not (clips and limit) or assume:
        raise click.UsageError("give --dry-run, or --set with --limit")
    from cluster.devices import pick_device
    from data.store import ClipSet
    from feedback.core.kinds import make_source, needs_device
    from feedback.core.label import look_at
    from feedback.core.windows import look_at_windows

    source = make_source(name, given, str(pick_device(device)) if needs_device(name, given) else device)
    if window:
        with tempfile.TemporaryDirectory(prefix="windows-") as folder:
            how = (window, limit, Path(folder), votes, max_failed)
            for look in look_at_windows(ClipSet.open(clips), source, *how):
                click.echo(look.in_words(source.rubric))
        return
    if source.rubric.compares:
        from feedback.pairs.label import look_at_pairs

        for text in look_at_pairs(ClipSet.open(clips), source, limit, config.opponents, votes, max_failed):
            click.echo(text)
        return
    for look in look_at(ClipSet.open(clips), source, limit, votes, max_failed):
        click.echo(look.in_words(source.rubric))


def unbatched(given: dict[str, Any]) -> dict[str, Any]:
    """A source's block and those of a panel's members with `batch: false`, because a batch may take a day."""
    changes: dict[str, Any] = {"batch": False} if "batch" in given else {}
    if members := given.get("members"):
        changes["members"] = {name: unbatched(inner) for name, inner in members.items()}
    return given | changes
