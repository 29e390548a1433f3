"""The online loop on rewards: groups of clips are sampled and judged, and the steps of the better ones made likelier.

No gradient passes the judge, so any source will do. rl/online/sde.py has the steps, rl/online/grpo.py their loss.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster import devices
from generators.core.conditions import Conditions, given_frames
from generators.core.generator import Generator, Predict
from generators.core.process import FlowMatching
from rl.objectives import per_sample_error
from rl.online import grpo
from rl.online.config import GrpoConfig
from rl.online.loop import (
    OBJECTIVE,
    Check,
    PromptInputs,
    check_arguments,
    guidance_at,
    guidance_fact,
    guided,
    made_from,
    noise_at,
    run_updates,
)
from rl.online.rewarded import (
    JudgedRollout,
    Rewards,
    RolledPart,
    groups_of,
    progress_of,
    reward_facts,
    roll_out,
    start_noise,
)
from rl.online.sde import (
    Transition,
    check_generator,
    log_prob,
    sde_sample,
    sde_scheduler,
    sde_step,
    step_kl,
    time_weight,
    times_of,
)
from rl.training.batches import generator_at
from rl.training.policies import trained_denoisers
from rl.training.run import TrainingRun, TrainReport, begin
from rl.training.tracking import Tracker


class _Row(NamedTuple):
    """The numbers of a clip's step."""

    step: int
    loss: float  # as minimised
    kl: float
    ratio: float
    clipped: bool
    squared_gradient: float  # of the policy's part of the loss, by the prediction
    velocity_distance: float


def train_by_rewards(
    generator: Generator,
    inputs: PromptInputs,
    judge: str,
    rewards_of: Rewards,
    config: GrpoConfig,
    start: Path,
    work: Path,
    out: Path,
    origin: Mapping[str, Any],
    check: Check | None = None,
    add: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    tracker: Tracker | None = None,
) -> TrainReport:
    """Train a policy from `start` on the rewards of its own clips, and publish its folder as `out`.

    judge: its name. The other arguments are those of `rl.online.trainer.train_online`, and so are resuming, the check
    and what is kept.

    Minimised is the mean over a rollout's clips and its trained steps of
    w_t max(-A rho, -A clip(rho)) + kl_weight KL(policy | start), with w_t of `time_weight`.
    A clip without a reward has no advantage and is in no group's mean; its KL counts. flow_grpo's code leaves out the
    clips of groups without a difference and takes the mean over the others; ours is over all, so that a rollout with
    few differences moves the policy less. It takes several optimizer steps a rollout, each on a part of the clips; ours
    are inner_epochs, each on all.

    A line of log.jsonl: step; loss; kl and velocity_distance to the start; ratio, the mean of |rho - 1|, and clipped,
    the part of clips and steps whose rho was outside its range; what `reward_facts` says; gradient_by_t, by t of the
    step the norm of the policy loss's gradient by the predictions, over all clips; learning_rate; gradient_norm;
    guidance, held_out and stopped as elsewhere.
    Raises ValueError for no prompt, for a generator without such steps, and for a reward that is not finite;
    NonFiniteLossError for clips that are not finite, before anything is applied.
    """
    check_arguments(inputs, config, check)
    check_generator(generator)
    from_judge = made_from(generator, inputs, {judge: 1.0})
    run = begin(OBJECTIVE, generator, config, start, work, resume_from, origin, from_judge, tracker)
    rolled: list[JudgedRollout] = []  # the last rollout

    def update_of(update: int) -> dict[str, Any]:
        number = update // config.inner_epochs

        def sample(conditions: Conditions, rows: Mapping[int, int]) -> tuple[Tensor, tuple[Transition, ...]]:
            return _sample(generator, inputs, conditions, config, number, rows)

        # 1. Clips and their advantages, in the first of the updates that share them
        if update % config.inner_epochs == 0:
            rolled[:] = [roll_out(run, generator, inputs, rewards_of, config, update, sample)]
        (last,) = rolled
        advantages = _advantages(last.rewards, config)
        # 2. The gradient of every trained step, a micro-batch at a time
        rows: list[list[_Row]] = []
        for part in last.parts:
            predict = guided(generator, part.conditions, inputs, config, guidance_at(config, number))
            of_part = [
                _step_back(run, generator, predict, config, part, advantages, one, len(part.made)) for one in part.made
            ]
            rows += [list(of_clip) for of_clip in zip(*of_part, strict=True)]
        # 3. The gradient of the whole batch
        devices.sum_over_ranks(run.gradients())
        in_order = [of_clip for part in devices.gather_over_ranks(rows) for of_clip in part]
        facts = _facts(in_order, _times(generator, config)) | reward_facts(last.rewards, config)
        return facts | guidance_fact(config, number)

    return run_updates(run, config, update_of, check, out, add, partial(progress_of, generator.device))


def trained_steps(generator: Generator, config: GrpoConfig, rollout: int) -> list[int]:
    """The numbers of the solver's steps that are trained in a rollout, rising; the same for all its clips.

    round(timestep_fraction * n) of the n steps with noise of a trained denoiser, at least one, drawn anew for each
    rollout. DanceGRPO draws them for each clip; flow_grpo takes the first ones.
    Raises ValueError where none of the steps is a trained denoiser's.
    """
    timesteps = sde_scheduler(generator, config.steps).timesteps.tolist()[:-1]
    trained = trained_denoisers(generator.denoiser_names, config)
    turns = [number for number, timestep in enumerate(timesteps) if generator.denoiser_at(timestep) in trained]
    if not turns:
        raise ValueError(f"denoisers: none of the first {len(timesteps)} steps is that of {', '.join(trained)}")
    wanted = max(1, round(config.timestep_fraction * len(turns)))
    order = generator_at(config.seed, "trained steps", rollout).permutation(len(turns))
    return sorted(turns[place] for place in order[:wanted].tolist())


