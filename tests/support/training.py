"""A tiny training run, for tests and the processes that they start and kill."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.records import DensePair, Pair, Sample, Weighted
from data.store import ClipSet, ClipSetWriter, PromptConditions, encode_clips
from generators.core.generator import SAMPLING
from rl.objectives import get_objective
from rl.training.config import TrainConfig, configure
from rl.training.run import TrainReport
from rl.training.tracking import Tracker
from rl.training.trainer import train
from tests.support.tiny import load_wan

LATENT_SHAPE = (4, 3, 4, 4)  # of 5 frames of 16 x 16 under tests/conftest.py's tiny Wan
CONFIG = {
    "full": False, "lora_rank": 4, "lora_alpha": 4, "lora_targets": None, "learning_rate": 0.01, "warmup_steps": 2,
    "schedule": "constant", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "steps": 5, "batch_size": 4, "gradient_accumulation": 1, "gradient_checkpointing": False, "precision": "fp32",
    "deterministic": True, "timesteps": {"name": "uniform"}, "caption_dropout": 0.25,
    "checkpoint_every": 2, "log_every": 1, "seed": 1,
}  # fmt: skip
DPO = {"beta": 100.0, "chosen_error_weight": 0.0}
KTO = {"beta": 20.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}
NFT = {"beta": 1.0, "normalised": False, "reward_from": "reward", "advantage_clip": 1.0}
DENSE_DPO = {"beta": 100.0}
OWN = {"dpo": DPO, "kto": KTO, "nft": NFT, "dense_dpo": DENSE_DPO}  # settings of an objective


def config(objective: str, **changes) -> TrainConfig:
    return configure(get_objective(objective), CONFIG | OWN.get(objective, {}) | changes)


def write_clip_set(
    folder: Path,
    prompts: int = 2,
    clips: int = 4,
    prefix: str = "p",
    shape=LATENT_SHAPE,
    more: dict[str, torch.Tensor] | None = None,
    negative_prompt: bool = False,
    facts: dict[str, Any] | None = None,
) -> ClipSet:
    """Random latents and text; every other clip of a prompt counts as accepted, see `rows`.

    more: further conditions, the same for every prompt. facts: of the manifest.
    """
    generator = torch.Generator().manual_seed(0)
    writer = ClipSetWriter(folder)
    names = [f"{prefix}{prompt}" for prompt in range(prompts)]
    for index, name in enumerate(names):
        ids = [f"{name}-{clip}" for clip in range(clips)]
        samples = [Sample(i, name, "a cup", "c", "train", "base", 1, 5, 8.0, 16, 16, f"videos/{i}.mp4") for i in ids]
        frames = np.zeros((clips, 5, 16, 16, 3), np.uint8)
        writer.add_batch(index, samples, encode_clips(samples, frames), torch.randn(clips, *shape, generator=generator))
    told = {
        name: {
            "text": torch.randn(6, 16, generator=generator),
            **{key: one.clone() for key, one in (more or {}).items()},
        }
        for name in names
    }
    negative = None if not negative_prompt else {"text": torch.full((6, 16), -0.5)}
    writer.finish(PromptConditions(told, {"text": torch.full((6, 16), 0.5)}, negative), facts or {})
    return ClipSet.open(folder)


def rows(objective: str, clip_set: ClipSet) -> list[Weighted] | list[Pair] | list[DensePair]:
    """Even clips accepted, odd ones rejected, paired in their order; by frame the odd ones are better in the last."""
    samples = clip_set.samples
    if objective == "dense_dpo":
        better = [1, *[0] * (LATENT_SHAPE[1] - 2), -1]
        pairs = zip(samples[::2], samples[1::2], strict=True)
        return [DensePair(first.prompt_id, first.sample_id, second.sample_id, better) for first, second in pairs]
    if objective == "dpo":
        pairs = zip(samples[::2], samples[1::2], strict=True)
        return [Pair(chosen.prompt_id, chosen.sample_id, rejected.sample_id, 1.0) for chosen, rejected in pairs]
    return [Weighted(sample.sample_id, sample.prompt_id, 1.0 - i % 2, 1.0 - i % 2) for i, sample in enumerate(samples)]


def write_base(folder: Path) -> Path:
    """The policy `base`: nothing but its policy.json."""
    folder.mkdir(parents=True)
    (folder / "policy.json").write_text("{}")
    return folder


def run(
    objective: str,
    generator,
    clip_set: ClipSet,
    start: Path,
    home: Path,
    resume_from: Path | None = None,
    table: list | None = None,
    tracker: Tracker | None = None,
    **changes,
) -> TrainReport:
    """Train in home/work, publish home/out. generator: a loaded one, or the folder of one."""
    if isinstance(generator, Path):
        parts = SAMPLING if "preview" in changes else ("denoiser",)
        generator = load_wan(generator, max_prompt_tokens=6, parts=parts)
    return train(
        generator, [clip_set], rows(objective, clip_set) if table is None else table, get_objective(objective),
        config(objective, **changes), start, home / "work", home / "out", {"set": "r1"}, resume_from,
        tracker,
    )  # fmt: skip


def run_slowly(generator: Path, clips: Path, start: Path, home: Path, changes: dict[str, Any], pause: float) -> None:
    """`run` of objective dpo in a process of its own, with a pause of so many seconds before each forward."""
    torch.set_num_threads(1)
    parts = SAMPLING if "preview" in changes else ("denoiser",)
    loaded = load_wan(generator, max_prompt_tokens=6, parts=parts)
    predict = loaded.predict
    loaded.predict = lambda *args: time.sleep(pause) or predict(*args)
    run("dpo", loaded, ClipSet.open(clips), start, home, **changes)
