"""The loop that online recipes share: an update's gradient, an optimizer step, the check, the log, when to stop."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster import devices
from data.policies import read_log
from generators.core.conditions import Conditions
from generators.core.generator import Generator, Predict
from generators.core.process import standard_normal
from rl.online.config import OnlineConfig
from rl.online.guards import CurvePoint, fooled, kept, right
from rl.training.batches import generator_at
from rl.training.run import TrainingRun, TrainReport

OBJECTIVE = "online"
RIGHT = "the judges found the answers right"  # why a run ended

Check = Callable[[int], CurvePoint | None]
"""The number of updates done -> the judges' scores of full samples of the policy; None where one could not say."""

Update = Callable[[int], dict[str, Any]]
"""The number of an update, from 0 -> its facts for log.jsonl, `loss` among them, the same on every process.

It leaves the gradient of the update's whole batch in the parameters, summed over processes.
"""


class PromptInputs(NamedTuple):
    """What clips are generated from, P prompts."""

    prompt_ids: tuple[str, ...]
    conditions: Conditions  # (P, …) each
    unwanted: Mapping[str, Tensor]  # of the caption that guidance leads away from, without a batch axis


def run_updates(
    run: TrainingRun,
    config: OnlineConfig,
    update_of: Update,
    check: Check | None,
    out: Path,
    add: Callable[[Path], None] | None,
    progress_of: Callable[[Mapping[str, Any]], dict[str, str]],
) -> TrainReport:
    """Run all updates, from the first that is not done, and publish the policy as `out`.

    check: called before the first update, every held_out_every updates and at the end, under no_grad, while the
        generator samples as the policy of that moment; on every process, of which the first one's value counts.
        The policy of the point that ends the run by stop_right is kept, else that of its best point by the held-out
        judge; without a check, or where it could never say, that of the last update.
    add: writes further files into the policy's folder, before its manifest. progress_of: an update's facts -> what
        stands in the progress bar beside the rate.
    """
    curve = {line["step"]: CurvePoint(**line["held_out"]) for line in read_log(run.folder) if "held_out" in line}
    rule = (config.stop_right, config.stop_held_out)
    stopped, began = run.last.get("stopped"), time.monotonic()
    with run.loop(config.updates, "update") as progress:
        if check and run.done == 0:
            curve |= _checked(check, 0)
            if 0 in curve:
                stopped = RIGHT if right(curve[0], *rule) else None
                run.keep({"step": 0} | _held_out(curve, 0) | ({"stopped": stopped} if stopped else {}))
        for update in range(run.done, config.updates):
            if stopped:
                break
            # 1. The gradient of the whole batch, and one optimizer step
            facts = update_of(update)
            line = run.apply(facts, learning_rate(update, config))
            # 2. Check, and whether to stop
            low = config.stop_below is not None and facts["question_loss"] < config.stop_below
            over = config.max_seconds is not None and _is_over(began, config.max_seconds)
            ends = low or over or run.done == config.updates
            if check and config.held_out_every and (run.done % config.held_out_every == 0 or ends):
                curve |= _checked(check, run.done)
                line |= _held_out(curve, run.done)
            if run.done in curve and right(curve[run.done], *rule):
                stopped = RIGHT
            elif low:
                stopped = f"question_loss fell below {config.stop_below}"
            elif over:
                stopped = f"{config.max_seconds:g} seconds were over"
            elif run.done in curve and fooled(curve, config.held_out_tolerance):
                stopped = "the held-out judge fell while the training judge rose"
            if stopped:
                line["stopped"] = stopped
            # 3. Log and checkpoint
            run.keep(line, log=ends or "held_out" in line)
            progress.set_postfix(progress_of(facts), refresh=False)
            progress.update()
    chosen = kept(curve, *rule) if curve else run.done
    others = dict(curve[max(curve)].others) if curve else {}
    return run.finish(out, config.batch_size, chosen, {"updates": run.done, "stopped": stopped, **others}, stopped, add)


def _is_over(began: float, seconds: float) -> bool:
    """Whether so much time has passed since `began`, by the first process's clock, on every process."""
    return bool(devices.gather_over_ranks(time.monotonic() - began >= seconds)[0])


def learning_rate(update: int, config: OnlineConfig) -> float:
    """Rate of an update, counted from 0: rises linearly over warmup_updates, then stays."""
    return config.learning_rate * min(1.0, (update + 1) / max(config.warmup_updates, 1))


def check_arguments(inputs: PromptInputs, config: OnlineConfig, check: Check | None) -> None:
    """Raises ValueError where there is no prompt, and for a check without held_out_every or the reverse."""
    if not inputs.prompt_ids:
        raise ValueError("no prompt to train on: the prompt set, or the part of it that was kept, is empty")
    if (check is None) != (config.held_out_every is None):
        given = "without" if check is None else "with"
        raise ValueError(f"held_out_every is {config.held_out_every}, {given} a held-out judge; both or neither")


def guidance_at(config: OnlineConfig, number: int) -> float:
    """The guidance of a rollout by its number, which depends on that and the seed alone: one for all its clips."""
    if not isinstance(config.guidance, tuple):
        return config.guidance
    return float(generator_at(config.seed, "guidance", number).uniform(*config.guidance))


def guidance_fact(config: OnlineConfig, number: int) -> dict[str, float]:
    """That guidance for log.jsonl, where it is drawn."""
    return {"guidance": guidance_at(config, number)} if isinstance(config.guidance, tuple) else {}


def guided(
    generator: Generator, conditions: Conditions, inputs: PromptInputs, config: OnlineConfig, guidance: float
) -> Predict:
    """The guided prediction under these conditions, in the precision of the run."""
    predict_guided = generator.guided(conditions, inputs.unwanted, guidance)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with devices.autocast(generator.device, config.precision):
            return predict_guided(latents, timestep)

    return predict


def noise_at(config: OnlineConfig, shape: tuple[int, ...], *address: int | str) -> Tensor:
    """(C, F, h, w) standard normal noise of an address; the same whatever else is drawn."""
    return standard_normal(generator_at(config.seed, *address), shape)


def made_from(generator: Generator, inputs: PromptInputs, judges: Mapping[str, float]) -> dict[str, Any]:
    """The prompts and judges that the policy is made from, as policy.json holds them. judges: weights by name."""
    digest = hashlib.sha256()
    for tensors in (inputs.conditions, inputs.unwanted):
        for name in sorted(tensors):
            digest.update(tensors[name].float().cpu().numpy().tobytes())
    return {
        "prompts": list(inputs.prompt_ids),
        "inputs_sha256": digest.hexdigest(),
        "latent_shape": list(generator.latent_shape),
        "num_frames": generator.size.num_frames,
        "judges": dict(judges),
    }


def _held_out(curve: Mapping[int, CurvePoint], done: int) -> dict[str, Any]:
    """A log line's part of the check after so many updates; nothing without its point."""
    return {"held_out": curve[done].written()} if done in curve else {}


def _checked(check: Check, done: int) -> dict[int, CurvePoint]:
    """The check's point by its update, the same on every process; empty where a judge could not say.

    Raises ValueError where a judge's number is not finite.
    """
    with torch.no_grad():
        point: CurvePoint | None = devices.gather_over_ranks(check(done))[0]
    if point is None:
        return {}
    if not (math.isfinite(point.training) and math.isfinite(point.held_out)):
        raise ValueError(f"update {done}: {point} is not finite; did the judges answer on any clip?")
    return {done: point}
