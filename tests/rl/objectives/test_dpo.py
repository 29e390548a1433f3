"""Claims about DPO and its options, each with an example small enough to work by hand."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from data.records import Pair
from generators.core.process import Epsilon, FlowMatching, Velocity
from rl.objectives import (
    OBJECTIVES,
    Errors,
    dpo_loss,
    dpo_margin,
    flipped_pairs,
    implicit_reward,
    ipo_loss,
    noisy_loss,
    per_sample_error,
)
from tests.support.training import config

# alpha_bar = .36 at t = 1: alpha = .6 and sigma = .8, the 3-4-5 triangle.
ALPHAS_CUMPROD = torch.tensor([1.0, 0.36])


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


# The table of rl/objectives/dpo.py. Each form is written as its source has it: (squared differences (4, n)) -> log
# sigmoid argument, the four being policy chosen, policy rejected, reference chosen, reference rejected.


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


def test_the_scales_of_a_process_are_those_of_its_estimates():
    """An error d of the prediction is an error of scale * d of the estimate, by the estimates themselves."""
    for process, t in ((FlowMatching(), 0.25), (Velocity(ALPHAS_CUMPROD), 1.0), (Epsilon(ALPHAS_CUMPROD), 1.0)):
        noised, prediction, off = torch.randn(3, 4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
        time = torch.full((4,), t)
        for estimate, scale in (
            (process.clean_estimate, process.clean_scale),
            (process.noise_estimate, process.noise_scale),
        ):
            moved = estimate(noised, prediction + off, time) - estimate(noised, prediction, time)
            wanted = scale(time).view(-1, 1, 1, 1, 1) * off
            torch.testing.assert_close(moved.abs(), wanted.abs(), msg=lambda text, of=process: f"{of}: {text}")


# The objective and its options


def of_dpo(errors: Errors, **options) -> list[float]:
    """The objective's value on these errors, at beta 10 unless the options say otherwise."""
    dpo = OBJECTIVES["dpo"]
    return dpo.loss(errors, **config("dpo", beta=10.0).of(dpo) | options).value.tolist()


def batch(chosen: float, rejected: float, reference_chosen: float, reference_rejected: float, **more) -> Errors:
    policy, reference = (torch.tensor([chosen]), torch.tensor([rejected])), (reference_chosen, reference_rejected)
    return Errors(policy, tuple(torch.tensor([value]) for value in reference), torch.ones(1), **more)


BY_HAND = batch(1.0, 2.0, 1.2, 1.9)  # margin -.3
RISEN = batch(1.5, 2.6, 1.2, 1.9)  # chosen up by .3, rejected up by .7: margin -.4


def test_without_options_the_objective_is_equation_7():
    assert of_dpo(BY_HAND) == pytest.approx([0.048587], rel=1e-4)


def test_dpo_adds_the_chosen_error_by_its_weight():
    """Log 2 at margin 0, plus 5 times the chosen error .5."""
    errors = batch(0.5, 0.7, 0.5, 0.7)
    assert of_dpo(errors, beta=100.0) == pytest.approx([math.log(2)])
    assert of_dpo(errors, beta=100.0, chosen_error_weight=5.0) == pytest.approx([math.log(2) + 2.5])


def test_ipo_by_hand():
    """Beta 10: a margin of -.05 is wanted. At 0: .05^2 = .0025; at -.3: .25^2 = .0625; at -.05 nothing is left."""
    assert ipo_loss(torch.tensor([0.0, -0.3, -0.05]), 10.0).tolist() == pytest.approx([0.0025, 0.0625, 0.0])
    assert of_dpo(BY_HAND, form="ipo") == pytest.approx([0.0625])


def test_label_noise_by_hand():
    """The pair's loss log(1 + e^-3) = .048587, the swapped pair's 3.048587.

    At noise .1, smoothed: .9 * .048587 + .1 * 3.048587 = .348587; unbiased: (.0437283 - .3048587) / .8 = -.326413.
    """
    assert of_dpo(BY_HAND, label_noise=0.1) == pytest.approx([0.348587], rel=1e-4)
    assert of_dpo(BY_HAND, label_noise=0.1, noise_form="unbiased") == pytest.approx([-0.326413], rel=1e-4)


def test_the_unbiased_form_has_the_clean_loss_as_its_mean_over_flips():
    margin = torch.linspace(-0.5, 0.5, 9)
    right, flipped = dpo_loss(margin, 20.0), dpo_loss(-margin, 20.0)
    kept, turned = noisy_loss(right, flipped, 0.2, "unbiased"), noisy_loss(flipped, right, 0.2, "unbiased")
    torch.testing.assert_close(0.8 * kept + 0.2 * turned, right)


