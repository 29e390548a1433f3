"""Kill every stage that writes, at random moments, and see whether it ends as if nothing had happened.

    make soak, or python -m benchmarks.soak [--moments 20] [--seed 0] [--target train@dpo2 …]

In a copy of the repository, under the preset smoke, each target runs undisturbed first. Then SIGKILL ends dvc, the
stage, or both at a random moment while they run, and the same command runs again. The table says of each target how
often who was killed, in how many of the moments the end state was byte for byte that of the undisturbed run, how many
calls a local provider answered, how many were in flight at a kill, how many were sent although their answer was known,
and how many seconds an undisturbed run took. The exit code is 1 where anything differs or was paid twice.
"""

import json
import math
import random
import shutil
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

from data.policies import FINISHED
from pipeline.command import PATH
from pipeline.cost import ASKED_NOW, COST
from pipeline.torn import mend
from tests.support.clone import DVC, ROOT, environment, make_clone, run
from tests.support.network import attempts, block_of

VICTIMS = (("dvc",), ("stage",), ("dvc", "stage"))
ENDS = 30.0  # seconds within which a stage ends after its dvc: under load it takes long to import what watches dvc
STEP = 0.05  # seconds between looks at the processes
EXPORT = "export"  # the one target that is a command
PAID = "label-compare@r1-provider"
TARGETS = (
    "generate@r1", "label@r1", PAID, "build@r1", "pool@both", "train@dpo2", "online@ask1", "generate-select@rwr1",
    "select@rwr1", "extend@longer", "eval-prefer@rwr1-base", "audit@judge", "evaluate", "report", EXPORT,
)  # fmt: skip
OF_A_START = ("seconds", "accelerator_seconds", ASKED_NOW)  # figures of a cost that the clock and a kill decide
MISSES = 3  # runs a moment, on the mean, that may end before their moment comes


class SoakRow(NamedTuple):
    """What the moments of a target came to."""

    target: str
    killed: Counter[str]  # moments by victims
    same: int  # moments that ended with the bytes of the undisturbed run
    outlived: int  # moments after which the stage, or a fork of it, did not end
    calls: int  # that the provider answered, over all moments
    in_flight: int  # of them at a kill, so that their answer was lost and was asked for again
    twice: int  # calls that were sent although their answer was known
    seconds: float  # of an undisturbed run

    @property
    def good(self) -> bool:
        return self.same == self.killed.total() and not self.outlived and not self.twice


