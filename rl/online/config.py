"""The settings of an online run, checked one by one."""

from dataclasses import dataclass
from typing import Any

from generators.core.generator import SOLVERS
from rl.training.config import (
    COUNT,
    NOT_NEGATIVE,
    POLICY_RULES,
    WHOLE_NOT_NEGATIVE,
    PolicyConfig,
    Rule,
    check,
    is_number,
    one_of,
    or_null,
)

NOISES = ("fresh", "fixed")
RENOISES = ("fresh", "same", "none")
ROLLOUTS = {"random_step": "renoise", "last_steps": "gradient_steps"}  # by name, the setting that it alone reads


@dataclass(frozen=True)
class OnlineConfig(PolicyConfig):
    """How a policy is trained by a judge; params.yaml says what each value means.

    Raises ValueError naming a value that is wrong. A setting of the other rollout is null.
    batch_size: clips of an update, over all processes and micro-batches.
    stop_below: the run ends with the first update whose mean loss a question is below it, in nats where the judges'
        losses are. What VLM-as-Teacher's summary calls a reward threshold of 0.1, after 50 updates at most, is read
        as such a loss: p of 0.90. The summary does not say more.
    velocity_weight: of the mean squared distance of the policy's predictions to its start's.
    """

    rollout: str
    renoise: str | None
    gradient_steps: int | None
    noise: str
    steps: int
    solver: str
    guidance: float
    updates: int
    warmup_updates: int
    velocity_weight: float
    held_out_every: int | None
    held_out_tolerance: float
    stop_below: float | None

    def __post_init__(self) -> None:
        check(self, POLICY_RULES | _RULES)
        for rollout, key in ROLLOUTS.items():
            if (rollout == self.rollout) == (getattr(self, key) is None):
                wanted = "must be set for" if rollout == self.rollout else "must be null, being not read by"
                raise ValueError(f"{key} {wanted} rollout {self.rollout}, found {getattr(self, key)!r}")
        if self.gradient_steps is not None and self.gradient_steps > self.steps:
            raise ValueError(f"gradient_steps must be at most steps ({self.steps}), found {self.gradient_steps}")
        if self.held_out_every is not None and self.held_out_every % self.checkpoint_every != 0:
            raise ValueError(
                f"held_out_every must be a multiple of checkpoint_every ({self.checkpoint_every}), since the best"
                f" checkpoint is kept; found {self.held_out_every}"
            )


def _is_guidance(value: Any) -> bool:
    return is_number(value) and value >= 1


_RULES: dict[str, Rule] = {
    "rollout": one_of(tuple(ROLLOUTS)),
    "renoise": or_null(one_of(RENOISES)),
    "gradient_steps": or_null(COUNT),
    "noise": one_of(NOISES),
    "steps": COUNT,
    "solver": one_of(SOLVERS),
    "guidance": (_is_guidance, "a number >= 1, 1 being off"),
    "updates": COUNT,
    "warmup_updates": WHOLE_NOT_NEGATIVE,
    "velocity_weight": NOT_NEGATIVE,
    "held_out_every": or_null(COUNT),
    "held_out_tolerance": NOT_NEGATIVE,
    "stop_below": or_null((is_number, "a number")),
}
