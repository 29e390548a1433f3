"""How a reward model is trained; params.yaml says what each value means."""

from typing import Annotated

from annotated_types import Ge, Lt
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, NotNegative, Positive, WholeNotNegative


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RewardTraining:
    """Steps, batches and held-out prompts."""

    learning_rate: Positive
    warmup_steps: WholeNotNegative
    weight_decay: NotNegative
    max_grad_norm: Positive
    steps: Count
    batch_size: Count  # pairs a step
    forward_size: Count  # clips a forward
    held_out: Annotated[float, Ge(0), Lt(1)]  # share of the prompts with pairs
    checkpoint_every: Count
    log_every: Count
    seed: int

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.log_every != 0:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}, expected a multiple of log_every ({self.log_every}), so "
                "that a run that is resumed has the same log"
            )
