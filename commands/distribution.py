"""FVD, FID and IS of a set of clips against reference clips."""

import logging
from pathlib import Path

import click

from pipeline.command import PATH, device_option, stage_command, write_metrics

logger = logging.getLogger(__name__)


@stage_command
@click.option("--set", "folder", type=PATH, required=True, help="Clip set, or folder of mp4s.")
@click.option("--reference", type=PATH, help="Clip set or folder of mp4s to compare with; `is` alone needs none.")
@click.option(
    "--metric", "metrics", multiple=True, default=("fid", "is", "fvd"), show_default=True, help="May be repeated."
)
@click.option(
    "--weights",
    multiple=True,
    metavar="NETWORK=FILE",
    help="inception=… for fid and is, i3d=… for fvd: a path, or hf://owner/name/file. May be repeated.",
)
@click.option("--frames", type=click.IntRange(min=1), help="Only the first frames of each clip. Default: all.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Clips a forward.")
@click.option("--allow-few", is_flag=True, help="Compute figures of fewer clips than the minimum too, and mark them.")
@click.option("--out", type=PATH, required=True, help="JSON file to write.")
@device_option
def main(
    folder: Path,
    reference: Path | None,
    metrics: tuple[str, ...],
    weights: tuple[str, ...],
    frames: int | None,
    batch_size: int,
    allow_few: bool,
    out: Path,
    device: str,
) -> None:
    """Measure FVD, FID and IS (Table 3 of Furuta et al.). docs/distribution.md says what they need and mean."""
    from cluster.devices import pick_device
    from evaluation.distribution import find_clips, find_weights, measure

    wrong = [given for given in weights if "=" not in given]
    if wrong:
        raise ValueError(f"--weights {wrong[0]}: expected NETWORK=FILE, such as inception=weights.pth")
    found = measure(
        find_clips(folder),
        find_clips(reference) if reference else None,
        metrics,
        find_weights(dict(given.split("=", 1) for given in weights), metrics),
        frames,
        batch_size,
        pick_device(device),
        allow_few,
    )
    for metric, figure in found["metrics"].items():
        logger.info("%s %.4g%s", metric, figure["value"], " (of too few)" if figure["few"] else "")
    write_metrics(out, found)
