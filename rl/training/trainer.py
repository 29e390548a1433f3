"""One training loop for every objective; what differs between objectives is in rl.objectives."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster import devices
from data.pools import check_alike
from data.store import ClipSet
from generators.core.conditions import given_frames
from generators.core.generator import Generator
from rl.dense_dpo import per_frame_error
from rl.objectives import Errors, Objective, per_sample_error
from rl.training.batches import ClipReader, Draws, draw, rows_of_step
from rl.training.config import TrainConfig
from rl.training.policies import Policy
from rl.training.previews import Previews
from rl.training.run import TrainReport, begin
from rl.training.tracking import Tracker


def train(
    generator: Generator,
    clip_sets: Sequence[ClipSet],
    rows: Sequence[Any],
    objective: Objective,
    config: TrainConfig,
    start: Path,
    work: Path,
    out: Path,
    origin: Mapping[str, Any],
    resume_from: Path | None = None,
    tracker: Tracker | None = None,
) -> TrainReport:
    """Train a policy from `start` on rows over the clips of `clip_sets`, and publish its folder as `out`.

    rows: `objective.row_type`, of one or more rounds. start: a policy's folder, the reference of DPO.
    origin: plain JSON for policy.json: where the rows come from (round, source, base …); nothing volatile.
    work: where the run keeps its state; killed and called again with the same arguments, it ends with the same bytes.
    resume_from: `work` of an earlier run with the same settings, to continue it; copied where `work` has no state.
    tracker: is sent the log. Previews, where the config has some, need the generator's VAE.

    Latents and conditions come from the clip sets alone. Under torchrun each process takes a slice of every batch.
    Raises ValueError where there is nothing to train on, ResumeError naming the setting that a state differs in,
    NonFiniteLossError where a step was not finite, which is not applied: at once on the CPU, elsewhere where the run
    logs or checkpoints next; the last checkpoint stays.
    """
    reader = ClipReader(clip_sets, config.dropped_caption if config.caption_dropout > 0 else "empty")
    _check_clips(generator, clip_sets, reader, config.force_embedded_guidance)
    _check_rows(objective, rows, reader)
    device, settings = generator.device, config.of(objective)
    signal = objective.signal(rows, settings) if objective.signal else None
    previews = Previews(generator, clip_sets, config.preview) if config.preview else None
    inputs = _inputs(clip_sets, rows)
    run = begin(objective.name, generator, config, start, work, resume_from, origin, inputs, tracker, previews)
    # Another shape costs a compilation, and shards are gathered by all processes alike.
    alike = config.shard or devices.compiles_shapes(device)
    with run.loop(config.steps, "step") as progress:
        for step in range(run.done, config.steps):
            # 1. This process's slice of the step's batch
            batch = rows_of_step(step, config.batch_size, len(rows), config.seed)
            totals = torch.zeros(1 + len(objective.facts), device=device)  # loss and facts, summed over rows
            for places in devices.slice_of_rank(config.batch_size, config.gradient_accumulation, empty=alike):
                # A row of weight 0 has no gradient: it counts in the mean and need not be run, unless all run alike.
                own = [place for place in places if alike or objective.weight(rows[batch[place]]) != 0]
                if not (own or alike):
                    continue
                running, counts = own or [0], 1.0 if own else 0.0  # another slice's row then, which counts nothing here
                # 2. Errors of policy and reference, on one noise, timestep, caption and part for all clips of a row
                shape, trains = reader.latent_shape, run.policy.trains
                dropout, parts = config.caption_dropout, generator.num_parts
                draws = draw(config.seed, step, running, shape, config.timesteps, dropout, trains, parts)
                sides = list(zip(*(objective.sample_ids(rows[batch[place]]) for place in running), strict=True))
                errors = _errors(generator, run.policy, objective, config, reader, sides, draws)
                # 3. Loss and gradient, over the size of the whole batch
                weight = torch.tensor([objective.weight(rows[batch[place]]) for place in running])
                said = torch.tensor([signal[batch[place]] for place in running]) if signal is not None else None
                told = None if said is None else devices.sent(said, device)
                loss = objective.loss(Errors(*errors, devices.sent(weight, device), told), **settings)
                (counts * loss.value.sum() / config.batch_size).backward()
                totals += counts * torch.stack([loss.value.detach().sum(), *(fact.sum() for fact in loss.facts)])
            # 4. The gradient of the whole batch, and one optimizer step
            devices.sum_over_ranks([*run.gradients(), totals])
            facts = dict(zip(("loss", *objective.facts), totals / config.batch_size, strict=True))
            line = run.apply(facts, learning_rate(step, config))
            # 5. Log and checkpoint
            run.keep(line, log=run.done == config.steps)
            if "loss" in run.last:  # of the last step that was read
                progress.set_postfix(loss=f"{run.last['loss']:.4f}", refresh=False)
            progress.update()
    return run.finish(out, clips_per_step=config.batch_size * len(objective.sample_ids(rows[0])))


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of the step-th optimizer step, counted from 0.

    Rises linearly over `warmup_steps`, reaching learning_rate at the last of them; then stays ("constant") or falls
    linearly, to reach 0 one step after the end ("linear").
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (config.steps - step) / (config.steps - config.warmup_steps)


def _errors(
    generator: Generator,
    policy: Policy,
    objective: Objective,
    config: TrainConfig,
    reader: ClipReader,
    sides: Sequence[Sequence[str]],
    draws: Draws,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per-sample errors (B,) of policy, with gradient, and reference, for each side of the rows; (B, F) by frame.

    sides: sample_ids, B a side; all sides go through one forward, with the draws repeated.
    """
    device, process, count = generator.device, generator.process, len(sides)
    clips = reader.read([sample_id for side in sides for sample_id in side], draws.dropped.repeat(count))
    part, t = draws.part.repeat(count), devices.sent(draws.t, device).repeat(count)
    told = {name: devices.sent(tensor, device) for name, tensor in clips.conditions.items()}
    clean, conditions = generator.view(devices.sent(clips.latents, device), told, part)
    noise, _ = generator.view(torch.cat([devices.sent(draws.noise, device)] * count), told, part)
    noised, target = process.noised(clean, noise, t), process.target(clean, noise, t)
    given = given_frames(conditions)  # no prediction, so no part of the error
    error_of = per_frame_error if objective.by_frame else per_sample_error

    def errors() -> tuple[Tensor, ...]:
        with devices.autocast(device, config.precision):
            prediction = generator.predict(noised, draws.t.repeat(count), conditions)
        return error_of(prediction[:, :, given:], target[:, :, given:]).chunk(count)

    reference: tuple[Tensor, ...] = ()
    if objective.uses_reference:  # before the policy, whose graph the reference must not disturb
        with torch.no_grad(), policy.reference():
            reference = errors()
    return errors(), reference


