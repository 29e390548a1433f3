"""Stage `online`: a policy trained on a frozen judge's differentiated answers."""

import logging
from pathlib import Path

import click

from cluster.pool import RAY
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
from pipeline.configs import GeneratorConfig, PromptsConfig
from pipeline.cost import with_cost
from pipeline.identity import RECORDED
from pipeline.launch import Launch
from pipeline.params import section, source_block
from pipeline.state import stage_state

logger = logging.getLogger(__name__)


@stage_command
@click.option("--entry", "name", required=True, help="Name in online.policies.")
@click.option("--start", type=PATH, required=True, help="Folder of the policy to start from.")
@out_option
@metrics_option
@device_option
@processes_option
@engine_option
@tracker_option
def main(
    name: str, start: Path, out: Path, metrics: Path, device: str, processes: str, engine: str, tracker: str | None
) -> None:
    """Train a policy on a judge's answers, as an entry of online.policies says."""
    launch = Launch(engine, processes, device)
    launch.begin()
    from cluster.devices import rank
    from data.prompts import load_prompts, select
    from feedback.core.kinds import TRAINED, what_is_asked
    from feedback.differentiable.overlay import load_overlay
    from feedback.questions import is_source
    from generators.core.size import VideoSize
    from pipeline.configs import CheckConfig, OnlineEntry
    from pipeline.online import Job, OnlineTraining, for_other_machines, train
    from pipeline.recipes import load_recipe

    entry, model = section(f"online.policies.{name}", OnlineEntry), section("generator", GeneratorConfig)
    path, recipe = Path(section("prompts", PromptsConfig).path), load_recipe(entry.recipe, entry.all_changes)
    judges = {entry.judge: source_block(entry.judge)}
    judges[entry.held_out] = source_block(entry.held_out)
    if recipe.questions and is_source(recipe.questions.writer):
        # What was written is kept with the policy: another price or pace of the writer is no reason to train again.
        judges[recipe.questions.writer] = source_block(recipe.questions.writer)
    job = Job(
        recipe=recipe,
        prompts=select(load_prompts(path), entry.split),
        asks=None,
        references=entry.references,
        overlay=load_overlay(Path(entry.overlay)) if entry.overlay else None,
        judge=entry.judge,
        held_out=entry.held_out,
        sources=judges,
        check=section("online.check", CheckConfig),
        size=section("video", VideoSize),
    )
    images = [one.image for one in job.prompts]
    inputs = [start, *model.folders, path, *(Path(file) for file in (entry.overlay, *images) if file)]
    recorded = (
        "generator",
        f"online/{name}",
        *(f"sources/{one}" for one in dict.fromkeys((entry.judge, entry.held_out))),
    )
    inputs += [RECORDED / f"{one}.json" for one in recorded]
    inputs += [TRAINED / one for one in judges if (TRAINED / one).is_dir()]  # reward models of this run
    params = {f"online.policies.{name}": entry, "generator": model, "recipe": recipe, "video": job.size}
    params |= {"feedback.sources": {one: what_is_asked(given) for one, given in judges.items()}}
    params |= {"online.check": job.check}
    with stage_state("online", out, params, inputs) as work:
        job = for_other_machines(job) if engine == RAY else job
        figures = launch.run(train, OnlineTraining(job, model, start, out, tracker), work)
        if rank() == 0:
            write_metrics(metrics, with_cost(figures))


if __name__ == "__main__":
    main()
