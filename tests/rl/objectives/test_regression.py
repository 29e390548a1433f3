"""Claims about the errors, regression on clips, and the table of objectives."""

import pytest
import torch

from data.records import DensePair, Pair, Weighted
from generators.core.process import Epsilon, FlowMatching, Velocity
from rl.objectives import OBJECTIVES, get_objective, per_sample_error, rwr_loss, sft_loss

# alpha_bar = .36 at t = 1: alpha = .6 and sigma = .8, the 3-4-5 triangle.
ALPHAS_CUMPROD = torch.tensor([1.0, 0.36])


def latents(*values: float) -> torch.Tensor:
    """(1, 1, 1, 1, W) latents of these elements."""
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def test_error_of_a_flow_prediction_by_hand():
    """x_0 = (2, 0), noise (-1, 1): velocity noise - x_0 = (-3, 1). Predicted (-2, 3): (1 + 4) / 2 = 2.5."""
    target = FlowMatching().target(latents(2.0, 0.0), latents(-1.0, 1.0), torch.tensor([0.25]))
    assert per_sample_error(latents(-2.0, 3.0), target).tolist() == [2.5]


def test_error_of_a_noise_prediction_by_hand():
    """The target is the noise (-1, 1) itself. Predicted (0, 4): (1 + 9) / 2 = 5."""
    target = Epsilon(ALPHAS_CUMPROD).target(latents(2.0, 0.0), latents(-1.0, 1.0), torch.tensor([1.0]))
    assert per_sample_error(latents(0.0, 4.0), target).tolist() == [5.0]


def test_error_of_a_v_prediction_by_hand():
    """v = .6 noise - .8 x_0 = (-.6 - 1.6, .6) = (-2.2, .6). Predicted (-.2, .6): (4 + 0) / 2 = 2."""
    target = Velocity(ALPHAS_CUMPROD).target(latents(2.0, 0.0), latents(-1.0, 1.0), torch.tensor([1.0]))
    assert per_sample_error(latents(-0.2, 0.6), target).tolist() == pytest.approx([2.0])


def test_error_is_a_mean_and_so_independent_of_the_number_of_elements():
    prediction, target = torch.randn(3, 2, 3, 4, 4), torch.randn(3, 2, 3, 4, 4)
    doubled = per_sample_error(prediction.repeat(1, 1, 2, 1, 1), target.repeat(1, 1, 2, 1, 1))
    torch.testing.assert_close(doubled, per_sample_error(prediction, target))


def test_error_is_computed_in_float32_whatever_the_prediction():
    """In bfloat16, 256 - 255.5 would round to 0 or 1; the target is not rounded to the prediction's dtype."""
    error = per_sample_error(latents(256.0).bfloat16(), latents(255.5))
    assert error.dtype == torch.float32 and error.item() == 0.25


def test_sft_loss_is_the_error():
    assert sft_loss(torch.tensor([2.5, 5.0])).tolist() == [2.5, 5.0]


def test_rwr_loss_by_hand():
    """Weights 1, .5, 0 times errors 2, 4, 6."""
    assert rwr_loss(torch.tensor([2.0, 4.0, 6.0]), torch.tensor([1.0, 0.5, 0.0])).tolist() == [2.0, 2.0, 0.0]


def test_rwr_is_not_normalised_by_the_sum_of_weights():
    """Halving every weight halves the loss; normalised, it would not change."""
    error, weight = torch.rand(8), torch.rand(8)
    torch.testing.assert_close(rwr_loss(error, weight / 2), rwr_loss(error, weight) / 2)


def test_a_clip_of_weight_zero_gives_no_gradient():
    error = torch.tensor([2.0, 3.0], requires_grad=True)
    rwr_loss(error, torch.tensor([0.0, 1.0])).sum().backward()
    assert error.grad.tolist() == [0.0, 1.0]


def test_rwr_with_weight_one_is_sft():
    error = torch.rand(8)
    assert torch.equal(rwr_loss(error, torch.ones(8)), sft_loss(error))


def test_objectives_know_their_rows():
    weighted, pair = Weighted("a", "p", 1.0, 0.5), Pair("p", "a", "b", 1.0)
    facts = {o.name: (o.row_type, o.uses_reference, len(o.facts)) for o in OBJECTIVES.values()}
    assert facts == {
        "sft": (Weighted, False, 0), "rwr": (Weighted, False, 0), "dpo": (Pair, True, 3), "kto": (Weighted, True, 5),
        "nft": (Weighted, True, 4), "dense_dpo": (DensePair, True, 3),
    }  # fmt: skip
    weights = [OBJECTIVES[name].weight(weighted) for name in ("sft", "rwr", "kto", "nft")]
    assert weights == [1.0, 0.5, 1.0, 1.0]  # kto and nft run rejected clips too
    assert OBJECTIVES["rwr"].sample_ids(weighted) == ("a",) and OBJECTIVES["dpo"].sample_ids(pair) == ("a", "b")


def test_an_unknown_objective_lists_the_known():
    with pytest.raises(ValueError, match="'ppo' is unknown; known: sft, rwr, dpo, kto, nft, dense_dpo"):
        get_objective("ppo")
