"""Check params.yaml as a whole, and print what it asks for."""

import click

from pipeline.command import Finite, stage_command
from pipeline.params import PARAMS


@stage_command
@click.option("--seconds-per-clip", type=Finite(min=0, min_open=True), help="Print sampling hours by this.")
def main(seconds_per_clip: float | None) -> None:
    """Check params.yaml: every section, whether its parts fit together, and whether the generator can be read.

    Prints what it read: models, prompts, rounds, policies, the clips to sample and to judge.
    """
    from pipeline.check import check_params
    from pipeline.summary import summarise

    click.echo("\n".join(summarise(check_params(), seconds_per_clip)))
    click.echo(f"{PARAMS}: every section is valid, and rounds, policies, sources and evaluation fit together")
