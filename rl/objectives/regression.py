"""Regression on the policy's own clips: supervised fine-tuning and reward-weighted regression.

Equation numbers are those of Furuta et al., "Improving Dynamic Object Interactions in Text-to-Video Generation with AI
Feedback".
"""

from torch import Tensor

from data.records import Weighted
from rl.objectives.errors import Errors, Loss, Objective, unweighted


def sft_loss(error: Tensor) -> Tensor:
    """(B,) the error itself: Eq. 1 on the policy's own clips, without any reward signal."""
    return error


def rwr_loss(error: Tensor, weight: Tensor) -> Tensor:
    """(B,) reward-weighted regression, r · error.

    weight: (B,) the shaped reward r = eta · reward + gamma, >= 0.
    Eq. 6. The batch mean divides by B, not by the sum of the weights: a batch of rejected clips is a small step, not
    a rescaled one. The error is a mean over elements where the paper prints a squared norm.
    """
    return weight * error


def one_clip(row: Weighted) -> tuple[str, ...]:
    """The clip of a row that has one."""
    return (row.sample_id,)


def _weight(row: Weighted) -> float:
    return row.weight


def _sft(errors: Errors) -> Loss:
    return Loss(sft_loss(errors.policy[0]), ())


def _rwr(errors: Errors) -> Loss:
    return Loss(rwr_loss(errors.policy[0], errors.weight), ())


SFT = Objective("sft", Weighted, one_clip, unweighted, uses_reference=False, settings=(), facts=(), loss=_sft)
RWR = Objective("rwr", Weighted, one_clip, _weight, uses_reference=False, settings=(), facts=(), loss=_rwr)
