"""The objectives: supervised fine-tuning, reward-weighted regression, direct preference optimisation.

The losses are pure functions of per-sample errors and return one value a row; the trainer takes the mean over the
batch. Equation numbers are those of Furuta et al., "Improving Dynamic Object Interactions in Text-to-Video Generation
with AI Feedback".

DPO is published in forms that differ by a constant, so a beta means nothing without its form. With e the per-sample
error as the *mean* of n squared element errors, and b the beta as published, the beta of `dpo_loss` that gives the
same loss is (tests/rl/test_objectives.py pins every line):

    published form                                             argument of log sigmoid      b       beta here
    Furuta et al., Eq. 7, norm read as a mean                  -b (mean)                    5000    b
    Furuta et al., Eq. 7, norm read as a sum                   -b (sum)                     5000    b n
    Wallace et al. (Diffusion-DPO), train.py                   -b/2 (mean)                  5000    b / 2 = 2500
    diffusers, train_diffusion_dpo.py (SD 1.5)                 -b (mean)                    2500    b
    diffusers, train_diffusion_dpo_sdxl.py                     -b/2 (mean)                  5000    b / 2 = 2500
    Liu et al. (Flow-DPO), constant beta_t                     -b/2 (sum)                   -       b n / 2

Furuta et al. take 5000 from Wallace et al., whose code halves it: their 5000 is most likely 2500 here.

Nor does beta carry over between what a model predicts, even at one t, because the same clean estimate has another
error in each. A beta on noise errors is, on velocity errors at t:

    flow matching (x_t = (1 - t) x_0 + t noise)                beta (1 - t)^2     (Flow-DPO's beta_t)
    v-prediction (x_t = alpha x_0 + sigma noise)               beta alpha^2
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from data.records import DensePair, Pair, Weighted
from rl.dense_dpo import dense_dpo_loss, dense_reward


def per_sample_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) mean over all elements of (prediction - target)^2, in float32 whatever the inputs' dtype.

    The elements are those that are predicted: latent frames that are given, such as a first frame, are cut off before.
    """
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


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


def dpo_margin(
    error_chosen: Tensor, error_rejected: Tensor, reference_error_chosen: Tensor, reference_error_rejected: Tensor
) -> Tensor:
    """(B,) policy error minus reference error, chosen minus rejected; negative when the policy moved toward the chosen.

    The bracket of Eq. 7. All four errors are of the same noise and timestep.
    """
    return (error_chosen - reference_error_chosen) - (error_rejected - reference_error_rejected)


def dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """Bradley-Terry loss of the chosen clip against the rejected one.

    margin: (B,) from `dpo_margin`.
    Returns (B,) nats, log 2 at margin 0.
    Eq. 7, -log sigmoid(-beta · margin). The paper does not say mean or sum: ours is the mean, without a factor 0.5
    (the table above says what that makes of a published beta).
    """
    return softplus(beta * margin)


class ImplicitReward(NamedTuple):
    """How far the policy's implicit reward r_theta already prefers the chosen clip."""

    margin: Tensor  # (B,) nats, r_theta(chosen) - r_theta(rejected)
    accuracy: Tensor  # (B,) 1 where that is positive, 0.5 at a tie, 0 where negative


def implicit_reward(margin: Tensor, beta: float) -> ImplicitReward:
    """Implicit reward difference of a DPO margin, without gradient; the argument of Eq. 7's log sigmoid."""
    difference = -beta * margin.detach()
    return ImplicitReward(difference, torch.heaviside(difference, torch.full_like(difference, 0.5)))


class Errors(NamedTuple):
    """Per-sample errors of a batch of rows: one (B,) float32 tensor for each clip of a row, the chosen one first.

    Of an objective `by_frame`: (B, F), an error for each latent frame.
    """

    policy: tuple[Tensor, ...]
    reference: tuple[Tensor, ...]  # empty where the objective reads no reference
    weight: Tensor  # (B,)
    signal: Tensor | None = None  # (B,) or (B, F) what `Objective.signal` says of the rows


