"""Where the time of the loop goes: imports, work and DVC, stage by stage.

    python -m benchmarks.loop [--preset smoke] [--log loop.log] [stage ...]

Runs `dvc repro` in a fresh clone of the last commit, with this environment, and once more with nothing to do. Python
counts the imports itself (-X importtime), which makes them somewhat slower. Nothing else should load the machine.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
IMPORT = re.compile(r"import time:\s+(\d+) \|")
LINE = "{:<32}{:>8}{:>8}{:>9}{:>8}"
# Stands before Python on the path: what a stage's process took, beside what it printed.
SHIM = """#!/bin/bash
log=$(mktemp "$LOOP_LOGS/XXXXXXXX")
began=$EPOCHREALTIME
{python} -X importtime "$@" 2> "$log"
code=$?
ended=$EPOCHREALTIME
times > "$log.times"  # in a pipe it would count a shell of its own
read -r user system < <(tail -1 "$log.times" | tr -d s)
echo "$log $began $ended $user $system $*" >> "$LOOP_LOGS/processes"
exit $code
"""


class Process(NamedTuple):
    """The process of a stage."""

    name: str  # module and what it writes
    wall: float  # seconds, like all below
    cpu: float
    imports: float


@click.command(help=__doc__)
@click.argument("targets", nargs=-1)
@click.option("--preset", help="A preset of configs/presets/, in place of params.yaml as committed.")
@click.option("--log", type=click.Path(path_type=Path), help="A file for what DVC and the stages print.")
def main(targets: Sequence[str], preset: str | None, log: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="loop-") as folder:
        clone, logs, shim = (Path(folder) / name for name in ("clone", "logs", "bin"))
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        logs.mkdir()
        shim.mkdir()
        (shim / "python").write_text(SHIM.format(python=sys.executable))
        (shim / "python").chmod(0o755)
        env = os.environ | {
            "PATH": f"{shim}:{BIN}:{os.environ['PATH']}", "LOOP_LOGS": str(logs), "PYTHONPATH": str(clone),
        }  # fmt: skip
        if preset:
            subprocess.run([BIN / "vfrl", "preset", preset], cwd=clone, env=env, check=True)
        try:
            whole = _seconds(["dvc", "repro", *targets], clone, env)
            processes = list(_processes(logs))
            again = _seconds(["dvc", "repro", *targets], clone, env)
        finally:
            if log:
                log.write_text("".join(path.read_text(errors="replace") for path in sorted(logs.glob("????????"))))
        _print(processes, whole, again)


def _seconds(command: Sequence[str], clone: Path, env: dict[str, str]) -> float:
    began = time.monotonic()
    subprocess.run(command, cwd=clone, env=env, check=True)
    return time.monotonic() - began


def _processes(logs: Path) -> Iterator[Process]:
    for line in (logs / "processes").read_text().splitlines():
        log, began, ended, user, system, *words = line.split()
        out = words[words.index("--out") + 1] if "--out" in words else ""
        imports = sum(int(found) for found in IMPORT.findall(Path(log).read_text(errors="replace"))) / 1e6
        name = f"{words[1].removeprefix('stages.')} {out.removeprefix('runs/')}"
        yield Process(name, float(ended) - float(began), _minutes(user) + _minutes(system), imports)


def _minutes(text: str) -> float:
    """Seconds of 1m2.5, as bash's `times` prints them."""
    minutes, _, seconds = text.partition("m")
    return 60 * float(minutes) + float(seconds)


def _print(processes: Sequence[Process], whole: float, again: float) -> None:
    print(LINE.format("", "wall s", "CPU s", "imports", "work"))
    for one in processes:
        print(_line(one.name, one))
    total = Process("", *(sum(values) for values in list(zip(*processes, strict=True))[1:]))
    print(_line(f"{len(processes)} processes", total))
    print(f"dvc repro {whole:.1f} s, of it DVC itself {whole - total.wall:.1f} s; with nothing to do {again:.1f} s")


def _line(name: str, one: Process) -> str:
    return LINE.format(name, *(f"{value:.1f}" for value in (one.wall, one.cpu, one.imports, one.wall - one.imports)))


if __name__ == "__main__":
    main()
