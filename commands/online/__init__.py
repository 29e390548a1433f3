"""Train online for one prompt, from a terminal."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.command import PATH, device_option, out_option, stage_command, tracker_option


@stage_command
@click.option("--prompt", required=True, help="The prompt to train for; section online.prompt has the other settings.")
@click.option("--image", type=PATH, help="The first frame, for a generator that starts from one; its teacher sees it.")
@click.option("--start", "--lora", "start", type=PATH, help="Policy to start from; default: the generator itself.")
@click.option("--ask", "asks", multiple=True, help="'question=answer'; default: the recipe's questions.")
@click.option("--box", "boxes", multiple=True, help="left,top,right,bottom@frames of the clip: a mark for the judge.")
@click.option("--point", "points", multiple=True, help="x,y@frames: likewise.")
@click.option("--arrow", "arrows", multiple=True, help="from x,y,to x,y@frames: likewise.")
@click.option("--overlay", type=PATH, help="YAML of marks.")
@click.option("--recipe", help="Name in configs/recipes/; default: online.prompt.recipe.")
@click.option("--judge", help="Name in feedback.sources; default: online.prompt.judge.")
@click.option("--held-out", help="Name in feedback.sources; default: online.prompt.held_out.")
@click.option("--set", "changes", multiple=True, help="section.key=value over the recipe, such as engine.updates=40.")
@click.option("--heatmap", is_flag=True, help="Also draw where the judge looks: heatmap-before.png, heatmap-after.png.")
@out_option
@device_option
@tracker_option
def main(
    prompt: str,
    image: Path | None,
    start: Path | None,
    asks: Sequence[str],
    boxes: Sequence[str],
    points: Sequence[str],
    arrows: Sequence[str],
    overlay: Path | None,
    recipe: str | None,
    judge: str | None,
    held_out: str | None,
    changes: Sequence[str],
    heatmap: bool,
    out: Path,
    device: str,
    tracker: str | None,
) -> None:
    """Train a policy for one prompt on a judge's differentiated answers.

    OUT gets the policy, before.mp4 and after.mp4 (the same noise), curve.svg with the probability of each wanted
    answer over the updates, log.jsonl with the numbers, and outcome.json with what each judge says of both clips, which
    is printed too. With --heatmap also two sheets of the judge's gradient.
    """
    from cluster.devices import pick_device
    from commands.online.one_prompt import OnePrompt, train_one_prompt

    marks = {"box": boxes, "point": points, "arrow": arrows}
    given = OnePrompt(prompt, image, tuple(asks), marks, overlay, recipe, judge, held_out, tuple(changes), heatmap)
    train_one_prompt(given, start, out, pick_device(device), tracker)
