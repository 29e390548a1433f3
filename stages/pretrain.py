"""Stage `pretrain`: Algorithm 1, line 1, for the models that ship with the project. Frozen: their weights ship too."""

from pathlib import Path

from pipeline.command import out_option, stage_command
from pipeline.params import load_params
from pipeline.state import stage_state

TRAINERS = {"tabletop": "tabletop.pretraining.run"}  # or a dotted path of your own


@stage_command
@out_option
def main(out: Path) -> None:
    """Train the models of pretrain.yaml by the trainer that it names."""
    from data.config import read_config
    from data.doors import find

    values = load_params(Path("pretrain.yaml"))
    cls = find(values.pop("trainer", None), TRAINERS, "pretrain.yaml: trainer", "PretrainConfig")
    config = read_config(cls, values, "pretrain.yaml")
    with stage_state("pretrain", out, config, config.inputs()) as work:
        config.train(work, out)


if __name__ == "__main__":
    main()
