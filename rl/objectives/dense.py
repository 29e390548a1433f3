"""DenseDPO: a preference in each latent frame of two clips with one start (Wu et al., arXiv 2506.03517)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from data.records import DensePair
from rl.objectives.errors import Errors, Loss, Objective, unweighted


def dense_dpo_loss(margin: Tensor, better: Tensor, beta: float) -> Tensor:
    """Bradley-Terry loss of the better clip against the other one, latent frame by latent frame.

    margin: (B, F) policy error minus reference error of the first clip, minus the same of the second, each error the
        mean over the elements of its latent frame.
    better: (B, F) s_f, 1 where the first clip is better, -1 where the second is, 0 elsewhere.
    Returns (B,) nats, log 2 at margin 0: -(1 / |F'|) sum of log sigmoid(-s_f beta margin_f) over the frames F' with
    s_f not 0; 0 for a row without one.
    The loss of DenseDPO with a label for each segment. A segment of several latent frames gives each of them its label.
    Errors are means where the paper prints squared norms: rl.objectives.dpo says what that makes of a beta. Latent
    frames with a tie or without a label are not in the mean: pairs count alike whatever their number of labels.
    Where all s_f are 1 it is not `dpo_loss`, whose argument is the mean margin: -log sigmoid is convex, so the mean of
    the frames' losses is at least the loss of their mean, and equals it only where all frames have one margin. A frame
    that is learnt already gives no gradient here; there it hides one that is not.
    """
    known = (better != 0).float()
    values = softplus(better * beta * margin) * known
    return values.sum(1) / known.sum(1).clamp(min=1)


class DenseReward(NamedTuple):
    """How far the policy prefers the better clip, mean over the frames with a preference. All without gradient."""

    margin: Tensor  # (B,) nats
    accuracy: Tensor  # (B,) share of these frames where it does, a tie counting half
    better_error_change: Tensor  # (B,) policy minus reference error, of whichever clip is better in the frame


def dense_reward(errors: Sequence[Tensor], reference: Sequence[Tensor], better: Tensor, beta: float) -> DenseReward:
    """What the log holds. errors, reference: (B, F) of either clip. better: (B, F)."""
    known = (better != 0).float()
    first, second = ((one - of).detach() for one, of in zip(errors, reference, strict=True))
    difference = -better * beta * (first - second)
    right = torch.heaviside(difference, torch.full_like(difference, 0.5))
    change = torch.where(better > 0, first, second)
    count = known.sum(1).clamp(min=1)
    return DenseReward(*((one * known).sum(1) / count for one in (difference, right, change)))


def _dense_dpo(errors: Errors, *, beta: float) -> Loss:
    better = _better(errors)
    first, second = (one - of for one, of in zip(errors.policy, errors.reference, strict=True))
    value = dense_dpo_loss(first - second, better, beta)
    return Loss(value, tuple(dense_reward(errors.policy, errors.reference, better, beta)))


def _better(errors: Errors) -> Tensor:
    """(B, F) the rows' preferences, without those of latent frames that are given, which have no error."""
    assert errors.signal is not None
    return errors.signal[:, -errors.policy[0].shape[1] :]


def _first_is_better(errors: Errors) -> Tensor:
    return _better(errors) > 0


def _first_and_second(row: DensePair) -> tuple[str, ...]:
    return (row.first, row.second)


def _signal(rows: Sequence[DensePair], settings: Mapping[str, Any]) -> list[list[int]]:
    return [row.better for row in rows]


DENSE_DPO = Objective(
    "dense_dpo",
    DensePair,
    _first_and_second,
    unweighted,
    uses_reference=True,
    settings=("beta",),
    facts=("implicit_reward_margin", "implicit_reward_accuracy", "better_error_change"),
    loss=_dense_dpo,
    signal=_signal,
    wanted=_first_is_better,
    by_frame=True,
)
