"""The online loop on the best of the policy's own clips: a rollout is judged, and its best clips are trained on.

RAFT, "Reward rAnked FineTuning" (Dong et al., arXiv 2304.06767; we had its abstract and summaries): of each prompt's K
samples the best by reward is fine-tuned on, again and again, each time on samples of the policy of the moment. No
gradient passes the judge, and the steps of the solver need no probability, so that any source, generator and solver
will do. The loss is that of objective sft, the mean squared error of the prediction. Ours keeps several of a prompt's
clips, and only those above its mean reward.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from cluster import devices
from generators.core.conditions import Conditions, chosen, given_frames
from generators.core.generator import Generator
from rl.objectives import per_sample_error
from rl.online.config import RaftConfig
from rl.online.loop import (
    OBJECTIVE,
    Check,
    PromptInputs,
    check_arguments,
    guidance_at,
    guidance_fact,
    made_from,
    run_updates,
)
from rl.online.rewarded import JudgedRollout, Rewards, groups_of, progress_of, reward_facts, roll_out, start_noise
from rl.training.batches import draw
from rl.training.run import TrainingRun, TrainReport, begin
from rl.training.tracking import Tracker


class _Piece(NamedTuple):
    """Clips of a rollout that go through one forward."""

    places: tuple[int, ...]
    latents: Tensor  # (B, C, F, h, w) clean
    conditions: Conditions  # (B, …) each
    share: float  # of the loss, of each; 0: they make other processes' forwards possible, and count nothing


def train_on_best(
    generator: Generator,
    inputs: PromptInputs,
    judge: str,
    rewards_of: Rewards,
    config: RaftConfig,
    start: Path,
    work: Path,
    out: Path,
    origin: Mapping[str, Any],
    check: Check | None = None,
    add: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    tracker: Tracker | None = None,
) -> TrainReport:
    """Train a policy from `start` on the best of its own clips, and publish its folder as `out`.

    The arguments are those of `rl.online.policy_gradient.train_by_rewards`. Each of inner_epochs optimizer steps on a
    rollout is on all clips that `best_places` names, on noise and t of its own. Where there is none, the step's
    gradient is 0.

    A line of log.jsonl: step; loss; kept, the number of clips that are trained on; what `reward_facts` says;
    learning_rate; gradient_norm; guidance, held_out and stopped as elsewhere.
    Raises ValueError for no prompt, and for a reward that is not finite; NonFiniteLossError for clips that are not
    finite, before anything is applied.
    """
    check_arguments(inputs, config, check)
    from_judge = made_from(generator, inputs, {judge: 1.0})
    run = begin(OBJECTIVE, generator, config, start, work, resume_from, origin, from_judge, tracker)
    rolled: list[JudgedRollout] = []  # the last rollout

    def update_of(update: int) -> dict[str, Any]:
        number = update // config.inner_epochs

        def sample(conditions: Conditions, rows: Mapping[int, int]) -> tuple[Tensor, Tensor]:
            noise = start_noise(generator, inputs, config, number, rows)
            guidance = guidance_at(config, number)
            with devices.autocast(generator.device, config.precision):
                latents = generator.sample(conditions, inputs.unwanted, noise, config.steps, guidance, config.solver)
            return latents, latents.cpu()

        # 1. Clips and their rewards, in the first of the updates that share them
        if update % config.inner_epochs == 0:
            rolled[:] = [roll_out(run, generator, inputs, rewards_of, config, update, sample)]
        (last,) = rolled
        # 2. The gradient of the best clips, as many a forward as were sampled at once
        best = best_places(groups_of(last.rewards, config), config.keep)
        losses = [
            loss for piece in _pieces(last, best, config) for loss in _back(run, generator, config, update, piece)
        ]
        devices.sum_over_ranks(run.gradients())
        of_all = [loss for part in devices.gather_over_ranks(losses) for loss in part]
        facts = {"loss": fmean(of_all) if of_all else 0.0, "kept": len(best)}
        return facts | reward_facts(last.rewards, config) | guidance_fact(config, number)

    return run_updates(run, config, update_of, check, out, add, partial(progress_of, generator.device))


def best_places(groups: Sequence[Sequence[float | None]], keep: int) -> list[int]:
    """Places of the clips that are trained on, rising: of each group those with the highest rewards.

    groups: the rewards of each prompt's clips, of equal numbers; a clip is at its place among all. At most `keep` of a
        group, the earlier of equals, and only those whose reward is above their group's mean: a group whose rewards
        are equal has none, and a rejected clip is not kept for want of others. RAFT keeps one, whatever its reward.
    """
    found, first = list[int](), 0
    for group in groups:
        known = {place: reward for place, reward in enumerate(group, first) if reward is not None}
        first += len(group)
        if len(set(known.values())) > 1:  # else rounding may put equals above their mean
            above = [place for place, reward in known.items() if reward > fmean(known.values())]
            found += sorted(above, key=lambda place: (-known[place], place))[:keep]
    return sorted(found)


def _pieces(rolled: JudgedRollout, best: Sequence[int], config: RaftConfig) -> list[_Piece]:
    """This process's clips that are trained on, by forwards, as many on every process where weights are shards."""
    wanted, pieces = set(best), list[_Piece]()
    for part in rolled.parts:
        rows = [row for row, place in enumerate(part.places) if place in wanted]
        if rows:
            places = tuple(part.places[row] for row in rows)
            pieces.append(_Piece(places, part.made[rows], chosen(part.conditions, rows), 1 / len(best)))
    if not config.shard:
        return pieces
    idle = _Piece((0,), rolled.parts[0].made[:1], chosen(rolled.parts[0].conditions, [0]), 0.0)
    return pieces + [idle] * (max(devices.gather_over_ranks(len(pieces))) - len(pieces))


def _back(run: TrainingRun, generator: Generator, config: RaftConfig, update: int, piece: _Piece) -> list[float]:
    """Back-propagate a piece's share of the loss; returns the losses of its clips that count."""
    device, process = generator.device, generator.process
    shape, trains, parts = generator.latent_shape, run.policy.trains, generator.num_parts
    draws = draw(config.seed, update, piece.places, shape, config.timesteps, 0.0, trains, parts)
    t = devices.sent(draws.t, device)
    whole = {name: devices.sent(tensor, device) for name, tensor in piece.conditions.items()}
    clean, conditions = generator.view(devices.sent(piece.latents, device), whole, draws.part)
    noise, _ = generator.view(devices.sent(draws.noise, device), whole, draws.part)
    noised, target, given = process.noised(clean, noise, t), process.target(clean, noise, t), given_frames(conditions)
    with devices.autocast(device, config.precision):
        prediction = generator.predict(noised, draws.t, conditions)
    error = per_sample_error(prediction[:, :, given:], target[:, :, given:])
    (piece.share * error.sum()).backward()
    return error.tolist() if piece.share else []
