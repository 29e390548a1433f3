"""A tiny online run, for tests and the processes that they start and kill."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import softplus

from cluster.devices import gather_over_ranks
from data.config import read_config
from generators.core import lora
from generators.core.generator import SAMPLING
from rl.online.config import GrpoConfig, OnlineConfig, RaftConfig
from rl.online.guards import CurvePoint
from rl.online.judging import WeightedJudge
from rl.online.loop import PromptInputs
from rl.online.policy_gradient import train_by_rewards
from rl.online.raft import train_on_best
from rl.online.rewarded import Rewards, RolledClip
from rl.online.trainer import train_online
from rl.training.run import TrainReport
from rl.training.tracking import Tracker
from tests.support.tiny import load_wan

CONFIG = {
    "full": False, "lora_rank": 4, "lora_alpha": 4, "lora_targets": None, "learning_rate": 0.02, "betas": [0.9, 0.999],
    "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0, "batch_size": 2, "gradient_accumulation": 1,
    "gradient_checkpointing": False, "precision": "fp32", "deterministic": True, "checkpoint_every": 2,
    "log_every": 1, "seed": 1, "rollout": "random_step", "renoise": "fresh", "gradient_steps": None, "noise": "fresh",
    "steps": 3,
    "solver": "unipc", "guidance": 1.0, "updates": 5, "warmup_updates": 0, "velocity_weight": 0.1,
    "held_out_every": None, "held_out_tolerance": 0.0, "stop_below": None, "stop_right": None, "stop_held_out": 0.5,
    "max_seconds": None,
    "step_from": "all",
}  # fmt: skip
LAST_STEPS = {"rollout": "last_steps", "renoise": None, "gradient_steps": 2}

GRPO = CONFIG | {
    "rollout": "sde", "renoise": None, "solver": "euler", "batch_size": 4, "velocity_weight": 0.0, "updates": 4,
    "group_size": 2, "same_noise": False, "noise_level": 0.7, "timestep_fraction": 1.0, "time_weight": 0.0,
    "reward": "score", "advantage_spread": "group", "advantage_clip": 5.0, "ratio_clip": 0.001, "kl_weight": 0.01,
    "inner_epochs": 1,
}  # fmt: skip


RAFT = CONFIG | {
    "rollout": "best", "renoise": None, "batch_size": 4, "velocity_weight": 0.0, "updates": 4, "group_size": 2,
    "keep": 1, "inner_epochs": 1, "reward": "score", "timesteps": {"name": "uniform"},
}  # fmt: skip


def raft_config(**changes) -> RaftConfig:
    return read_config(RaftConfig, RAFT | changes, "engine")


def grpo_config(**changes) -> GrpoConfig:
    return read_config(GrpoConfig, GRPO | changes, "engine")


def config(**changes) -> OnlineConfig:
    return read_config(OnlineConfig, CONFIG | changes, "engine")


class Answers(NamedTuple):
    """An rl.online.judging.JudgeAnswers."""

    questions: tuple[str, ...]
    loss: Tensor
    p_wanted: Tensor


class ColourJudge:
    """Asks of three frames whether there is more of a colour than of the others, and whether they are bright."""

    def __init__(self, name: str = "red", channel: int = 0, pause: float = 0.0) -> None:
        self.name, self.channel, self.pause = name, channel, pause

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        return [0, num_frames // 2, num_frames - 1]

    def __call__(self, frames: Tensor, prompt_id: str, seed: int) -> Answers:
        time.sleep(self.pause)
        mean = frames.mean((0, 1, 2))
        # two-way logits: their difference is what softplus takes
        logits = torch.stack([20 * (mean[self.channel] - mean.mean()), 4 * (mean.mean() - 0.5)])
        return Answers((self.name, "bright"), softplus(-logits), logits.detach().sigmoid())


def prompt_inputs(prompts: int = 3, **more: Tensor) -> PromptInputs:
    """Random text for tests/conftest.py's tiny Wan. more: further conditions."""
    generator = torch.Generator().manual_seed(0)
    return PromptInputs(
        tuple(f"p{index}" for index in range(prompts)),
        {"text": torch.randn(prompts, 6, 16, generator=generator), **more},
        {"text": torch.full((6, 16), 0.5)},
    )


