"""The Bradley-Terry loss of a reward model."""

import math

import pytest
import torch

from rl.objectives.bradley_terry import bradley_terry_loss


def test_the_loss_of_two_pairs_worked_by_hand():
    """Scores 1 and 1 - ln 3 differ by ln 3, whose sigmoid is 3 / 4; swapped, it is 1 / 4."""
    chosen, rejected = torch.tensor([1.0, 1.0 - math.log(3), 5.0]), torch.tensor([1.0 - math.log(3), 1.0, 5.0])

    losses = bradley_terry_loss(chosen, rejected).tolist()

    assert losses == pytest.approx([math.log(4 / 3), math.log(4), math.log(2)])


def test_only_the_difference_of_the_scores_counts():
    chosen, rejected = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(bradley_terry_loss(chosen, rejected), bradley_terry_loss(chosen + 7, rejected + 7))


def test_a_chosen_clip_gains_what_the_rejected_one_loses():
    """The gradients are minus and plus the probability of the wrong order, a quarter at a difference of ln 3."""
    chosen, rejected = torch.tensor([math.log(3)], requires_grad=True), torch.zeros(1, requires_grad=True)

    bradley_terry_loss(chosen, rejected).sum().backward()

    assert chosen.grad.item() == pytest.approx(-0.25) and rejected.grad.item() == pytest.approx(0.25)
