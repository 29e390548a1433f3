"""Rollouts: worked by hand on a linear model, equal to sampling, and differentiated rightly within a memory bound."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from generators.core.generator import denoise_steps
from generators.core.process import FlowMatching, process_of
from generators.core.solvers import solver_scheduler, solver_times
from rl.online.rollouts import last_steps, random_step
from tests.support.tiny import load_wan

DDPM = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SOLVERS = ["euler", "unipc"]  # of flow matching
FITTING = [
    *(("flow_prediction", solver) for solver in SOLVERS),
    *((kind, solver) for kind in ("epsilon", "v_prediction") for solver in ("ddim", "unipc")),
]


@pytest.fixture(scope="module")
def wan(tiny_wan):
    return load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))


def latents(value: float, clips: int = 1) -> torch.Tensor:
    return torch.full((clips, 1, 1, 1, 1), value)


def thirds() -> FlowMatchEulerDiscreteScheduler:
    """Euler on a flow model, K = 3, t = 1, 0.5, 0.25 and then 0."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.25])
    return scheduler


def scheduler_of(prediction_type: str, solver: str, steps: int):
    """A tiny model's solver under any noise process, and the process; its timesteps set."""
    config = {**DDPM, "prediction_type": prediction_type, "flow_shift": 3.0}
    scheduler = solver_scheduler(config, solver)
    scheduler.set_timesteps(steps)
    return scheduler, process_of(config)


# By hand: the velocity is w z with w = 0.5, and the noise is 2.
#   t 1 -> 0.5: u = 0.5 · 2 = 1, z = 2 - 0.5 · 1 = 1.5, clean estimate 2 - 1 · 1 = 1
#   t 0.5 -> 0.25: u = 0.75, z = 1.5 - 0.25 · 0.75 = 1.3125, clean estimate 1.5 - 0.5 · 0.75 = 1.125
# The last forward at z_t ends at z_t - t w z_t, whose gradient by w is -t z_t.


@pytest.mark.parametrize(
    ("k", "renoise", "evaluated_at", "ends_at"),
    [
        (0, 4.0, 2.0, 1.0),  # pure noise, whatever it would be renoised with: 2 - 1 · 0.5 · 2
        (1, 4.0, 2.5, 1.875),  # fresh noise 4: 0.5 · 1 + 0.5 · 4; 2.5 - 0.5 · 1.25
        (1, 2.0, 1.5, 1.125),  # its own noise: 0.5 · 1 + 0.5 · 2, which from pure noise is the solver's own latents
        (1, None, 1.5, 1.125),
        (2, 4.0, 1.84375, 1.61328125),  # 0.75 · 1.125 + 0.25 · 4; · (1 - 0.25 · 0.5)
        (2, 2.0, 1.34375, 1.17578125),  # 0.75 · 1.125 + 0.25 · 2
        (2, None, 1.3125, 1.1484375),
    ],
)
def test_a_random_step_by_hand(k, renoise, evaluated_at, ends_at):
    w = torch.tensor(0.5, requires_grad=True)
    rollout = random_step(
        lambda z, _: w * z, thirds(), FlowMatching(), latents(2), k, None if renoise is None else latents(renoise)
    )
    assert rollout.forwards[0].latents.item() == pytest.approx(evaluated_at)
    assert rollout.latents.item() == pytest.approx(ends_at)
    (gradient,) = torch.autograd.grad(rollout.latents.sum(), w)
    t = [1.0, 0.5, 0.25][k]
    assert gradient.item() == pytest.approx(-t * evaluated_at)


