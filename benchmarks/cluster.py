"""What the cluster engine costs: throughput of 1, 2, 4 and 8 workers over the ideal, and the bytes of a clip.

A Ray cluster on loopback addresses of this machine, and units that sleep 0.5 s for the 4 minutes that a clip of Wan 2.1
1.3B takes, with results that are as much smaller. Workers are started before the clock.

    python -m benchmarks.cluster [--seconds 0.5] [--units 20]
"""

import os
import pickle
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from cluster.pool import Here, Pool, Unit, pool_of
from generators.core.rollout import Made
from tests.support.ray_cluster import LoopbackCluster

WORKERS = (1, 2, 4, 8)
CLIP_SECONDS = 240.0  # of a GPU, about
LATENTS = (1, 16, 21, 60, 104)  # of 81 frames of 480 x 832
MP4 = 4 * 2**20  # bytes of such a clip at crf 12, about


class Sleeper:
    """Takes its time, and returns as much as it is told."""

    def __init__(self, seconds: float, size: int) -> None:
        self.seconds, self.result = seconds, os.urandom(size)

    def work(self, _: int) -> bytes:
        time.sleep(self.seconds)
        return self.result


def units(count: int) -> list[Unit[int]]:
    return [Unit(number, f"clip {number}", number) for number in range(count)]


def timed(pool: Pool, make: Callable[[], Any], count: int) -> float:
    began = time.monotonic()
    assert sum(1 for _ in pool.run(make, units(count))) == count
    return time.monotonic() - began


@click.command(help=__doc__)
@click.option("--seconds", default=0.5, help="Of a unit.")
@click.option("--units", "count", default=20, help="Of each worker.")
def main(seconds: float, count: int) -> None:
    clip = len(pickle.dumps(Made([bytes(MP4)], torch.zeros(LATENTS)), protocol=5))
    print(f"bytes through the driver: {clip / 2**20:.1f} MiB a clip of 81 frames of 480 x 832")
    make = partial(Sleeper, seconds, int(clip * seconds / CLIP_SECONDS))
    ideal = count * seconds
    print(f"here: {timed(Here(), make, count) / ideal - 1:+.2%} over the units' own time", flush=True)
    with tempfile.TemporaryDirectory(prefix="ray") as folder, LoopbackCluster(Path(folder)) as cluster:
        cluster.join(cpus=max(WORKERS))
        for workers in WORKERS:
            pool = pool_of("ray", str(workers), "cpu")
            while pool.status().get("workers", 0) < workers:
                timed(pool, make, 4 * workers)
            took = timed(pool, make, count * workers)
            print(f"{workers} workers: {took:.2f} s, {ideal / took:.1%} of the ideal throughput", flush=True)
            pool.release()


if __name__ == "__main__":
    main()