class Loss(NamedTuple):
    """An objective's value on a batch of errors."""

    value: Tensor  # (B,), to be averaged and differentiated
    facts: tuple[Tensor, ...]  # (B,) each, without gradient: the objective's `facts`, to be averaged into the log


@dataclass(frozen=True)
class Objective:
    """What a training run minimises, and all that the trainer needs for it."""

    name: str
    row_type: type  # the table it reads
    sample_ids: Callable[[Any], tuple[str, ...]]  # the clips of a row; they share noise, timestep and caption dropout
    weight: Callable[[Any], float]  # a row of weight 0 has no gradient, so the trainer does not run it
    uses_reference: bool
    settings: tuple[str, ...]  # the fields of its config (rl.training.config.CONFIGS) that `loss` takes
    facts: tuple[str, ...]  # names of the means that the log holds beside its value
    loss: Callable[..., Loss]
    # of all rows and the settings: what the loss reads of each row beside its errors; None: nothing
    signal: Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Any]] | None = None
    by_frame: bool = False  # whether the errors are of each latent frame


def _sft(errors: Errors) -> Loss:
    return Loss(sft_loss(errors.policy[0]), ())


def _rwr(errors: Errors) -> Loss:
    return Loss(rwr_loss(errors.policy[0], errors.weight), ())


def _dpo(errors: Errors, beta: float, chosen_error_weight: float) -> Loss:
    """Eq. 7 plus, as a deviation that is off at 0, chosen_error_weight times the chosen clip's own error."""
    margin = dpo_margin(*errors.policy, *errors.reference)
    reward = implicit_reward(margin, beta)
    # The loss may fall while the chosen error rises: the policy unlearns both clips, the chosen one only slower.
    chosen_error_change = (errors.policy[0] - errors.reference[0]).detach()
    value = dpo_loss(margin, beta) + chosen_error_weight * errors.policy[0]
    return Loss(value, (reward.margin, reward.accuracy, chosen_error_change))


def _dense_dpo(errors: Errors, beta: float) -> Loss:
    assert errors.signal is not None
    better = errors.signal[:, -errors.policy[0].shape[1] :]  # without the latent frames that are given
    first, second = ((one - of) for one, of in zip(errors.policy, errors.reference, strict=True))
    value = dense_dpo_loss(first - second, better, beta)
    return Loss(value, tuple(dense_reward(errors.policy, errors.reference, better, beta)))


def _better(rows: Sequence[DensePair], settings: Mapping[str, Any]) -> list[list[int]]:
    return [row.better for row in rows]


def _first_and_second(row: DensePair) -> tuple[str, ...]:
    return (row.first, row.second)


def _one_clip(row: Weighted) -> tuple[str, ...]:
    return (row.sample_id,)


def _chosen_and_rejected(row: Pair) -> tuple[str, ...]:
    return (row.chosen, row.rejected)


def _unweighted(row: Any) -> float:
    return 1.0


def _weight(row: Weighted) -> float:
    return row.weight


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("sft", Weighted, _one_clip, _unweighted, uses_reference=False, settings=(), facts=(), loss=_sft),
        Objective("rwr", Weighted, _one_clip, _weight, uses_reference=False, settings=(), facts=(), loss=_rwr),
        Objective(
            "dpo",
            Pair,
            _chosen_and_rejected,
            _unweighted,
            uses_reference=True,
            settings=("beta", "chosen_error_weight"),
            facts=("implicit_reward_margin", "implicit_reward_accuracy", "chosen_error_change"),
            loss=_dpo,
        ),
        Objective(
            "dense_dpo",
            DensePair,
            _first_and_second,
            _unweighted,
            uses_reference=True,
            settings=("beta",),
            facts=("implicit_reward_margin", "implicit_reward_accuracy", "better_error_change"),
            loss=_dense_dpo,
            signal=_better,
            by_frame=True,
        ),
    )
}


def get_objective(name: str) -> Objective:
    """The objective of that name. Raises ValueError listing the known ones."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective {name!r} is unknown; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
