"""The online loop: roll out, ask the judges, differentiate their answers into the policy."""

import hashlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cluster import devices
from data.manifest import publish, write_manifest
from data.policies import CHECKPOINTS, append_log, name_of, read_log
from generators.core.generator import Generator, Predict, solver_scheduler
from rl.online.config import OnlineConfig
from rl.online.guards import Point, best, fooled, velocity_distance
from rl.online.judging import Answered, Decode, Judged, WeightedJudge, judge_clip
from rl.online.rollouts import Rollout, last_steps, random_step
from rl.training import policies
from rl.training.batches import generator_at, rows_of_step
from rl.training.policies import NonFiniteLossError, Policy

logger = logging.getLogger(__name__)

OBJECTIVE = "online"

Check = Callable[[int], Point]  # the number of updates done -> what the judges say of full samples of the policy


class Conditions(NamedTuple):
    """What clips are generated from, P prompts, and their size."""

    prompt_ids: tuple[str, ...]
    embeddings: Tensor  # (P, L, D)
    empty_embedding: Tensor  # (L, D), of guidance
    latent_shape: tuple[int, int, int, int]  # (C, F, h, w)
    num_frames: int  # of the decoded clip
    conditioning: Tensor | None = None  # (P, c, F, h, w), of a generator that takes some


class OnlineReport(NamedTuple):
    """What a run measured, for the metrics file; updates, times and memory are this process's, since its last start."""

    updates: int
    clips_per_update: int
    seconds: float
    seconds_per_update: float
    cpu_seconds: float  # of all threads
    peak_memory_bytes: int
    parameters: int  # trainable
    kept: int  # the update whose weights are the policy; 0 is its start
    stopped: str | None  # why it ended before its last update
    last: dict[str, Any]  # the last line of log.jsonl


class _Clip(NamedTuple):
    """What an update leaves behind of one clip."""

    loss: float
    answers: tuple[Answered, ...]
    velocity_distance: float


