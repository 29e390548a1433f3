"""KTO of diffusion models: clips that are accepted or rejected, without pairs.

Li et al., "Aligning Diffusion Models by Optimizing Human Utility" (Diffusion-KTO), arXiv 2404.04465; its code is
jacklishufan/diffusion-kto, train_kto_sd_v1.5.py.

    variable     name in the paper
    gain         log pi_theta / pi_ref, g_term in the code: here reference error minus policy error
    reference    Q_ref, z_0, kl in the code
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.records import Weighted
from rl.objectives.errors import Errors, Loss, Objective, only, unweighted
from rl.objectives.regression import one_clip


def kto_loss(
    gain: Tensor, reference: Tensor, accepted: Tensor, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """(B,) 1 minus the utility of each clip, times the weight of its kind.

    gain: (B,) reference error minus policy error: positive where the policy makes the clip more probable.
    reference: () the point from which gains count, max(0, mean gain of the batch), without gradient.
    accepted: (B,) 1 or 0.
    Returns lambda_y (1 - sigmoid((2y - 1) beta (gain - reference))), half the weight at gain = reference.
    Their utility is the sigmoid ("halo sigmoid", the one that they report best). Errors are means over elements, with
    no factor 0.5, as in `dpo_loss`; the code has the mean too. The gradient vanishes far from the reference point on
    both sides, and that point never falls below 0: a policy that raises the errors of accepted and rejected clips
    alike ends where no gradient brings it back. So it is when rejected clips are many and weigh as much as accepted.
    """
    sign = 2 * accepted - 1
    weight = torch.where(accepted > 0.5, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(sign * beta * (gain - reference)))


def _gain(errors: Errors) -> Tensor:
    return errors.reference[0] - errors.policy[0]


def _accepted(errors: Errors) -> Tensor:
    assert errors.signal is not None
    return errors.signal > 0.5


def _kto(errors: Errors, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Loss:
    assert errors.signal is not None and errors.batch_mean is not None
    gain, reference, accepted = _gain(errors), errors.batch_mean.clamp(min=0), _accepted(errors)
    value = kto_loss(gain, reference, errors.signal, beta, desirable_weight, undesirable_weight)
    facts = (
        reference.expand_as(gain),
        only(gain, accepted),
        only(gain, ~accepted),
        only(errors.policy[0], accepted),
        only(errors.reference[0], accepted),
    )
    return Loss(value, facts)


def _signal(rows: Sequence[Weighted], settings: Mapping[str, Any]) -> list[float]:
    """1 of an accepted clip, 0 of a rejected one."""
    for row in rows:
        if row.reward not in (0, 1):
            raise ValueError(
                f"kto learns from accepted and rejected clips, and {row.sample_id} has the reward {row.reward}: "
                "set build.reward: label (of a source, build.sources.<source>.reward)"
            )
    return [row.reward for row in rows]


KTO = Objective(
    "kto",
    Weighted,
    one_clip,
    unweighted,
    uses_reference=True,
    settings=("beta", "desirable_weight", "undesirable_weight"),
    facts=("reference_point", "gain_accepted", "gain_rejected", "accepted_error", "accepted_reference_error"),
    loss=_kto,
    signal=_signal,
    of_batch=_gain,
    wanted=_accepted,
)
