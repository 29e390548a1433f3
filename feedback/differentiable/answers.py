"""What a judge says of one clip, as rl.online asks for it."""

from typing import NamedTuple

from torch import Tensor


class Answers(NamedTuple):
    """N questions and what was answered."""

    questions: tuple[str, ...]  # their names
    loss: Tensor  # (N,) of the wanted answers, or minus a metric's score, with gradient
    p_wanted: Tensor  # (N,) the wanted word's share of the two answer words, detached; NaN where a metric has none
