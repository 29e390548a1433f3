"""Stage `pretrain`: Algorithm 1, line 1, for the embedded tabletop world. Frozen: its weights ship."""

from pathlib import Path

from pipeline.command import out_option, stage_command
from pipeline.params import section
from pipeline.state import stage_state


@stage_command
@out_option
def main(out: Path) -> None:
    """Train the tabletop world's generator, judge and CLIP from rendered clips."""
    from tabletop.pretraining.run import PretrainConfig, pretrain

    config = section("pretrain", PretrainConfig)
    with stage_state("pretrain", out, config, [Path(config.prompts)]) as work:
        pretrain(config, work, out)


if __name__ == "__main__":
    main()
