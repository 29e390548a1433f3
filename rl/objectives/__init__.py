"""The objectives: a file each, and the table of them.

    regression.py    sft, rwr    regression on the policy's own clips
    dpo.py           dpo         pairs of clips
    kto.py           kto         clips that are accepted or rejected, without pairs
    nft.py           nft         clips with an optimality in [0, 1]: learns also what to leave
    dense.py         dense_dpo   pairs of clips with one start, a preference in each latent frame
    errors.py                    what a loss reads and returns, and what it needs of the training loop
    bradley_terry.py             the loss of a reward model, which is no objective (rl/reward/)

The losses are pure functions of per-sample errors and return one value a row; the trainer takes the mean over the
batch.
"""

from rl.objectives.dense import DENSE_DPO, dense_dpo_loss, dense_reward
from rl.objectives.dpo import (
    DPO,
    FROM_AUDIT,
    dpo_loss,
    dpo_margin,
    flipped_pairs,
    implicit_reward,
    ipo_loss,
    noisy_loss,
)
from rl.objectives.errors import Errors, Loss, Objective, per_frame_error, per_sample_error
from rl.objectives.kto import KTO, kto_loss
from rl.objectives.nft import NFT, nft_loss, optimality
from rl.objectives.regression import RWR, SFT, rwr_loss, sft_loss

OBJECTIVES = {objective.name: objective for objective in (SFT, RWR, DPO, KTO, NFT, DENSE_DPO)}

OF_ROUNDS = {name: objective for name, objective in OBJECTIVES.items() if not objective.by_frame}  # by whose rows


def get_objective(name: str) -> Objective:
    """The objective of that name. Raises ValueError listing the known ones."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective {name!r} is unknown; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


__all__ = [
    "FROM_AUDIT",
    "OBJECTIVES",
    "OF_ROUNDS",
    "Errors",
    "Loss",
    "Objective",
    "dense_dpo_loss",
    "dense_reward",
    "dpo_loss",
    "dpo_margin",
    "flipped_pairs",
    "get_objective",
    "implicit_reward",
    "ipo_loss",
    "kto_loss",
    "nft_loss",
    "noisy_loss",
    "optimality",
    "per_frame_error",
    "per_sample_error",
    "rwr_loss",
    "sft_loss",
]
