"""What a recipe of online training says, section by section."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # torch takes seconds to import
    from feedback.differentiable.augment import Augmentation
    from feedback.questions import Writing
    from generators.core.decoding import Decoding
    from rl.online.config import OnlineConfig


@dataclass(frozen=True)
class JudgeSettings:
    """What a judge is shown, and what becomes its loss."""

    loss: str | None  # a name in feedback.differentiable.losses; null: a metric, whose loss is minus its score
    frames: int | None  # of the generated clip; null: a metric's own
    reference_frames: int | None  # of the real clip; null: none is shown
    ask_template: str  # what a judge is told of a question of --ask, with {question} in it

    def __post_init__(self) -> None:
        for key in ("frames", "reference_frames"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"{key} is {value}, expected at least 1, or null")


@dataclass(frozen=True)
class SamplingSettings:
    """How the clips before and after are sampled, beside the engine's solver and guidance."""

    inference_steps: int
    shift: float | None  # of the flow's time, in training too; null: the generator's own


class Recipe(NamedTuple):
    """Everything that an online run is told beside its start, its prompts and its judges."""

    engine: "OnlineConfig"
    judge: JudgeSettings
    questions: "Writing | None"  # null for a metric, which is asked nothing
    decoding: "Decoding"
    augment: "Augmentation"
    sampling: SamplingSettings
