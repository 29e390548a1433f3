"""Sampling a clip set: every prompt of a split, N clips each, from the generator as some policy has left it."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data.manifest import publish
from data.prompts import SPLITS, Prompt, select
from data.records import Sample
from data.store import ClipSetWriter
from generators.generator import SOLVERS, Generator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoSize:
    """What a clip is."""

    num_frames: int
    height: int  # pixels
    width: int  # pixels
    fps: float  # frames per second, of the mp4


@dataclass(frozen=True)
class Sampling:
    """How a clip set is sampled. Raises ValueError for counts below 1, and an unknown solver or split."""

    steps: int
    guidance: float
    solver: str
    samples_per_prompt: int
    batch_size: int  # clips per forward; another one changes clips within float tolerance
    split: str
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "samples_per_prompt", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name, known in (("solver", SOLVERS), ("split", (*SPLITS, "all"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {', '.join(known)}")


class ClipSetName(NamedTuple):
    """What a clip set is called: `name` enters its seeds and sample ids, so sets of one name share their noise."""

    name: str
    policy: str


def generate_clip_set(
    generator: Generator,
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
) -> int:
    """Sample the clips of a set and publish it as `out`; returns their number.

    work: resume state. A restart samples only the batches that are missing, and ends with the same bytes.
    Raises ValueError for a prompt longer than the text encoder takes, a size that the VAE cannot represent, and a
    split without prompts.
    """
    shape = generator.latent_shape(size.num_frames, size.height, size.width)
    asked = select(prompts, sampling.split)
    encoded = generator.encode_text([*(prompt.prompt for prompt in asked), ""])
    embeddings, empty = {p.prompt_id: e for p, e in zip(asked, encoded, strict=False)}, encoded[-1]
    samples = plan(asked, size, sampling, called)
    batches = [samples[at : at + sampling.batch_size] for at in range(0, len(samples), sampling.batch_size)]
    writer = ClipSetWriter(work)
    done = writer.done_batches()
    began, todo = time.monotonic(), sum(len(batch) for index, batch in enumerate(batches) if index not in done)
    already = len(samples) - todo
    with tqdm(total=len(samples), initial=already, unit="clip", desc=f"{called.name} by {called.policy}") as progress:
        for index, batch in enumerate(batches):
            if index in done:
                continue
            latents = generator.sample(
                torch.stack([embeddings[sample.prompt_id] for sample in batch]),
                empty,
                generator.draw_noise([sample.seed for sample in batch], shape),
                sampling.steps,
                sampling.guidance,
                sampling.solver,
            )
            writer.add_batch(index, batch, generator.decode(latents).numpy(), latents.cpu())
            progress.update(len(batch))
    writer.finish(embeddings, empty, {"set": called.name, "policy": called.policy})
    publish(work, out)
    seconds = time.monotonic() - began
    logger.info("%s: %d clips by %s, %d of them now in %.1f s", called.name, len(samples), called.policy, todo, seconds)
    return len(samples)


def plan(prompts: Sequence[Prompt], size: VideoSize, sampling: Sampling, called: ClipSetName) -> list[Sample]:
    """The rows of a set, prompt after prompt.

    A clip's seed hangs on (set seed, set name, prompt_id, index) alone, not on the policy, the other prompts or the
    batch: rounds differ by their names, and the evaluation sets of all policies share theirs.
    """
    return [
        Sample(
            sample_id=(sample_id := f"{called.name}-{prompt.prompt_id}-{index:03d}"),
            prompt_id=prompt.prompt_id,
            prompt=prompt.prompt,
            category=prompt.category,
            split=prompt.split,
            policy=called.policy,
            seed=Generator.sample_seed(f"{sampling.seed}/{called.name}", prompt.prompt_id, index),
            num_frames=size.num_frames,
            fps=size.fps,
            height=size.height,
            width=size.width,
            file_name=f"videos/{sample_id}.mp4",
        )
        for prompt in prompts
        for index in range(sampling.samples_per_prompt)
    ]
