"""DiffusionNFT on one round of clips: the policy moves toward good clips and away from bad ones, without likelihoods.

Zheng et al., "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", arXiv 2509.16117. There it is online:
each step's clips are sampled by v_old, a slow copy of the policy. Here it is offline: the clips are those of a round,
and v_old is the round's start, the reference.

    variable              name in the paper
    policy, reference     v_theta - v and v_old - v: the deviations from the target
    beta                  beta, the strength of guidance; 1 or 0.1 there
    optimality r          r(x_0, c), the probability that the clip is good
    advantage_clip        Z_c, and adv_clip_max in their code
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from data.records import Weighted
from rl.objectives.errors import Errors, Loss, Objective, only, unweighted
from rl.objectives.regression import one_clip

LEAST_DISTANCE = 1e-5  # of a clean estimate to the clean latents, as in their code


class Distances(NamedTuple):
    """How far the two implicit policies v+ and v- are from the target, (B,) each, means over elements."""

    positive: Tensor  # mean (v+ - v)^2
    negative: Tensor
    positive_absolute: Tensor  # mean |v+ - v|, without gradient
    negative_absolute: Tensor


def distances(policy: Tensor, reference: Tensor, beta: float) -> Distances:
    """Of v+ = (1 - beta) v_old + beta v_theta and v- = (1 + beta) v_old - beta v_theta.

    policy, reference: (B, C, F, h, w) v_theta - v and v_old - v.
    """
    positive = (1 - beta) * reference + beta * policy
    negative = (1 + beta) * reference - beta * policy
    squares = (mixed.square().flatten(1).mean(1) for mixed in (positive, negative))
    absolutes = (mixed.detach().abs().flatten(1).mean(1) for mixed in (positive, negative))
    return Distances(*squares, *absolutes)


def nft_loss(positive: Tensor, negative: Tensor, r: Tensor, beta: float) -> Tensor:
    """(B,) (r L+ + (1 - r) L-) / beta.

    positive, negative: (B,) L+ and L-, mean (v+ - v)^2 and mean (v- - v)^2, or those of `self_normalised`.
    r: (B,) in [0, 1], 1 of a good clip.
    Eq. 5, which prints no 1 / beta; their code divides by it, so that at v_theta = v_old the gradient is (2r - 1) times
    that of the error whatever beta is. So r = 1/2 is a clip that teaches nothing at first, and rejected clips count.
    The optimum is v_old + 2 / beta times the direction of improvement: a smaller beta goes further. The squared norm is
    a mean over elements. Not here: their code's factor adv_clip_max, which the learning rate holds, and its penalty on
    the distance to a third model, the base.
    """
    return (r * positive + (1 - r) * negative) / beta


def self_normalised(square: Tensor, absolute: Tensor, to_clean: Tensor) -> Tensor:
    """(B,) mean d^2 over mean |d|, d the deviation of the clean estimate, which is to_clean times the prediction's.

    square, absolute: (B,) mean (v± - v)^2 and mean |v± - v|, the second without gradient.
    to_clean: (B,) by how much the clean estimate moves with the prediction; t for flow matching.
    Their "adaptive loss weighting": no t weighs more for the size of its error alone. At
    least LEAST_DISTANCE stands below the line, as in their code.
    """
    return to_clean.square() * square / (to_clean * absolute).clamp(min=LEAST_DISTANCE)


def optimality(rows: Sequence[Weighted], reward_from: str, advantage_clip: float) -> list[float]:
    """r of each row, in [0, 1].

    reward_from: "reward": r is the reward itself, a label's 1 and 0 or p_accept. "advantage": A is the reward minus the
        mean of the prompt's rows, and r = 1/2 + clip(A / advantage_clip, -1, 1) / 2, their optimality reward. For
        rewards of any scale; their code divides A by the spread of the rewards first, ours does not, so advantage_clip
        is in the reward's unit.
    Raises ValueError for a reward outside [0, 1] that is to be r itself.
    """
    if reward_from == "reward":
        if wrong := next((row for row in rows if not 0 <= row.reward <= 1), None):
            raise ValueError(
                f"nft takes a reward in [0, 1] as it stands, and {wrong.sample_id} has {wrong.reward}: set "
                "train.nft.reward_from: advantage, and train.nft.advantage_clip to about the rewards' spread"
            )
        return [row.reward for row in rows]
    of_prompt: dict[str, list[float]] = {}
    for row in rows:
        of_prompt.setdefault(row.prompt_id, []).append(row.reward)
    mean = {prompt_id: sum(rewards) / len(rewards) for prompt_id, rewards in of_prompt.items()}
    advantages = ((row.reward - mean[row.prompt_id]) / advantage_clip for row in rows)
    return [0.5 + min(max(advantage, -1.0), 1.0) / 2 for advantage in advantages]


def _measure(policy: Tensor, reference: Tensor, settings: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return distances(policy, reference, settings["beta"])


def _signal(rows: Sequence[Weighted], settings: Mapping[str, Any]) -> list[float]:
    return optimality(rows, settings["reward_from"], settings["advantage_clip"])


def _wanted(errors: Errors) -> Tensor:
    assert errors.signal is not None
    return errors.signal > 0.5


def _nft(errors: Errors, *, beta: float, normalised: bool, **of_rows: Any) -> Loss:
    """of_rows: the settings that `_signal` reads."""
    assert errors.signal is not None and errors.to_clean is not None
    found = Distances(*errors.measured)
    positive, negative = found.positive, found.negative
    if normalised:
        positive = self_normalised(positive, found.positive_absolute, errors.to_clean)
        negative = self_normalised(negative, found.negative_absolute, errors.to_clean)
    error, reference = errors.policy[0].detach(), errors.reference[0]
    wanted, unwanted = _wanted(errors), errors.signal < 0.5
    facts = (error, reference, only(error - reference, wanted), only(error - reference, unwanted))
    return Loss(nft_loss(positive, negative, errors.signal, beta), facts)


NFT = Objective(
    "nft",
    Weighted,
    one_clip,
    unweighted,
    uses_reference=True,
    settings=("beta", "normalised", "reward_from", "advantage_clip"),
    facts=("error", "reference_error", "wanted_error_change", "unwanted_error_change"),
    loss=_nft,
    signal=_signal,
    measure=_measure,
    wanted=_wanted,
)
