"""Trains a reward model on pairs of clips, and measures it on the pairs of prompts that it was not trained on."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from tqdm import tqdm

from data.pace import measured
from data.policies import append_log, keep_until, read_log
from data.records import Pair
from rl.objectives.bradley_terry import bradley_terry_loss
from rl.reward.config import RewardTraining
from rl.training import state
from rl.training.batches import generator_at, rows_of_step
from rl.training.run import NonFiniteLossError

logger = logging.getLogger(__name__)

Scores = Callable[[Sequence[str]], Tensor]  # sample_ids -> (N,) float32, with the gradient of the parameters


class Split(NamedTuple):
    """The pairs that are trained on, and those of other prompts."""

    train: list[Pair]
    held_out: list[Pair]


class RewardReport(NamedTuple):
    """What a training measured."""

    pairs: int
    prompts: int
    held_out_pairs: int
    held_out_prompts: int
    loss: float  # nats, of the last steps that were logged
    held_out_loss: float | None  # nats, mean over the held-out pairs; None: there are none
    held_out_accuracy: float | None  # the part of them whose chosen clip has the higher score, ties half


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> Split:
    """Hold out the pairs of a share of the prompts, drawn by the seed: at least one prompt where the share is above 0.

    Raises ValueError without pairs, and where no prompt is left to train on.
    """
    prompts = sorted({pair.prompt_id for pair in pairs})
    count = max(1, round(share * len(prompts))) if share else 0
    if count >= len(prompts):
        held_out = f"{len(prompts)} prompts have pairs, and {min(count, len(prompts))} of them are held out"
        raise ValueError(f"{held_out}: no pair is left to train a reward model on")
    drawn = {prompts[place] for place in generator_at(seed, "held out").permutation(len(prompts))[:count]}
    return Split(
        [pair for pair in pairs if pair.prompt_id not in drawn], [pair for pair in pairs if pair.prompt_id in drawn]
    )


def train_reward(
    pairs: Sequence[Pair],
    scores: Scores,
    parameters: Mapping[str, Parameter],
    config: RewardTraining,
    work: Path,
    folder: Path,
) -> RewardReport:
    """Train the parameters of `scores` by AdamW, its rate rising linearly over warmup_steps and constant after that.

    work: resume state; a run that was killed goes on after its last checkpoint. folder: gets log.jsonl, a line every
        log_every steps with the means over them of loss (nats), accuracy and margin, the difference of the two scores.
    A step takes batch_size of the pairs, pass after pass in fresh orders that are functions of the seed alone.
    Raises ValueError as `split_pairs` does, ResumeError for a state of other settings, and NonFiniteLossError.
    """
    split = split_pairs(pairs, config.held_out, config.seed)
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=config.learning_rate, weight_decay=config.weight_decay)
    identity = {"pairs": len(pairs), **asdict(config)}
    done = 0
    if state.is_there(work):
        state.check_identity(work, identity)
        done = state.read_state(work, parameters, optimizer)
        logger.info("resumed from %s after step %d", state.path_of(work), done)
    keep_until(folder, done)
    recent: list[tuple[float, float, float]] = []
    began = time.perf_counter()
    for step in tqdm(range(done, config.steps), total=config.steps, initial=done, desc="reward", unit="step"):
        places = rows_of_step(step, config.batch_size, len(split.train), config.seed)
        recent.append(_step(step, [split.train[place] for place in places], scores, parameters, optimizer, config))
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            means = torch.tensor(recent).mean(0).tolist()
            append_log(folder, {"step": step + 1, **dict(zip(("loss", "accuracy", "margin"), means, strict=True))})
            recent = []
        if (step + 1) % config.checkpoint_every == 0:
            state.write_state(work, step + 1, parameters, optimizer, identity, [])
    measured("rows", (config.steps - done) * config.batch_size, time.perf_counter() - began)
    return _report(split, scores, config, read_log(folder)[-1]["loss"])


def _step(
    step: int,
    rows: Sequence[Pair],
    scores: Scores,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    config: RewardTraining,
) -> tuple[float, float, float]:
    """One optimizer step; loss, accuracy and margin of its pairs."""
    losses, margins = [], []
    for piece in _pieces(rows, max(1, config.forward_size // 2)):
        found = scores([sample_id for pair in piece for sample_id in (pair.chosen, pair.rejected)]).view(-1, 2)
        loss = bradley_terry_loss(found[:, 0], found[:, 1])
        (loss.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        margins.append((found[:, 0] - found[:, 1]).detach())
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm)
    value, margin = float(torch.cat(losses).mean()), torch.cat(margins)
    if not (math.isfinite(value) and torch.isfinite(norm)):
        raise NonFiniteLossError(f"step {step + 1}: loss {value}, gradient norm {float(norm)}; step not applied")
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    optimizer.step()
    optimizer.zero_grad()
    return value, float(_ordered(margin).mean()), float(margin.mean())


@torch.no_grad()
def _report(split: Split, scores: Scores, config: RewardTraining, loss: float) -> RewardReport:
    """What the trained model makes of the held-out pairs, each of whose clips is scored once."""
    clips = sorted({clip for pair in split.held_out for clip in (pair.chosen, pair.rejected)})
    known = [float(one) for piece in _pieces(clips, config.forward_size) for one in scores(piece)]
    of_clip = dict(zip(clips, known, strict=True))
    margin = torch.tensor([of_clip[pair.chosen] - of_clip[pair.rejected] for pair in split.held_out])
    none = not len(margin)
    report = RewardReport(
        pairs=len(split.train),
        prompts=len({pair.prompt_id for pair in split.train}),
        held_out_pairs=len(split.held_out),
        held_out_prompts=len({pair.prompt_id for pair in split.held_out}),
        loss=loss,
        held_out_loss=None if none else float(bradley_terry_loss(margin, torch.zeros_like(margin)).mean()),
        held_out_accuracy=None if none else float(_ordered(margin).mean()),
    )
    logger.info("reward model: %s", report)
    return report


def _ordered(margin: Tensor) -> Tensor:
    """(B,) 1 where the chosen clip has the higher score, 0.5 at a tie, else 0."""
    return torch.heaviside(margin, torch.full_like(margin, 0.5))


def _pieces(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
