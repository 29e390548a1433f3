"""Claims about KTO on clips that are accepted or rejected."""

import math

import pytest
import torch

from data.records import Weighted
from rl.objectives import OBJECTIVES, Errors, kto_loss

KTO = OBJECTIVES["kto"]
PLAIN = {"beta": 10.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}


def test_kto_by_hand():
    """Gains .3, .1, -.2 over a point of .1 at beta 10: 2, 0, -3.

    Accepted: 1 - sigmoid(2) = .119203, 1 - sigmoid(0) = .5. Rejected, at weight 2: 2 (1 - sigmoid(3)) = .094852.
    """
    gain, accepted = torch.tensor([0.3, 0.1, -0.2]), torch.tensor([1.0, 1.0, 0.0])
    loss = kto_loss(gain, torch.tensor(0.1), accepted, 10.0, 1.0, 2.0)
    assert loss.tolist() == pytest.approx([0.119203, 0.5, 0.094852], rel=1e-4)


def test_a_rejected_clip_is_an_accepted_one_with_its_gain_turned_about_the_reference_point():
    gain, ones = torch.linspace(-1, 1, 11), torch.ones(11)
    point = torch.tensor(0.2)
    turned = kto_loss(2 * point - gain, point, 0 * ones, 5.0, 1.0, 1.0)
    torch.testing.assert_close(kto_loss(gain, point, ones, 5.0, 1.0, 1.0), turned)


def of_batch(policy: torch.Tensor, reference: torch.Tensor, accepted: torch.Tensor, mean: float):
    errors = Errors((policy,), (reference,), torch.ones_like(policy), accepted, batch_mean=torch.tensor(mean))
    return KTO.loss(errors, **PLAIN)


def test_at_the_start_an_accepted_error_is_lowered_and_a_rejected_one_raised():
    """Every gain is 0: the loss is half, and the slope beta / 4."""
    policy = torch.ones(2, requires_grad=True)
    loss = of_batch(policy, torch.ones(2), torch.tensor([1.0, 0.0]), 0.0).value
    loss.sum().backward()
    assert loss.tolist() == [0.5, 0.5] and policy.grad.tolist() == [2.5, -2.5]


def test_the_reference_point_is_never_below_zero():
    found = of_batch(torch.ones(1), torch.ones(1), torch.ones(1), -3.0)
    assert found.value.tolist() == [0.5] and found.facts[0].tolist() == [0.0]


def test_the_facts_are_of_the_rows_that_they_name():
    """nan elsewhere, so that the log's mean is over accepted or rejected clips alone."""
    point, accepted, rejected, error, reference = of_batch(
        torch.tensor([1.0, 3.0]), torch.tensor([1.5, 2.0]), torch.tensor([1.0, 0.0]), 0.25
    ).facts
    assert point.tolist() == [0.25, 0.25]
    for fact, value, row in ((accepted, 0.5, 0), (rejected, -1.0, 1), (error, 1.0, 0), (reference, 1.5, 0)):
        assert fact[row].item() == value and math.isnan(fact[1 - row].item())


def test_a_reward_that_is_no_label_is_an_error_that_says_what_to_set():
    rows = [Weighted("a", "p", 1.0, 1.0), Weighted("b", "p", 0.7, 1.0)]
    assert KTO.signal(rows[:1], PLAIN) == [1.0]
    with pytest.raises(ValueError, match=r"b has the reward 0\.7: set build\.reward: label"):
        KTO.signal(rows, PLAIN)
