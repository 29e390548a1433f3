"""Claims about the distributions of t."""

import pytest
import torch

from rl.training import timesteps

SETTINGS = {"uniform": {}, "logit_normal": {"mean": 0.0, "std": 1.0}, "shifted": {"shift": 3.0}}


def drawn(name: str, count: int = 20_000, **settings: float) -> torch.Tensor:
    return timesteps.make(name, **settings)(torch.Generator().manual_seed(0), count)


@pytest.mark.parametrize("name", timesteps.DISTRIBUTIONS)
def test_t_lies_strictly_between_clean_and_noise(name):
    t = drawn(name, **SETTINGS[name])
    assert t.shape == (20_000,) and t.dtype == torch.float32 and t.min() > 0 and t.max() < 1


@pytest.mark.parametrize("name", timesteps.DISTRIBUTIONS)
def test_the_same_generator_draws_the_same_t(name):
    assert torch.equal(drawn(name, **SETTINGS[name]), drawn(name, **SETTINGS[name]))


def test_extreme_settings_never_reach_the_ends():
    t = torch.cat([drawn("logit_normal", mean=0.0, std=100.0), drawn("shifted", shift=1e6)])
    assert t.min() > 0 and t.max() < 1


def test_uniform_quartiles():
    quartiles = drawn("uniform").quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75]), atol=0.01, rtol=0)


def test_logit_normal_median_is_the_sigmoid_of_its_mean():
    """sigmoid(log 3) = 3 / 4."""
    assert drawn("logit_normal", mean=1.0986, std=1.0).median() == pytest.approx(0.75, abs=0.01)


def test_shifted_median_by_hand():
    """u = 1/2, s = 3: 3/2 / (1 + 2/2) = 3/4."""
    assert drawn("shifted", shift=3.0).median() == pytest.approx(0.75, abs=0.01)


def test_shift_one_is_uniform():
    assert torch.equal(drawn("shifted", shift=1.0), drawn("uniform"))


def test_shifted_t_are_those_of_the_sampler():
    """diffusers' flow scheduler maps its sigmas by the same formula."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain = FlowMatchEulerDiscreteScheduler(shift=1.0).sigmas
    torch.testing.assert_close(scheduler.sigmas, 3 * plain / (1 + 2 * plain))
    u = torch.rand(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn("shifted", 5, shift=3.0), 3 * u / (1 + 2 * u))


def test_an_unknown_distribution_lists_the_known():
    with pytest.raises(ValueError, match="'beta' is unknown; known: uniform, logit_normal, shifted"):
        timesteps.make("beta")


@pytest.mark.parametrize("name, settings", [("uniform", {"shift": 3.0}), ("logit_normal", {"mean": 0.0})])
def test_a_setting_too_many_or_too_few_is_named(name, settings):
    with pytest.raises(ValueError, match=f"'{name}' takes the settings"):
        timesteps.make(name, **settings)


def test_a_shift_of_zero_is_refused():
    with pytest.raises(ValueError, match="shift must be > 0, found 0"):
        timesteps.make("shifted", shift=0)
