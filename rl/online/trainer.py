"""The online loop: sample clips, differentiate the judges' answers about them, step the policy."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster import devices
from data.counts import Counts, count
from generators.core.conditions import Conditions, chosen, with_given
from generators.core.generator import Generator, Predict
from generators.core.process import standard_normal
from rl.online.config import OnlineConfig
from rl.online.guards import velocity_distance
from rl.online.judging import Decode, JudgedClip, QuestionResult, WeightedJudge, judge_clip
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
from rl.online.rollouts import Rollout, last_steps, random_step
from rl.training.batches import generator_at, rows_of_step
from rl.training.policies import trained_denoisers
from rl.training.run import NonFiniteLossError, TrainReport, begin
from rl.training.tracking import Tracker


class _Clip(NamedTuple):
    """The numbers of one clip of an update."""

    loss: float
    results: tuple[QuestionResult, ...]
    velocity_distance: float


def train_online(
    generator: Generator,
    inputs: PromptInputs,
    judges: Sequence[WeightedJudge],
    decode: Decode,
    config: OnlineConfig,
    start: Path,
    work: Path,
    out: Path,
    origin: Mapping[str, Any],
    check: Check | None = None,
    add: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    tracker: Tracker | None = None,
) -> TrainReport:
    """Train a policy from `start` on the judges' answers about its own clips, and publish its folder as `out`.

    Minimised is the mean over an update's clips of the judges' weighted losses, summed over their questions, and of
    velocity_weight times the distance to the reference, which is `start`.
    check: called before the first update, every held_out_every updates and at the end, under no_grad, while the
        generator samples as the policy of that moment; on every process, of which the first one's value counts.
        The policy of the point that ends the run by stop_right is kept, else that of its best point by the held-out
        judge; without a check, that of the last update.
    add: writes further files into the policy's folder, before its manifest.
    origin: plain JSON for policy.json: the judges and prompts; nothing volatile.
    work: where the run keeps its state; killed and called again with the same arguments, it ends with the same bytes.
    resume_from: `work` of an earlier run with the same settings, to continue it; copied where `work` has no state.
    tracker: is sent the log.

    A line of log.jsonl: step; loss, as minimised, without the penalty; question_loss, the mean over all answers,
    unweighted, which stop_below is compared with; velocity_distance; learning_rate; gradient_norm; questions, by
    judge/question: loss and p of the wanted answer (null for a metric), means over the clips that have the question;
    guidance, where it is drawn; held_out, after a check, a CurvePoint; stopped, why the run ended early. Line 0
    has held_out alone, and stopped where nothing was to be trained.
    Under torchrun each process takes a slice of every update's clips.
    Raises ValueError for no prompt, judges that share a name, and a check without held_out_every or the reverse;
    ResumeError naming the setting that a state differs in; NonFiniteLossError naming prompt, judge and question before
    an update that is not finite is applied; the last checkpoint stays.
    """
    check_arguments(inputs, config, check)
    _check_judges(judges)
    from_judges = made_from(generator, inputs, {judge.name: weight for judge, weight in judges})
    run = begin(OBJECTIVE, generator, config, start, work, resume_from, origin, from_judges, tracker)

    def update_of(update: int) -> dict[str, Any]:
        # 1. This process's slice of the update's clips
        rows = rows_of_step(update, config.batch_size, len(inputs.prompt_ids), config.seed)
        clips: list[_Clip] = []
        for own in devices.slice_of_rank(config.batch_size, config.gradient_accumulation, empty=config.shard):
            # Shards are gathered by all processes alike: one without a clip makes one that counts nothing.
            prompt_at = {place: rows[place] for place in own or [0]}
            # 2. Clean latents, whose graph reaches the policy
            predict, rollout = _roll_out(generator, inputs, config, update, prompt_at)
            count(Counts(clips=len(own)))
            # 3. The judges' answers and the gradient of the latents, a clip at a time
            judged: list[JudgedClip] = []
            try:
                if own:
                    judged = _judge(rollout.latents, prompt_at, generator, inputs, judges, decode, config, update)
            except NonFiniteLossError as error:
                raise NonFiniteLossError(f"update {update + 1}: {error}; not applied, {run.last_good()}") from error
            # 4. The gradient of the policy: of the judges, then of the distance to the reference
            gradients = [clip.gradient for clip in judged] or [torch.zeros_like(rollout.latents)]
            rollout.latents.backward(torch.cat(gradients))
            weight = config.velocity_weight / config.batch_size
            distances = velocity_distance(predict, run.policy.reference, rollout.forwards, weight, bool(own))
            clips += [
                _Clip(clip.loss, clip.results, distance)
                for clip, distance in zip(judged, distances.tolist() if own else [], strict=True)
            ]
        # 5. The gradient of the whole batch
        devices.sum_over_ranks(run.gradients())
        facts = _facts([clip for part in devices.gather_over_ranks(clips) for clip in part])
        return facts | guidance_fact(config, update)

    return run_updates(run, config, update_of, check, out, add, lambda facts: _progress(facts, generator.device))


def _check_judges(judges: Sequence[WeightedJudge]) -> None:
    names = [judge.name for judge, _ in judges]
    if not judges or len(set(names)) < len(names):
        raise ValueError(f"judges: found {names}; at least one is needed, each under a name of its own")
    if wrong := {judge.name: weight for judge, weight in judges if weight <= 0}:
        raise ValueError(f"judges: found weights {wrong}; a judge that is trained on has one above 0")


def _roll_out(
    generator: Generator,
    inputs: PromptInputs,
    config: OnlineConfig,
    update: int,
    prompt_at: Mapping[int, int],
) -> tuple[Predict, Rollout]:
    """The clips at these places of an update, by the config's rollout, and the prediction that they were made with.

    prompt_at: index of the prompt by place.

    Every draw depends on its address alone. k is one for the whole update, as in the paper, so that neither
    accumulation nor the number of processes changes it. Fixed noise is that of a prompt at a place, the same in every
    update. Of a clip in several parts, all are sampled without gradient, and then one, drawn for the whole update, is
    made again by the rollout in its place: the gradient reaches the policy through this part alone. The papers do not
    say how they do it.
    """
    guidance = guidance_at(config, update)
    shape, of_prompts = generator.latent_shape, chosen(inputs.conditions, list(prompt_at.values()))

    draw = partial(noise_at, config, shape)
    if config.noise == "fixed":
        own = [fixed_noise(config.seed, inputs.prompt_ids[row], place, shape) for place, row in prompt_at.items()]
    else:
        own = [draw("noise", update, place) for place in prompt_at]
    noise = torch.stack(own).to(generator.device)
    part = int(generator_at(config.seed, "part", update).integers(generator.num_parts))
    clean = (
        with_given(noise, of_prompts)
        if generator.num_parts == 1
        else _sampled(generator, noise, of_prompts, inputs, config, guidance)
    )
    part_B = torch.full((len(noise),), part)
    (noise, _), (_, conditions) = generator.view(noise, of_prompts, part_B), generator.view(clean, of_prompts, part_B)
    predict = guided(generator, conditions, inputs, config, guidance)

    def placed(rollout: Rollout) -> tuple[Predict, Rollout]:
        return predict, rollout._replace(latents=generator.with_part(clean, rollout.latents, part))

    scheduler = generator.solver(config.solver, config.steps)
    trained = trained_denoisers(generator.denoiser_names, config)
    turns = [step for step, t in enumerate(scheduler.timesteps.tolist()) if generator.denoiser_at(t) in trained]
    if config.gradient_steps is not None:
        if not any(step >= config.steps - config.gradient_steps for step in turns):
            raise ValueError(
                f"denoisers: none of the last {config.gradient_steps} steps is that of {', '.join(trained)}"
            )
        return placed(
            last_steps(predict, scheduler, generator.start(noise, conditions), config.gradient_steps, conditions)
        )
    if not turns:
        raise ValueError(f"denoisers: none of the {config.steps} steps is that of {', '.join(trained)}")
    renoise = None if config.renoise == "none" else noise
    if config.renoise == "fresh":
        fresh = torch.stack([draw("renoise", update, place) for place in prompt_at]).to(generator.device)
        renoise, _ = generator.view(fresh, of_prompts, part_B)
    if config.step_from == "first_half":
        turns = turns[: (len(turns) + 1) // 2]
    k = turns[int(generator_at(config.seed, "step", update).integers(len(turns)))]
    start = generator.start(noise, conditions)
    return placed(random_step(predict, scheduler, generator.process, start, k, renoise, conditions))


def _sampled(
    generator: Generator,
    noise: Tensor,
    conditions: Conditions,
    inputs: PromptInputs,
    config: OnlineConfig,
    guidance: float,
) -> Tensor:
    """(B, C, F, h, w) whole clips of the policy, without gradient, in the precision of the run."""
    with devices.autocast(generator.device, config.precision):
        return generator.sample(conditions, inputs.unwanted, noise, config.steps, guidance, config.solver)


def fixed_noise(seed: int, prompt_id: str, place: int, shape: Sequence[int]) -> Tensor:
    """(C, F, h, w) the noise that a prompt keeps at a place of the batch in all updates, where `noise` is fixed."""
    return standard_normal(generator_at(seed, "noise", prompt_id, place), shape)


def _judge(
    latents: Tensor,
    prompt_at: Mapping[int, int],
    generator: Generator,
    inputs: PromptInputs,
    judges: Sequence[WeightedJudge],
    decode: Decode,
    config: OnlineConfig,
    update: int,
) -> list[JudgedClip]:
    """The judges' answers about each of these clips, and the gradient of the update's mean loss by its latents."""
    judged = []
    for clip, (place, row) in zip(latents.split(1), prompt_at.items(), strict=True):
        draws = [generator_at(config.seed, "judge", update, place, judge.name) for judge, _ in judges]
        seeds = [int(draw.integers(2**62)) for draw in draws]
        scale = 1 / config.batch_size
        judged.append(judge_clip(clip, inputs.prompt_ids[row], judges, seeds, decode, generator.size.num_frames, scale))
    return judged


def _facts(clips: Sequence[_Clip]) -> dict[str, Any]:
    """An update's facts for log.jsonl. clips: in the batch's order, whatever the number of processes."""
    by_question: dict[str, list[QuestionResult]] = {}
    for result in (result for clip in clips for result in clip.results):
        by_question.setdefault(result.question, []).append(result)
    questions = {
        name: {"loss": fmean(one.loss for one in results), "p": _null_if_nan(fmean(one.p_wanted for one in results))}
        for name, results in sorted(by_question.items())
    }
    return {
        "loss": fmean(clip.loss for clip in clips),
        "question_loss": fmean(one.loss for results in by_question.values() for one in results),
        "velocity_distance": fmean(clip.velocity_distance for clip in clips),
        "questions": questions,
    }


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _progress(facts: Mapping[str, Any], device: torch.device) -> dict[str, str]:
    """What stands in the progress bar beside the rate."""
    known = [question["p"] for question in facts["questions"].values() if question["p"] is not None]
    line = {"loss": f"{facts['loss']:.4f}", "memory": f"{devices.peak_memory(device) / 2**30:.1f} GiB"}
    return line | ({"p": f"{fmean(known):.3f}"} if known else {})
