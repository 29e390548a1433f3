"""From noise to clean latents, the last part with a gradient, which an online update back-propagates.

Both ways sample as inference does, by its solver, schedule and guidance, and differ in what they record. Under
guidance the gradient passes through both branches, with and without the prompt, unless the generator has
`unconditional`; the papers do not say.

    variable          Ask-A-Video (§3.2)            Diffusion-DRF (Eq. 2)
    noise             epsilon = z_{t_0}             z_T
    times[k]          t_k
    latents           z_{t_k}, then z~_{t_k}        z_k
    clean             z~_0^(k)
    prediction        u^
    Rollout.latents   z^_0                          z_0
    gradient_steps                                  K
"""

from collections.abc import Mapping
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from generators.core.conditions import given_frames, with_given
from generators.core.generator import Predict, denoise_steps
from generators.core.process import NoiseProcess
from generators.core.solvers import solver_times

NOTHING: Mapping[str, Tensor] = MappingProxyType({})  # conditions without given frames


class Forward(NamedTuple):
    """Input and output of a forward of the policy that a rollout recorded; without gradient here."""

    latents: Tensor  # (B, C, F, h, w) z_t
    timestep: Tensor  # scalar, in the transformer's unit
    prediction: Tensor  # (B, C, F, h, w), guided
    given: int  # leading latent frames that are given, where the prediction means nothing


class Rollout(NamedTuple):
    """Clean latents, and the recorded forwards that they depend on."""

    latents: Tensor  # (B, C, F, h, w) float32, with graph
    forwards: tuple[Forward, ...]


def random_step(
    predict: Predict,
    scheduler: Any,
    process: NoiseProcess,
    noise: Tensor,
    k: int,
    renoise: Tensor | None,
    conditions: Mapping[str, Tensor] = NOTHING,
) -> Rollout:
    """Sample to step k without gradient, and estimate the clean latents from there in one forward with gradient.

    scheduler: with its K timesteps set. noise: (B, C, F, h, w). k: 0 … K - 1; at 0 the forward is of pure noise.
    renoise: (B, C, F, h, w) what the clean estimate is mixed with again; None goes on from the solver's own latents.
    conditions: of the rows; given latent frames are a part of every estimate of the clean latents.

    §3.2 of Ask-A-Video, whose z~_0^(k) = Solver(eps, t_0 -> t_k) is renoised as if it were clean, while a solver's
    latents at t_k still hold noise. Our reading: z~_0^(k) is the clean latents that the solver's last prediction, the
    one at t_{k-1}, implies. Euler's own z_{t_k} is that estimate mixed with the same step's noise estimate.
    """
    given = given_frames(conditions)
    times = solver_times(scheduler, process).to(noise.device, torch.float32)
    latents = noise
    with torch.no_grad():
        clean = noise  # never renoised: k = 0 takes no step
        for time, step in zip(times, islice(denoise_steps(predict, scheduler, noise, given), k), strict=False):
            clean = process.clean_estimate(latents, step.prediction, time.expand(len(noise)))
            latents = step.latents
        if k > 0 and renoise is not None:
            latents = process.noised(clean, renoise, times[k].expand(len(noise)))
    timestep = scheduler.timesteps[k]
    prediction = predict(latents, timestep)
    estimate = process.clean_estimate(latents, prediction, times[k].expand(len(noise)))
    return Rollout(with_given(estimate, conditions), (Forward(latents, timestep, prediction.detach(), given),))


def last_steps(
    predict: Predict,
    scheduler: Any,
    noise: Tensor,
    gradient_steps: int,
    conditions: Mapping[str, Tensor] = NOTHING,
) -> Rollout:
    """Sample to the end, with gradient through the last `gradient_steps` of the solver's K steps.

    Eq. 2 of Diffusion-DRF. Each recorded step keeps its input latents alone and is computed again in the backward
    pass ("denoising aware activation checkpointing"), so that memory holds the activations of one. A solver that
    looks back (UniPC) passes the gradient through its earlier predictions as well.
    """
    given = given_frames(conditions)
    steps = denoise_steps(partial(checkpoint, predict, use_reentrant=False), scheduler, noise, given)
    latents = noise
    with torch.no_grad():
        for step in islice(steps, len(scheduler.timesteps) - gradient_steps):
            latents = step.latents
    forwards = []
    for step in steps:
        forwards.append(Forward(latents.detach(), step.timestep, step.prediction.detach(), given))
        latents = step.latents
    return Rollout(with_given(latents, conditions), tuple(forwards))
