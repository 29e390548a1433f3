"""Noise processes: worked by hand, held to their properties, and checked against diffusers."""

import json
import math

import diffusers
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from generators.core.process import Epsilon, FlowMatching, Velocity, process_of, shift_time, with_fixed_shift

DDPM = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROCESSES = [
    FlowMatching(),
    process_of({**DDPM, "prediction_type": "epsilon"}),
    process_of({**DDPM, "prediction_type": "v_prediction"}),
]
# A table of two entries: alpha_bar 1 (no noise) at t 0 and 0.64 at t 1, so alpha = 0.8 and sigma = 0.6 there.
TABLE = torch.tensor([1.0, 0.64])


def saved_config(scheduler) -> dict:
    return json.loads(scheduler.to_json_string())


def latents(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1, 1)


def test_flow_matching_by_hand():
    # x_0 = 2, epsilon = -1, t = 1/4: x_t = 3/4 · 2 - 1/4 = 1.25 and the velocity is -1 - 2 = -3.
    clean, noise, t = latents(2), latents(-1), torch.tensor([0.25])
    process = FlowMatching()
    assert process.noised(clean, noise, t).item() == 1.25
    assert process.target(clean, noise, t).item() == -3
    assert process.clean_estimate(latents(1.25), latents(-3), t).item() == 2  # 1.25 + 1/4 · 3
    assert process.noise_estimate(latents(1.25), latents(-3), t).item() == -1  # 1.25 - 3/4 · 3
    assert process.model_timestep(t).item() == 250


def test_epsilon_by_hand():
    # x_0 = 1, epsilon = 2 at alpha 0.8, sigma 0.6: z = 0.8 + 1.2 = 2; (2 - 0.6 · 2) / 0.8 = 1.
    clean, noise, t = latents(1), latents(2), torch.tensor([1.0])
    process = Epsilon(TABLE)
    assert process.noised(clean, noise, t).item() == pytest.approx(2.0)
    assert process.target(clean, noise, t).item() == 2
    assert process.clean_estimate(latents(2), latents(2), t).item() == pytest.approx(1.0)
    assert process.model_timestep(t).item() == 1


def test_velocity_by_hand():
    # x_0 = 1, epsilon = 2: z = 2, v = 0.8 · 2 - 0.6 · 1 = 1; back: 0.8 · 2 - 0.6 · 1 = 1 and 0.6 · 2 + 0.8 · 1 = 2.
    clean, noise, t = latents(1), latents(2), torch.tensor([1.0])
    process = Velocity(TABLE)
    assert process.target(clean, noise, t).item() == pytest.approx(1.0)
    assert process.clean_estimate(latents(2), latents(1), t).item() == pytest.approx(1.0)
    assert process.noise_estimate(latents(2), latents(1), t).item() == pytest.approx(2.0)


def test_the_target_implies_the_clean_latents_and_the_noise():
    for dtype in (torch.float32, torch.bfloat16):
        for process in PROCESSES:
            clean, noise = torch.randn(2, 5, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
            t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
            noised, target = process.noised(clean, noise, t), process.target(clean, noise, t)
            assert noised.dtype == target.dtype == torch.float32, (process, dtype)
            torch.testing.assert_close(process.clean_estimate(noised, target, t), clean.float(), atol=2e-5, rtol=0)
            noisy = slice(1, None)  # at t = 0 nothing of the noise is left in an epsilon model's input
            torch.testing.assert_close(
                process.noise_estimate(noised, target, t)[noisy], noise.float()[noisy], atol=2e-5, rtol=0
            )


def test_time_runs_from_clean_to_noise():
    for process in PROCESSES:
        clean, noise = latents(1.0, 1.0), latents(0.0, 0.0)
        near_clean, near_noise = process.noised(clean, noise, torch.tensor([0.0, 1.0])).flatten()
        assert near_clean > 0.99 and near_noise < 0.1, process


def test_time_must_be_a_float_for_each_sample():
    for t in (torch.tensor([500, 3]), torch.tensor(0.5)):
        for process in PROCESSES:
            with pytest.raises(ValueError, match=r"expected \(2,\) floats"):
                process.noised(latents(1, 1), latents(0, 0), t)


def test_epsilon_and_v_agree_with_diffusers():
    clean, noise = torch.randn(2, 3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 500, 999])
    scheduler = diffusers.DDPMScheduler(**DDPM, prediction_type="v_prediction")
    process = process_of(saved_config(scheduler))
    assert isinstance(process, Velocity)
    t = timesteps / 999
    assert torch.equal(process.model_timestep(t), timesteps)
    torch.testing.assert_close(process.noised(clean, noise, t), scheduler.add_noise(clean, noise, timesteps))
    torch.testing.assert_close(process.target(clean, noise, t), scheduler.get_velocity(clean, noise, timesteps))


