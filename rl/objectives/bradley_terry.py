"""The Bradley-Terry loss of a reward model, which gives the chosen clip of a pair the higher number.

It is no objective of a policy and in no table: rl/reward/training.py minimises it.
"""

from torch import Tensor
from torch.nn.functional import softplus


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r(chosen) - r(rejected)) of each pair of clips of one prompt.

    chosen, rejected: (B,) scores of the pair's clips.
    Returns (B,) nats, log 2 where both scores are equal. Only the difference of the scores counts, so a constant that
    is added to all of them changes nothing.
    Bradley and Terry (1952), as the reward model of VideoAlign (Liu et al., arXiv 2501.13918) is trained. Their
    published model also knows ties (Rao and Kupper); a tie is no pair here.
    """
    return softplus(rejected - chosen)