@pytest.mark.parametrize(
    ("gradient_steps", "gradient"),
    [
        # z_3 = z_2 (1 - 0.25 w) with z_2 = 1.3125: -0.25 · 1.3125
        (1, -0.328125),
        # z_3 = z_1 (1 - 0.25 w)² with z_1 = 1.5: 1.5 · 2 · 0.875 · -0.25
        (2, -0.65625),
        # z_3 = 2 (1 - 0.5 w) (1 - 0.25 w)²: 2 · (-0.5 · 0.875² + 0.75 · 2 · 0.875 · -0.25)
        (3, -1.421875),
    ],
)
def test_the_last_steps_by_hand(gradient_steps, gradient):
    w = torch.tensor(0.5, requires_grad=True)
    rollout = last_steps(lambda z, _: w * z, thirds(), latents(2), gradient_steps)
    assert rollout.latents.item() == pytest.approx(1.1484375)  # 2 · 0.75 · 0.875²
    assert torch.autograd.grad(rollout.latents.sum(), w)[0].item() == pytest.approx(gradient)
    started_at = [2.0, 1.5, 1.3125][3 - gradient_steps :]
    assert [forward.latents.item() for forward in rollout.forwards] == pytest.approx(started_at)
    assert [forward.timestep.item() for forward in rollout.forwards] == [1000, 500, 250][3 - gradient_steps :]
    assert not any(tensor.requires_grad for forward in rollout.forwards for tensor in forward[:3])


def test_clips_of_a_batch_do_not_meet():
    together = random_step(
        lambda z, _: 0.5 * z, thirds(), FlowMatching(), torch.cat([latents(2), latents(6)]), 1,
        torch.cat([latents(4), latents(0)]),
    )  # fmt: skip
    # the second: noise 6, u 3, clean estimate 3; 0.5 · 3 + 0.5 · 0 = 1.5; 1.5 · 0.75
    assert together.latents.flatten().tolist() == pytest.approx([1.875, 1.125])


def test_given_frames_are_no_part_of_a_step_nor_of_the_estimate():
    """Two latent frames, the first given as 7; the second is as by hand above, whatever is predicted of the first."""
    noise, told = torch.full((1, 1, 2, 1, 1), 2.0), {"given": latents(7)}

    def predict(z, _):
        return torch.cat([torch.full_like(z[:, :, :1], 1000.0), 0.5 * z[:, :, 1:]], dim=2)

    for rollout, ends_at in (
        (random_step(predict, thirds(), FlowMatching(), noise, 1, None, told), 1.125),
        (random_step(predict, thirds(), FlowMatching(), noise, 2, torch.full_like(noise, 4.0), told), 1.61328125),
        (last_steps(predict, thirds(), noise, 2, told), 1.1484375),
    ):
        assert rollout.latents.flatten().tolist() == pytest.approx([7.0, ends_at])
        assert {forward.given for forward in rollout.forwards} == {1}
    steps = [step.latents for step in denoise_steps(predict, thirds(), noise, given=1)]
    assert [step[0, 0, 0].item() for step in steps] == [2.0, 2.0, 2.0]  # left as they are
    assert [step[0, 0, 1].item() for step in steps] == pytest.approx([1.5, 1.3125, 1.1484375])


# Against sampling


def test_the_last_steps_end_where_sampling_does(wan):
    for guidance in (1.0, 3.0):
        for solver in SOLVERS:
            text, noise = torch.randn(2, 6, 16), wan.draw_noise([1, 2], (4, 3, 4, 4))
            expected = wan.sample({"text": text}, {"text": text[0]}, noise, steps=4, guidance=guidance, solver=solver)
            scheduler = solver_scheduler(wan.scheduler_config, solver)
            scheduler.set_timesteps(4)
            rollout = last_steps(wan.guided({"text": text}, {"text": text[0]}, guidance), scheduler, noise, 2)
            torch.testing.assert_close(rollout.latents, expected)


