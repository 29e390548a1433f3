"""The settings of an online run; configs/recipes/common.yaml says what each value means."""

import math
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, NotNegative, Positive, Probability, WholeNotNegative
from generators.core.solvers import Solver
from rl.online.grpo import Spread
from rl.online.sde import SOLVER
from rl.training.config import PolicyConfig
from rl.training.timesteps import Distribution

ROLLOUTS = {"random_step": "renoise", "last_steps": "gradient_steps"}  # by name, the setting that it alone reads


def _guidance(value: float | tuple[float, float]) -> float | tuple[float, float]:
    low, high = value if isinstance(value, tuple) else (value, math.inf)
    if not 1 <= low < high:
        found = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{found}, expected a number from 1 on, where it is off, or a range [low, high] of them")
    return value


Guidance = Annotated[float | tuple[float, float], AfterValidator(_guidance)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OnlineConfig(PolicyConfig):
    """How a policy is trained by a judge. A setting of the other rollout is None.

    batch_size: clips of an update, over all processes and micro-batches.
    stop_below: the run ends with the first update whose mean loss a question is below it, in nats where the judges'
        losses are. VLM-as-Teacher's summary has a reward threshold of 0.1, after 50 updates at most; it is read here
        as such a loss: p of 0.90. The summary does not say more, nor on which noise: here it is that of the update.
    velocity_weight: of the mean squared distance of the policy's predictions to its start's.
    guidance: 1 is off; a range [low, high]: that of an update is drawn from it uniformly; full samples have its middle.
    step_from: of rollout random_step: the solver's steps that the one with gradient is drawn from; of an odd number the
        first half has the middle one.
    stop_right: the run ends with the first check at which the training judge's score is at least so high, none of its
        answers below 1/2 where the check looks at single ones, and the held-out judge's above stop_held_out; it is
        kept.
    max_seconds: the run ends with the first update that is done so long after its (last) start, without loading.
    """

    rollout: Literal["random_step", "last_steps", "sde", "best"]
    renoise: Literal["fresh", "same", "none"] | None
    gradient_steps: Count | None
    noise: Literal["fresh", "fixed"]
    steps: Count
    solver: Solver
    guidance: Guidance
    negative_prompt: str | None = None  # what guidance leads away from; None: the pipeline's own; "": the empty caption
    updates: Count
    warmup_updates: WholeNotNegative
    velocity_weight: NotNegative
    held_out_every: Count | None
    held_out_tolerance: NotNegative
    stop_below: float | None
    stop_right: float | None
    stop_held_out: Probability
    max_seconds: Positive | None
    step_from: Literal["all", "first_half"]

    @property
    def full_guidance(self) -> float:
        """The guidance of full samples."""
        return sum(self.guidance) / 2 if isinstance(self.guidance, tuple) else self.guidance

    def __post_init__(self) -> None:
        if self.step_from != "all" and self.rollout != "random_step":
            raise ValueError(f"step_from must be all, being read by rollout random_step alone; found {self.step_from}")
        if self.stop_right is not None and self.held_out_every is None:
            raise ValueError("stop_right: the check decides, so held_out_every must be set")
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


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RewardsConfig(OnlineConfig):
    """How a policy is trained by rewards of its own clips, without a gradient through the judge.

    An update is an optimizer step; inner_epochs of them share the clips of one rollout. batch_size: clips of a rollout,
    group_size of each prompt. noise: of the clips' starts.
    """

    ROLLOUT: ClassVar[str]

    group_size: Annotated[int, Ge(2)]
    # Column of the judge's label; None: score where it has one, else p_accept, else label.
    reward: Literal["p_accept", "label", "score"] | None
    inner_epochs: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, wanted, why in (
            ("rollout", self.ROLLOUT, "the settings of groups are of it"),
            ("velocity_weight", 0, f"rollout {self.rollout} has no such penalty"),
            ("stop_below", None, f"rollout {self.rollout} has no loss of a question"),
        ):
            if getattr(self, key) != wanted:
                raise ValueError(f"{key} must be {wanted}, since {why}; found {getattr(self, key)!r}")
        if self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size must be a multiple of group_size ({self.group_size}), found {self.batch_size}"
            )
        for key in ("updates", "checkpoint_every"):
            if getattr(self, key) % self.inner_epochs:
                raise ValueError(
                    f"{key} must be a multiple of inner_epochs ({self.inner_epochs}), since a rollout is not kept for a"
                    f" run that resumes; found {getattr(self, key)}"
                )

    @property
    def rolled_out(self) -> int:
        """Clips of all rollouts, which are judged."""
        return self.updates // self.inner_epochs * self.batch_size


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GrpoConfig(RewardsConfig):
    """How a policy is trained by a policy gradient; rl/online/grpo.py, rl/online/sde.py.

    noise: of the clips' starts; that of the steps is always drawn anew.
    """

    ROLLOUT: ClassVar[str] = "sde"

    same_noise: bool  # whether the clips of a group start from the same noise
    noise_level: Positive  # a of the SDE
    timestep_fraction: Annotated[float, Gt(0), Le(1)]  # of the steps with noise, that are trained
    time_weight: NotNegative  # power of s_t / sqrt(dt), the weight of a step; 0: none
    advantage_spread: Spread
    advantage_clip: Positive
    ratio_clip: Annotated[float, Gt(0), Lt(1)]
    kl_weight: NotNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver != SOLVER:
            raise ValueError(
                f"solver must be {SOLVER}, since the steps of rollout sde are at its times; found {self.solver!r}"
            )
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, the last of which has no noise; found {self.steps}")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RaftConfig(RewardsConfig):
    """How a policy is trained on the best of its own clips; rl/online/raft.py."""

    ROLLOUT: ClassVar[str] = "best"

    keep: Count  # of a group's clips, at most so many are trained on
    timesteps: Distribution

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep >= self.group_size:
            raise ValueError(f"keep must be below group_size ({self.group_size}), found {self.keep}")


def engine_class(rollout: object) -> type[OnlineConfig]:
    """The settings of a recipe with that `engine.rollout`."""
    return next((one for one in (GrpoConfig, RaftConfig) if rollout == one.ROLLOUT), OnlineConfig)
