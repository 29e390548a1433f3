"""Kill every stage that writes, at random moments, and see whether it ends as if nothing had happened.

    make soak, or python -m benchmarks.soak [--moments 20] [--seed 0] [--target train@dpo2 …]

In a copy of the repository, under the preset smoke, each target runs undisturbed first. Then SIGKILL ends dvc, the
stage, or both at a random moment, and the same command runs again. The table says of each target how often who was
killed, in how many of the moments the end state was byte for byte that of the undisturbed run, how many calls a local
provider answered, how many were in flight at a kill, and how many were sent although their answer was known. The exit
code is 1 where anything differs or was paid twice.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil
import yaml

from tests.support.clone import DVC, ROOT, environment, make_clone, run
from tests.support.network import attempts, block_of

VICTIMS = (("dvc",), ("stage",), ("dvc", "stage"))
ENDS = 5.0  # seconds within which a stage ends after its dvc
EXPORT = "export"  # the one target that is a command
PAID = "label-compare@r1-provider"
TARGETS = (
    "generate@r1", "label@r1", PAID, "build@r1", "train@dpo2", "online@ask1", "generate-select@rwr1", "select@rwr1",
    "audit@judge", "evaluate", "report", EXPORT,
)  # fmt: skip


class Row(NamedTuple):
    """What the moments of a target came to."""

    target: str
    killed: Counter[str]  # moments by victims
    same: int  # moments that ended with the bytes of the undisturbed run
    outlived: int  # moments in which the stage outlived its dvc
    calls: int  # that the provider answered, over all moments
    in_flight: int  # of them at a kill, so that their answer was lost and was asked for again
    twice: int  # calls that were sent although their answer was known
    seconds: float  # of the undisturbed run

    @property
    def good(self) -> bool:
        return self.same == self.killed.total() and not self.outlived and not self.twice


@click.command(help=__doc__)
@click.option("--moments", default=20)
@click.option("--seed", default=0)
@click.option("--target", "targets", multiple=True, default=TARGETS, help="A stage of dvc.yaml, or export; repeatable.")
def main(moments: int, seed: int, targets: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, provider() as base:
        home = Path(folder)
        prepare(home, base)
        rows = []
        print(HEADER, flush=True)
        for target in targets:
            rows.append(soak(home, target, moments, seed, base))
            print(in_words(rows[-1]), flush=True)
    sys.exit(0 if all(row.good for row in rows) else 1)


HEADER = (
    f"{'target':28} {'dvc':>4} {'stage':>5} {'both':>4} {'same bytes':>10} {'calls':>5} {'in flight':>9} {'twice':>5}"
)


def in_words(row: Row) -> str:
    killed = row.killed
    line = f"{row.target:28} {killed['dvc']:4} {killed['stage']:5} {killed['dvc+stage']:4}"
    line += f" {f'{row.same}/{killed.total()}':>10} {row.calls:5} {row.in_flight:9} {row.twice:5}"
    return f"{line}  the stage outlived its dvc {row.outlived} times" if row.outlived else line


@contextmanager
def provider() -> Iterator[str]:
    """A local server that answers as OpenAI's does, after 0.3 s; its address."""
    command = [sys.executable, "-m", "tests.support.faulty_provider", "0", json.dumps({"latency": 0.3})]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        yield next(line.split()[-1] for line in server.stderr if line.startswith("serving at "))
    finally:
        server.kill()
        server.wait()


