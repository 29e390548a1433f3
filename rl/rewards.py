"""From a label to the weight of a loss."""

from data.records import Label

REWARDS = ("label", "p_accept", "score")


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


def check_shaping(scale: float, shift: float) -> None:
    """Raises ValueError where scale <= 0 or shift < 0, which the paper excludes."""
    if not scale > 0:
        raise ValueError(f"reward scale must be > 0, found {scale}")
    if not shift >= 0:
        raise ValueError(f"reward shift must be >= 0, found {shift}")


def shape_reward(reward: float, scale: float, shift: float) -> float:
    """r_lin = eta · r + gamma, with eta the scale and gamma the shift (§3.2 of Furuta et al.).

    Raises ValueError as `check_shaping` does, and where the result is negative: regression with a negative weight is
    unbounded below.
    """
    check_shaping(scale, shift)
    shaped = scale * reward + shift
    if not shaped >= 0:
        raise ValueError(
            f"reward {reward} becomes the weight {shaped}; a weight must be >= 0: raise the shift ({shift})"
        )
    return shaped
