"""How fast a network judge labels, against a local server of a given latency.

    python -m benchmarks.labelling [--clips 2048] [--latency 1.0] [--in-flight 64] [--kind gpt]

Prints the throughput as a part of the ideal (in flight / latency), the client's CPU time a call, and its peak memory at
a quarter of the clips and at all of them. The server runs in a process of its own, on another core than the client
where there are two, so that the client is measured alone; the ledger is a temporary one.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import click
import numpy as np
import torch

from data.records import Sample
from data.store import ClipSet, ClipSetWriter, encode_clips
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set
from tests.support.conditions import blank_conditions

PORT = 18231
PATHS = {"gpt": "/v1", "served": "/v1", "gemini": ""}


@click.command(help=__doc__)
@click.option("--clips", default=2048, help="A multiple of --in-flight, so that no round is part empty.")
@click.option("--latency", default=1.0, help="Seconds.")
@click.option("--in-flight", default=64)
@click.option("--kind", type=click.Choice(sorted(PATHS)), default="gpt")
def main(clips: int, latency: float, in_flight: int, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"FEEDBACK_LEDGER": str(home / "ledger.sqlite"), "OPENAI_API_KEY": "x", "GEMINI_API_KEY": "x"}
        behaviour = json.dumps({"latency": latency})
        mine, other = two_cores()
        command = [sys.executable, "-m", "tests.support.faulty_provider", str(PORT), behaviour]
        server = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, other))
        os.sched_setaffinity(0, mine)
        try:
            wait_for(f"http://127.0.0.1:{PORT}/truth")
            block = {
                "kind": kind, "model": "m", "rubric": "feedback/rubrics/review.yaml", "concurrency": in_flight,
                "base_url": f"http://127.0.0.1:{PORT}{PATHS[kind]}",
            }  # fmt: skip
            for count in (clips // 4, clips):
                measure(make_clips(home / f"set-{count}", count), block, home / f"labels-{count}", latency, in_flight)
        finally:
            server.kill()


def measure(clip_set: ClipSet, block: dict, out: Path, latency: float, in_flight: int) -> None:
    source = make_source("judge", block)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    label_clip_set(clip_set, source, out.with_name("work-" + out.name), out, batch_size=64)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    count = len(clip_set.samples)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ideal = count / in_flight * latency
    print(
        f"{count} clips, {latency:g} s latency, {in_flight} in flight: {seconds:.1f} s, {ideal / seconds:.1%} of the "
        f"ideal throughput; client CPU {1000 * cpu / count:.1f} ms a call; peak memory {after.ru_maxrss / 1024:.0f} MB"
    )


def two_cores() -> tuple[set[int], set[int]]:
    """A core for the client and another for the server; all of them for both where there is one alone."""
    cores = os.sched_getaffinity(0)
    return ({min(cores)}, {max(cores)}) if len(cores) > 1 else (cores, cores)


def make_clips(folder: Path, count: int) -> ClipSet:
    """A clip set of noise, 9 frames of 32 x 32, each clip another."""
    writer, random = ClipSetWriter(folder), np.random.default_rng(count)
    for index, first in enumerate(range(0, count, 100)):
        names = [f"clip{number:05d}" for number in range(first, min(first + 100, count))]
        samples = [
            Sample(name, "p", "pushing red ball", "c", "train", "base", 0, 9, 8.0, 32, 32, f"videos/{name}.mp4")
            for name in names
        ]
        frames = random.integers(0, 256, (len(names), 9, 32, 32, 3), dtype=np.uint8)
        writer.add_batch(index, samples, encode_clips(samples, frames), torch.zeros(len(names), 1, 1, 1, 1))
    writer.finish(blank_conditions(["p"]), {})
    return ClipSet.open(folder)


def wait_for(url: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(url, timeout=1).read()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


if __name__ == "__main__":
    main()
