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
from rl.objectives import Errors, Loss, Objective, per_frame_error, per_sample_error
from rl.training.batches import ClipReader, Draws, draw, rows_of_step
from rl.training.collapse import CollapseWatch
from rl.training.config import TrainConfig
from rl.training.policies import Policy
from rl.training.previews import Previews
from rl.training.run import TrainReport, begin
from rl.training.tracking import Tracker

Reference = tuple[Tensor, ...] | None  # its errors on each side of the rows, where they are known


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
    watch = CollapseWatch(objective.name, device, run.writes) if objective.uses_reference else None
    # Another shape costs a compilation, and shards are gathered by all processes alike.
    alike = config.shard or devices.compiles_shapes(device)

    def errors_of(step: int, batch: Sequence[int], places: Sequence[int], reference: Reference = None) -> Errors:
        """The rows' errors on one noise, timestep, caption and part for all clips of a row."""
        shape, trains = reader.latent_shape, run.policy.trains
        dropout, parts = config.caption_dropout, generator.num_parts
        draws = draw(config.seed, step, places, shape, config.timesteps, dropout, trains, parts)
        own = [rows[batch[place]] for place in places]
        weight = torch.tensor([objective.weight(row) for row in own])
        signals = None if signal is None else torch.tensor([signal[batch[place]] for place in places])
        sides = list(zip(*(objective.sample_ids(row) for row in own), strict=True))
        found = _errors(generator, run.policy, objective, settings, config, reader, sides, draws, reference)
        return found._replace(
            weight=devices.sent(weight, device), signal=None if signals is None else devices.sent(signals, device)
        )

    with run.loop(config.steps, "step") as progress:
        for step in range(run.done, config.steps):
            # 1. This process's slice of the step's batch, a piece for each forward
            batch = rows_of_step(step, config.batch_size, len(rows), config.seed)
            pieces: list[tuple[Sequence[int], float]] = []
            for piece in devices.slice_of_rank(config.batch_size, config.gradient_accumulation, empty=alike):
                # A row of weight 0 has no gradient: it counts in the mean and need not be run, unless all run alike.
                own = [place for place in piece if alike or objective.weight(rows[batch[place]]) != 0]
                if own or alike:  # without a row of its own, one of another slice is run, which counts nothing here
                    pieces.append((own or [0], 1.0 if own else 0.0))
            # 2. The mean over the whole batch, of an objective that reads one: before the gradient of any piece
            mean: Tensor | None = None
            known: list[Errors | None] = [None] * len(pieces)
            if objective.of_batch:
                mean, again = torch.zeros((), device=device), config.gradient_accumulation > 1
                for index, (places, counts) in enumerate(pieces):
                    with torch.set_grad_enabled(not again):  # a single piece need not be run again
                        found = errors_of(step, batch, places)
                    mean += counts * objective.of_batch(found).detach().sum()
                    known[index] = found
                devices.sum_over_ranks([mean])
                mean /= config.batch_size
            totals = torch.zeros(3 + 2 * len(objective.facts), device=device)  # see `_sums`
            for (places, counts), before in zip(pieces, known, strict=True):
                # 3. Errors of policy and reference
                if before is None or not before.policy[0].requires_grad:  # the pass above was without gradient
                    found = errors_of(step, batch, places, before and before.reference)
                else:
                    found = before
                errors = found._replace(batch_mean=mean)
                # 4. Loss and gradient, over the size of the whole batch
                loss = objective.loss(errors, **settings)
                (counts * loss.value.sum() / config.batch_size).backward()
                totals += counts * _sums(loss, errors, objective)
            # 5. The gradient of the whole batch, and one optimizer step
            devices.sum_over_ranks([*run.gradients(), totals])
            line = run.apply(_means(totals, objective, config.batch_size), learning_rate(step, config))
            if watch:
                watch.add(totals[-2:])
                if run.done % config.log_every == 0 or run.done == config.steps:
                    watch.look(run.done)
            # 6. Log and checkpoint
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


