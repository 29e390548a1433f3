"""Claims about the steps of the SDE, their probabilities, and the loss and advantages of a policy gradient."""

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from generators.core.process import Epsilon, FlowMatching
from rl.online.grpo import advantages, clipped_loss
from rl.online.sde import (
    Step,
    check_generator,
    gradient_size,
    log_prob,
    noise_rate,
    sde_sample,
    sde_step,
    step_kl,
    time_weight,
)

DOUBLE = torch.float64


def at(*values: float) -> torch.Tensor:
    """(B, 1) latents of one element."""
    return torch.tensor(values, dtype=DOUBLE)[:, None]


# Steps


def test_a_step_by_hand():
    """t 0.5, t' 0.25, a 0.8: s = 0.8 sqrt(0.5 / 0.5) = 0.8, s² / 2t = 0.64, dt = -0.25."""
    step = sde_step(at(2.0), at(3.0), 0.5, 0.25, 0.8)
    # 2 (1 - 0.64 · 0.25) + 3 (1 + 0.64 · 0.5) (-0.25) = 2 · 0.84 - 3 · 1.32 · 0.25 = 1.68 - 0.99
    assert step.mean.item() == pytest.approx(0.69)
    assert step.std == pytest.approx(0.8 * 0.5)


def test_without_noise_a_step_is_eulers_of_the_ode():
    step = sde_step(at(2.0), at(3.0), 0.5, 0.25, 0.0)
    assert (step.mean.item(), step.std) == (2.0 - 3.0 * 0.25, 0.0)
    with pytest.raises(ValueError, match="noise_level must be above 0"):
        log_prob(at(1.0), step)


def test_a_step_at_pure_noise_has_the_rate_of_its_length():
    """t 1, t' 0.75: 0.25 for 1 - t, so s = 0.5 · sqrt(1 / 0.25) = 1."""
    assert noise_rate(1.0, 0.75, 0.5) == 1.0
    step = sde_step(at(2.0), at(3.0), 1.0, 0.75, 0.5)
    assert step.mean.item() == pytest.approx(2 * (1 - 0.5 * 0.25) - 3 * 0.25)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7])
def test_the_sde_has_the_mean_and_variance_of_the_ode_on_gaussian_clips(level):
    """Clips N(2, 0.5²): x_t is N(2 (1 - t), v) with v = (1 - t)² 0.25 + t², and the true velocity is linear in x.

    E[eps - x_0 | x_t] = -2 + (t - 0.25 (1 - t)) / v · (x_t - 2 (1 - t)). A step is then linear too, so that mean and
    variance are carried without sampling, to t = 0.1: there they must be those of x_t.
    """
    mean, variance, clean, spread, steps = 0.0, 1.0, 2.0, 0.25, 4000

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        v = (1 - t) ** 2 * spread + t**2
        return -clean + (t - spread * (1 - t)) / v * (x - clean * (1 - t))

    times = np.linspace(1, 0.1, steps + 1).tolist()
    for t, t_next in zip(times, times[1:], strict=False):
        x = at(0.0, 1.0)
        offset, further = sde_step(x, velocity(x, t), t, t_next, level).mean.flatten().tolist()
        mean = offset + (further - offset) * mean
        variance = (further - offset) ** 2 * variance + sde_step(x, x, t, t_next, level).std ** 2
    assert mean == pytest.approx(clean * 0.9, abs=2e-3)
    assert variance == pytest.approx(0.81 * spread + 0.01, abs=2e-3)


def test_no_step_turns_the_sign_of_the_latents():
    """However long it is beside 1 - t: the factor of x stays above 1 - a² / 2."""
    for t in (1.0, 0.9999999, 0.99, 0.5):
        for t_next in (0.9 * t, 0.1 * t, 0.0):
            factor = sde_step(at(1.0), at(0.0), t, t_next, 0.7).mean.item()
            assert 1 - 0.7**2 / 2 - 1e-9 <= factor <= 1, (t, t_next)


def test_the_log_probability_is_the_mean_over_elements_of_the_gaussians():
    step = Step(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), 0.5)
    drawn = torch.tensor([[1.5, 2.0], [0.0, 1.0]])
    expected = torch.distributions.Normal(step.mean, 0.5).log_prob(drawn).mean(1)
    torch.testing.assert_close(log_prob(drawn, step), expected)


def test_the_kl_divergence_is_that_of_the_gaussians_and_as_published_in_velocities():
    """Flow-GRPO: dt / 2 (s (1 - t) / 2t + 1 / s)² |v - v_ref|²."""
    t, t_next, level = 0.8, 0.7, 0.6
    one, other = (sde_step(at(1.0), at(v), t, t_next, level) for v in (0.5, 0.9))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(one.mean, one.std), normal(other.mean, other.std)).flatten()
    torch.testing.assert_close(step_kl(one, other), expected)
    s = noise_rate(t, t_next, level)
    by_velocity = 0.1 / 2 * (s * (1 - t) / (2 * t) + 1 / s) ** 2 * 0.4**2
    assert step_kl(one, other).item() == pytest.approx(by_velocity)
    assert step_kl(one, one).item() == 0