def _sample(
    generator: Generator,
    inputs: PromptInputs,
    conditions: Conditions,
    config: GrpoConfig,
    rollout: int,
    rows: Mapping[int, int],
) -> tuple[Tensor, tuple[Transition, ...]]:
    """Clean latents of the clips at these places, and their trained steps. rows: index of the prompt by place."""

    def noise_of(step: int) -> Tensor:
        drawn = [noise_at(config, generator.latent_shape, "sde", rollout, place, step) for place in rows]
        return torch.stack(drawn).to(generator.device)

    noise = start_noise(generator, inputs, config, rollout, rows, config.same_noise)
    predict = guided(generator, conditions, inputs, config, guidance_at(config, rollout))
    keep, scheduler = trained_steps(generator, config, rollout), sde_scheduler(generator, config.steps)
    start, level, process = generator.start(noise, conditions), config.noise_level, _flow(generator)
    return sde_sample(predict, scheduler, process, start, noise_of, level, keep, conditions)


def _advantages(rewards: Sequence[float | None], config: GrpoConfig) -> list[float]:
    """Of all clips of a rollout, by place; 0 where there is no reward."""
    grouped = grpo.advantages(groups_of(rewards, config), config.advantage_spread, config.advantage_clip)
    return [one or 0.0 for group in grouped for one in group]


def _step_back(
    run: TrainingRun,
    generator: Generator,
    predict: Predict,
    config: GrpoConfig,
    part: RolledPart,
    advantages: Sequence[float],
    transition: Transition,
    steps: int,
) -> list[_Row]:
    """Back-propagate one of the trained steps of a micro-batch's clips; returns their numbers.

    steps: how many these are. A leaf separates the loss from the denoiser's graph, so that the gradient by the
    prediction is known.
    """
    device, given = generator.device, given_frames(part.conditions)
    times, number = _times(generator, config), transition.number
    timestep = sde_scheduler(generator, config.steps).timesteps[number]
    t, t_next, level = times[number], times[number + 1], config.noise_level
    latents, drawn = transition.latents.to(device), transition.drawn.to(device)[:, :, given:]
    with torch.no_grad(), run.policy.reference():
        of_reference = predict(latents, timestep)[:, :, given:]
    prediction = predict(latents, timestep)
    leaf = prediction.detach()[:, :, given:].requires_grad_()
    step = sde_step(latents[:, :, given:], leaf, t, t_next, level)
    reference = sde_step(latents[:, :, given:], of_reference, t, t_next, level)
    counted = [advantages[place] for place in part.places]
    advantage = torch.tensor(counted or [0.0], device=device)
    policy = grpo.clipped_loss(log_prob(drawn, step), transition.log_prob.to(device), advantage, config.ratio_clip)
    weight = time_weight(t, t_next, level, config.time_weight)
    share = bool(counted) / (config.batch_size * steps)
    kl = step_kl(step, reference)
    (by_policy,) = torch.autograd.grad(share * weight * policy.loss.sum(), leaf, retain_graph=True)
    gradient = torch.zeros_like(prediction)
    gradient[:, :, given:] = by_policy
    if config.kl_weight > 0:
        gradient[:, :, given:] += torch.autograd.grad(share * config.kl_weight * kl.sum(), leaf)[0]
    prediction.backward(gradient)
    if not counted:
        return []
    columns = (
        (weight * policy.loss + config.kl_weight * kl).tolist(),
        kl.tolist(),
        policy.ratio.tolist(),
        policy.clipped.tolist(),
        by_policy.square().flatten(1).sum(1).tolist(),
        per_sample_error(leaf.detach(), of_reference).tolist(),
    )
    return [_Row(number, *values) for values in zip(*columns, strict=True)]


def _flow(generator: Generator) -> FlowMatching:
    assert isinstance(generator.process, FlowMatching)  # check_generator looked
    return generator.process


def _times(generator: Generator, config: GrpoConfig) -> list[float]:
    return times_of(sde_scheduler(generator, config.steps), _flow(generator))


def _facts(clips: Sequence[Sequence[_Row]], times: Sequence[float]) -> dict[str, Any]:
    """An update's facts for log.jsonl. clips: in the batch's order, whatever the number of processes."""
    rows = [row for of_clip in clips for row in of_clip]
    squares: dict[int, float] = {}
    for row in rows:
        squares[row.step] = squares.get(row.step, 0.0) + row.squared_gradient
    return {
        "loss": fmean(row.loss for row in rows),
        "kl": fmean(row.kl for row in rows),
        "velocity_distance": fmean(row.velocity_distance for row in rows),
        "ratio": fmean(abs(row.ratio - 1) for row in rows),
        "clipped": fmean(row.clipped for row in rows),
        "gradient_by_t": {f"{times[step]:.4f}": math.sqrt(squares[step]) for step in sorted(squares)},
    }
