"""Stage `reward`: a Bradley-Terry reward model, trained on the pairs of a round or a pool, to be a source."""

from pathlib import Path

import click

from pipeline.command import PATH, device_option, metrics_option, out_option, stage_command, write_metrics
from pipeline.configs import RewardEntry, reward_config
from pipeline.cost import with_cost
from pipeline.identity import RECORDED
from pipeline.params import block, section
from pipeline.state import stage_state


@stage_command
@click.option("--name", required=True, help="An entry of reward.models.")
@click.option("--set", "clips", type=PATH, required=True, help="Folder of the clips of its round or pool.")
@click.option("--rows", type=PATH, required=True, help="Folder with their pairs.")
@out_option
@metrics_option
@device_option
def main(name: str, clips: Path, rows: Path, out: Path, metrics: Path, device: str) -> None:
    """Train a reward model on pairs of clips, and measure it on the pairs of held-out prompts."""
    from data.counts import Counts
    from pipeline.reward import RewardJob, train

    config = reward_config(section(f"reward.models.{name}", RewardEntry), block("reward.settings"))
    inputs = [clips, rows, Path(config.path), Path(config.rubric), RECORDED / f"rewards/{name}.json"]
    with stage_state("reward", out, {"reward": config}, inputs) as work:
        figures = train(RewardJob(name, config, clips, rows, out), work, device)
        write_metrics(metrics, with_cost(figures, Counts()))


if __name__ == "__main__":
    main()