def test_the_gradient_vanishes_towards_noise_and_its_weight_makes_it_even():
    """gradient_size is what autograd finds; by the weight of power 1 it is 1 + a² / 2 after the first steps."""
    level = 0.7
    for t, t_next in ((0.98, 0.97), (0.5, 0.4), (0.2, 0.05)):
        velocity = at(0.3).requires_grad_()
        step = sde_step(at(1.0), velocity, t, t_next, level)
        noise = 1.7
        log_prob(step.mean + step.std * noise, step).sum().backward()
        assert velocity.grad.item() == pytest.approx(-noise * gradient_size(t, t_next, level))
        even = gradient_size(t, t_next, level) * time_weight(t, t_next, level, 1.0)
        assert even == pytest.approx(1 + level**2 / 2)
        assert time_weight(t, t_next, level, 0.0) == 1.0
    assert gradient_size(0.98, 0.97, level) < gradient_size(0.5, 0.49, level) / 5
    assert gradient_size(1.0, 0.97, level) * time_weight(1.0, 0.97, level, 1.0) == pytest.approx(1)


def sampled(predict, given: int = 0, keep=(0, 1, 2), level: float = 0.7):
    """Two clips of two latent frames of one element, four steps."""
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    scheduler = SimpleNamespace(sigmas=sigmas, timesteps=1000 * sigmas[:-1])
    start = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1).expand(2, 1, 2, 1, 1)
    conditions = {"given": torch.full((2, 1, given, 1, 1), 9.0)} if given else {}
    noise = {step: torch.full((2, 1, 2, 1, 1), 0.1 * (step + 1)) for step in range(3)}
    return sde_sample(predict, scheduler, FlowMatching(), start, noise.__getitem__, level, keep, conditions)


def test_a_clip_is_sampled_step_by_step_and_the_last_step_has_no_noise():
    found = sampled(lambda latents, timestep: 0.5 * latents)
    latents = torch.tensor([1.0, -1.0])
    for step, (t, t_next) in enumerate(((1.0, 0.75), (0.75, 0.5), (0.5, 0.25))):
        gaussian = sde_step(latents, 0.5 * latents, t, t_next, 0.7)
        kept = found.transitions[step]
        torch.testing.assert_close(kept.latents[:, 0, 0, 0, 0], latents)
        latents = gaussian.mean + gaussian.std * 0.1 * (step + 1)
        torch.testing.assert_close(kept.drawn[:, 0, 0, 0, 0], latents)
        assert kept.log_prob.tolist() == pytest.approx(
            [-((0.1 * (step + 1)) ** 2) / 2 - math.log(gaussian.std) - math.log(2 * math.pi) / 2] * 2, rel=1e-4
        )
    torch.testing.assert_close(found.latents[:, 0, 1, 0, 0], latents - 0.25 * 0.5 * latents)
    assert [kept.number for kept in sampled(lambda latents, _: latents, keep=(1,)).transitions] == [1]


def test_given_frames_stay_as_they_are_and_are_no_part_of_the_probability():
    """The prediction of the given frame is 1000: it must count nowhere."""

    def predict(latents, timestep):
        return torch.cat([torch.full_like(latents[:, :, :1], 1000.0), 0.5 * latents[:, :, 1:]], dim=2)

    free, with_given = sampled(lambda latents, _: 0.5 * latents), sampled(predict, given=1)
    assert (with_given.latents[:, :, 0] == 9.0).all()
    assert torch.equal(with_given.latents[:, :, 1], free.latents[:, :, 1])
    for one, other in zip(free.transitions, with_given.transitions, strict=True):
        torch.testing.assert_close(one.log_prob, other.log_prob)


def test_generators_whose_steps_have_no_such_probability_are_named():
    def generator(process, parts=1):
        return SimpleNamespace(
            process=process, num_parts=parts, family="cogvideox", checkpoint=SimpleNamespace(path="models/one")
        )

    check_generator(generator(FlowMatching()))
    with pytest.raises(ValueError, match=r"models/one \(cogvideox\) is no flow model; take last_steps"):
        check_generator(generator(Epsilon(torch.tensor([0.9, 0.5]))))
    with pytest.raises(ValueError, match="samples a clip part by part"):
        check_generator(generator(FlowMatching(), parts=3))


# Advantages


