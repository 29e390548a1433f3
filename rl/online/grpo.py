"""Group-relative policy optimisation: from the rewards of a prompt's clips to the loss of their steps.

Flow-GRPO (Liu et al., arXiv 2505.05470) and DanceGRPO (Xue et al., arXiv 2505.07818), which follow GRPO (Shao et al.,
DeepSeekMath, arXiv 2402.03300, §4.1). rl/online/sde.py has the steps and their probabilities.

    variable          Flow-GRPO
    rewards           R(x_0^i, c), i = 1 … G
    advantages        Â^i
    log_prob, old     log p_theta(x_{t-1} | x_t, c), log p_theta_old
    ratio_clip        epsilon
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rl.rewards import DELTA, group_advantages

Spread = Literal["none", "group", "batch"]


def advantages(
    groups: Sequence[Sequence[float | None]], spread: Spread, bound: float = math.inf
) -> list[list[float | None]]:
    """Each clip's reward minus its group's mean, over a spread, within ± bound; None where the reward is None.

    groups: the rewards of each prompt's clips. A clip without a reward is in no mean and no spread; a group whose
        rewards are equal, or are one, has advantages of 0.
    spread: "none": 1, so that the advantage has the reward's unit. "group": the standard deviation of the group's
        rewards, divided by n, as in GRPO. "batch": of all rewards of the batch, flow_grpo's `global_std`: where one
        clip of a group differs from the others, it counts no more than in a mixed group. 1e-6 is added to both (1e-4 in
        flow_grpo's code).
    bound: flow_grpo's adv_clip_max.
    """
    known = [reward for group in groups for reward in group if reward is not None]
    found = []
    for group in groups:
        own = [reward for reward in group if reward is not None]
        if spread == "group":
            values = group_advantages(own)
        elif not own or min(own) == max(own):
            values = [0.0] * len(own)
        else:
            mean, divisor = math.fsum(own) / len(own), 1.0 if spread == "none" else _deviation(known) + DELTA
            values = [(reward - mean) / divisor for reward in own]
        rest = iter(values)
        found.append([None if reward is None else max(-bound, min(bound, next(rest))) for reward in group])
    return found


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


class Clipped(NamedTuple):
    """The policy loss of a step."""

    loss: Tensor  # (B,)
    ratio: Tensor  # (B,) without graph
    clipped: Tensor  # (B,) bool, whether the ratio is outside its range


def clipped_loss(log_prob: Tensor, old: Tensor, advantage: Tensor, ratio_clip: float) -> Clipped:
    """max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) of each clip, rho = exp(log_prob - old).

    log_prob, old: (B,) of what was drawn, by the policy and by the one that drew it; the mean over elements, so rho is
        the geometric mean of the elements' ratios and eps is small (flow_grpo: 1e-4 for images, 1e-3 for Wan).
    advantage: (B,). At rho = 1 the gradient is -A d log p, the plain policy gradient.
    The objective of GRPO with its sign turned, since we minimise; its KL term is `rl.online.sde.step_kl`.
    """
    ratio = (log_prob - old.detach()).exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - ratio_clip, 1 + ratio_clip))
    return Clipped(loss, ratio.detach(), ((ratio - 1).abs() > ratio_clip).detach())