@click.command(help=__doc__)
@click.option("--moments", default=20)
@click.option("--seed", default=0)
@click.option("--target", "targets", multiple=True, default=TARGETS, help="A stage of dvc.yaml, or export; repeatable.")
@click.option("--home", type=PATH, help="Folder for the copy, which stays; one that is there is used with its code.")
def main(moments: int, seed: int, targets: Sequence[str], home: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder, provider() as base:
        home = home or Path(folder)
        prepare(home, base)
        rows = []
        print(HEADER, flush=True)
        for target in targets:
            rows.append(soak(home, target, moments, seed, base))
            print(in_words(rows[-1]), flush=True)
    sys.exit(0 if all(row.good for row in rows) else 1)


HEADER = (
    f"{'target':28} {'dvc':>4} {'stage':>5} {'both':>4} {'same bytes':>10} {'calls':>5} {'in flight':>9} {'twice':>5}"
    f" {'seconds':>7}"
)


def in_words(row: SoakRow) -> str:
    killed = row.killed
    line = f"{row.target:28} {killed['dvc']:4} {killed['stage']:5} {killed['dvc+stage']:4}"
    line += f" {f'{row.same}/{killed.total()}':>10} {row.calls:5} {row.in_flight:9} {row.twice:5} {row.seconds:7.1f}"
    return f"{line}  the stage or a fork of it outlived {row.outlived} kills" if row.outlived else line


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
    """A copy of the repository, run to its end: preset smoke with all optional stages, and a judge of the provider."""
    if not (home / "dvc.yaml").is_file():
        copy_to(home)
    params = yaml.safe_load((home / "params.yaml").read_text())
    params["feedback"]["sources"]["provider"] = block_of("gpt", base, concurrency=2)
    (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    done = subprocess.run([*DVC, "repro"], cwd=home, env=surroundings(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def copy_to(home: Path) -> None:
    """The repository with the soak's params.yaml, before any stage has run."""
    home.mkdir(parents=True, exist_ok=True)
    make_clone(home)
    shutil.copytree(ROOT / "models/tabletop", home / "models/tabletop", dirs_exist_ok=True)
    run(home, sys.executable, "-m", "commands", "preset", "smoke")
    params = yaml.safe_load((home / "params.yaml").read_text())
    params["generate"] |= {"batch_size": 2, "steps": 8}
    params["label"]["batch_size"] = 2
    params["train"]["common"] |= {"steps": 8, "checkpoint_every": 1}
    params["comparison"] |= {"rounds": ["r1"], "sources": ["provider"]}
    params["select"] |= {"policies": ["rwr1"], "judges": ["judge"]}
    params["select"]["generate"] |= {"steps": 2, "samples_per_prompt": 1, "batch_size": 2}
    params["pools"] = {"both": ["r1", "r2"]}
    longer = {"policy": "base", "prompts": params["prompts"]["path"], "template": "{prompt}, seen from above"}
    params["extend"] = {"longer": longer}
    params["preferences"] = {"rwr1-base": {"policy": "rwr1", "against": "base", "source": "pairs", "clips": 1}}
    (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def soak(home: Path, target: str, moments: int, seed: int = 0, base: str | None = None) -> SoakRow:
    """Kill a target of a finished run at so many moments. base: address of the provider, where the target asks it.

    Raises AssertionError where a run that is not killed fails, or where too many end before their moment comes.
    """
    dice, killed, same, outlived, missed = random.Random(f"{seed}/{target}"), Counter[str](), 0, 0, 0
    calls, in_flight, twice = 0, 0, 0
    (home / "ledger.sqlite").unlink(missing_ok=True)
    times, whole, lock = go(home, target).times, contents(home, target), (home / "dvc.lock").read_bytes()
    while killed.total() < moments:
        (home / "ledger.sqlite").unlink(missing_ok=True)
        before = answered(base)
        victims = dice.choice(VICTIMS if target != EXPORT else VICTIMS[1:2])
        window = (times.begun, times.ended) if "stage" in victims else (0.0, times.all)
        ran = go(home, target, dice.uniform(*window), victims)
        if not ran.hit:
            missed, times = missed + 1, ran.times  # those of another load of the machine
            assert missed <= MISSES * moments, f"{target}: {missed} runs ended before their moment came"
            continue
        killed["+".join(victims)] += 1
        outlived += ran.outlived
        finish(home, target, lock)
        same += contents(home, target) == whole
        if target == PAID:
            lost, again = books(home / "ledger.sqlite")
            calls, in_flight, twice = calls + answered(base) - before, in_flight + lost, twice + again
    return SoakRow(target, killed, same, outlived, calls, in_flight, twice, times.all)


def command_of(target: str) -> list[str]:
    if target == EXPORT:
        return [sys.executable, "-m", "commands", "export", "--set", "runs/r1/samples", "--out", "exported"]
    return [*DVC, "repro", "--force", "--single-item", target]


def surroundings(home: Path) -> dict[str, str]:
    """Nothing is known from before: a ledger that each moment begins anew, and no kept verdicts. Stages fork."""
    more = {"FEEDBACK_LEDGER": str(home / "ledger.sqlite"), "FEEDBACK_VERDICTS": "off", "OPENAI_API_KEY": "x"}
    return environment() | more | {"STAGE_WORKERS": "2"}


class Times(NamedTuple):
    """Seconds since a command began."""

    begun: float  # when its stage was first seen
    ended: float  # when its stage was last seen
    all: float


class Ran(NamedTuple):
    """A run of a target."""

    times: Times
    hit: bool  # whether its victims were killed; else it ran to its end
    outlived: bool  # whether the stage, or a fork of it, did not end after a kill


def go(home: Path, target: str, moment: float = math.inf, victims: Sequence[str] = ()) -> Ran:
    """Run the target, and kill the victims after so many seconds.

    A stage that has not begun is waited for, where it is a victim.
    """
    quiet: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command_of(target), cwd=home, env=surroundings(home), **quiet)
    began, seen, stages = time.monotonic(), [0.0], list[psutil.Process]()
    while first.poll() is None and (time.monotonic() < began + moment or ("stage" in victims and not stages)):
        time.sleep(STEP)
        if stages := stages_of(first, target):
            seen.append(time.monotonic() - began)
    if "dvc" in victims and first.poll() is None:
        first.kill()
    for stage in stages[:1] if "stage" in victims else []:  # its forks end by themselves
        with suppress(psutil.Error):
            stage.kill()
    hit = first.wait() != 0 and (bool(stages) or "stage" not in victims)
    assert victims or not hit, f"{target} ended with {first.returncode}"
    outlived = bool(psutil.wait_procs(stages, timeout=ENDS)[1]) if hit else False
    return Ran(Times(*(seen[1:2] or seen), seen[-1], time.monotonic() - began), hit, outlived)


def stages_of(first: "subprocess.Popen[bytes]", target: str) -> list[psutil.Process]:
    """The running processes of the command that are the stage's, its forks last."""
    try:
        process = psutil.Process(first.pid)
        found = [process] if target == EXPORT else [one for one in process.children(recursive=True) if is_stage(one)]
        return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []


def finish(home: Path, target: str, lock: bytes) -> None:
    """Run the target to its end. lock: dvc.lock for where dvc was killed while it wrote it; elsewhere git has one."""
    mend(home)
    if not (home / "dvc.lock").is_file():
        (home / "dvc.lock").write_bytes(lock)
    done = subprocess.run(command_of(target), cwd=home, env=surroundings(home), capture_output=True, text=True)
    assert done.returncode == 0, f"{target}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


def contents(home: Path, target: str) -> dict[str, str]:
    """sha256 of every file that the target writes, by path; and what is left in .state that is not finished.

    Of its figures without OF_A_START, which no two runs share.
    """
    if target == EXPORT:
        outs = [home / "exported"]
    else:
        lock = yaml.safe_load((home / "dvc.lock").read_text())
        outs = [home / out["path"] for out in lock["stages"][target]["outs"]]
    left = [path for path in (home / ".state").glob("*/*") if path.name != "lock" and not is_finished(path)]
    files = unpacked([*outs, *left])
    return {str(file.relative_to(home)): sha256(_compared(file)).hexdigest() for file in files}


def _compared(file: Path) -> bytes:
    figures = json.loads(file.read_text()) if file.suffix == ".json" and "metrics" in file.parts else None
    if not isinstance(figures, dict) or COST not in figures:
        return file.read_bytes()
    amounts = {key: value for key, value in figures[COST].items() if key not in OF_A_START}
    return json.dumps(figures | {COST: amounts}).encode()


def is_finished(path: Path) -> bool:
    """Whether it is of work that is kept until DVC has saved its result."""
    return path.with_name(f"{path.name.partition('.')[0]}{FINISHED}").is_file()


def unpacked(paths: Sequence[Path]) -> list[Path]:
    return [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


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