def load(folder: Path):
    return load_wan(folder, max_prompt_tokens=6, parts=SAMPLING)


def run(
    generator,
    start: Path,
    home: Path,
    judges: Sequence[WeightedJudge] = (WeightedJudge(ColourJudge(), 1.0),),
    check=None,
    given: PromptInputs | None = None,
    resume_from: Path | None = None,
    tracker: Tracker | None = None,
    **changes,
) -> TrainReport:
    """Train in home/work, publish home/out. generator: a loaded one, or the folder of one."""
    generator = load(generator) if isinstance(generator, Path) else generator
    return train_online(
        generator, given or prompt_inputs(), judges,
        lambda latents, indices: generator.decode_float(latents)[0][indices],
        config(**changes), start, home / "work", home / "out", {"recipe": "test"}, check,
        resume_from=resume_from, tracker=tracker,
    )  # fmt: skip


def log(home: Path) -> list[dict]:
    return [json.loads(line) for line in (home / "out" / "log.jsonl").read_text().splitlines()]


def adapter(home: Path) -> dict[str, Tensor]:
    return load_file(home / "out" / lora.LORA_FILE)


def redness(rollout: int, clips: Sequence[RolledClip]) -> dict[int, float | None]:
    """The reward of a clip: how much more red than the other colours it has, of 255."""
    means = {clip.place: clip.frames.mean((0, 1, 2)) for clip in clips}
    own: dict[int, float | None] = {place: float(mean[0] - mean.mean()) for place, mean in means.items()}
    return {place: reward for of_rank in gather_over_ranks(own) for place, reward in of_rank.items()}


def run_by_rewards(
    generator,
    start: Path,
    home: Path,
    rewards: Rewards = redness,
    check=None,
    given: PromptInputs | None = None,
    train=train_by_rewards,
    config_of=grpo_config,
    **changes,
) -> TrainReport:
    """Train by rewards in home/work, publish home/out. generator: a loaded one, or the folder of one."""
    generator = load(generator) if isinstance(generator, Path) else generator
    return train(
        generator, given or prompt_inputs(), "red", rewards, config_of(**changes), start, home / "work",
        home / "out", {"recipe": "test"}, check,
    )  # fmt: skip


run_on_best = partial(run_by_rewards, train=train_on_best, config_of=raft_config)
"""The same on the best clips."""


def run_by_slow_rewards(
    generator: Path, start: Path, home: Path, changes: dict[str, Any], pause: float, best: bool = False
) -> None:
    """`run_by_rewards` or `run_on_best` in a process of its own, pausing so many seconds before a rollout is judged."""
    torch.set_num_threads(1)

    def rewards(rollout: int, clips: Sequence[RolledClip]) -> dict[int, float | None]:
        time.sleep(pause)
        return redness(rollout, clips)

    train = run_on_best if best else run_by_rewards
    train(generator, start, home, rewards, **changes)


def probability(generator, channel: int) -> float:
    """Mean p of a colour judge on full samples by the policy of the moment, on noise and prompts of their own."""
    given = prompt_inputs(2)
    noise = generator.draw_noise([10, 11], generator.latent_shape)
    latents = generator.sample(given.conditions, given.unwanted, noise, steps=3, guidance=1.0, solver="unipc")
    judge = ColourJudge(channel=channel)
    return sum(judge(clip[[0, 2, 4]], "p0", 0).p_wanted[0].item() for clip in generator.decode_float(latents)) / 2


def check_of(generator):
    """A check whose training judge wants red, and whose held-out one green."""
    return lambda _: CurvePoint(
        probability(generator, 0), probability(generator, 1), {"blue": probability(generator, 2)}
    )


def run_slowly(generator: Path, start: Path, home: Path, changes: dict[str, Any], pause: float) -> None:
    """`run` in a process of its own, with a pause of so many seconds before each answer."""
    torch.set_num_threads(1)
    run(generator, start, home, [WeightedJudge(ColourJudge(pause=pause), 1.0)], **changes)
