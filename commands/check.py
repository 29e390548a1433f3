"""Check params.yaml as a whole."""

import click

from pipeline.command import stage_command
from pipeline.params import PARAMS


@stage_command
def main() -> None:
    """Check params.yaml: every section, and whether rounds, policies, sources and evaluation fit together."""
    from pipeline.check import check_params

    check_params()
    click.echo(f"{PARAMS}: every section is valid, and rounds, policies, sources and evaluation fit together")
