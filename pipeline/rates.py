"""How long the stages took on this machine, in .state/rates.json: what `vfrl plan` reckons with.

    {"<rate>": {"unit": "clips", "seconds": 0.41, "start": 7.9}}

seconds: of one unit of size 1 (TimedUnit), of the last run that succeeded. start: what that run took besides:
imports, loading models, writing results, and DVC's own time since the stage before it ended or, for the first stage,
since dvc began. The file is no output: it differs from run to run, and git ignores it.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import psutil

from data.manifest import StoreError, atomically
from data.pace import Measured, collected_measurements
from pipeline.guardians import dvc_of_this_stage
from pipeline.params import block, source_block
from pipeline.state import STATE

logger = logging.getLogger(__name__)

RATES = STATE / "rates.json"
PACKAGE = "stages."
RUNS = "runs"  # the unit of a stage that is measured as a whole


class Command(NamedTuple):
    """The command of a stage: `python -m stages.<name> --option value …`."""

    name: str
    options: dict[str, str]  # a flag's value is empty

    @classmethod
    def of(cls, name: str, words: Sequence[str]) -> "Command":
        """words: what follows the module's name."""
        values = [*words[1:], "--"]
        return cls(
            name,
            {
                word.removeprefix("--"): "" if value.startswith("--") else value
                for word, value in zip(words, values, strict=True)
                if word.startswith("--")
            },
        )


class TimedUnit(NamedTuple):
    """What the time of a stage is measured by."""

    rate: str  # its name; a unit takes as long wherever the name is the same
    name: str  # clips | calls | rows | shown pairs | runs
    size: float = 1.0  # of one unit, as against others of this rate: denoiser forwards of a clip


class Rate(NamedTuple):
    """What a stage takes."""

    unit: str
    seconds: float  # of a unit of size 1
    start: float  # seconds, once a run


def unit_of(command: Command) -> TimedUnit:
    """By what the stage is measured, under params.yaml as it is."""
    video = "{width}x{height}x{num_frames}".format(**block("video"))
    generator = f"{block('generator.path')} {video}"
    match command.name:
        case "generate":
            how = block(command.options["sampling"])
            steps = round(how["steps"] * float(command.options.get("noise", 1)))  # of a dense set, those that are run
            return TimedUnit(f"sample {generator}", "clips", steps * (1 if how["guidance"] == 1 else 2))
        case "label" | "prefer":
            from feedback.core.kinds import read_block

            name = source_of(command)
            read, kind = read_block(name, source_block(name)), block(f"feedback.sources.{name}.kind")
            unit = "calls" if read.kind.network else "shown pairs" if read.compares else "clips"
            votes = 1 if unit == "calls" else block("label.votes")
            windows = f" windows of {length}" if (length := command.options.get("window")) else ""
            return TimedUnit(f"ask {name} ({read.needs.model or kind}) {video}{windows}", unit, votes)
        case "train":
            name = command.options["objective"]
            changes = block(entry).get("changes") if (entry := command.options.get("entry")) else None
            full = (block("train.common") | block(f"train.{name}") | (changes or {}))["full"]
            return TimedUnit(f"train {name} {'full' if full else 'lora'} {generator}", "rows")
        case "online":
            from pipeline.recipes import load_recipe

            entry = block(f"online.policies.{command.options['entry']}")
            steps = load_recipe(entry["recipe"], entry.get("changes") or {}).engine.steps
            return TimedUnit(f"online {entry['recipe']} {entry['judge']} {generator}", "rows", steps)
        case "reward":
            entry = block(f"reward.models.{command.options['name']}")
            path = (block("reward.settings") | (entry.get("changes") or {}))["path"]
            return TimedUnit(f"reward {path} {video}", "rows")
        case "audit":
            return TimedUnit(f"audit {command.options['source']}", RUNS, block("audit.clips"))
    return TimedUnit(command.name, RUNS)


def source_of(command: Command) -> str:
    """The source that a label stage asks, or eval-prefer."""
    if command.name == "prefer":
        return str(block(f"preferences.{command.options['entry']}.source"))
    return command.options["source"]


def read_rates(path: Path = RATES) -> dict[str, Rate]:
    """The rates that are known, by name; none where the file is missing or damaged."""
    try:
        return {name: Rate(**rate) for name, rate in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Around a command: where it is a stage and succeeds, what it took is kept.

    What it is measured by is read at its begin: params.yaml may be edited while it runs.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.name.startswith(PACKAGE) or os.environ.get("RANK", "0") != "0":
        yield
        return
    unit = None
    with contextlib.suppress(click.ClickException, ValueError, LookupError, TypeError):  # the stage says what is wrong
        unit = unit_of(Command.of(spec.name.removeprefix(PACKAGE), sys.argv[1:]))
    before, began = time.time() - _begin(), time.monotonic()  # the clock may jump from here on
    with collected_measurements() as measured:
        yield
    seconds = before + time.monotonic() - began
    if unit and (rate := rate_of(unit, measured, seconds)):
        _keep(unit.rate, rate)
    elif RATES.is_file():
        RATES.touch()  # so that the next stage does not count the time of this one


def _begin() -> float:
    """When the time of this stage begins, in seconds since the epoch.

    Under DVC that is when the stage before it ended, which wrote RATES, or when dvc began.
    """
    own, dvc = float(psutil.Process().create_time()), dvc_of_this_stage()
    if dvc is None:
        return own
    written = RATES.stat().st_mtime if RATES.is_file() else 0.0
    return min(own, max(float(dvc.create_time()), written))


def _keep(name: str, rate: Rate) -> None:
    known = {name: one._asdict() for name, one in read_rates().items()}
    try:
        with atomically(RATES) as partial:
            partial.write_text(json.dumps(known | {name: rate._asdict()}, indent=1) + "\n", encoding="utf-8")
    except (StoreError, OSError) as error:  # the stage is done: it must not end by this
        logger.warning("%s: how long the stage took is not kept: %s", RATES, error)


def rate_of(unit: TimedUnit, measured: Iterable[Measured], seconds: float) -> Rate | None:
    """The rate of a run of so many seconds; None where it did none of its units, such as labels that were kept."""
    if unit.name == RUNS:
        return Rate(RUNS, round(seconds / unit.size, 6), 0.0)
    own = [one for one in measured if one.unit == unit.name]
    busy, count = sum(one.seconds for one in own), sum(one.amount for one in own)
    if not count:
        return None
    return Rate(unit.name, round(busy / count / unit.size, 6), round(max(seconds - busy, 0.0), 3))
