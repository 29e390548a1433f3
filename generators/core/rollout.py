"""Sampling a clip set: every prompt of a split, N clips each, from the generator with a policy's weights."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from data.config import STRICT, Count, Positive
from data.manifest import publish
from data.prompts import Prompt, select
from data.records import Sample
from data.store import ClipSetWriter
from generators.core.generator import Generator, Solver

logger = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class VideoSize:
    """Section `video`: the size of a clip."""

    num_frames: Count
    height: Count  # pixels
    width: Count  # pixels
    fps: Positive  # frames per second, of the mp4


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """Section `generate`: how a clip set is sampled."""

    steps: Count
    guidance: Annotated[float, Ge(1)]  # 1 is off
    solver: Solver
    samples_per_prompt: Count
    batch_size: Count  # clips per forward; another one changes clips within float tolerance
    split: Literal["train", "test", "all"]
    seed: int
    prompts: Count | None = None  # of the split, evenly spread over it; None: all


class ClipSetName(NamedTuple):
    """The name of a clip set: `name` enters its seeds and sample ids, so sets of one name share their noise."""

    name: str
    policy: str


class _Part(NamedTuple):
    """A part of a clip set: the clips of one policy, or of one of its checkpoints."""

    policy: str  # in the rows
    prefix: str  # of the sample ids
    load: Callable[[], Generator]  # the generator with this policy's weights


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
    texts: the generator's inputs in place of the prompts, by prompt_id. The rows keep the prompts, and the manifest's
        fact `texts` holds the texts.
    Raises ValueError for a prompt longer than the text encoder takes, a size that the VAE cannot represent, and a
    split without prompts.
    """
    part = _Part(called.policy, called.name, lambda: generator)
    return _generate([part], prompts, size, sampling, called, work, out, texts)


def generate_checkpoint_set(
    checkpoints: Mapping[str, Callable[[], Generator]],
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
) -> int:
    """Sample one set from every checkpoint of a policy, each on the same prompts and noise.

    The other arguments are those of `generate_clip_set`.

    checkpoints: by name, a function that loads the generator with its weights; not called where its clips exist.
    Its rows have the policy `<policy>/<name>`, its sample ids begin with `<set>-<name>-`.
    """
    parts = [_Part(f"{called.policy}/{n}", f"{called.name}-{n}", load) for n, load in checkpoints.items()]
    return _generate(parts, prompts, size, sampling, called, work, out)


def _generate(
    parts: Sequence[_Part],
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
    texts: Mapping[str, str] | None = None,
) -> int:
    chosen = select(prompts, sampling.split, sampling.prompts)
    inputs = {prompt.prompt_id: texts[prompt.prompt_id] if texts else prompt.prompt for prompt in chosen}
    plans = [plan(chosen, size, sampling, ClipSetName(called.name, part.policy), part.prefix) for part in parts]
    batches = [_batches(rows, sampling.batch_size) for rows in plans]
    writer = ClipSetWriter(work)
    done = writer.done_batches()
    numbered = [list(enumerate(own, number * len(own))) for number, own in enumerate(batches)]  # all are as long
    missing = [[(index, batch) for index, batch in own if index not in done] for own in numbered]
    total, todo = (sum(len(batch) for own in which for _, batch in own) for which in (numbered, missing))
    began, encoded = time.monotonic(), None
    with tqdm(total=total, initial=total - todo, unit="clip", desc=f"{called.name} by {called.policy}") as progress:
        for place, (part, own) in enumerate(zip(parts, missing, strict=True)):
            if not own and (encoded or place < len(parts) - 1):  # the embeddings are needed even if no clip is
                continue
            generator = part.load()
            shape = generator.latent_shape(size.num_frames, size.height, size.width)
            encoded = encoded or _encode(generator, inputs)
            for index, batch in own:
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
    facts = {"set": called.name, "policy": called.policy} | ({"texts": inputs} if texts else {})
    writer.finish(encoded.prompts, encoded.empty, facts)
    publish(work, out)
    seconds = time.monotonic() - began
    logger.info("%s: %d clips by %s, %d of them now in %.1f s", called.name, total, called.policy, todo, seconds)
    return total


class _Encoded(NamedTuple):
    prompts: dict[str, Tensor]  # prompt_id -> (L, D)
    empty: Tensor  # (L, D)


def _encode(generator: Generator, inputs: Mapping[str, str]) -> _Encoded:
    *encoded, empty = generator.encode_text([*inputs.values(), ""])
    return _Encoded(dict(zip(inputs, encoded, strict=True)), empty)


def _batches(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    return [samples[at : at + size] for at in range(0, len(samples), size)]


def plan(
    prompts: Sequence[Prompt], size: VideoSize, sampling: Sampling, called: ClipSetName, ids: str | None = None
) -> list[Sample]:
    """The rows of a set, prompt after prompt. ids: the prefix of their sample ids; None: the set's name.

    A clip's seed depends on (set seed, set name, prompt_id, index) alone, not on the policy, the other prompts or the
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
