"""Stage `pool`: several rounds as one, for a policy that is trained on the clips of all."""

from pathlib import Path

import click

from pipeline.command import PATH, metrics_option, out_option, stage_command, write_metrics
from pipeline.state import stage_state


@stage_command
@click.option("--set", "clips", type=PATH, multiple=True, required=True, help="Folder of a round's clip set; repeated.")
@click.option("--rows", type=PATH, multiple=True, required=True, help="Folder of a round's datasets; repeated.")
@out_option
@metrics_option
def main(clips: tuple[Path, ...], rows: tuple[Path, ...], out: Path, metrics: Path) -> None:
    """Join rounds: their clip sets are named, and their rows stand one round after the other."""
    from data.manifest import publish, write_manifest
    from data.pools import write_pool
    from rl.pools import COUNTED, pool_tables

    with stage_state("pool", out, {}, [*clips, *rows]) as work:
        folder = work / "pool"
        rounds = write_pool(folder / "samples", clips, out / "samples")
        composition = pool_tables(folder / "datasets", out.name, rows)
        write_manifest(folder, "pool", rounds=rounds)
        publish(folder, out)
        counts = {key: composition[key] for key in (*COUNTED, "weights")}
        write_metrics(metrics, {"rounds": len(rounds), **counts})


if __name__ == "__main__":
    main()