def test_advantages_by_hand():
    """Rewards 0, 1, 2 and 1, 1: means 1 and 1, deviations sqrt(2 / 3) and 0, of the batch sqrt(2 / 5)."""
    groups = [[0.0, 1.0, 2.0], [1.0, 1.0]]
    assert advantages(groups, "none") == [[-1.0, 0.0, 1.0], [0.0, 0.0]]
    own, of_batch = math.sqrt(3 / 2), math.sqrt(5 / 2)
    assert advantages(groups, "group")[0] == pytest.approx([-own, 0, own], rel=1e-5)
    assert advantages(groups, "batch")[0] == pytest.approx([-of_batch, 0, of_batch], rel=1e-5)
    assert advantages(groups, "group", bound=0.5)[0] == [-0.5, 0, 0.5]
    assert all(advantages(groups, spread)[1] == [0.0, 0.0] for spread in ("none", "group", "batch"))


def test_a_clip_without_a_reward_is_left_out_of_its_group_and_is_not_zero():
    """Rewards 1, unknown, 3: the mean is 2. With 0 in its place it would be 4 / 3."""
    assert advantages([[1.0, None, 3.0], [None, 5.0], [None]], "none") == [[-1.0, None, 1.0], [None, 0.0], [None]]


def test_advantages_of_equal_rewards_are_exactly_zero():
    """Whose mean, rounded, may differ from them."""
    for reward in (0.1, 1 / 3, 1e-9, 1e9):
        assert all(advantages([[reward] * 7], spread) == [[0.0] * 7] for spread in ("none", "group", "batch"))


# Loss


def test_the_clipped_loss_by_hand():
    """Ratios 1, 1.5, 0.5 under advantages 2 and -2, clip 0.2."""
    log_probs = torch.tensor([1.0, 1.5, 0.5]).log()
    good = clipped_loss(log_probs, torch.zeros(3), torch.full((3,), 2.0), 0.2)
    torch.testing.assert_close(good.loss, torch.tensor([-2.0, -2.4, -1.0]))  # 1.5 counts as 1.2; 0.5 as it is
    bad = clipped_loss(log_probs, torch.zeros(3), torch.full((3,), -2.0), 0.2)
    torch.testing.assert_close(bad.loss, torch.tensor([2.0, 3.0, 1.6]))  # 0.5 counts as 0.8; 1.5 as it is
    assert good.clipped.tolist() == [False, True, True]


def test_a_step_that_has_gone_far_enough_gets_no_gradient():
    log_probs = torch.tensor([1.5, 0.5, 1.1]).log().requires_grad_()
    clipped_loss(log_probs, torch.zeros(3), torch.tensor([2.0, -2.0, 2.0]), 0.2).loss.sum().backward()
    assert log_probs.grad[:2].tolist() == [0.0, 0.0]
    assert log_probs.grad[2].item() == pytest.approx(-2 * 1.1)


# The whole, on a linear model


def test_the_gradient_is_that_of_the_expected_reward():
    """v = theta x of one element, three steps from x = 1.3, the last without noise; reward x² + x of the clip.

    The two drawn noises are the nodes of a Gauss-Hermite rule, exact here, so that expectations are sums. The loss's
    gradient must be minus that of the expected reward, which finite differences of the sampler give: theta is in both
    the drift and, by the score, in no noise. A factor or sign of a step, or a step left out, would show.
    """
    times, level, theta = [1.0, 0.7, 0.4, 0.0], 0.8, 0.9
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    pairs = list(product(range(6), repeat=2))
    noise = torch.tensor(np.array([[nodes[i], nodes[j]] for i, j in pairs]), dtype=DOUBLE)
    chance = torch.tensor([weights[i] * weights[j] / (2 * math.pi) for i, j in pairs], dtype=DOUBLE)

    def sample(parameter: float) -> tuple[list[torch.Tensor], torch.Tensor]:
        path = [torch.full((len(pairs), 1), 1.3, dtype=DOUBLE)]
        for number in range(2):
            step = sde_step(path[-1], parameter * path[-1], times[number], times[number + 1], level)
            path.append(step.mean + step.std * noise[:, number : number + 1])
        clean = sde_step(path[-1], parameter * path[-1], times[2], times[3], 0.0).mean[:, 0]
        return path, clean**2 + clean

    path, reward = sample(theta)
    # The last step is theta's as well, through the clip alone: its part of the gradient is no score.
    parameter = torch.tensor(theta, dtype=DOUBLE, requires_grad=True)
    advantage = reward - (chance * reward).sum()
    for number in range(2):
        step = sde_step(path[number], parameter * path[number], times[number], times[number + 1], level)
        found = log_prob(path[number + 1], step)
        clipped = clipped_loss(found, found, advantage, 0.2)
        assert (clipped.ratio == 1).all()
        (chance * clipped.loss).sum().backward()

    def expected_with_last_step_fixed(changed: float) -> float:
        last = sample(changed)[0][-1]
        clean = sde_step(last, theta * last, times[2], times[3], 0.0).mean[:, 0]
        return (chance * (clean**2 + clean)).sum().item()

    h = 1e-5
    difference = (expected_with_last_step_fixed(theta + h) - expected_with_last_step_fixed(theta - h)) / (2 * h)
    assert abs(difference) > 0.1
    assert parameter.grad.item() == pytest.approx(-difference, rel=1e-7)
