"""The settings of an online run; configs/recipes/common.yaml says what each value means."""

from typing import Annotated, Literal

from annotated_types import Ge
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, NotNegative, WholeNotNegative
from generators.core.solvers import Solver
from rl.training.config import PolicyConfig

ROLLOUTS = {"random_step": "renoise", "last_steps": "gradient_steps"}  # by name, the setting that it alone reads


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OnlineConfig(PolicyConfig):
    """How a policy is trained by a judge. A setting of the other rollout is None.

    batch_size: clips of an update, over all processes and micro-batches.
    stop_below: the run ends with the first update whose mean loss a question is below it, in nats where the judges'
        losses are. VLM-as-Teacher's summary has a reward threshold of 0.1, after 50 updates at most; it is read here
        as such a loss: p of 0.90. The summary does not say more, nor on which noise: here it is that of the update.
    velocity_weight: of the mean squared distance of the policy's predictions to its start's.
    """

    rollout: Literal["random_step", "last_steps"]
    renoise: Literal["fresh", "same", "none"] | None
    gradient_steps: Count | None
    noise: Literal["fresh", "fixed"]
    steps: Count
    solver: Solver
    guidance: Annotated[float, Ge(1)]  # 1 is off
    negative_prompt: str | None = None  # what guidance leads away from; None: the pipeline's own; "": the empty caption
    updates: Count
    warmup_updates: WholeNotNegative
    velocity_weight: NotNegative
    held_out_every: Count | None
    held_out_tolerance: NotNegative
    stop_below: float | None

    def __post_init__(self) -> None:
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
