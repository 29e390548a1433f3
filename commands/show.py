"""The result table in the terminal, and where the page is; or the curve of a run as it goes."""

import json
from pathlib import Path

import click

from pipeline.command import PATH, Finite, stage_command
from pipeline.state import STATE


@stage_command
@click.argument("policy", required=False)
@click.option("--report", type=PATH, default="report-out", show_default=True, help="Folder of the report.")
@click.option("--watch", "watched", is_flag=True, help="Show the curve of POLICY, or of the one that is trained now.")
@click.option("--once", is_flag=True, help="Print it once, in place of again and again.")
@click.option("--every", type=Finite(min=0, min_open=True), default=2.0, show_default=True, help="Seconds between.")
def main(policy: str | None, report: Path, watched: bool, once: bool, every: float) -> None:
    """Print the accept rates of the last report and the path of its page.

    With --watch, print the curve of a policy as it is trained, with its rate and the time left.
    """
    if watched or once:
        _watch(policy, once, every)
        return
    if policy:
        raise ValueError(f"{policy}: only --watch takes a policy")
    from report import cost
    from report.effects import effects_table, reason_tables, seeds_tables
    from report.over_seeds import over_seeds
    from report.table import as_text

    if not (report / "summary.json").is_file():
        raise ValueError(f"{report} has no report yet: run dvc repro")
    summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    shown = over_seeds(summary)
    further = [*cost.tables(summary), *filter(None, [effects_table(shown)]), *reason_tables(shown)]
    further += seeds_tables(summary)
    click.echo(f"\n{as_text(summary, further)}\n\n{(report / 'index.html').resolve()}")


def _watch(policy: str | None, once: bool, every: float) -> None:
    from inspection.watch import find, in_words, watch

    if once:
        run = find(policy, STATE)
        if run is None:
            raise ValueError("no stage train or online is running; name a policy to see the curve of its last run")
        click.echo(in_words(run))
        return
    for text in watch(policy, STATE, every):
        click.clear()  # nothing where the output is no terminal
        click.echo(text)
