"""Tiny random models, to try a family of generators without a download."""

from pathlib import Path
from typing import Any

import click

from generators.tiny.variants import VARIANTS, Variant, find_variant, params_of, write_tiny
from pipeline.command import PATH, stage_command

FOLDER = Path("models/tiny")
IMAGE = {"none": "no first frame", "optional": "with or without a first frame", "needed": "needs a first frame"}


@stage_command
@click.argument("name", required=False, metavar="[VARIANT]")
@click.option("--out", type=PATH, help=f"Folder to write.  [default: {FOLDER}/VARIANT]")
@click.option("--list", "listed", is_flag=True, help="Print the variants, and write nothing.")
@click.option("--dry-run", is_flag=True, help="Print the values for params.yaml, and write nothing.")
def main(name: str | None, out: Path | None, listed: bool, dry_run: bool) -> None:
    """Write a small model with random weights that has the classes and the layout of a published one.

    Stock diffusers loads the folder. The clips show nothing, but a whole run with such a model takes minutes on a CPU
    and nothing is downloaded. The values of params.yaml that fit it are printed in the form of a preset:
    `vfrl tiny wan2.2-ti2v > tiny.yaml && vfrl preset tiny.yaml`. Without VARIANT, the variants are listed.
    """
    if listed or name is None:
        for line in _table():
            click.echo(line)
        return
    variant = find_variant(name)
    out = out or FOLDER / name
    if not dry_run:
        _quieten()
        parameters = write_tiny(variant, out)
        click.echo(f"{out}: {name}, {parameters:,} random weights", err=True)
    click.echo(_preset(name, variant, out))


def _table() -> list[str]:
    width = max(map(len, VARIANTS))
    return [
        f"{name:<{width}}  {variant.num_frames} frames of {variant.height} x {variant.width}, "
        f"{variant.max_prompt_tokens} tokens, solver {variant.solver}, {IMAGE[variant.image]}"
        for name, variant in VARIANTS.items()
    ]


def _preset(name: str, variant: Variant, out: Path) -> str:
    import yaml

    params: dict[str, Any] = params_of(variant, str(out))
    text = yaml.safe_dump(params, sort_keys=False)
    return f"# {name}, as {variant.like}; {IMAGE[variant.image]}\n{text}".rstrip()


def _quieten() -> None:
    """No progress bars: there is nothing to wait for."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
