"""From labels to the weights of a loss."""

import math
from collections.abc import Sequence
from typing import Any

from data.records import Label

REWARDS = ("label", "p_accept", "score")
SHAPINGS = ("linear", "exponential", "group")
DELTA = 1e-6  # added to a prompt's spread, so that rounding is no advantage


def check_reward(kind: str) -> None:
    """Raises ValueError for an unknown kind of reward, listing the known."""
    if kind not in REWARDS:
        raise ValueError(f"reward {kind!r} is unknown; known: {', '.join(REWARDS)}")


def reward_of(label: Label, kind: str) -> float | None:
    """The column of a label that becomes the reward r: 1 or 0 for "label", else p_accept or score as it stands.

    None where that column is null: not known, which is neither 0 nor a tie, whatever the other columns say.
    Raises ValueError as `check_reward` does.
    """
    check_reward(kind)
    value = getattr(label, kind)
    return None if value is None else float(value)


def check_linear(scale: float, shift: float) -> None:
    """Raises ValueError where scale <= 0 or shift < 0, which the paper excludes."""
    if not scale > 0:
        raise ValueError(f"reward scale must be > 0, found {scale}")
    if not shift >= 0:
        raise ValueError(f"reward shift must be >= 0, found {shift}")


def shape_reward(reward: float, scale: float, shift: float) -> float:
    """r_lin = eta · r + gamma, with eta the scale and gamma the shift (§3.2 of Furuta et al.).

    Raises ValueError as `check_linear` does, and where the result is negative: regression with a negative weight is
    unbounded below.
    """
    check_linear(scale, shift)
    shaped = scale * reward + shift
    if not shaped >= 0:
        raise ValueError(
            f"reward {reward} becomes the weight {shaped}; a weight must be >= 0: raise the shift ({shift})"
        )
    return shaped


def exponential_weights(rewards: Sequence[float], temperature: float) -> list[float]:
    """w_i = n exp(r_i / tau) / sum_j exp(r_j / tau), of the n clips of one prompt; their mean is 1.

    temperature: tau, in the unit of the reward. A small one leaves the best clip alone, with weight n; a large one
        gives every clip weight 1.
    Eq. 5 of Furuta et al., exp(r / beta) / Z(c), with beta as tau and Z(c) estimated by the mean of exp(r / tau) over
    the prompt's clips. The paper drops Z and replaces the exponential by the identity (Eq. 6).
    Raises ValueError where tau <= 0 or a reward is not finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, found {temperature}")
    if wrong := [reward for reward in rewards if not math.isfinite(reward)]:
        raise ValueError(f"reward {wrong[0]} is not finite")
    highest = max(rewards, default=0.0)
    powers = [math.exp((reward - highest) / temperature) for reward in rewards]  # at most 1, so none overflows
    total = math.fsum(powers)
    return [len(rewards) * power / total for power in powers]


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """A_i = (r_i - mean) / (s + 1e-6), of the clips of one prompt; 0 for all where all rewards are equal.

    s: the standard deviation of these rewards, divided by n. It makes the result free of the reward's unit.
    The advantage of GRPO (Shao et al., DeepSeekMath, §4.1.2), which adds nothing to s and does not say whether s
    divides by n or by n - 1.
    """
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    spread = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / (spread + DELTA) for reward in rewards]


def prompt_weights(
    rewards: Sequence[float], shaping: str, *, scale: float, shift: float, temperature: float
) -> list[float]:
    """The weights of one prompt's clips, in the order of their rewards.

    "linear": `shape_reward` of each, by scale and shift. "exponential": `exponential_weights` by temperature. "group":
    the same of `group_advantages`, so tau is in standard deviations of the prompt's rewards.
    The two others do not read scale and shift: tau divides the reward already, and a shift cancels in the ratio.
    Raises ValueError for an unknown shaping, and as these functions do.
    """
    if shaping == "linear":
        return [shape_reward(reward, scale, shift) for reward in rewards]
    if shaping == "exponential":
        return exponential_weights(rewards, temperature)
    if shaping == "group":
        return exponential_weights(group_advantages(rewards), temperature)
    raise ValueError(f"shaping {shaping!r} is unknown; known: {', '.join(SHAPINGS)}")


def weighting(shaping: str, *, scale: float, shift: float, temperature: float) -> dict[str, Any]:
    """Those settings of `prompt_weights` that have an effect, for a manifest; "linear" is not named in it."""
    if shaping == "linear":
        return {"scale": scale, "shift": shift}
    return {"shaping": shaping, "temperature": temperature}


def effective_size(weights: Sequence[float]) -> float:
    """(sum w)^2 / sum w^2: the number of clips of equal weight that would estimate a mean as precisely (Kish).

    Between 1 and the number of clips; 0 where no weight is above 0.
    """
    highest = max(weights, default=0.0)
    if not highest > 0:
        return 0.0
    parts = [weight / highest for weight in weights]  # so that no square overflows or vanishes
    return math.fsum(parts) ** 2 / math.fsum(part * part for part in parts)


def effective_sizes(prompt_ids: Sequence[str], weights: Sequence[float]) -> dict[str, Any]:
    """How many clips a table of weights amounts to, as plain JSON. The arguments have an entry a clip.

    above_0: clips with a weight above 0. effective: `effective_size` of all. effective_per_prompt: the mean of that of
    each prompt's clips, a prompt without a weight above 0 counting 0. All are 0 for a table without rows.
    """
    prompts: dict[str, list[float]] = {}
    for prompt_id, weight in zip(prompt_ids, weights, strict=True):
        prompts.setdefault(prompt_id, []).append(weight)
    each = [effective_size(of) for of in prompts.values()]
    return {
        "above_0": sum(weight > 0 for weight in weights),
        "effective": effective_size(weights),
        "effective_per_prompt": math.fsum(each) / max(len(each), 1),
    }
