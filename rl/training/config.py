"""The settings of a training run, checked one by one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from rl.objectives import Objective
from rl.training import timesteps

SCHEDULES = ("constant", "linear")

Rule = tuple[Callable[[Any], bool], str]  # whether a value is right, and what would be


@dataclass(frozen=True)
class PolicyConfig:
    """What every run that trains a policy is told; params.yaml says what each value means.

    batch_size: rows (clips, or pairs) of an optimizer step, over all processes and micro-batches.
    gradient_accumulation: into how many forwards a process splits its share; memory only, the gradient is the same.
    """

    full: bool
    lora_rank: int
    lora_alpha: float
    lora_targets: Sequence[str] | None
    learning_rate: float
    betas: Sequence[float]
    eps: float
    weight_decay: float
    max_grad_norm: float
    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    precision: str
    checkpoint_every: int
    log_every: int
    seed: int


@dataclass(frozen=True)
class TrainConfig(PolicyConfig):
    """How a policy is trained on clips. Raises ValueError naming a value that is wrong.

    timesteps: the distribution's `name` and its settings.
    beta, chosen_error_weight: of DPO alone.
    """

    warmup_steps: int
    schedule: str
    steps: int
    timesteps: Mapping[str, Any]
    caption_dropout: float
    beta: float | None = None
    chosen_error_weight: float | None = None

    def __post_init__(self) -> None:
        check(self, POLICY_RULES | _RULES)
        timesteps.make(**self.timesteps)


def check(config: PolicyConfig, rules: Mapping[str, Rule]) -> None:
    """Raises ValueError naming the first value of the config that breaks its rule, and what would be right."""
    for key, (holds, right) in rules.items():
        if not holds(getattr(config, key)):
            raise ValueError(f"{key} must be {right}, found {getattr(config, key)!r}")


def configure(objective: Objective, values: Mapping[str, Any]) -> TrainConfig:
    """The settings of one run.

    values: the sections train.common and train.<objective>, merged. Raises ValueError naming each key that is unknown
    or missing, or that another objective reads but not this one.
    """
    known = {field.name: field.default is MISSING for field in fields(TrainConfig)}
    required = {key for key, is_required in known.items() if is_required} | set(objective.settings)
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown key in train.{objective.name}: {', '.join(unknown)}; known: {', '.join(known)}")
    if unread := sorted(set(values) - required):
        raise ValueError(f"key that {objective.name} does not read in train.{objective.name}: {', '.join(unread)}")
    if missing := sorted(required - set(values)):
        raise ValueError(f"missing key in train.{objective.name} (or train.common): {', '.join(missing)}")
    return TrainConfig(**values)


def is_whole(value: Any) -> bool:
    """Whether it is an int, True and False being none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float."""
    return is_whole(value) or isinstance(value, float)


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(holds(item) for item in value)


def one_of(known: Sequence[str]) -> Rule:
    """The rule of a word among these."""
    return lambda v: isinstance(v, str) and v in known, " or ".join(known)


def or_null(rule: Rule) -> Rule:
    """That rule, or null."""
    holds, right = rule
    return lambda v: v is None or holds(v), f"{right}, or null"


BOOL: Rule = (lambda v: isinstance(v, bool), "true or false")
COUNT: Rule = (lambda v: is_whole(v) and v >= 1, "a whole number >= 1")
WHOLE_NOT_NEGATIVE: Rule = (lambda v: is_whole(v) and v >= 0, "a whole number >= 0")
POSITIVE: Rule = (lambda v: is_number(v) and v > 0, "a number > 0")
NOT_NEGATIVE: Rule = (lambda v: is_number(v) and v >= 0, "a number >= 0")

POLICY_RULES: dict[str, Rule] = {
    "full": BOOL,
    "lora_rank": COUNT,
    "lora_alpha": POSITIVE,
    "lora_targets": (
        lambda v: v is None or (_is_list(v, lambda item: isinstance(item, str)) and len(v) > 0),
        "a list of module name endings, or null for the family's own",
    ),
    "learning_rate": POSITIVE,
    "betas": (lambda v: _is_list(v, lambda b: is_number(b) and 0 <= b < 1) and len(v) == 2, "two numbers in [0, 1)"),
    "eps": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "max_grad_norm": POSITIVE,
    "batch_size": COUNT,
    "gradient_accumulation": COUNT,
    "gradient_checkpointing": BOOL,
    "precision": one_of(("fp32", "bf16")),
    "checkpoint_every": COUNT,
    "log_every": COUNT,
    "seed": (is_whole, "a whole number"),
}
_RULES: dict[str, Rule] = {
    "warmup_steps": WHOLE_NOT_NEGATIVE,
    "schedule": one_of(SCHEDULES),
    "steps": COUNT,
    "timesteps": (lambda v: isinstance(v, Mapping) and "name" in v, "a mapping with a name, such as {name: uniform}"),
    "caption_dropout": (lambda v: is_number(v) and 0 <= v <= 1, "a probability"),
    "beta": (lambda v: v is None or (is_number(v) and v > 0), "a number > 0"),
    "chosen_error_weight": (lambda v: v is None or (is_number(v) and v >= 0), "a number >= 0"),
}
