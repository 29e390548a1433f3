"""Guards against over-optimising a judge: a penalty on the distance to the reference, and a held-out judge.

Ask-A-Video §4.3 and Fig. 7 of Diffusion-DRF show the failure: the score of the judge that is trained on goes on rising
while the clips get worse.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from generators.core.generator import Predict
from rl.objectives import per_sample_error
from rl.online.rollouts import Forward


class CurvePoint(NamedTuple):
    """The judges' scores of the policy after some updates, on the same prompts and noise each time; more is better."""

    training: float  # of the judge that is trained on
    held_out: float  # of the judge that is not
    others: Mapping[str, float] = {}  # further ones by name, which decide nothing
    least: float | None = None  # of the training judge's answers; None where the check looks at several clips

    def written(self) -> dict[str, Any]:
        """As a log line has it, from which it is made again."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def velocity_distance(
    predict: Predict,
    reference: Callable[[], AbstractContextManager[None]],
    forwards: Sequence[Forward],
    weight: float,
    counts: bool = True,
) -> Tensor:
    """(B,) mean over these forwards, and over predicted elements, of (policy - reference)², without gradient.

    Where weight is not 0, weight times their sum over clips is back-propagated here, a step at a time. The policy
    predicts again for it: the latents are a constant of the penalty, while in a rollout of several steps each step's
    latents depend on the steps before. counts: whether it is, or only run like that of other processes.
    """
    distances = []
    for latents, timestep, prediction, given in forwards:
        with torch.no_grad(), reference():
            wanted = predict(latents, timestep)
        if weight > 0:
            prediction = predict(latents, timestep)
        distance = per_sample_error(prediction[:, :, given:], wanted[:, :, given:]) / len(forwards)
        if weight > 0 and distance.requires_grad:  # not at a step whose denoiser is not trained
            (weight * float(counts) * distance.sum()).backward()
        distances.append(distance.detach())
    return torch.stack(distances).sum(0)


def fooled(curve: Mapping[int, CurvePoint], tolerance: float) -> bool:
    """Whether the last point's held-out judge has fallen while the training judge rose.

    curve: by update. Fallen is more than `tolerance` below its best point; risen is above the training judge of that
    point. False where both fell: the run may recover.
    """
    top, last = curve[best(curve)], curve[max(curve)]
    return last.held_out < top.held_out - tolerance and last.training > top.training


def right(point: CurvePoint, least_score: float | None, least_held_out: float) -> bool:
    """Whether the judges' answers are right, so that a run may end.

    The training judge's score is at least least_score (None: never), none of its answers below 1/2 where the check
    looks at single ones, and the held-out judge's score above least_held_out.
    """
    if least_score is None:
        return False
    answers = point.least is None or point.least >= 0.5
    return point.training >= least_score and answers and point.held_out > least_held_out


def kept(curve: Mapping[int, CurvePoint], least_score: float | None, least_held_out: float) -> int:
    """Update whose weights are the policy: the last where its answers are `right`, else the best."""
    last = max(curve)
    return last if right(curve[last], least_score, least_held_out) else best(curve)


def best(curve: Mapping[int, CurvePoint]) -> int:
    """Update whose point is best by the held-out judge, the earliest of equals."""
    return max(sorted(curve), key=lambda update: curve[update].held_out)
