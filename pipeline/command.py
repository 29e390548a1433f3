"""What all stage commands share: options, logging, metrics, and how an error ends them."""

import functools
import importlib.util
import json
import logging
import math
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from data.manifest import StoreError, atomically
from pipeline.rates import recorded

# Threads that wait for work sleep: libgomp reads it when torch is imported. By default they spin, and beside a busy
# process a training step of 0.3 s took 1 to 2.8 s on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parent.parent
NUMBERS = re.compile(r"\[[^]\[{\"]*\]")  # a list of JSON that holds neither texts nor lists nor objects
USER_ERRORS = (
    ValueError,
    ArithmeticError,
    StoreError,
)  # what our libraries raise to say what is wrong, and what is right
INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as a shell's

PATH = click.Path(path_type=Path)
out_option = click.option("--out", type=PATH, required=True, help="Folder to write.")
metrics_option = click.option(
    "--metrics", type=PATH, required=True, help="JSON file to write: the figures of the stage."
)
device_option = click.option(
    "--device", default="auto", envvar="STAGE_DEVICE", show_envvar=True, help="auto, cpu, cuda or tpu."
)
processes_option = click.option(
    "--processes",
    default="auto",
    envvar="STAGE_PROCESSES",
    show_envvar=True,
    help="How many train together: a number, auto for one on each accelerator, or a range such as 4-16 (engine ray).",
)


engine_option = click.option(
    "--engine",
    default="here",
    envvar="STAGE_ENGINE",
    show_envvar=True,
    help="here, on this machine; or ray, on a running Ray cluster.",
)
workers_option = click.option(
    "--workers",
    default="auto",
    envvar="STAGE_WORKERS",
    show_envvar=True,
    help="How many at most: a number, or auto for one on each core (engine here, on the CPU) or accelerator (ray).",
)


def engine_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say on which machines a stage works: `engine` and `workers`, of `cluster.pool.pool_of`."""
    return engine_option(workers_option(function))


TRACKERS = ("tensorboard", "wandb", "trackio", "dvclive")


def _installed(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    """The tracker's name. Raises click.BadParameter where its package is not installed."""
    found = importlib.util.find_spec(name) if name else None
    if name and (found is None or found.origin is None):  # a mere folder of that name, as wandb leaves one, has none
        raise click.BadParameter(f"{name} is not installed here: pip install {name}", ctx, param)
    return name


tracker_option = click.option(
    "--tracker",
    type=click.Choice(TRACKERS),
    envvar="STAGE_TRACKER",
    show_envvar=True,
    callback=_installed,
    help="Also send the log to this experiment tracker; its keys come from the environment.",
)


class Finite(click.FloatRange):
    """A number within a range, as click's, which takes nan and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


def stage_command(function: Callable[..., None]) -> click.Command:
    """The function as a command that logs with time and level, and ends a user's error with its message and exit 1."""

    @click.command(help=function.__doc__)
    @functools.wraps(function)
    def run(**options: Any) -> None:
        level = os.environ.get("LOG_LEVEL", "INFO").upper()
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=level)
        for chatty in ("httpx", "httpx2", "google_genai", "openai"):  # a line a request, and more
            logging.getLogger(chatty).setLevel("WARNING")
        try:
            with recorded():
                function(**options)
        except KeyboardInterrupt as error:
            click.echo(f"\n{str(error) or 'Interrupted.'}", err=True)  # click would print "Aborted!"
            raise click.exceptions.Exit(INTERRUPTED) from error
        except (*USER_ERRORS, OSError) as error:
            if not isinstance(error, OSError) and not _raised_by_us(error):
                raise  # a library's own complaint in the middle of our code is a bug, and keeps its traceback
            logging.getLogger(__name__).debug("raised here", exc_info=True)
            raise click.ClickException(str(error)) from error

    return run


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """A small JSON file in metrics/; nothing volatile but the times within `cost` (pipeline.cost).

    A list of numbers takes one line, so that `git diff` shows it whole.
    """
    text = json.dumps(metrics, indent=1, ensure_ascii=False)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    with atomically(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _raised_by_us(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts
