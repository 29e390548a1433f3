"""Stages `build` and `build-compare`: from labels to the rows that training reads."""

from dataclasses import asdict, dataclass
from pathlib import Path

import click

from stages.command import PATH, metrics_option, out_option, stage_command, write_metrics
from stages.params import block, read_section
from stages.state import stage_state


@dataclass(frozen=True)
class BuildConfig:
    """Section `build`; params.yaml says what each key means."""

    reward: str
    scale: float
    shift: float
    pairs: str
    pairs_per_prompt: int
    min_margin: float
    seed: int
    quantile: float = 0.5

    def __post_init__(self) -> None:
        from rl.pairing import check_pairing
        from rl.rewards import check_reward, check_shaping

        check_reward(self.reward)
        check_shaping(self.scale, self.shift)
        check_pairing(self.pairs, self.pairs_per_prompt, self.min_margin, self.quantile)


def build_config(source: str) -> BuildConfig:
    """What section `build` says of labels of this source: its own keys under `build.sources` come first."""
    given = block("build")
    common = {key: value for key, value in given.items() if key != "sources"}
    own = (given.get("sources") or {}).get(source) or {}
    return read_section(common | own, BuildConfig, f"build.sources.{source}" if own else "build")


@stage_command
@click.option("--set", "clips", type=PATH, required=True, help="Folder of the clip set.")
@click.option("--labels", type=PATH, required=True, help="Folder of its labels.")
@out_option
@metrics_option
def main(clips: Path, labels: Path, out: Path, metrics: Path) -> None:
    """Build weighted and paired datasets from a labelled clip set."""
    from data.manifest import publish, read_manifest
    from data.records import Label, read_rows
    from data.store import ClipSet
    from rl.datasets import build
    from rl.tables import write_tables

    clip_set, source = ClipSet.open(clips), read_manifest(labels, "labels")["facts"]["source"]
    config = build_config(source)
    made, labelled = {"round": clip_set.manifest["facts"]["set"]}, {"source": source, "reward": config.reward}
    with stage_state("build", out, config, [clips, labels]) as work:
        rows = read_rows(labels / "labels.parquet", Label)
        tables = build(clip_set.samples, rows, name=f"{made['round']}/{source}", **asdict(config))
        write_tables(work / "datasets", clip_set.samples, *tables, clips=made, labels=labelled)
        publish(work / "datasets", out)
    write_metrics(metrics, {key: value for key, value in tables.composition.items() if isinstance(value, int)})


if __name__ == "__main__":
    main()
