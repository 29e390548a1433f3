"""Direct preference optimisation of diffusion models, on pairs of clips.

Equation numbers are those of Furuta et al., "Improving Dynamic Object Interactions in Text-to-Video Generation with AI
Feedback".

DPO is published in forms that differ by a constant, so a beta means nothing without its form. With e the per-sample
error as the *mean* of n squared element errors, and b the beta as published, the beta of `dpo_loss` that gives the
same loss is (tests/rl/objectives/test_dpo.py pins every line):

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

`time_weight` multiplies the margin by that factor, so that beta is one on noise errors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from data.records import Pair
from rl.objectives.errors import Errors, Loss, Objective, unweighted

FROM_AUDIT = "from_audit"  # a label_noise that stage train replaces by a number


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


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """IPO: the squared distance of the log-ratio difference from the one that is wanted.

    margin: (B,) from `dpo_margin`; h = -margin stands for the difference of log ratios, as in `dpo_loss`.
    Returns (B,), 1 / (4 beta^2) at margin 0, and 0 where h is 1 / (2 beta), in units of the mean error: at beta 50 the
    policy stops at a margin of -0.01, where `dpo_loss` goes on.
    Azar et al., arXiv 2310.12036, the sampled loss: (h - 1 / (2 tau))^2. Their h is of log probabilities; ours is of
    mean errors, so their tau carries over no more than a published beta does.
    """
    return (-margin - 1 / (2 * beta)).square()


LOSSES = {"sigmoid": dpo_loss, "ipo": ipo_loss}  # by `form`


def noisy_loss(loss: Tensor, flipped: Tensor, noise: float, form: str) -> Tensor:
    """(B,) the loss of pairs of which a share `noise`, below 0.5, is in the wrong order.

    loss, flipped: (B,) of the pairs as they are, and with chosen and rejected swapped.
    "smoothed": (1 - e) loss + e flipped (cDPO, Mitchell 2023), which does not want a margin without end.
    "unbiased": ((1 - e) loss - e flipped) / (1 - 2e) (Natarajan et al. 2013; Chowdhury et al., arXiv 2403.00409):
        over the flips its mean is the loss of the pairs in the right order. Unbounded below, as a pair that is
        learnt far enough gains by every step more.
    """
    if form == "smoothed":
        return (1 - noise) * loss + noise * flipped
    return ((1 - noise) * loss - noise * flipped) / (1 - 2 * noise)


def flipped_pairs(false_accept_rate: float, false_reject_rate: float) -> float:
    """The share of pairs, an accepted clip against a rejected one, whose order is wrong, of a judge with these rates.

    false_accept_rate: a, of the clips that should be rejected. false_reject_rate: r, of those that should be accepted.
    Of clips that are right and wrong in equal numbers, u = a / (1 - r + a) of the accepted are wrong, and
    w = r / (r + 1 - a) of the rejected are right. The order of a pair is wrong where both are: u w. Where only one is,
    both clips are right or both are wrong: such a pair has no order, and the one that it got is a toss, so half of
    u (1 - w) + (1 - u) w. Together (u + w) / 2, which is the judge's error rate where a = r. The equal numbers are an
    assumption: the fewer clips are right, the larger is u and the smaller w.
    Raises ValueError where a + r >= 1: such a judge's labels say nothing.
    """
    a, r = false_accept_rate, false_reject_rate
    if not a + r < 1:
        raise ValueError(
            f"a judge that accepts {a:.3f} of the clips that are wrong and rejects {r:.3f} of those that are right "
            "orders pairs no better than a toss"
        )
    return (a / (1 - r + a) + r / (r + 1 - a)) / 2


def margin_weights(rows: Sequence[Pair]) -> list[float]:
    """Of each pair, its reward margin over the mean margin of all; 1 for every pair of plain labels."""
    mean = sum(row.margin for row in rows) / len(rows)
    return [row.margin / mean for row in rows]


def _dpo(
    errors: Errors,
    *,
    beta: float,
    chosen_error_weight: float,
    label_noise: float,
    noise_form: str,
    margin_weight: bool,
    hinge: float,
    time_weight: bool,
    form: str,
) -> Loss:
    """Eq. 7 and its options; with all of them off it is Eq. 7. params.yaml sets `hinge`.

    variable               what it adds
    time_weight            the margin, times to_noise^2: beta (1 - t)^2 for flow matching (Liu et al., Flow-DPO)
    hinge (lambda)         margin + lambda max(0, rise of the chosen error above the reference's), inside the loss;
                           after DPO-Positive (Pal et al., arXiv 2402.13228), with errors for log ratios. A
                           swapped pair has the rise of the other clip, which then is the chosen one
    label_noise            `noisy_loss` of the pair and the swapped pair
    margin_weight          the loss of a pair, times its weight from `margin_weights`
    chosen_error_weight    its multiple of the chosen clip's own error, added: no part of any DPO paper
    """
    margin = dpo_margin(*errors.policy, *errors.reference)
    if time_weight:
        assert errors.to_noise is not None
        margin = errors.to_noise.square() * margin
    reward = implicit_reward(margin, beta)
    # The loss may fall while the chosen error rises: the policy unlearns both clips, the chosen one only slower.
    chosen_error_change = (errors.policy[0] - errors.reference[0]).detach()
    value = LOSSES[form](_hinged(margin, errors, 0, hinge, time_weight), beta)
    if label_noise:
        flipped = LOSSES[form](_hinged(-margin, errors, 1, hinge, time_weight), beta)
        value = noisy_loss(value, flipped, label_noise, noise_form)
    if margin_weight:
        assert errors.signal is not None
        value = errors.signal * value
    value = value + chosen_error_weight * errors.policy[0]
    return Loss(value, (reward.margin, reward.accuracy, chosen_error_change))


def _hinged(margin: Tensor, errors: Errors, side: int, hinge: float, time_weight: bool) -> Tensor:
    """(B,) the margin, plus the hinge on the rise of a side's error."""
    if not hinge:
        return margin
    rise = relu(errors.policy[side] - errors.reference[side])
    if time_weight:
        assert errors.to_noise is not None
        rise = errors.to_noise.square() * rise
    return margin + hinge * rise


def _chosen_and_rejected(row: Pair) -> tuple[str, ...]:
    return (row.chosen, row.rejected)


def _signal(rows: Sequence[Pair], settings: Mapping[str, Any]) -> list[float]:
    assert settings["label_noise"] != FROM_AUDIT  # stage train replaces it
    return margin_weights(rows) if settings["margin_weight"] else [1.0] * len(rows)


DPO = Objective(
    "dpo",
    Pair,
    _chosen_and_rejected,
    unweighted,
    uses_reference=True,
    settings=(
        "beta",
        "chosen_error_weight",
        "label_noise",
        "noise_form",
        "margin_weight",
        "hinge",
        "time_weight",
        "form",
    ),
    facts=("implicit_reward_margin", "implicit_reward_accuracy", "chosen_error_change"),
    loss=_dpo,
    signal=_signal,
)