def test_the_smoothed_form_wants_a_margin_that_ends():
    """Its minimum is where the implied probability of the order is 1 - e: at sigmoid(-beta margin) = .8."""
    margin = torch.linspace(-1, 1, 2001)
    best = margin[noisy_loss(dpo_loss(margin, 4.0), dpo_loss(-margin, 4.0), 0.2, "smoothed").argmin()]
    assert torch.sigmoid(-4 * best).item() == pytest.approx(0.8, abs=1e-3)


def test_the_hinge_takes_a_rise_of_the_chosen_error_back():
    """RISEN has margin -.4 and a rise of .3: at hinge 2 the margin is +.2, and log(1 + e^2) = 2.126928.

    Where the chosen error fell, as in BY_HAND, the hinge says nothing.
    """
    assert of_dpo(RISEN, hinge=2.0) == pytest.approx([2.126928], rel=1e-5)
    assert of_dpo(BY_HAND, hinge=2.0) == of_dpo(BY_HAND)


def test_noise_swaps_the_pair_and_so_the_hinge():
    """Swapped, RISEN has margin .4 and its chosen clip rose by .7: at hinge 2, .4 + 1.4 = 1.8."""
    kept, swapped = math.log1p(math.exp(2)), math.log1p(math.exp(18))
    assert of_dpo(RISEN, hinge=2.0, label_noise=0.1) == pytest.approx([0.9 * kept + 0.1 * swapped], rel=1e-5)


def test_time_weight_makes_beta_one_on_noise_errors():
    """At t = .5 of flow matching to_noise is .5: beta 10 acts as 2.5, also on the rise."""
    halved = {"to_noise": torch.tensor([0.5])}
    assert of_dpo(BY_HAND._replace(**halved), time_weight=True) == pytest.approx(of_dpo(BY_HAND, beta=2.5))
    risen = of_dpo(RISEN._replace(**halved), time_weight=True, hinge=2.0)
    assert risen == pytest.approx(of_dpo(RISEN, beta=2.5, hinge=2.0))


def test_margin_weights_have_mean_one_and_scale_the_loss():
    rows = [Pair("p", "a", "b", 0.3), Pair("p", "a", "c", 0.1), Pair("p", "b", "c", 0.2)]
    dpo, on = OBJECTIVES["dpo"], config("dpo", margin_weight=True)
    assert dpo.signal(rows, on.of(dpo)) == pytest.approx([1.5, 0.5, 1.0])
    assert dpo.signal(rows, config("dpo").of(dpo)) == [1.0, 1.0, 1.0]
    weighted = of_dpo(BY_HAND._replace(signal=torch.tensor([1.5])), margin_weight=True)
    assert weighted == pytest.approx([1.5 * 0.048587], rel=1e-4)


def test_the_share_of_flipped_pairs_by_hand():
    """Rates .2 and .2: of the accepted .2 / (.8 + .2) are wrong, of the rejected as many are right: (.2 + .2) / 2.

    Rates .5 and 0: of the accepted .5 / 1.5 are wrong, of the rejected none is right: 1 / 6.
    """
    assert flipped_pairs(0.2, 0.2) == pytest.approx(0.2)
    assert flipped_pairs(0.5, 0.0) == pytest.approx(1 / 6)
    assert flipped_pairs(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="no better than a toss"):
        flipped_pairs(0.6, 0.4)


def test_the_share_of_flipped_pairs_is_what_a_simulation_counts():
    """Half of the clips are right; a pair that has no order counts half."""
    draw = torch.Generator().manual_seed(1)
    right = torch.rand(200_000, generator=draw) < 0.5
    accepted = torch.where(right, torch.rand(200_000, generator=draw) >= 0.1, torch.rand(200_000, generator=draw) < 0.3)
    chosen, rejected = right[accepted], right[~accepted]
    count = min(len(chosen), len(rejected))
    wrong = (rejected[:count].float() - chosen[:count].float() + 1) / 2
    assert wrong.mean().item() == pytest.approx(flipped_pairs(0.3, 0.1), abs=0.005)


def test_an_option_that_is_off_is_not_in_policy_json_and_one_that_is_on_is():
    """So that policies of earlier versions keep their bytes."""
    from rl.training.config import as_written

    plain, hinged = as_written(config("dpo")), as_written(config("dpo", hinge=2.0))
    assert "hinge" not in plain and hinged == plain | {"hinge": 2.0}
    assert as_written(config("rwr"))["beta"] is None and "advantage_clip" not in as_written(config("rwr"))
