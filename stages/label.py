"""Stages `label`, `label-compare` and `eval-label`: ask a source about a clip set, or say what that would cost."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from stages.command import PATH, device_option, stage_command, write_metrics
from stages.params import block, section
from stages.state import stage_state

# Where stage `audit` puts its results. It is read for a warning alone and is no dependency in dvc.yaml: else an audit
# that ran again would have all clips labelled again, to the same labels.
AUDITS = Path("runs/audit")


@dataclass(frozen=True)
class LabelConfig:
    """Section `label`."""

    batch_size: int  # clips read, judged and committed together
    votes: int  # independent askings of every clip
    max_failed: float  # part of the clips of which no reply need be had
    min_audited_accuracy: float | None = None  # below it, of the source's audit, there is a warning

    def __post_init__(self) -> None:
        for name in ("batch_size", "votes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("max_failed", "min_audited_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected a part between 0 and 1")


@stage_command
@click.option("--set", "clips", type=PATH, help="Folder of the clip set.")
@click.option("--source", "name", required=True, help="A name in feedback.sources.")
@click.option("--out", type=PATH, help="Folder to write.")
@click.option("--metrics", type=PATH, help="JSON file for `dvc metrics`.")
@click.option("--limit", type=click.IntRange(1), help="Ask about N clips only, and show the answers.")
@click.option("--dry-run", is_flag=True, help="Say what it would take and cost, and ask nothing.")
@click.option("--assume", metavar="WxHxF@FPS", help="With --dry-run: clips of this shape, in place of a set.")
@click.option("--count", type=click.IntRange(1), default=1, help="With --assume: how many clips.")
@device_option
def main(
    clips: Path | None, name: str, out: Path | None, metrics: Path | None, limit: int | None,
    dry_run: bool, assume: str | None, count: int, device: str,
) -> None:  # fmt: skip
    """Label a clip set: verdicts with the source's own words, and what they amount to."""
    config, source_block = section("label", LabelConfig), block(f"feedback.sources.{name}")
    if limit:
        source_block = one_by_one(source_block)
    if dry_run:
        from stages.forecast import told

        click.echo(told(clips, assume, count, limit, name, source_block, config.votes))
        return
    if not clips or assume or not (limit or (out and metrics)):
        raise click.UsageError("wanted are --set, --out and --metrics; or --set and --limit; or --dry-run")
    from data.manifest import read_manifest
    from data.store import ClipSet
    from feedback import make_source, needs_device
    from feedback.label import label_clip_set, look_at, warn_of_audit, who

    if needs_device(source_block):
        from rl.devices import pick_device  # and torch with it, which takes seconds

        device = str(pick_device(device))
    if limit:
        source = make_source(name, source_block, device)
        for look in look_at(ClipSet.open(clips), source, limit, config.votes, config.max_failed):
            click.echo(look.in_words(source.rubric))
        return
    assert out and metrics
    blocks = [source_block, *source_block.get("members", {}).values()]  # of a panel, its members' too
    inputs: list[Path] = [clips, *(Path(one[key]) for one in blocks for key in ("path", "rubric") if key in one)]
    asked = replace(config, min_audited_accuracy=None)  # which shapes no label
    with stage_state("label", out, (name, asked, source_block), inputs) as work:
        source = make_source(name, source_block, device)
        if config.min_audited_accuracy is not None:
            warn_of_audit(AUDITS / name, who(source, source_block), config.min_audited_accuracy)
        clip_set = ClipSet.open(clips)
        counts = label_clip_set(clip_set, source, work, out, config.batch_size, config.votes, config.max_failed)
    agreed = read_manifest(out, "labels")["facts"]["agreement"]
    write_metrics(metrics, {"samples": len(clip_set.samples), **counts._asdict(), "agreement": agreed})


def one_by_one(source_block: dict[str, Any]) -> dict[str, Any]:
    """A source's block, and of a panel its members', without batches: nobody waits a day for a first look."""
    changes: dict[str, Any] = {"batch": False} if "batch" in source_block else {}
    if members := source_block.get("members"):
        changes["members"] = {name: one_by_one(inner) for name, inner in members.items()}
    return source_block | changes


if __name__ == "__main__":
    main()
