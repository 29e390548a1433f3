"""Sampling a clip set: every prompt of a split, N clips each, from the generator as some policy has left it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data.manifest import publish
from data.prompts import SPLITS, Prompt, select
from data.records import Sample
from data.store import ClipSetWriter
from generators.core.generator import SOLVERS, Generator

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
    prompts: int | None = None  # of the split, evenly spread over it; null: all

    def __post_init__(self) -> None:
        for name in ("steps", "samples_per_prompt", "batch_size", "prompts"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name, known in (("solver", SOLVERS), ("split", (*SPLITS, "all"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {', '.join(known)}")


class ClipSetName(NamedTuple):
    """What a clip set is called: `name` enters its seeds and sample ids, so sets of one name share their noise."""

    name: str
    policy: str


class Maker(NamedTuple):
    """Who makes a part of a clip set."""

    policy: str  # what the rows say
    ids: str  # what the sample ids begin with
    load: Callable[[], Generator]  # the generator as this policy has left it


def generate_clip_set(
    generator: Generator,
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
    texts: Mapping[str, str] | None = None,
) -> int:
    """Sample the clips of a set and publish it as `out`; returns their number.

    work: resume state. A restart samples only the batches that are missing, and ends with the same bytes.
    texts: what the generator is told in place of the prompts, by prompt_id. The rows keep the prompts, and the
        manifest's fact `texts` says what was told.
    Raises ValueError for a prompt longer than the text encoder takes, a size that the VAE cannot represent, and a
    split without prompts.
    """
    maker = Maker(called.policy, called.name, lambda: generator)
    return _generate([maker], prompts, size, sampling, called, work, out, texts)


def generate_checkpoint_set(
    checkpoints: Mapping[str, Callable[[], Generator]],
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
) -> int:
    """Sample one set from every checkpoint of a policy, each on the same prompts and noise; otherwise as above.

    checkpoints: by name, how to load the generator as it was then; one whose clips are all there is not loaded.
    Its rows have the policy `<policy>/<name>`, its sample ids begin with `<set>-<name>-`.
    """
    makers = [Maker(f"{called.policy}/{n}", f"{called.name}-{n}", load) for n, load in checkpoints.items()]
    return _generate(makers, prompts, size, sampling, called, work, out)


def _generate(
    makers: Sequence[Maker],
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
    texts: Mapping[str, str] | None = None,
) -> int:
    asked = select(prompts, sampling.split, sampling.prompts)
    told = {prompt.prompt_id: texts[prompt.prompt_id] if texts else prompt.prompt for prompt in asked}
    plans = [plan(asked, size, sampling, ClipSetName(called.name, maker.policy), maker.ids) for maker in makers]
    parts = [_batches(rows, sampling.batch_size) for rows in plans]
    writer = ClipSetWriter(work)
    done = writer.done_batches()
    numbered = [list(enumerate(part, number * len(part))) for number, part in enumerate(parts)]  # all are as long
    missing = [[(index, batch) for index, batch in part if index not in done] for part in numbered]
    total, todo = (sum(len(batch) for part in which for _, batch in part) for which in (numbered, missing))
    began, encoded = time.monotonic(), None
    with tqdm(total=total, initial=total - todo, unit="clip", desc=f"{called.name} by {called.policy}") as progress:
        for place, (maker, part) in enumerate(zip(makers, missing, strict=True)):
            if not part and (encoded or place < len(makers) - 1):  # the embeddings are needed even if no clip is
                continue
            generator = maker.load()
            shape = generator.latent_shape(size.num_frames, size.height, size.width)
            encoded = encoded or _encode(generator, told)
            for index, batch in part:
                latents = generator.sample(
                    torch.stack([encoded.prompts[sample.prompt_id] for sample in batch]),
                    encoded.empty,
                    generator.draw_noise([sample.seed for sample in batch], shape),
                    sampling.steps,
                    sampling.guidance,
                    sampling.solver,
                )
                writer.add_batch(index, batch, generator.decode(latents).numpy(), latents.cpu())
                progress.update(len(batch))
            del generator  # before the next is loaded
    assert encoded is not None
    facts = {"set": called.name, "policy": called.policy} | ({"texts": told} if texts else {})
    writer.finish(encoded.prompts, encoded.empty, facts)
    publish(work, out)
    seconds = time.monotonic() - began
    logger.info("%s: %d clips by %s, %d of them now in %.1f s", called.name, total, called.policy, todo, seconds)
    return total


class _Encoded(NamedTuple):
    prompts: dict[str, Tensor]  # prompt_id -> (L, D)
    empty: Tensor  # (L, D)


def _encode(generator: Generator, told: Mapping[str, str]) -> _Encoded:
    *encoded, empty = generator.encode_text([*told.values(), ""])
    return _Encoded(dict(zip(told, encoded, strict=True)), empty)


def _batches(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    return [samples[at : at + size] for at in range(0, len(samples), size)]


def plan(
    prompts: Sequence[Prompt], size: VideoSize, sampling: Sampling, called: ClipSetName, ids: str | None = None
) -> list[Sample]:
    """The rows of a set, prompt after prompt. ids: what their sample ids begin with, if not with the set's name.

    A clip's seed hangs on (set seed, set name, prompt_id, index) alone, not on the policy, the other prompts or the
    batch: rounds differ by their names, and the evaluation sets of all policies share theirs.
    """
    return [
        Sample(
            sample_id=(sample_id := f"{ids or called.name}-{prompt.prompt_id}-{index:03d}"),
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
