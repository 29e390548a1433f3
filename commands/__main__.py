"""The console script `vfrl`, also `python -m commands`: a table of commands, each imported when it is called."""

import importlib
import os
import sys
from pathlib import Path

import click

from data.version import version

COMMANDS = {  # name -> what it does; the module is commands.<name>
    "check": "Check params.yaml as a whole, in seconds, and print what it asks for.",
    "plan": "List what dvc repro would run, and whether sampling is among it.",
    "doctor": "List what works on this machine, and why the rest does not.",
    "preset": "Lay a preset over params.yaml.",
    "seeds": "Train every policy with several seeds.",
    "tiny": "Write a tiny random model of a published one's classes.",
    "prompts": "Make a prompt set of a published benchmark's files.",
    "questions": "Write questions of each prompt's own, for a rubric.",
    "judge": "Estimate the cost of a source, or print its answers about a few clips.",
    "ledger": "Show which answers and verdicts are kept, and remove some.",
    "audit": "Compare a judge with people's choices between clips, or their scores.",
    "rate": "Serve the page on which people rate clips.",
    "inspect": "Show labelled sets, datasets and their clips.",
    "show": "Print the result table and the path of the report, or watch a run.",
    "online": "Train for one prompt on a judge's differentiated answers.",
    "heatmap": "Draw where a judge looks on clips of a policy.",
    "rewrite": "Rewrite a prompt set with a language model.",
    "export": "Write clips, labels and pairs as a dataset, or push it to the Hugging Face Hub.",
    "distribution": "Measure FVD, FID and IS.",
}


class Commands(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return importlib.import_module(f"commands.{name}").main if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands)
@click.version_option(version(), prog_name="vfrl", message="%(prog)s %(version)s")
def main() -> None:
    """Look at and control an RL fine-tuning run. `dvc repro` runs the pipeline itself."""


def script() -> None:
    """Run from the console script. As under `python -m`, code in the working folder can be imported.

    In another clone than the one that is installed, that clone's code runs, all of it: a worktree may share an
    environment.
    """
    here = Path.cwd() / "commands/__main__.py"
    if here.is_file() and not here.samefile(__file__):
        os.execv(sys.executable, [sys.executable, "-m", "commands", *sys.argv[1:]])
    sys.path.insert(0, str(Path.cwd()))
    main(prog_name="vfrl")


if __name__ == "__main__":
    main(prog_name="vfrl")
