"""Claims about the distributions of t."""

import numpy as np
import pytest
import torch

from rl.training.timesteps import LogitNormal, Shifted, Timesteps, Uniform


def drawn(distribution: Timesteps, count: int = 20_000) -> torch.Tensor:
    return distribution(np.random.default_rng(0), count)


@pytest.mark.parametrize(
    "distribution", [Uniform(), LogitNormal(0.0, 1.0), LogitNormal(0.0, 100.0), Shifted(3.0), Shifted(1e6)]
)
def test_t_lies_strictly_between_clean_and_noise_and_depends_on_the_generator_alone(distribution):
    t = drawn(distribution)
    assert t.shape == (20_000,) and t.dtype == torch.float32 and t.min() > 0 and t.max() < 1
    assert torch.equal(t, drawn(distribution))


def test_uniform_quartiles():
    quartiles = drawn(Uniform()).quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75]), atol=0.01, rtol=0)


def test_logit_normal_median_is_the_sigmoid_of_its_mean():
    """sigmoid(log 3) = 3 / 4."""
    assert drawn(LogitNormal(1.0986, 1.0)).median() == pytest.approx(0.75, abs=0.01)


def test_shifted_median_by_hand():
    """u = 1/2, s = 3: 3/2 / (1 + 2/2) = 3/4."""
    assert drawn(Shifted(3.0)).median() == pytest.approx(0.75, abs=0.01)


def test_shift_one_is_uniform():
    assert torch.equal(drawn(Shifted(1.0)), drawn(Uniform()))


def test_shifted_t_are_those_of_the_sampler():
    """diffusers' flow scheduler maps its sigmas by the same formula."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain = FlowMatchEulerDiscreteScheduler(shift=1.0).sigmas
    torch.testing.assert_close(scheduler.sigmas, 3 * plain / (1 + 2 * plain))
    u = torch.from_numpy(np.random.default_rng(0).random(5, dtype=np.float32))
    torch.testing.assert_close(drawn(Shifted(3.0), 5), 3 * u / (1 + 2 * u))
