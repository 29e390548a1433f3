"""Stages `build` and `build-compare`: from labels to the rows that training reads."""

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.command import PATH, metrics_option, out_option, stage_command, write_metrics
from pipeline.configs import build_config
from pipeline.state import stage_state


@stage_command
@click.option("--set", "clips", type=PATH, required=True, help="Folder of the clip set.")
@click.option("--labels", type=PATH, required=True, help="Folder of its labels.")
@out_option
@metrics_option
def main(clips: Path, labels: Path, out: Path, metrics: Path) -> None:
    """Build weighted and paired datasets from a labelled clip set."""
    from data.manifest import publish, read_manifest
    from data.records import Label, read_rows
    from data.store import ClipSet
    from rl.datasets import build
    from rl.tables import write_tables

    clip_set, source = ClipSet.open(clips), read_manifest(labels, "labels")["facts"]["source"]
    config = build_config(source)
    made, labelled = {"round": clip_set.manifest["facts"]["set"]}, {"source": source, "reward": config.reward}
    with stage_state("build", out, config, [clips, labels]) as work:
        rows = read_rows(labels / "labels.parquet", Label)
        tables = build(clip_set.samples, rows, name=f"{made['round']}/{source}", **asdict(config))
        write_tables(work / "datasets", clip_set.samples, *tables, clips=made, labels=labelled)
        publish(work / "datasets", out)
    write_metrics(metrics, {key: value for key, value in tables.composition.items() if isinstance(value, int)})


if __name__ == "__main__":
    main()
