"""Claims about the losses, each with an example small enough to work by hand."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from data.records import Pair, Weighted
from generators.core.process import Epsilon, FlowMatching, Velocity
from rl.objectives import (
    OBJECTIVES,
    Errors,
    dpo_loss,
    dpo_margin,
    get_objective,
    implicit_reward,
    per_sample_error,
    rwr_loss,
    sft_loss,
)

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


def test_dpo_by_hand():
    """Policy errors 1.0 and 2.0, reference errors 1.2 and 1.9.

    margin = (1.0 - 1.2) - (2.0 - 1.9) = -.3: toward the chosen by .2, away from the rejected by .1.
    At beta 10: -log sigmoid(10 · .3) = log(1 + e^-3) = .048587.
    """
    errors = (torch.tensor([value]) for value in (1.0, 2.0, 1.2, 1.9))
    margin = dpo_margin(*errors)
    assert margin.item() == pytest.approx(-0.3)
    assert dpo_loss(margin, 10.0).item() == pytest.approx(0.048587, rel=1e-4)


def test_swapping_the_pair_negates_the_margin():
    chosen, rejected, reference_chosen, reference_rejected = torch.rand(4, 16)
    swapped = dpo_margin(rejected, chosen, reference_rejected, reference_chosen)
    torch.testing.assert_close(swapped, -dpo_margin(chosen, rejected, reference_chosen, reference_rejected))


def test_a_policy_that_is_the_reference_has_loss_log_2():
    chosen, rejected = torch.rand(2, 16)
    margin = dpo_margin(chosen, rejected, chosen, rejected)
    torch.testing.assert_close(dpo_loss(margin, 2500.0), torch.full((16,), math.log(2)))


def test_dpo_gradient_lowers_the_chosen_error_and_raises_the_rejected():
    """At margin 0 the slope is beta sigmoid(0) = beta / 2."""
    chosen, rejected = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    dpo_loss(dpo_margin(chosen, rejected, torch.ones(1), torch.ones(1)), 100.0).backward()
    assert (chosen.grad.item(), rejected.grad.item()) == (50.0, -50.0)


def test_dpo_loss_stays_finite_far_from_zero():
    loss = dpo_loss(torch.tensor([-10.0, 10.0]), 2500.0)
    assert loss.tolist() == [0.0, 25000.0]


def test_implicit_reward_by_hand():
    """beta 10 at margins -.3, 0, .2: rewards differ by 3, 0, -2; right, undecided, wrong."""
    reward = implicit_reward(torch.tensor([-0.3, 0.0, 0.2]), 10.0)
    assert reward.margin.tolist() == pytest.approx([3.0, 0.0, -2.0])
    assert reward.accuracy.tolist() == [1.0, 0.5, 0.0]


# The table of rl/objectives.py. Each form is written as its source has it: (squared differences (4, n)) -> log sigmoid
# argument, the four being policy chosen, policy rejected, reference chosen, reference rejected.


def _mean_without_half(b, w, lose, w_ref, lose_ref):
    return b * ((w_ref.mean() - lose_ref.mean()) - (w.mean() - lose.mean()))


def _mean_with_half(b, w, lose, w_ref, lose_ref):
    return -0.5 * b * ((w.mean() - lose.mean()) - (w_ref.mean() - lose_ref.mean()))


def _sum_without_half(b, w, lose, w_ref, lose_ref):
    return -b * (w.sum() - w_ref.sum() - lose.sum() + lose_ref.sum())


def _sum_with_half(b, w, lose, w_ref, lose_ref):
    return -b / 2 * (w.sum() - w_ref.sum() - (lose.sum() - lose_ref.sum()))


@pytest.mark.parametrize(
    "source, form, b, beta",
    [
        ("Furuta et al., Eq. 7, norm read as a mean", _mean_without_half, 5000.0, lambda b, n: b),
        ("Furuta et al., Eq. 7, norm read as a sum", _sum_without_half, 0.5, lambda b, n: b * n),
        ("Wallace et al., train.py", _mean_with_half, 5000.0, lambda b, n: 2500.0),
        ("diffusers, train_diffusion_dpo.py", _mean_without_half, 2500.0, lambda b, n: b),
        ("diffusers, train_diffusion_dpo_sdxl.py", _mean_with_half, 5000.0, lambda b, n: 2500.0),
        ("Liu et al., Flow-DPO, constant beta_t", _sum_with_half, 0.5, lambda b, n: b * n / 2),
    ],
)
def test_published_forms_of_dpo_agree_at_their_equivalent_beta(source, form, b, beta):
    n = 48
    squares = torch.rand(4, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.01
    ours = dpo_loss(dpo_margin(*squares.mean(1)), beta(b, n))
    torch.testing.assert_close(ours, -logsigmoid(form(b, *squares)))


def test_a_beta_on_noise_errors_is_another_on_velocity_errors():
    """The error of the noise that a velocity implies is that factor of the velocity's own."""
    for process, t, factor in (
        (FlowMatching(), 0.25, 0.75**2),  # (1 - t)^2
        (Velocity(ALPHAS_CUMPROD), 1.0, 0.36),  # alpha^2
    ):
        clean, noise, prediction = torch.randn(3, 4, 2, 3, 4, 4).unbind()
        time = torch.full((4,), t)
        noised = process.noised(clean, noise, time)
        noise_error = per_sample_error(process.noise_estimate(noised, prediction, time), noise)
        velocity_error = per_sample_error(prediction, process.target(clean, noise, time))
        torch.testing.assert_close(noise_error, factor * velocity_error)


def test_dpo_adds_the_chosen_error_by_its_weight():
    """Log 2 at margin 0, plus 5 times the chosen error .5."""
    both = torch.tensor([0.5]), torch.tensor([0.7])
    errors = Errors(policy=both, reference=both, weight=torch.ones(1))
    dpo = get_objective("dpo")
    assert dpo.loss(errors, beta=100.0, chosen_error_weight=0.0).value.item() == pytest.approx(math.log(2))
    assert dpo.loss(errors, beta=100.0, chosen_error_weight=5.0).value.item() == pytest.approx(math.log(2) + 2.5)


def test_objectives_know_their_rows():
    weighted, pair = Weighted("a", "p", 1.0, 0.5), Pair("p", "a", "b", 1.0)
    facts = {o.name: (o.row_type, o.uses_reference, len(o.facts)) for o in OBJECTIVES.values()}
    assert facts == {"sft": (Weighted, False, 0), "rwr": (Weighted, False, 0), "dpo": (Pair, True, 3)}
    assert [OBJECTIVES[name].weight(weighted) for name in ("sft", "rwr")] == [1.0, 0.5]
    assert OBJECTIVES["rwr"].sample_ids(weighted) == ("a",) and OBJECTIVES["dpo"].sample_ids(pair) == ("a", "b")


def test_an_unknown_objective_lists_the_known():
    with pytest.raises(ValueError, match="'ppo' is unknown; known: sft, rwr, dpo"):
        get_objective("ppo")