def prepare(home: Path, base: str) -> None:
    """A copy of the repository, run to its end: the preset smoke with select, and a judge of the provider beside."""
    make_clone(home)
    shutil.copytree(ROOT / "models/tabletop", home / "models/tabletop", dirs_exist_ok=True)
    run(home, sys.executable, "-m", "commands", "preset", "smoke")
    params = yaml.safe_load((home / "params.yaml").read_text())
    params["generate"] |= {"batch_size": 2, "steps": 8}
    params["label"]["batch_size"] = 2
    params["train"]["common"] |= {"steps": 8, "checkpoint_every": 1}
    params["feedback"]["sources"]["provider"] = block_of("gpt", base, concurrency=2)
    params["comparison"] |= {"rounds": ["r1"], "sources": ["provider"]}
    params["select"] |= {"policies": ["rwr1"], "judges": ["judge"]}
    params["select"]["generate"] |= {"steps": 2, "samples_per_prompt": 1, "batch_size": 2}
    (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    done = subprocess.run([*DVC, "repro"], cwd=home, env=surroundings(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def soak(home: Path, target: str, moments: int, seed: int = 0, base: str | None = None) -> Row:
    """Kill a target of a finished run at so many moments. base: address of the provider, where the target asks it."""
    dice, killed, same, outlived = random.Random(f"{seed}/{target}"), Counter[str](), 0, 0
    calls, in_flight, twice = 0, 0, 0
    seconds, whole = undisturbed(home, target)
    for _ in range(moments):
        (home / "ledger.sqlite").unlink(missing_ok=True)
        before = answered(base)
        victims = dice.choice(VICTIMS if target != EXPORT else VICTIMS[1:2])
        found = killed_at(home, target, dice.uniform(0, seconds), victims)
        killed["+".join(victims)] += 1
        outlived += found
        finish(home, target)
        same += contents(home, target) == whole
        if target == PAID:
            lost, again = books(home / "ledger.sqlite")
            calls, in_flight, twice = calls + answered(base) - before, in_flight + lost, twice + again
    return Row(target, killed, same, outlived, calls, in_flight, twice, seconds)


def command_of(target: str) -> list[str]:
    if target == EXPORT:
        return [sys.executable, "-m", "commands", "export", "--set", "runs/r1/samples", "--out", "exported"]
    return [*DVC, "repro", "--force", "--single-item", target]


def surroundings(home: Path) -> dict[str, str]:
    """Nothing is known from before: a ledger that each moment begins anew, and no kept verdicts."""
    more = {"FEEDBACK_LEDGER": str(home / "ledger.sqlite"), "FEEDBACK_VERDICTS": "off", "OPENAI_API_KEY": "x"}
    return environment() | more


def undisturbed(home: Path, target: str) -> tuple[float, dict[str, str]]:
    """Seconds of a run that nothing disturbs, and what it leaves."""
    (home / "ledger.sqlite").unlink(missing_ok=True)
    began = time.monotonic()
    finish(home, target)
    return time.monotonic() - began, contents(home, target)


def finish(home: Path, target: str) -> None:
    done = subprocess.run(command_of(target), cwd=home, env=surroundings(home), capture_output=True, text=True)
    assert done.returncode == 0, f"{target}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


def contents(home: Path, target: str) -> dict[str, str]:
    """sha256 of every file that the target writes, by path; and what is left in .state of it beside the lock."""
    if target == EXPORT:
        outs = [home / "exported"]
    else:
        lock = yaml.safe_load((home / "dvc.lock").read_text())
        outs = [home / out["path"] for out in lock["stages"][target]["outs"]]
    files = [file for out in outs for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file()]
    left = [path for path in (home / ".state").glob("*/*") if path.name != "lock"]
    return {str(file.relative_to(home)): sha256(file.read_bytes()).hexdigest() for file in [*files, *unpacked(left)]}


def unpacked(paths: Sequence[Path]) -> list[Path]:
    return [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


def killed_at(home: Path, target: str, delay: float, victims: Sequence[str]) -> bool:
    """Start the target, kill the victims after so many seconds; whether the stage outlived its dvc.

    A stage that has not begun is waited for, where it is a victim.
    """
    quiet: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command_of(target), cwd=home, env=surroundings(home), **quiet)
    process, deadline = psutil.Process(first.pid), time.monotonic() + delay
    stages: list[psutil.Process] = []
    while first.poll() is None and (time.monotonic() < deadline or ("stage" in victims and not stages)):
        with suppress(psutil.Error):
            stages = (
                [process] if target == EXPORT else [one for one in process.children(recursive=True) if is_stage(one)]
            )
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        if "dvc" in victims:
            os.kill(first.pid, signal.SIGKILL)
    for stage in stages if "stage" in victims else []:
        with suppress(psutil.Error):
            stage.kill()
    first.wait()
    return bool(psutil.wait_procs(stages, timeout=ENDS)[1])


def is_stage(process: psutil.Process) -> bool:
    return any(word.startswith("stages.") for word in process.cmdline())


def answered(base: str | None) -> int:
    """Requests that the provider has answered so far."""
    if base is None:
        return 0
    with urllib.request.urlopen(f"{base}/truth") as response:
        return sum(one["delivered"] for one in json.load(response)["attempts"])


def books(ledger: Path) -> tuple[int, int]:
    """Calls that were in flight at a kill, and calls that were begun although their answer was in the ledger."""
    known, lost, again = set[str](), 0, 0
    for row in attempts(ledger):
        again += row.key in known
        lost += row.outcome == "lost"
        known |= {row.key} if row.outcome == "answered" else set()
    return lost, again


if __name__ == "__main__":
    main()
