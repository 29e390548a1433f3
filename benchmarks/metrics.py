"""What metrics cost: decoding alone, each metric by itself, and all of them in one pass over the clips.

    python -m benchmarks.metrics [--clips 32] [--size 240x416x33]

Clips of noise that moves, encoded as clip sets are. No weights but the shipped tiny CLIP's are needed.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from data.records import Sample
from data.store import read_clip
from data.video import write_video
from feedback.core.kinds import make_source
from feedback.core.source import Request

METRICS = {
    "flickering": {"kind": "temporal_flickering"},
    "flow": {"kind": "optical_flow_dis"},
    "clip": {"kind": "clip", "path": "models/tabletop/clip", "frames": 8},
}


@click.command(help=__doc__)
@click.option("--clips", default=32)
@click.option("--size", default="240x416x33", help="Height x width x frames.")
def main(clips: int, size: str) -> None:
    height, width, frames = (int(part) for part in size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        requests = [make_clip(Path(folder), number, frames, height, width) for number in range(clips)]
        start = time.monotonic()
        for request in requests:
            read_clip(request.path, request.sample)
        decoding = time.monotonic() - start
        print(f"{clips} clips of {size}: decoding, one after the other {1000 * decoding / clips:.1f} ms a clip")
        single = sum(measure_seconds({name: block}, requests) for name, block in METRICS.items())
        together = measure_seconds(METRICS, requests)
        print(f"all at once take {together / single:.2f} of the time of one after the other")


def measure_seconds(metrics: Mapping[str, dict], requests: list[Request]) -> float:
    """Seconds for these metrics on all clips, decoding included; printed."""
    source = make_source("m", {"kind": "metrics", "of": dict(metrics), "batch_size": 8})
    next(iter(source.judge(requests[:1])))  # some work is slow only the first time
    start = time.monotonic()
    for _ in source.judge(requests):
        continue
    seconds = time.monotonic() - start
    print(f"{' + '.join(metrics)}: {1000 * seconds / len(requests):.1f} ms a clip")
    return seconds


def make_clip(folder: Path, number: int, frames: int, height: int, width: int) -> Request:
    """A clip of coarse noise that moves to the right by two pixels a frame."""
    coarse = np.random.default_rng(number).integers(0, 256, (height // 8, (width + 2 * frames) // 8 + 1, 3), np.uint8)
    wide = coarse.repeat(8, axis=0).repeat(8, axis=1)
    clip = np.stack([wide[:, 2 * frame : 2 * frame + width] for frame in range(frames)])
    path = folder / f"{number}.mp4"
    write_video(path, clip, 16.0)
    facts = ("p", "a red ball", "c", "train", "base", number, frames, 16.0, clip.shape[1], width, path.name)
    return Request(Sample(str(number), *facts), path)


if __name__ == "__main__":
    main()
