"""The clip that a run for one prompt with fixed noise is about, and the check that looks at it alone."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from data.prompts import Prompt
from pipeline.asked import RunJudge, clip_request, first_frame_at, score_of
from pipeline.judges import answers_about, in_unit
from pipeline.recipes import Recipe, as_written

if TYPE_CHECKING:  # torch takes seconds to import
    from collections.abc import Sequence

    import numpy as np

    from data.store import PromptConditions
    from feedback.core.source import Request
    from generators.core.encoding import Encoded
    from generators.core.generator import Generator
    from rl.online.guards import CurvePoint
    from rl.online.judging import WeightedJudge

logger = logging.getLogger(__name__)


def trained_clip(
    generator: "Generator", conditions: "PromptConditions", prompt_id: str, recipe: Recipe
) -> "np.ndarray":
    """A full sample of the policy of the moment: uint8 frames (F, H, W, 3).

    On the first noise that is trained on where the recipe's noise is fixed.
    """
    from generators.core.conditions import stacked
    from rl.online.trainer import fixed_noise

    engine = recipe.engine
    noise = fixed_noise(engine.seed, prompt_id, 0, generator.latent_shape)[None]
    latents = generator.sample(
        stacked([conditions.prompts[prompt_id]]), conditions.unwanted, noise, recipe.sampling.inference_steps,
        engine.full_guidance, engine.solver,
    )  # fmt: skip
    frames: np.ndarray = generator.decode(latents)[0].numpy()
    return frames


def purpose_of(what: str, prompt: Prompt, recipe: Recipe) -> str:
    """What the ledger adds up a run's calls about its clips under, so that budget_usd is that of the run."""
    made_of = json.dumps([prompt.prompt, prompt.image, as_written(recipe)], sort_keys=True, default=str)
    return f"online/{what}/{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


class TrainedClipCheck:
    """What the judges say of that clip, between updates: the trainer's `check` where engine.stop_right is set."""

    def __init__(
        self,
        generator: "Generator",
        judges: "Sequence[WeightedJudge] | RunJudge",
        held_out: RunJudge,
        prompt: Prompt,
        encoded: "Encoded",
        recipe: Recipe,
        folder: Path,
    ) -> None:
        """folder: of the clip that the held-out judge is shown."""
        from cluster import devices

        self.generator, self.judges, self.held_out, self.prompt = generator, judges, held_out, prompt
        self.conditions, self.recipe, self.purpose = encoded.conditions, recipe, purpose_of("check", prompt, recipe)
        self.folder = folder / f"rank-{devices.rank()}"  # every process makes the same clip
        image = encoded.images.get(prompt.prompt_id)
        self.first = None if image is None else first_frame_at(self.folder / "first.png", image)

    def __call__(self, update: int) -> "CurvePoint | None":
        """training, least: the mean and the least p of the wanted answers; of a metric its score, and no least.

        held_out, and training of a source that gives rewards: p of acceptance, else the label, else the score. None
        where a source could not judge the clip, with a warning.
        """
        from data.counts import Counts, count
        from rl.online.guards import CurvePoint

        prompt_id = self.prompt.prompt_id
        frames = trained_clip(self.generator, self.conditions, prompt_id, self.recipe)
        count(Counts(clips=1))
        name = f"trained-{update:06d}"
        request = clip_request(
            frames, self.prompt, self.generator.size, name, self.folder, self.purpose, first=self.first
        )
        held_out, least = _score(self.held_out, request), None
        training: float | None
        if isinstance(self.judges, RunJudge):
            training = held_out if self.judges is self.held_out else _score(self.judges, request)
        else:
            found = answers_about(self.judges, in_unit(frames).to(self.generator.device), prompt_id)
            training, least = found.score, found.least
        request.path.unlink()
        if training is None or held_out is None:
            return None
        return CurvePoint(training, held_out, least=least)


def _score(judge: RunJudge, request: "Request") -> float | None:
    """Of the clip of the request; None, with a warning, where the source could not judge it."""
    (label,) = judge.labels_of([request]).values()
    if (score := score_of(label)) is None:
        why = label.reason or "nothing"
        logger.warning("%s could not judge the clip of a check, which decides nothing; it says: %s", label.source, why)
    return score
