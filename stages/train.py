"""Stages `train` and `train-compare`: a policy from its start, by one objective, on a round or a pool."""

from dataclasses import replace
from pathlib import Path

import click

from pipeline.command import (
    PATH,
    device_option,
    engine_option,
    metrics_option,
    out_option,
    processes_option,
    stage_command,
    tracker_option,
    write_metrics,
)
from pipeline.configs import GeneratorConfig, train_config
from pipeline.cost import with_cost
from pipeline.identity import RECORDED
from pipeline.launch import Launch
from pipeline.params import section
from pipeline.state import stage_state
from pipeline.train import TrainJob, run, with_audited_noise


@stage_command
@click.option("--objective", "name", required=True, help="sft, rwr, dpo, kto, nft or dense_dpo.")
@click.option("--start", type=PATH, required=True, help="Folder of the policy to start from.")
@click.option(
    "--set", "clips", type=PATH, required=True, help="Folder of the clip set of a round, or of those of a pool."
)
@click.option("--rows", type=PATH, required=True, help="Folder of the objective's rows.")
@click.option("--entry", help="Dotted name of the policy's entry in params.yaml, for its own seed.")
@out_option
@metrics_option
@device_option
@processes_option
@engine_option
@tracker_option
@click.option("--resume-from", type=PATH, help="State folder of an earlier run with the same settings.")
def main(
    name: str,
    start: Path,
    clips: Path,
    rows: Path,
    entry: str | None,
    out: Path,
    metrics: Path,
    device: str,
    processes: str,
    engine: str,
    tracker: str | None,
    resume_from: Path | None,
) -> None:
    """Train a policy; on several accelerators, each takes a part of every batch."""
    launch = Launch(engine, processes, device)
    launch.begin()
    from cluster.devices import rank
    from generators.core.size import VideoSize
    from rl.objectives import get_objective

    model, objective, size = section("generator", GeneratorConfig), get_objective(name), section("video", VideoSize)
    config = with_audited_noise(train_config(objective, entry), rows, RECORDED / "audits.json")
    shaping = replace(config, preview=None)  # pictures shape no weight
    inputs = [start, *model.folders, RECORDED / "generator.json", clips, rows]
    params = {"objective": name, "generator": model, "video": size, "train": shaping}
    with stage_state("train", out, params, inputs) as work:
        job = TrainJob(name, model, size, config, start, clips, rows, out, tracker, resume_from)
        figures = launch.run(run, job, work)
        if rank() == 0:
            write_metrics(metrics, with_cost(figures))


if __name__ == "__main__":
    main()
