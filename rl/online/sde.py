"""Sampling by a stochastic differential equation whose steps have a probability: what a policy gradient needs.

A flow's ODE dx = v dt is replaced by the SDE with the same marginal distributions at every t (Flow-GRPO, Liu et al.,
arXiv 2505.05470; DanceGRPO, Xue et al., arXiv 2505.07818, samples so too):

    dx = [v + s_t² / (2 t) (x + (1 - t) v)] dt + s_t dw,    s_t = a sqrt(t / (1 - t))

and an Euler-Maruyama step of it from t to t' < t is a draw from a Gaussian,

    mean = x (1 + s_t² / (2 t) dt) + v (1 + s_t² (1 - t) / (2 t)) dt,    std = s_t sqrt(-dt),    dt = t' - t

    variable          Flow-GRPO                 flow_grpo's code
    latents           x_t                       sample
    velocity          v_theta(x_t, t)           model_output
    t, t_next         t, t + Δt                 sigma, sigma_prev
    noise_level       a                         noise_level
    Step.mean         mu_theta(x_t, t)          prev_sample_mean
    Step.std          sigma_t sqrt(Δt)          std_dev_t * sqrt(-dt)

Deviations. In s_t, 1 - t is at least the step's length: s_t would be infinite at t = 1, where their code has
1 - t' too, and a step that is long beside 1 - t would turn the sign of the latents. Under a shift the second step
changes a little.
The last step, to t' = 0, is the ODE's. Their code adds noise there too, which stays in the clip, and does not train
this step (timestep_fraction 0.99). The published script for Wan has another s_t, close to t; ours is the paper's.

Letters: B batch, C channels, F latent frames, h, w.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from generators.core.conditions import given_frames, with_given
from generators.core.generator import Generator, Predict
from generators.core.process import FlowMatching
from generators.core.solvers import solver_times

SOLVER = "euler"  # whose times the steps have


class Step(NamedTuple):
    """The Gaussian that a step draws from."""

    mean: Tensor  # of the latents' shape
    std: float  # of every element


class Transition(NamedTuple):
    """A step that was drawn; without graph, on the CPU."""

    number: int  # of the solver's steps
    latents: Tensor  # (B, C, F, h, w) before
    drawn: Tensor  # (B, C, F, h, w) after
    log_prob: Tensor  # (B,) nats an element, by the policy that drew it


class Sampled(NamedTuple):
    """Clips, and those of their steps that were to be kept."""

    latents: Tensor  # (B, C, F, h, w) clean, the given frames among them
    transitions: tuple[Transition, ...]


def check_generator(generator: Generator) -> None:
    """Raises ValueError where the steps of this generator have no such probability."""
    path, family = generator.checkpoint.path, generator.family
    if not isinstance(generator.process, FlowMatching):
        raise ValueError(f"rollout sde is of flow matching, and {path} ({family}) is no flow model; take last_steps")
    if generator.num_parts > 1:
        raise ValueError(f"rollout sde samples whole clips, and {family} samples a clip part by part; take last_steps")


def noise_rate(t: float, t_next: float, noise_level: float) -> float:
    """s_t, by how much noise the SDE adds: its unit is latents a square root of t.

    Flow-GRPO: sigma_t = a sqrt(t / (1 - t)); ours has max(1 - t, t - t_next) for 1 - t.
    """
    return noise_level * math.sqrt(t / max(1 - t, t - t_next))


def sde_step(latents: Tensor, velocity: Tensor, t: float, t_next: float, noise_level: float) -> Step:
    """The Gaussian of one step, with the velocity's graph; the module's docstring has the equation.

    latents, velocity: of one shape. 1 >= t > t_next >= 0. noise_level: a; at 0 the mean is the ODE's Euler step and the
    std is 0.
    """
    dt, rate = t_next - t, noise_rate(t, t_next, noise_level)
    pull = rate**2 / (2 * t)
    mean = latents * (1 + pull * dt) + velocity * (1 + pull * (1 - t)) * dt
    return Step(mean, rate * math.sqrt(-dt))


def log_prob(drawn: Tensor, step: Step) -> Tensor:
    """(B,) log density of what was drawn, nats, the mean over all elements, with the graph of step.mean.

    drawn: (B, …) of the mean's shape; its graph is cut. A log probability is the sum over elements; the mean is that
    of flow_grpo's code. It makes a ratio the geometric mean of the elements' ratios, which does not grow or vanish with
    the clip's size, and divides the gradient by their number.
    Raises ValueError where the std is 0, for there is no density.
    """
    if step.std <= 0:
        raise ValueError("a step without noise has no log probability: noise_level must be above 0")
    errors = (drawn.detach() - step.mean) / step.std
    return (-(errors**2) / 2 - math.log(step.std) - math.log(2 * math.pi) / 2).flatten(1).mean(1)


def step_kl(step: Step, reference: Step) -> Tensor:
    """(B,) KL divergence of a step from the reference's of the same std, nats, the mean over all elements.

    |mu_theta - mu_ref|² / (2 s_t² |dt|), Flow-GRPO's D_KL; in mean and not in sum as `log_prob` is, and as their code.
    """
    return ((step.mean - reference.mean) ** 2).flatten(1).mean(1) / (2 * step.std**2)


def gradient_size(t: float, t_next: float, noise_level: float) -> float:
    """By how much the noise of a step is multiplied in the gradient of its log probability by the velocity.

    d log p / d v = -z sqrt(-dt) (1 + s_t² (1 - t) / (2 t)) / s_t for the drawn z. After the first steps it is
    (1 / a + a / 2) sqrt(-dt (1 - t) / t), which vanishes towards t = 1, where a large shift has most of its steps.
    """
    rate = noise_rate(t, t_next, noise_level)
    return math.sqrt(t - t_next) * (1 + rate**2 * (1 - t) / (2 * t)) / rate


def time_weight(t: float, t_next: float, noise_level: float, power: float) -> float:
    """(s_t / sqrt(-dt)) ** power: the weight of a step's policy gradient.

    power: 0 is the policy gradient itself. 1 is the weight of flow_grpo's script for Wan, sigma_t / dt with their dt
    the root: it makes `gradient_size` 1 + a² / 2 at every t but the first, where it is 1.
    """
    return float((noise_rate(t, t_next, noise_level) / math.sqrt(t - t_next)) ** power)


def sde_sample(
    predict: Predict,
    scheduler: Any,
    process: FlowMatching,
    start: Tensor,
    noise_of: Callable[[int], Tensor],
    noise_level: float,
    keep: Collection[int],
    conditions: Mapping[str, Tensor],
) -> Sampled:
    """Clips by the SDE, the last step by the ODE; call it under no_grad.

    scheduler: Euler's, with its K timesteps set. start: (B, C, F, h, w) where sampling starts. noise_of: the number of
        a step -> (B, C, F, h, w) standard normal. keep: numbers of the steps that are kept, the last not among them.
        conditions: given latent frames are left out of steps and probabilities.
    """
    given, times = given_frames(conditions), times_of(scheduler, process)
    latents, kept = start, []
    for number, timestep in enumerate(scheduler.timesteps):
        t, t_next = times[number], times[number + 1]
        prediction = predict(latents, timestep)
        level = noise_level if number + 1 < len(scheduler.timesteps) else 0.0
        step = sde_step(latents[:, :, given:], prediction[:, :, given:], t, t_next, level)
        drawn = step.mean
        if step.std > 0:
            drawn = drawn + step.std * noise_of(number).to(drawn.device)[:, :, given:]
        after = torch.cat([latents[:, :, :given], drawn], dim=2) if given else drawn
        if number in keep:
            kept.append(Transition(number, latents.cpu(), after.cpu(), log_prob(drawn, step).cpu()))
        latents = after
    return Sampled(with_given(latents, conditions), tuple(kept))


def sde_scheduler(generator: Generator, steps: int) -> Any:
    """The scheduler whose times the steps have: Euler's, of even length before the shift."""
    return generator.solver(SOLVER, steps, even=True)


def times_of(scheduler: Any, process: FlowMatching) -> list[float]:
    """The K + 1 process times of the solver's steps, from the first to 0."""
    return [*solver_times(scheduler, process).tolist(), 0.0]
