"""The result table in the terminal, and where the page is."""

import json
from pathlib import Path

import click

from pipeline.command import PATH, stage_command


@stage_command
@click.option("--report", type=PATH, default="report-out", show_default=True, help="Folder of the report.")
def main(report: Path) -> None:
    """Print the accept rates of the last report and the path of its page."""
    from report.table import as_text

    if not (report / "summary.json").is_file():
        raise ValueError(f"{report} has no report yet: run dvc repro")
    summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    click.echo(f"\n{as_text(summary)}\n\n{(report / 'index.html').resolve()}")