def _check_clips(generator: Generator, clip_sets: Sequence[ClipSet], reader: ClipReader, force: bool) -> None:
    """Raises ValueError where the clips are of another size, family or embedded guidance than the generator's.

    Also where they differ in one of these among themselves.
    """
    check_alike(clip_sets)
    for clip_set in clip_sets:
        family = clip_set.manifest["facts"].get("family", generator.family)  # sets of the first version do not say
        if family != generator.family:
            raise ValueError(f"{clip_set.folder}: clips of a {family} generator, and this one is {generator.family}")
        told = clip_set.manifest["facts"].get("embedded_guidance")
        if told != generator.embedded_guidance and not force:
            raise ValueError(
                f"{clip_set.folder}: clips sampled at embedded_guidance {told}, and generator.embedded_guidance is "
                f"{generator.embedded_guidance}: its errors are not those of the policy that was judged. Set "
                f"generator.embedded_guidance: {told}, or train.common.force_embedded_guidance: true"
            )
    if tuple(reader.latent_shape) != tuple(generator.latent_shape):
        raise ValueError(
            f"the clips have latents {tuple(reader.latent_shape)}, and this {generator.family} generator makes "
            f"{tuple(generator.latent_shape)} at the size of section video; sample the round again"
        )


def _check_rows(objective: Objective, rows: Sequence[Any], reader: ClipReader) -> None:
    kind = objective.row_type.__name__
    if not rows:
        raise ValueError(
            f"{objective.name}: the table of {kind} rows is empty, there is nothing to train on;"
            f" composition.json beside it says why"
        )
    if missing := [i for row in rows for i in objective.sample_ids(row) if i not in reader]:
        raise ValueError(f"{objective.name}: {len(missing)} clips of the {kind} rows are in no clip set: {missing[:3]}")
    if all(objective.weight(row) == 0 for row in rows):
        raise ValueError(
            f"{objective.name}: every one of the {len(rows)} rows has weight 0, so nothing would be learned"
        )


def _inputs(clip_sets: Sequence[ClipSet], rows: Sequence[Any]) -> dict[str, Any]:
    """The clips and rows that the policy is made from, as policy.json holds them."""
    return {
        "clip_sets": [clip_set.fingerprint() for clip_set in clip_sets],
        "rows": len(rows),
        "rows_sha256": hashlib.sha256(json.dumps([asdict(row) for row in rows]).encode()).hexdigest(),
    }