def _sums(loss: Loss, errors: Errors, objective: Objective) -> Tensor:
    """Sums over a piece's rows: loss, facts, the rows that each fact is of, wanted errors of policy and reference."""
    known = [~fact.isnan() for fact in loss.facts]
    facts = [torch.where(rows, fact, 0).sum() for fact, rows in zip(loss.facts, known, strict=True)]
    watched = [torch.zeros_like(loss.value.detach().sum())] * 2
    if objective.uses_reference:
        wanted = objective.wanted(errors)
        watched = [torch.where(wanted, e[0].detach(), 0).sum() for e in (errors.policy, errors.reference)]
    return torch.stack([loss.value.detach().sum(), *facts, *(rows.sum().float() for rows in known), *watched])


def _means(totals: Tensor, objective: Objective, batch_size: int) -> dict[str, Tensor]:
    """The step's loss and facts; nan for a fact that is of no row of the batch."""
    count = len(objective.facts)
    loss, facts, rows = totals[0], totals[1 : 1 + count], totals[1 + count : 1 + 2 * count]
    return {"loss": loss / batch_size, **dict(zip(objective.facts, facts / rows, strict=True))}


def _errors(
    generator: Generator,
    policy: Policy,
    objective: Objective,
    settings: Mapping[str, Any],
    config: TrainConfig,
    reader: ClipReader,
    sides: Sequence[Sequence[str]],
    draws: Draws,
    reference: Reference,
) -> Errors:
    """What the loss reads of the clips, for each side of the rows; weights are 1, and there is no signal.

    sides: sample_ids, B a side; all sides go through one forward, with the draws repeated.
    reference: its errors where they are known; None: they are computed where the objective reads them.
    """
    device, process, count = generator.device, generator.process, len(sides)
    clips = reader.read([sample_id for side in sides for sample_id in side], draws.dropped.repeat(count))
    part, time = draws.part.repeat(count), devices.sent(draws.t, device)
    t = time.repeat(count)
    whole = {name: devices.sent(tensor, device) for name, tensor in clips.conditions.items()}
    clean, conditions = generator.view(devices.sent(clips.latents, device), whole, part)
    noise, _ = generator.view(torch.cat([devices.sent(draws.noise, device)] * count), whole, part)
    noised, target = process.noised(clean, noise, t), process.target(clean, noise, t)
    given = given_frames(conditions)  # no prediction, so no part of the error
    error_of = per_frame_error if objective.by_frame else per_sample_error

    def predicted() -> Tensor:
        with devices.autocast(device, config.precision):
            return generator.predict(noised, draws.t.repeat(count), conditions)[:, :, given:]

    target = target[:, :, given:]
    measured: tuple[Tensor, ...] = ()
    of_reference = None
    # Before the policy, whose graph the reference must not disturb.
    if objective.uses_reference and (reference is None or objective.measure):
        with torch.no_grad(), policy.reference():
            of_reference = predicted()
        reference = error_of(of_reference, target).chunk(count)
    of_policy = predicted()
    if objective.measure and of_reference is not None:
        deviation, of_old = (prediction.float() - target.float() for prediction in (of_policy, of_reference))
        measured = objective.measure(deviation, of_old, settings)
    return Errors(
        error_of(of_policy, target).chunk(count),
        reference or (),
        weight=torch.ones_like(time),
        to_noise=process.noise_scale(time),
        to_clean=process.clean_scale(time),
        measured=measured,
    )


def _check_clips(generator: Generator, clip_sets: Sequence[ClipSet], reader: ClipReader, force: bool) -> None:
    """Raises ValueError where the clips are of another size, family or embedded guidance than the generator's.

    Also where they differ in one of these among themselves.
    """
    check_alike(clip_sets)
    for clip_set in clip_sets:
        family = clip_set.manifest["facts"].get("family", generator.family)  # sets of the first version do not say
        if family != generator.family:
            raise ValueError(f"{clip_set.folder}: clips of a {family} generator, and this one is {generator.family}")
        sampled_at = clip_set.manifest["facts"].get("embedded_guidance")
        if sampled_at != generator.embedded_guidance and not force:
            raise ValueError(
                f"{clip_set.folder}: clips sampled at embedded_guidance {sampled_at}, and "
                f"generator.embedded_guidance is {generator.embedded_guidance}: its errors are not those of the policy "
                f"that was judged. Set generator.embedded_guidance: {sampled_at}, or "
                "train.common.force_embedded_guidance: true"
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
