"""A policy's clips that a source judges, and their rewards: what recipes with no gradient through the judge share."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster import devices
from data.counts import Counts, count
from generators.core.conditions import Conditions, chosen
from generators.core.generator import Generator, NonFiniteClipError
from rl.online.config import RewardsConfig
from rl.online.loop import PromptInputs, noise_at
from rl.training.batches import rows_of_step
from rl.training.run import NonFiniteLossError, TrainingRun


class RolledClip(NamedTuple):
    """A clip that is to be judged."""

    place: int  # in its rollout
    prompt_id: str
    frames: np.ndarray  # uint8 (F, H, W, 3)


Rewards = Callable[[int, Sequence[RolledClip]], Mapping[int, float | None]]
"""The number of a rollout and this process's clips of it -> the rewards of all its clips, by place, on every process.

None where the judge could not say. It is called on every process, also on one without clips.
"""


class RolledPart(NamedTuple):
    """A micro-batch of a rollout."""

    places: tuple[int, ...]  # empty: its clip makes other processes' forwards possible, and counts nothing
    conditions: Conditions
    made: Any  # what `sample` kept of it for training


class JudgedRollout(NamedTuple):
    """A rollout, this process's part of it."""

    parts: tuple[RolledPart, ...]
    rewards: tuple[float | None, ...]  # of all clips, by place


@torch.no_grad()
def roll_out(
    run: TrainingRun,
    generator: Generator,
    inputs: PromptInputs,
    rewards_of: Rewards,
    config: RewardsConfig,
    update: int,
    sample: Callable[[Conditions, Mapping[int, int]], tuple[Tensor, Any]],
) -> JudgedRollout:
    """Sample this process's clips of an update's rollout, and have all of them judged.

    sample: conditions, and the index of the prompt by place -> clean latents (B, C, F, h, w), and what training needs
    of them. Raises ValueError for a reward that is not finite; NonFiniteLossError for clips that are not finite.
    """
    number = update // config.inner_epochs
    prompts = prompts_of(number, inputs, config)
    parts: list[RolledPart] = []
    clips: list[RolledClip] = []
    for own in devices.slice_of_rank(config.batch_size, config.gradient_accumulation, empty=config.shard):
        # Shards are gathered by all processes alike: one without a clip makes one that counts nothing.
        rows = {place: prompts[place // config.group_size] for place in own or [0]}
        conditions = chosen(inputs.conditions, list(rows.values()))
        latents, made = sample(conditions, rows)
        count(Counts(clips=len(own)))
        parts.append(RolledPart(tuple(own), conditions, made))
        try:
            frames = generator.decode(latents).numpy()
        except NonFiniteClipError as error:
            raise NonFiniteLossError(f"update {update + 1}: {error}; not applied, {run.last_good()}") from error
        clips += [
            RolledClip(place, inputs.prompt_ids[rows[place]], shown) for place, shown in zip(own, frames, strict=False)
        ]
    found = rewards_of(number, clips)
    rewards = tuple(found[place] for place in range(config.batch_size))
    if wrong := [reward for reward in rewards if reward is not None and not math.isfinite(reward)]:
        raise ValueError(f"update {update + 1}: reward {wrong[0]} is not finite")
    return JudgedRollout(tuple(parts), rewards)


def prompts_of(rollout: int, inputs: PromptInputs, config: RewardsConfig) -> list[int]:
    """The index of the prompt of each group of a rollout."""
    return rows_of_step(rollout, config.batch_size // config.group_size, len(inputs.prompt_ids), config.seed)


def start_noise(
    generator: Generator,
    inputs: PromptInputs,
    config: RewardsConfig,
    rollout: int,
    rows: Mapping[int, int],
    same: bool = False,
) -> Tensor:
    """(B, C, F, h, w) what the clips at these places start from. rows: index of the prompt by place.

    Every draw depends on its address alone. A group's clips start each from their own noise, or with `same` all from
    one; fixed noise is a prompt's own, the same in every rollout.
    """
    prompts = prompts_of(rollout, inputs, config)

    def of(place: int, row: int) -> Tensor:
        group, member = divmod(place, config.group_size)
        member = 0 if same else member
        if config.noise == "fixed":
            earlier = prompts[:group].count(row)  # groups of the same prompt, whose clips have other noises
            return noise_at(
                config, generator.latent_shape, "noise", inputs.prompt_ids[row], earlier * config.group_size + member
            )
        return noise_at(config, generator.latent_shape, "noise", rollout, group, member)

    return torch.stack([of(place, row) for place, row in rows.items()]).to(generator.device)


def groups_of(rewards: Sequence[float | None], config: RewardsConfig) -> list[Sequence[float | None]]:
    """The rewards of each group of a rollout."""
    return [rewards[at : at + config.group_size] for at in range(0, len(rewards), config.group_size)]


def reward_facts(rewards: Sequence[float | None], config: RewardsConfig) -> dict[str, Any]:
    """Facts of a rollout for log.jsonl.

    reward: the mean; reward_spread: the mean over groups of their standard deviation; equal_groups: the part of groups
    without one; unjudged: the number of clips without a reward. Without any reward it is the last alone.
    """
    known = [reward for reward in rewards if reward is not None]
    groups = groups_of(rewards, config)
    if not known:
        return {"unjudged": len(rewards)}
    spreads = [pstdev(own) for group in groups if (own := [one for one in group if one is not None])]
    return {
        "reward": fmean(known),
        "reward_spread": fmean(spreads),
        "equal_groups": fmean(spread == 0 for spread in spreads),
        "unjudged": len(rewards) - len(known),
    }


def progress_of(device: torch.device, facts: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the progress bar beside the rate."""
    reward = f"{facts['reward']:.3f}" if "reward" in facts else "none"
    return {"reward": reward, "memory": f"{devices.peak_memory(device) / 2**30:.1f} GiB"}
