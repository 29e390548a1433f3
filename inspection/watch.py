"""A training run as it goes: its curve from log.jsonl, its rate and the time left, as plain text."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from data.policies import FINISHED, FOLDER, LOG_FILE, PROGRESS, numbers, read_log
from pipeline.lock import LOCK, is_running

POLICIES = Path("runs/policies")
STAGES = ("train", "online")
WIDTH, HEIGHT = 72, 12  # characters of a chart
CURVES = ("loss", "question_loss", "reward", "held_out/training", "held_out/held_out")


class Run(NamedTuple):
    """A run of stage train or online, which goes on, was stopped, or has ended."""

    policy: str
    folder: Path  # with log.jsonl
    state: str  # running | stopped | finished
    progress: Mapping[str, Any] | None  # unit, steps, done, and of its last start now and seconds; None: not known


def unfinished(state: Path) -> list[Run]:
    """The runs that have resume state in that folder, the one that wrote last in front."""
    found = []
    for log in state.glob(f"*/*/{FOLDER}/{LOG_FILE}"):
        home, work = log.parents[2], log.parents[1]
        stage, _, out = home.name.partition("-")
        if stage in STAGES and not work.with_name(f"{work.name}{FINISHED}").is_file():
            policy = out.removeprefix("-".join([*POLICIES.parts, ""]))
            running = "running" if is_running(home / LOCK) else "stopped"
            with contextlib.suppress(FileNotFoundError):  # published since
                found.append((log.stat().st_mtime, Run(policy, log.parent, running, _progress(work / PROGRESS))))
    return [run for _, run in sorted(found, key=lambda one: one[0], reverse=True)]


def find(policy: str | None, state: Path, policies: Path = POLICIES) -> Run | None:
    """The run of a policy, unfinished or not; without a name the one that runs, or None.

    Raises ValueError for a name that has no run.
    """
    runs = unfinished(state)
    if policy is None:
        return next((run for run in runs if run.state == "running"), None)
    for run in runs:
        if run.policy == policy:
            return run
    if (policies / policy / LOG_FILE).is_file():
        return Run(policy, policies / policy, "finished", None)
    known = [*(run.policy for run in runs), *sorted(log.parent.name for log in policies.glob(f"*/{LOG_FILE}"))]
    raise ValueError(f"{policy} was not trained here yet; there is a log of {', '.join(known) or 'no policy'}")


def in_words(run: Run) -> str:
    """A run's state, its curves, and the last value of every number in its log."""
    lines = [numbers(line) for line in read_log(run.folder)]
    parts = [f"{run.policy}: {_how_far(run, lines)}", f"log: {run.folder / LOG_FILE}"]
    for key in CURVES:
        points = [(line["step"], line[key]) for line in lines if key in line]
        if len(points) > 1:
            parts.append(f"\n{key}\n{chart(points)}")
    last: dict[str, float] = {}
    for line in lines:
        last |= line
    if shown := [f"  {key:<32} {value:.6g}" for key, value in last.items()]:
        parts.append("\n" + "\n".join(["last", *shown]))
    return "\n".join(parts)


def chart(points: Sequence[tuple[float, float]], width: int = WIDTH, height: int = HEIGHT) -> str:
    """A curve as lines of text, its values on the left and its steps below.

    points: step and value, two or more, the steps rising. A column is the mean of the points that fall into it.
    """
    first, last = points[0][0], points[-1][0]
    columns: dict[int, list[float]] = {}
    for step, value in points:
        if math.isfinite(value):
            columns.setdefault(round((step - first) / (last - first or 1) * (width - 1)), []).append(value)
    means = {column: fmean(values) for column, values in columns.items()}
    if not means:
        return "no finite value"
    low, high = min(means.values()), max(means.values())
    rows = [[" "] * width for _ in range(height)]
    for column, mean in means.items():
        rows[height - 1 - round((mean - low) / (high - low or 1) * (height - 1))][column] = "*"
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    lines = [f"{labels.get(place, ''):>10} |{''.join(row).rstrip()}" for place, row in enumerate(rows)]
    below = f"{first:g}".ljust(width - len(f"{last:g}")) + f"{last:g}"
    return "\n".join([*lines, f"{'':>10} +{'-' * width}", f"{'':>12}{below}"])


def watch(policy: str | None, state: Path, every: float) -> Iterator[str]:
    """What to show, again and again: of a named policy until its run ends, without a name of whichever runs."""
    while True:
        run = find(policy, state)
        yield in_words(run) if run else f"no stage {' or '.join(STAGES)} is running; waiting for one (Ctrl-C ends)"
        if policy is not None and run and run.state != "running":
            return
        time.sleep(every)


def _how_far(run: Run, lines: Sequence[Mapping[str, float]]) -> str:
    if run.progress is None:
        return f"{run.state}, {int(lines[-1]['step']) if lines else 0} steps logged"
    facts, left = run.progress, run.progress["steps"] - run.progress["done"]
    text = f"{run.state}, {facts['done']} of {facts['steps']} {facts['unit']}s"
    if run.state != "running" or not facts["now"]:
        return text
    each = facts["seconds"] / facts["now"]
    rate = f"{each:.1f} s a {facts['unit']}" if each > 1 else f"{1 / each:.1f} {facts['unit']}s a second"
    return f"{text}, {rate}, {timedelta(seconds=round(left * each))} left"


def _progress(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text())) if path.is_file() else None
