"""The settings of a training run; params.yaml says what each value means."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt, MinLen
from pydantic import AfterValidator, WrapValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, NotNegative, Positive, Probability, WholeNotNegative, read_config
from generators.core.solvers import Solver
from rl.objectives import FROM_AUDIT, Objective
from rl.training.timesteps import Distribution

Moment = Annotated[float, Ge(0), Lt(1)]


def _label_noise(value: Any) -> Any:
    if value != FROM_AUDIT and (isinstance(value, bool | str) or not 0 <= value < 0.5):
        raise ValueError(f"{value!r} is no label noise, expected a number from 0 to below 0.5, or {FROM_AUDIT}")
    return value


LabelNoise = Annotated[float | str, AfterValidator(_label_noise)]


def _keep_whole(value: Any, validate: Any) -> Any:
    """The value itself where it is a whole number, which pydantic would make a float."""
    checked = validate(value)
    return value if isinstance(value, int) else checked


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PolicyConfig:
    """The settings of every run that trains a policy.

    batch_size: rows (clips, or pairs) of an optimizer step, over all processes and micro-batches.
    gradient_accumulation: the number of forwards that a process splits its share into; memory only, the gradient is
        the same.
    lora_targets: module name endings; None for the family's own.
    denoisers: of a generator with several, those that are trained, by the pipeline's names; None: all. t is drawn where
        it is their turn, and the others need not be loaded.
    shard: whether each process keeps a part of the weights (rl.training.sharding).
    """

    full: bool
    lora_rank: Count
    lora_alpha: Positive
    lora_targets: Annotated[tuple[str, ...], MinLen(1)] | None
    learning_rate: Positive
    betas: tuple[Moment, Moment]
    eps: Positive
    weight_decay: NotNegative
    max_grad_norm: Positive
    batch_size: Count
    gradient_accumulation: Count
    gradient_checkpointing: bool
    precision: Literal["fp32", "bf16"]
    deterministic: bool = True
    checkpoint_every: Count
    log_every: Count
    seed: int
    denoisers: Annotated[tuple[str, ...], MinLen(1)] | None = None
    shard: bool = False


@dataclass(frozen=True, config=STRICT)
class PreviewConfig:
    """Of how many prompts a clip is drawn while a policy is trained, every how many steps, and how it is sampled."""

    prompts: Count
    every: Count
    steps: Count  # of the solver
    guidance: Annotated[float, Ge(1)]  # 1 is off
    solver: Solver


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TrainConfig(PolicyConfig):
    """How a policy is trained on clips, by an objective without settings of its own.

    preview: pictures of the policy, which change nothing that is trained; None: none.
    """

    # The adapter's file holds it, so 16 stays 16: its bytes must not change.
    lora_alpha: Annotated[Positive, WrapValidator(_keep_whole)]
    warmup_steps: WholeNotNegative
    schedule: Literal["constant", "linear"]
    steps: Count
    timesteps: Distribution
    caption_dropout: Probability
    # What replaces a dropped caption: the empty one, or the negative prompt that its clips were sampled with.
    dropped_caption: Literal["empty", "negative"] = "empty"
    # Train a distilled denoiser at another embedded guidance than its clips were sampled at.
    force_embedded_guidance: bool = False
    preview: PreviewConfig | None = None

    def __post_init__(self) -> None:
        if self.preview and self.preview.every % self.checkpoint_every != 0:
            raise ValueError(
                f"preview.every must be a multiple of checkpoint_every ({self.checkpoint_every}), found"
                f" {self.preview.every}"
            )

    def of(self, objective: Objective) -> dict[str, Any]:
        """The objective's own settings, by name."""
        return {name: getattr(self, name) for name in objective.settings}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DpoConfig(TrainConfig):
    """How a policy is trained on pairs of clips; rl/objectives/dpo.py has the equations.

    label_noise: the share of pairs whose order is wrong, or "from_audit", which stage train replaces by that number.
    """

    beta: Positive
    chosen_error_weight: NotNegative
    label_noise: LabelNoise = 0.0
    noise_form: Literal["smoothed", "unbiased"] = "smoothed"
    margin_weight: bool = False
    hinge: NotNegative = 0.0
    time_weight: bool = False
    form: Literal["sigmoid", "ipo"] = "sigmoid"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class KtoConfig(TrainConfig):
    """How a policy is trained on accepted and rejected clips; rl/objectives/kto.py has the equations."""

    beta: Positive
    desirable_weight: NotNegative
    undesirable_weight: NotNegative


@dataclass(frozen=True, config=STRICT, kw_only=True)
class NftConfig(TrainConfig):
    """How a policy is trained toward good clips and away from bad ones; rl/objectives/nft.py has the equations."""

    beta: Positive
    normalised: bool
    reward_from: Literal["reward", "advantage"]
    advantage_clip: Positive


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DenseDpoConfig(TrainConfig):
    """How a policy is trained on pairs with a preference in each latent frame; rl/objectives/dense.py."""

    beta: Positive


NULL = ("beta", "chosen_error_weight")  # in every policy.json, null where the objective has none
# By objective; every other has TrainConfig
CONFIGS: dict[str, type[TrainConfig]] = {
    "dpo": DpoConfig,
    "kto": KtoConfig,
    "nft": NftConfig,
    "dense_dpo": DenseDpoConfig,
}


def configure(objective: Objective, values: Mapping[str, Any]) -> TrainConfig:
    """The settings of one run.

    values: the sections train.common and train.<objective>, merged. Raises ConfigError naming each key that is unknown
    to this objective, missing or wrong, and the known keys.
    """
    return read_config(CONFIGS.get(objective.name, TrainConfig), values, f"train.{objective.name}")


def as_written(config: PolicyConfig) -> dict[str, Any]:
    """The settings as policy.json holds them: those that every objective's has stand there as null without a value.

    Without `preview`, which shapes no weight, so that one and the same policy has one policy.json, and without `shard`
    and the options of DPO where they are off, so that policies of earlier versions have theirs.
    """
    off: dict[str, Any] = {"shard": False}
    if isinstance(config, TrainConfig):
        common = {field.name for field in fields(TrainConfig)}
        off |= {field.name: field.default for field in fields(config) if field.name not in common}
    written = {name: value for name, value in asdict(config).items() if name not in off or value != off[name]}
    written.pop("preview", None)
    return (dict.fromkeys(NULL) if isinstance(config, TrainConfig) else {}) | written