def train_online(
    generator: Generator,
    conditions: Conditions,
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
) -> OnlineReport:
    """Train a policy from `start` on what judges answer of its own clips, and publish its folder as `out`.

    Minimised is the mean over an update's clips of the judges' weighted losses, summed over their questions, and of
    velocity_weight times the distance to the reference, which is `start`.
    check: asked before the first update, every held_out_every updates and at the end, under no_grad, while the
        generator samples as the policy of that moment; on every process, of which the first one's answer counts.
        Its best point by the held-out judge is the policy that is kept, else the last update.
    add: writes what else belongs into the policy's folder, before its manifest.
    origin: plain JSON for policy.json: what the judges and prompts are; nothing volatile.
    work: where the run keeps its state; killed and called again with the same arguments, it ends with the same bytes.
    resume_from: `work` of an earlier run to go on from, its settings the same; copied where `work` has no state.

    A line of log.jsonl: step; loss, as minimised, without the penalty; question_loss, the mean over all answers,
    unweighted, which stop_below looks at; velocity_distance; learning_rate; gradient_norm; questions, by
    judge/question: loss and p of the wanted answer (null of a metric), means over the clips that were asked it;
    held_out, where the check was asked, a Point; stopped, why the run ended early. Line 0 has held_out alone.
    Under torchrun each process takes a slice of every update's clips.
    Raises ValueError for no prompt, judges that share a name, and a check without held_out_every or the reverse;
    ResumeError naming the setting that a state differs in; NonFiniteLossError naming prompt, judge and question before
    an update that is not finite is applied; the last checkpoint stays.
    """
    _check_arguments(conditions, judges, config, check)
    device = generator.device
    devices.join_group(device)
    writes = devices.rank() == 0
    policy = policies.prepare(generator, config, start)
    parameters = list(policy.parameters.values())
    optimizer = policies.make_optimizer(parameters, config)
    made_from = _made_from(conditions, judges, config, start, origin)
    folder = work / policies.FOLDER  # becomes `out`
    first = policies.resume(work, resume_from, policy.parameters, optimizer, made_from, config.checkpoint_every)
    devices.barrier()
    log = read_log(folder)
    curve = {line["step"]: Point(**line["held_out"]) for line in log if "held_out" in line}
    line: dict[str, Any] = log[-1] if log else {}
    stopped, done = line.get("stopped"), first
    began, cpu_began = time.perf_counter(), time.process_time()

    with (
        devices.deterministic(device),
        tqdm(total=config.updates, initial=first, desc=OBJECTIVE, unit="update", disable=not writes) as progress,
    ):
        if check and first == 0:
            curve[0] = _checked(check, 0)
            if writes:
                append_log(folder, {"step": 0, "held_out": curve[0]._asdict()})
                policies.checkpoint(work, 0, policy, optimizer, made_from)
        for update in range(first, config.updates):
            if stopped:
                break
            # 1. This process's slice of the update's clips
            rows = rows_of_step(update, config.batch_size, len(conditions.prompt_ids), config.seed)
            clips: list[_Clip] = []
            for places in devices.slice_of_rank(config.batch_size, config.gradient_accumulation):
                asked = {place: rows[place] for place in places}
                predict = _predict(generator, conditions, config, list(asked.values()))
                # 2. Clean latents, whose graph reaches the policy
                rollout = _roll_out(generator, predict, conditions, config, update, asked)
                # 3. The judges' answers and the gradient of the latents, a clip at a time
                try:
                    judged = _judge(rollout.latents, asked, conditions, judges, decode, config, update)
                except NonFiniteLossError as error:
                    kept_so_far = policies.last_good(folder)
                    raise NonFiniteLossError(f"update {update + 1}: {error}; not applied, {kept_so_far}") from error
                # 4. The gradient of the policy: of the judges, then of the distance to the reference
                rollout.latents.backward(torch.cat([clip.gradient for clip in judged]))
                weight = config.velocity_weight / config.batch_size
                distances = velocity_distance(predict, policy.reference, rollout.asked, weight).tolist()
                clips += [_Clip(c.loss, c.answers, d) for c, d in zip(judged, distances, strict=True)]
            # 5. The gradient of the whole batch, clipped, and one optimizer step
            devices.sum_over_ranks(policies.gradients(policy))
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
            facts = _facts([clip for part in devices.gather_over_ranks(clips) for clip in part])
            policies.check_finite(update + 1, facts["loss"], norm, folder)
            rate = config.learning_rate * min(1.0, (update + 1) / max(config.warmup_updates, 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            # 6. Whether to stop
            done = update + 1
            low = config.stop_below is not None and facts["question_loss"] < config.stop_below
            ends = low or done == config.updates
            line = {"step": done, **facts, "learning_rate": rate, "gradient_norm": norm}
            if check and config.held_out_every and (done % config.held_out_every == 0 or ends):
                curve[done] = _checked(check, done)
                line["held_out"] = curve[done]._asdict()
            if low:
                stopped = f"question_loss fell below {config.stop_below}"
            elif done in curve and fooled(curve, config.held_out_tolerance):
                stopped = "the held-out judge fell while the training judge rose"
            if stopped:
                line["stopped"] = stopped
            # 7. Log and checkpoint
            if writes and (done % config.log_every == 0 or ends or done in curve):
                append_log(folder, line)
            if writes and done % config.checkpoint_every == 0:
                policies.checkpoint(work, done, policy, optimizer, made_from)
            progress.set_postfix(_shown(facts, device), refresh=False)
            progress.update()
    devices.synchronize(device)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began

    kept = best(curve) if curve else done
    if writes:
        _keep(folder, kept, done, policy)
        policies.describe(folder, {**made_from, "step": kept, "updates": done, "stopped": stopped})
        if add:
            add(folder)
        write_manifest(folder, "policy", objective=OBJECTIVE, steps=kept)
        publish(folder, out)
    devices.barrier()
    report = OnlineReport(
        updates=done - first,
        clips_per_update=config.batch_size,
        seconds=round(seconds, 3),
        seconds_per_update=round(seconds / max(done - first, 1), 3),
        cpu_seconds=round(cpu_seconds, 3),
        peak_memory_bytes=devices.peak_memory(device),
        parameters=sum(parameter.numel() for parameter in parameters),
        kept=kept,
        stopped=stopped,
        last=line,
    )
    logger.info("%s: %s", OBJECTIVE, report)
    return report


def _check_arguments(
    conditions: Conditions, judges: Sequence[WeightedJudge], config: OnlineConfig, check: Check | None
) -> None:
    names = [judge.name for judge, _ in judges]
    if not conditions.prompt_ids:
        raise ValueError("no prompt to train on: the prompt set, or the part of it that was kept, is empty")
    if not judges or len(set(names)) < len(names):
        raise ValueError(f"judges: found {names}; at least one is needed, each under a name of its own")
    if wrong := {judge.name: weight for judge, weight in judges if weight <= 0}:
        raise ValueError(f"judges: found weights {wrong}; a judge that is trained on has one above 0")
    if (check is None) != (config.held_out_every is None):
        given = "without" if check is None else "with"
        raise ValueError(f"held_out_every is {config.held_out_every}, {given} a held-out judge; both or neither")


def _predict(generator: Generator, conditions: Conditions, config: OnlineConfig, rows: Sequence[int]) -> Predict:
    """The guided prediction for these prompts, by index, in the precision of the run."""
    conditioning = conditions.conditioning
    guided = generator.guided(
        conditions.embeddings[list(rows)],
        conditions.empty_embedding,
        config.guidance,
        None if conditioning is None else conditioning[list(rows)],
    )

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with devices.autocast(generator.device, config.precision):
            return guided(latents, timestep)

    return predict


def _roll_out(
    generator: Generator,
    predict: Predict,
    conditions: Conditions,
    config: OnlineConfig,
    update: int,
    asked: Mapping[int, int],
) -> Rollout:
    """The clips at these places of an update, by the config's rollout. asked: index of the prompt by place.

    Every draw hangs on its address alone. k is the update's own, as in the paper, so that neither accumulation nor
    the number of processes changes it. Fixed noise is that of a prompt at a place, the same in every update.
    """

    def draw(*address: int | str) -> Tensor:
        return torch.randn(*conditions.latent_shape, generator=generator_at(config.seed, *address))

    if config.noise == "fixed":
        own = [fixed_noise(config.seed, conditions.prompt_ids[r], p, conditions.latent_shape) for p, r in asked.items()]
    else:
        own = [draw("noise", update, place) for place in asked]
    noise = torch.stack(own).to(generator.device)
    scheduler = solver_scheduler(generator.scheduler_config, config.solver)
    scheduler.set_timesteps(config.steps, device=generator.device)
    if config.gradient_steps is not None:
        return last_steps(predict, scheduler, noise, config.gradient_steps)
    renoise = None if config.renoise == "none" else noise
    if config.renoise == "fresh":
        renoise = torch.stack([draw("renoise", update, place) for place in asked]).to(generator.device)
    k = int(torch.randint(config.steps, (), generator=generator_at(config.seed, "step", update)))
    return random_step(predict, scheduler, generator.process, noise, k, renoise)


def fixed_noise(seed: int, prompt_id: str, place: int, shape: Sequence[int]) -> Tensor:
    """(C, F, h, w) the noise that a prompt keeps at a place of the batch in all updates, where `noise` is fixed."""
    return torch.randn(*shape, generator=generator_at(seed, "noise", prompt_id, place))


def _judge(
    latents: Tensor,
    asked: Mapping[int, int],
    conditions: Conditions,
    judges: Sequence[WeightedJudge],
    decode: Decode,
    config: OnlineConfig,
    update: int,
) -> list[Judged]:
    """What the judges say of each of these clips, and the gradient of the update's mean loss by its latents."""
    judged = []
    for clip, (place, row) in zip(latents.split(1), asked.items(), strict=True):
        draws = [generator_at(config.seed, "judge", update, place, judge.name) for judge, _ in judges]
        seeds = [int(torch.randint(2**62, (), generator=draw)) for draw in draws]
        scale = 1 / config.batch_size
        judged.append(judge_clip(clip, conditions.prompt_ids[row], judges, seeds, decode, conditions.num_frames, scale))
    return judged


def _facts(clips: Sequence[_Clip]) -> dict[str, Any]:
    """What log.jsonl says of an update's clips, which are in their order whatever the number of processes."""
    answers: dict[str, list[Answered]] = {}
    for answer in (answer for clip in clips for answer in clip.answers):
        answers.setdefault(answer.question, []).append(answer)
    questions = {
        name: {"loss": fmean(a.loss for a in given), "p": _null_if_nan(fmean(a.p_wanted for a in given))}
        for name, given in sorted(answers.items())
    }
    return {
        "loss": fmean(clip.loss for clip in clips),
        "question_loss": fmean(answer.loss for given in answers.values() for answer in given),
        "velocity_distance": fmean(clip.velocity_distance for clip in clips),
        "questions": questions,
    }


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _checked(check: Check, done: int) -> Point:
    """The check's point, the same on every process. Raises ValueError where a judge's number is none."""
    with torch.no_grad():
        point = devices.gather_over_ranks(check(done))[0]
    if not (math.isfinite(point.training) and math.isfinite(point.held_out)):
        raise ValueError(f"update {done}: {point}, which tells nothing; did the judges answer on any clip?")
    return point


def _keep(folder: Path, kept: int, done: int, policy: Policy) -> None:
    """Put the weights as they were after `kept` updates into the folder, the run having made `done`."""
    if kept == done:
        policy.save(folder)
    else:
        shutil.copytree(folder / CHECKPOINTS / name_of(kept), folder, dirs_exist_ok=True)


def _shown(facts: Mapping[str, Any], device: torch.device) -> dict[str, str]:
    """What the progress bar says beside the rate."""
    known = [question["p"] for question in facts["questions"].values() if question["p"] is not None]
    shown = {"loss": f"{facts['loss']:.4f}", "memory": f"{devices.peak_memory(device) / 2**30:.1f} GiB"}
    return shown | ({"p": f"{fmean(known):.3f}"} if known else {})


def _made_from(
    conditions: Conditions,
    judges: Sequence[WeightedJudge],
    config: OnlineConfig,
    start: Path,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """What the policy is made from, as policy.json holds it; what a resumed run must share."""
    inputs = hashlib.sha256()
    for tensor in (conditions.embeddings, conditions.empty_embedding, conditions.conditioning):
        if tensor is not None:
            inputs.update(tensor.float().cpu().numpy().tobytes())
    return {
        **origin,
        **policies.made_from(start, config),
        "objective": OBJECTIVE,
        "prompts": list(conditions.prompt_ids),
        "inputs_sha256": inputs.hexdigest(),
        "latent_shape": list(conditions.latent_shape),
        "num_frames": conditions.num_frames,
        "judges": {judge.name: weight for judge, weight in judges},
    }