@pytest.mark.parametrize(("prediction_type", "solver"), FITTING)
@pytest.mark.parametrize("k", [1, 3])
def test_what_is_renoised_is_the_clean_estimate_at_the_time_the_model_predicts_next(k, prediction_type, solver):
    """A model that knows the clean latents estimates them exactly, so where it predicts next is known as well."""
    clean, noise, fresh = torch.randn(3, 2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    scheduler, process = scheduler_of(prediction_type, solver, 4)
    t = solver_times(scheduler, process).float()

    def true_target(_, timestep):
        return process.target(clean, noise, (timestep / 999).clamp(max=1).float().expand(len(clean)))

    start = process.noised(clean, noise, t[0].expand(len(clean)))
    rollout = random_step(true_target, scheduler, process, start, k, fresh)
    expected = process.noised(clean, fresh, t[k].expand(len(clean)))
    torch.testing.assert_close(rollout.forwards[0].latents, expected, atol=1e-3, rtol=0)
    assert rollout.forwards[0].timestep == scheduler.timesteps[k]


def test_the_times_of_a_solver_are_those_of_its_process():
    for prediction_type, solver in (("flow_prediction", "euler"), ("epsilon", "ddim"), ("v_prediction", "ddim")):
        scheduler, process = scheduler_of(prediction_type, solver, 4)
        timesteps = process.model_timestep(solver_times(scheduler, process))
        torch.testing.assert_close(timesteps.float(), scheduler.timesteps.float(), atol=1e-3, rtol=0)


# Gradients


@pytest.mark.parametrize(("prediction_type", "solver"), FITTING)
@pytest.mark.parametrize("way", ["random_step", "last_steps"])
def test_the_gradient_is_that_of_finite_differences(wan, way, prediction_type, solver):
    """Of the tiny transformer's first feed-forward, which is moved from the first recorded step on and not before."""
    text = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    noise = wan.draw_noise([1], (4, 3, 4, 4))
    weight = wan.component("transformer").blocks[0].ffn.net[2].weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    projection = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    original, steps, recorded = weight.detach().clone(), 4, 2
    guided = wan.guided({"text": text}, {"text": text[0] * 0.5}, 2.0)
    first = steps - recorded if way == "last_steps" else 2

    def projected(moved: float) -> torch.Tensor:
        calls = []

        def predict(z, timestep):
            calls.append(1)
            if len(calls) == first + 1:
                weight.data.copy_(original + moved * direction)
            return guided(z, timestep)

        scheduler, process = scheduler_of(prediction_type, solver, steps)
        weight.data.copy_(original)
        if way == "last_steps":
            rollout = last_steps(predict, scheduler, noise, recorded)
        else:
            rollout = random_step(predict, scheduler, process, noise, first, -noise)
        return (rollout.latents * projection).sum()

    weight.requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(projected(0.0), weight)
        with torch.no_grad():
            step = 0.02
            difference = (projected(step) - projected(-step)) / (2 * step)
    finally:
        weight.requires_grad_(False)
        weight.data.copy_(original)
    expected = (gradient * direction).sum()
    assert expected.abs() > 0.05
    torch.testing.assert_close(expected, difference, atol=2e-3, rtol=0.01)


def saved_bytes(rollout) -> int:
    """Bytes that autograd keeps for the backward of what `rollout` records, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = rollout()
    assert held.latents.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_does_not_grow_with_the_recorded_steps_beyond_their_latents(wan, solver):
    parameters = list(wan.component("transformer").parameters())
    noise = wan.draw_noise([1], (4, 3, 8, 8))
    latent_bytes = noise.numel() * 4
    guided = wan.guided({"text": torch.randn(1, 6, 16)}, {"text": torch.zeros(6, 16)}, 1.0)

    def kept(recorded: int, checkpointed: bool = True) -> int:
        scheduler, _ = scheduler_of("flow_prediction", solver, 6)
        if checkpointed:
            return saved_bytes(lambda: last_steps(guided, scheduler, noise, recorded))

        def plain():
            *_, last = denoise_steps(guided, scheduler, noise)
            return last

        return saved_bytes(plain)

    for parameter in parameters:
        parameter.requires_grad_()
    try:
        one, five, without = kept(1), kept(5), kept(6, checkpointed=False)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    assert five - one <= 4 * (latent_bytes + 64)  # the step's latents, and a few scalars of the solver's
    assert without > 50 * five