def test_flow_matching_agrees_with_diffusers():
    clean, noise = torch.randn(2, 3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    process = process_of(saved_config(scheduler))
    assert process == FlowMatching(shift=3.0)
    index = [0, 400, 999]
    t, timesteps = scheduler.sigmas[index], scheduler.timesteps[index]
    torch.testing.assert_close(process.model_timestep(t), timesteps)
    torch.testing.assert_close(process.noised(clean, noise, t), scheduler.scale_noise(clean, timesteps, noise))


def test_shifted_time_by_hand_and_against_diffusers():
    # 3 · 1/2 / (1 + 2 · 1/2) = 3/4
    assert shift_time(torch.tensor(0.5), 3.0).item() == 0.75
    uniform = torch.arange(1, 1001).flip(0) / 1000
    torch.testing.assert_close(shift_time(uniform, 3.0), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas)
    assert torch.equal(shift_time(uniform, 1.0), uniform)


def test_a_scheduler_config_names_its_process():
    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    assert process_of(saved_config(unipc)) == FlowMatching(shift=5.0)
    assert isinstance(process_of(saved_config(diffusers.DDIMScheduler())), Epsilon)


def test_a_bent_noise_table_is_kept():
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", snr_shift_scale=3.0)
    torch.testing.assert_close(process_of(saved_config(scheduler)).alphas_cumprod, scheduler.alphas_cumprod.float())


def test_an_unknown_process_lists_the_known():
    with pytest.raises(ValueError, match=r"'sample'.*flow_prediction, epsilon, v_prediction"):
        process_of({"prediction_type": "sample"})
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        process_of(saved_config(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)))


def test_a_shift_by_the_number_of_tokens_is_diffusers_own_at_that_number():
    """Whose schedulers take mu from the pipeline's calculate_shift, and shift time by e^mu."""
    ends = {"base_image_seq_len": 1024, "max_image_seq_len": 4096, "base_shift": 0.95, "max_shift": 2.05}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **ends)
    for tokens in (256, 1024, 3000, 4096, 9000):
        fixed = with_fixed_shift(saved_config(scheduler), tokens)
        mu = calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
        assert process_of(fixed).shift == pytest.approx(math.exp(mu))
        sigmas = [1.0, 0.7, 0.2]
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
        torch.testing.assert_close(shift_time(torch.tensor(sigmas), process_of(fixed).shift), scheduler.sigmas[:-1])
    # By hand, with diffusers' defaults: at the base's 256 tokens mu is 0.5, at 4096 it is 1.15.
    plain = saved_config(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    assert process_of(with_fixed_shift(plain, 256)).shift == pytest.approx(math.exp(0.5))
    assert process_of(with_fixed_shift(plain, 4096)).shift == pytest.approx(math.exp(1.15))


def test_a_shift_that_does_not_depend_on_the_tokens_stays():
    config = saved_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert with_fixed_shift(config, 9000) == config
    with pytest.raises(ValueError, match="time_shift_type 'linear'; known is exponential"):
        with_fixed_shift(config | {"use_dynamic_shifting": True, "time_shift_type": "linear"}, 9000)
