"""Stage `online`: a policy trained on a frozen judge's differentiated answers; also for one prompt, from a terminal."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from stages.command import PATH, device_option, out_option, stage_command, write_metrics
from stages.params import GeneratorConfig, PromptsConfig, block, section
from stages.state import stage_state

logger = logging.getLogger(__name__)


@stage_command
@click.option("--entry", help="Name in online.policies: how DVC runs it.")
@click.option("--start", type=PATH, help="Folder of the policy to start from; null: the generator itself.")
@click.option("--lora", type=PATH, help="The same: an earlier run's folder, whose weights are used again.")
@click.option("--prompt", help="One prompt to train for, with what section online.prompt leaves open.")
@click.option("--ask", "asks", multiple=True, help="'question=answer' about its clips; else the recipe's questions.")
@click.option("--box", "boxes", multiple=True, help="left,top,right,bottom@frames, drawn over what the judge sees.")
@click.option("--point", "points", multiple=True, help="x,y@frames, likewise.")
@click.option("--arrow", "arrows", multiple=True, help="from x,y,to x,y@frames, likewise.")
@click.option("--overlay", type=PATH, help="YAML of marks, likewise.")
@click.option("--recipe", help="Name in recipes/, in place of online.prompt's.")
@click.option("--judge", help="A source of feedback.sources, likewise.")
@click.option("--held-out", help="Likewise.")
@click.option("--set", "changes", multiple=True, help="section.key=value over the recipe, such as engine.updates=40.")
@out_option
@click.option("--metrics", type=PATH, help="JSON file for `dvc metrics`.")
@device_option
@click.option(
    "--processes",
    default="auto",
    envvar="STAGE_PROCESSES",
    show_envvar=True,
    help="How many train an entry together: a number, or auto for one on each accelerator. One prompt takes one.",
)
def main(
    entry: str | None,
    start: Path | None,
    lora: Path | None,
    prompt: str | None,
    asks: Sequence[str],
    boxes: Sequence[str],
    points: Sequence[str],
    arrows: Sequence[str],
    overlay: Path | None,
    recipe: str | None,
    judge: str | None,
    held_out: str | None,
    changes: Sequence[str],
    out: Path,
    metrics: Path | None,
    device: str,
    processes: str,
) -> None:
    """Train a policy on a judge's answers: an entry of params.yaml, or one prompt with its own questions.

    For one prompt, OUT gets the policy, before.mp4 and after.mp4 (the same noise), curve.svg with the probability of
    each wanted answer over the updates, and log.jsonl with the numbers.
    """
    if (entry is None) == (prompt is None):
        raise click.UsageError("one of --entry and --prompt says what to train for")
    from rl.devices import pick_device, relaunch

    marks = {"box": boxes, "point": points, "arrow": arrows}
    if entry is not None:
        if start is None or any([lora, asks, overlay, recipe, judge, held_out, changes, *marks.values()]):
            raise click.UsageError("--entry takes --start, --out, --metrics and --device; the rest is params.yaml's")
        place = pick_device(device)
        relaunch(processes, place)
        _entry(entry, start, out, metrics, place)
        return
    from stages.online_prompt import Order, fulfil

    order = Order(str(prompt), tuple(asks), marks, overlay, recipe, judge, held_out, tuple(changes))
    fulfil(order, lora or start, out, pick_device(device))


def _entry(name: str, start: Path, out: Path, metrics: Path | None, device: Any) -> None:
    from data.prompts import load_prompts, select
    from feedback.differentiable.overlay import load_overlay
    from feedback.questions import OWN_WRITERS
    from generators import load_generator
    from generators.rollout import VideoSize
    from online.run import CheckConfig, Job, OnlineEntry, run
    from rl.devices import rank
    from stages.recipes import load_recipe

    entry, model = section(f"online.policies.{name}", OnlineEntry), section("generator", GeneratorConfig)
    path, recipe = Path(section("prompts", PromptsConfig).path), load_recipe(entry.recipe, entry.changes)
    judges = {entry.judge: block(f"feedback.sources.{entry.judge}")}
    judges[entry.held_out] = block(f"feedback.sources.{entry.held_out}")
    if recipe.questions and recipe.questions.writer not in OWN_WRITERS:
        # What was written is kept with the policy: another price or pace of the writer is no reason to train again.
        judges[recipe.questions.writer] = block(f"feedback.sources.{recipe.questions.writer}")
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
    inputs = [start, Path(model.path), path, *([Path(entry.overlay)] if entry.overlay else [])]
    with stage_state("online", out, (name, entry, model, recipe, judges, job.check, job.size), inputs) as work:
        report = run(job, partial(load_generator, **asdict(model), device=device), start, work, out, device)
    if metrics is not None and rank() == 0:
        told = {"updates": report.last["step"], "kept": report.kept, "stopped": report.stopped}
        write_metrics(metrics, {**told, "question_loss": report.last.get("question_loss")})


if __name__ == "__main__":
    main()
