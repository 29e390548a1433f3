"""How often `vfrl online` makes a right clip: `python -m benchmarks.one_prompt --out runs/one-prompt`.

Takes prompts of a split whose clip of the generator, on the noise that is trained on, physics rejects; where one pass
over the prompts has too few, the next seed's noise goes on. Runs the command for each, at its defaults and with --set,
one after the other, and prints a line for each: why it stopped, updates, seconds with loading, what the judge that was
trained on, the held-out one and physics say of after.mp4, and who was fooled. What lies in OUT already stays.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import click

from commands.online.one_prompt import AFTER, PROMPT_ID, with_changes
from commands.online.outcome import OUTCOME, TRAINED_ON
from data.prompts import Prompt, load_prompts, select
from pipeline.configs import GeneratorConfig, PromptConfig, PromptsConfig
from pipeline.params import section
from pipeline.recipes import load_recipe
from pipeline.trained_clip import trained_clip
from report.text import aligned

TRUTH = "physics"  # name in feedback.sources; online.prompt.also must have it
SECONDS = "seconds.json"
MOST_SEEDS = 20


class Case(NamedTuple):
    """A prompt and a noise of which the generator's clip is wrong."""

    prompt: Prompt
    seed: int

    @property
    def name(self) -> str:
        return f"{self.prompt.prompt_id}-seed-{self.seed}"


@click.command(help=__doc__)
@click.option("--prompts", "wanted", default=20, help="How many.")
@click.option("--split", default="test")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--limit", type=float, help="engine.max_seconds of each; default: that of params.yaml.")
@click.option("--set", "changes", multiple=True, help="As of vfrl online.")
def main(wanted: int, split: str, out: Path, limit: float | None, changes: Sequence[str]) -> None:
    changes = [*changes, *([] if limit is None else [f"engine.max_seconds={limit}"])]
    rows = []
    for case in islice(failing(split, changes), wanted):
        folder = out / case.name
        if not (folder / OUTCOME).is_file():
            run(case, folder, changes)
        rows.append(row_of(case, json.loads((folder / OUTCOME).read_text()), folder))
        click.echo("  ".join(rows[-1]), err=True)
    print(table(rows))


def failing(split: str, changes: Sequence[str]) -> Iterator[Case]:
    """Prompts and seeds, as in `Case`, the seed of params.yaml first."""
    from generators.core.encoding import encode
    from generators.core.load import load_generator
    from generators.core.size import VideoSize
    from tabletop.physics import check

    config, model = section("online.prompt", PromptConfig), section("generator", GeneratorConfig)
    prompts = select(load_prompts(Path(section("prompts", PromptsConfig).path)), split)
    generator = load_generator(**asdict(model), size=section("video", VideoSize), device="cpu")
    for seed in islice(count(1), MOST_SEEDS):
        recipe = load_recipe(
            config.recipe, with_changes(config.changes_of(config.recipe), [*changes, f"engine.seed={seed}"])
        )
        for prompt in prompts:
            own = replace(prompt, prompt_id=PROMPT_ID)  # which the noise is addressed by
            frames = trained_clip(
                generator, encode(generator, [own], recipe.engine.negative_prompt).conditions, PROMPT_ID, recipe
            )
            if not check(frames, prompt.prompt).ok:
                yield Case(prompt, seed)


def run(case: Case, folder: Path, changes: Sequence[str]) -> None:
    """The command for one prompt, in a process of its own."""
    given = [part for change in (*changes, f"engine.seed={case.seed}") for part in ("--set", change)]
    command = [sys.executable, "-m", "commands", "online", "--prompt", case.prompt.prompt, *given, "--out", str(folder)]
    click.echo(shlex.join(command), err=True)
    began = time.monotonic()
    subprocess.run(command, check=True)
    (folder / SECONDS).write_text(json.dumps(round(time.monotonic() - began, 1)) + "\n")


def row_of(case: Case, outcome: dict[str, Any], folder: Path) -> list[str]:
    """A line of the table. outcome: what the command wrote."""
    said = outcome["clips"][AFTER]
    trained = next(one for one in said.values() if one["role"] == TRAINED_ON)
    held_out = next((one for one in said.values() if one["role"] == "held out"), None)
    truth = said.get(TRUTH, {"right": None, "reason": "not asked"})
    seconds = folder / SECONDS
    return [
        case.name,
        case.prompt.prompt,
        outcome["stopped"] or "all updates",
        str(outcome["updates"]),
        str(outcome["kept"]),
        seconds.read_text().strip() if seconds.is_file() else "",
        _number(trained["score"]),
        _number(held_out and held_out["score"]),
        {True: "right", False: "wrong", None: "?"}[truth["right"]],
        ", ".join(outcome["fooled"]),
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows under their heads, and how many clips physics accepts."""
    head = ["run", "prompt", "stopped", "updates", "kept", "s", "trained on", "held out", TRUTH, "fooled, by"]
    right = sum(row[8] == "right" for row in rows)
    fooled = sum(bool(row[9]) for row in rows)
    return f"{aligned([head, *rows], 'lllrrrrrll')}\n\n{right} of {len(rows)} are right by {TRUTH}; fooled in {fooled}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
