"""Stages `train` and `train-compare`: a policy from its start, by one objective, on a round or a pool."""

from dataclasses import asdict, replace
from pathlib import Path

import click

from pipeline.command import (
    PATH,
    device_option,
    metrics_option,
    out_option,
    processes_option,
    stage_command,
    tracker_option,
    write_metrics,
)
from pipeline.configs import GeneratorConfig, train_config
from pipeline.identity import RECORDED
from pipeline.params import section
from pipeline.state import stage_state


@stage_command
@click.option("--objective", "name", required=True, help="sft, rwr or dpo.")
@click.option("--start", type=PATH, required=True, help="Folder of the policy to start from.")
@click.option(
    "--set", "clips", type=PATH, required=True, help="Folder of the clip set of a round, or of those of a pool."
)
@click.option("--rows", type=PATH, required=True, help="Folder of the objective's rows.")
@out_option
@metrics_option
@device_option
@processes_option
@tracker_option
@click.option("--resume-from", type=PATH, help="State folder of an earlier run with the same settings.")
def main(
    name: str,
    start: Path,
    clips: Path,
    rows: Path,
    out: Path,
    metrics: Path,
    device: str,
    processes: str,
    tracker: str | None,
    resume_from: Path | None,
) -> None:
    """Train a policy; on several accelerators, each takes a part of every batch."""
    from cluster.devices import pick_device, rank, relaunch
    from data.pools import open_clip_sets, origin_of
    from generators.core.generator import SAMPLING
    from generators.core.load import load_generator
    from generators.core.size import VideoSize
    from rl.objectives import get_objective
    from rl.tables import read_table
    from rl.training.tracking import Tracker
    from rl.training.trainer import train

    model, objective, size = section("generator", GeneratorConfig), get_objective(name), section("video", VideoSize)
    place = pick_device(device)
    relaunch(processes, place)
    config = train_config(objective)
    drawn, shaping = config.preview is not None, replace(config, preview=None)  # pictures shape no weight
    inputs = [start, *model.folders, RECORDED / "generator.json", clips, rows]
    params = {"objective": name, "generator": model, "video": size, "train": shaping}
    with stage_state("train", out, params, inputs) as work:
        table, clip_sets = read_table(rows, objective), open_clip_sets(clips)
        origin = table.facts | origin_of(clip_sets, start.name)
        generator = load_generator(
            **asdict(model),
            size=size,
            device=place,
            parts=SAMPLING if drawn else ("denoiser",),
            denoisers=None if drawn else config.denoisers,
            on_host=config.shard,
        )
        sent = Tracker(tracker, out.name) if tracker else None
        report = train(generator, clip_sets, table.rows, objective, config, start, work, out, origin, resume_from, sent)
        if rank() == 0:
            write_metrics(metrics, {"rows": len(table.rows), "parameters": report.parameters, **report.last})


if __name__ == "__main__":
    main()
