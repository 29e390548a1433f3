"""Whether a policy collapses: it unlearns even the clips that it should make more probable."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

FACTOR = 2.0  # of the reference's error, from which there is a warning


class CollapseWatch:
    """Warns once when the policy's error on the clips that are wanted is above FACTOR times the reference's.

    A loss that compares with a reference can fall while both errors rise: the rejected clip's faster (DPO, KTO), or so
    far that the loss is flat (KTO).
    """

    def __init__(self, name: str, device: torch.device, writes: bool) -> None:
        """name: of the objective. writes: whether this process is the one that warns."""
        self._name, self._writes, self._warned = name, writes, False
        self._sums = torch.zeros(2, device=device)

    def add(self, sums: Tensor) -> None:
        """Note a step. sums: (2,) errors of policy and reference over the wanted clips of the whole batch."""
        self._sums = self._sums + sums

    def look(self, step: int) -> None:
        """Judge the steps since the last look. Waits for the device."""
        policy, reference = self._sums.tolist()
        self._sums = torch.zeros_like(self._sums)
        if self._writes and not self._warned and policy > FACTOR * reference:
            self._warned = True
            logger.warning(
                "%s: at step %d the policy's error on the clips that it should make more probable is %.1f times the "
                "reference's: it collapses. Train with a lower train.%s.learning_rate, fewer steps, or less weight on "
                "the clips that it should make less probable",
                self._name, step, policy / reference if reference else float("inf"), self._name,
            )  # fmt: skip
