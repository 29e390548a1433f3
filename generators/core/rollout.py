"""Sampling a clip set: every prompt of a split, N clips each, from the generator with a policy's weights."""

import gc
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from data.config import STRICT, Count
from data.manifest import StoreError, publish
from data.pace import measured
from data.prompts import Prompt, select
from data.records import Sample
from data.store import ClipSetWriter, PromptConditions
from generators.core.conditions import stacked
from generators.core.encoding import ENCODING, Encoded, encode
from generators.core.generator import SAMPLING, Generator, NonFiniteClipError
from generators.core.size import VideoSize
from generators.core.solvers import Solver

logger = logging.getLogger(__name__)

Load = Callable[[Collection[str]], Generator]
"""PARTS -> the generator with those of its parts, and with a policy's weights.

Called for the encoders first, which are freed before it is called for what samples.
"""


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
    negative_prompt: str | None = None  # what guidance leads away from; None: the pipeline's own; "": the empty caption


class ClipSetName(NamedTuple):
    """The name of a clip set: `name` enters its seeds and sample ids, so sets of one name share their noise."""

    name: str
    policy: str


class _Part(NamedTuple):
    """A part of a clip set: the clips of one policy, or of one of its checkpoints."""

    policy: str  # in the rows
    prefix: str  # of the sample ids
    load: Load  # with this policy's weights


def generate_clip_set(
    load: Load,
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
    texts: Mapping[str, str] | None = None,
    encoded: Encoded | None = None,
) -> int:
    """Sample the clips of a set and publish it as `out`; returns their number.

    work: resume state. A restart samples only the batches that are missing, and ends with the same bytes.
    texts: the generator's inputs in place of the prompts, by prompt_id. The rows keep the prompts, and the manifest's
        fact `texts` holds the texts.
    encoded: the prompts, where they are encoded already.
    size: the generator's.
    Raises ValueError for a prompt longer than the text encoder takes, first frames that the generator needs and the
    prompts lack, and a split without prompts; NonFiniteClipError naming the clips that came out infinite or NaN.
    """
    part = _Part(called.policy, called.name, load)
    return _generate([part], prompts, size, sampling, called, work, out, texts, encoded)


def generate_checkpoint_set(
    checkpoints: Mapping[str, Load],
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
) -> int:
    """Sample one set from every checkpoint of a policy, each on the same prompts and noise.

    The other arguments are those of `generate_clip_set`.

    checkpoints: by name; not called where its clips exist.
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
    encoded: Encoded | None = None,
) -> int:
    chosen = select(prompts, sampling.split, sampling.prompts)
    plans = [plan(chosen, size, sampling, ClipSetName(called.name, part.policy), part.prefix) for part in parts]
    batches = [_batches(rows, sampling.batch_size) for rows in plans]
    writer = ClipSetWriter(work)
    done = writer.done_rows()
    _check_done(work, done, [batch for own in batches for batch in own])
    numbered = [list(enumerate(own, number * len(own))) for number, own in enumerate(batches)]  # all are as long
    missing = [[(index, batch) for index, batch in own if index not in done] for own in numbered]
    total, todo = (sum(len(batch) for own in which for _, batch in own) for which in (numbered, missing))
    began = time.monotonic()
    message = "%s: %d clips by %s, %d a batch, %d solver steps each; %d are done; the work lies in %s"
    logger.info(message, called.name, total, called.policy, sampling.batch_size, sampling.steps, total - todo, work)
    if encoded is None:
        encoded = encode(parts[0].load(ENCODING), chosen, sampling.negative_prompt, texts)
        gc.collect()
    sampling_since = time.monotonic()
    with tqdm(total=total, initial=total - todo, unit="clip", desc=f"{called.name} by {called.policy}") as progress:
        for part, own in zip(parts, missing, strict=True):
            if not own:
                continue
            generator = part.load(SAMPLING)
            progress.unpause()  # the time left is by sampling alone
            for index, batch in own:
                latents, frames = _sampled(generator, encoded.told, batch, sampling)
                writer.add_batch(index, batch, frames, latents)
                progress.update(len(batch))
            del generator
            gc.collect()  # before the next is loaded: compiled modules hold themselves
    measured("clips", todo, time.monotonic() - sampling_since)
    facts = {"set": called.name, "policy": called.policy, **encoded.facts}
    facts |= {"guidance": sampling.guidance, "size": [size.num_frames, size.height, size.width]}
    given = {"texts": {prompt.prompt_id: texts[prompt.prompt_id] for prompt in chosen}} if texts else {}
    writer.add_first_frames(encoded.images)
    writer.finish(encoded.told, facts | given)
    publish(work, out)
    seconds = time.monotonic() - began
    logger.info("%s: %d clips by %s, %d of them now in %.1f s", called.name, total, called.policy, todo, seconds)
    return total


def _check_done(work: Path, done: Mapping[int, Sequence[Sample]], planned: Sequence[Sequence[Sample]]) -> None:
    """Raises StoreError where `work` holds another batch than the one that is planned in its place."""
    for index, rows in sorted(done.items()):
        wanted = list(planned[index]) if index < len(planned) else []
        if list(rows) != wanted:
            here = next((there for there, row in zip(rows, wanted, strict=False) if there != row), rows[-1])
            raise StoreError(
                f"{work}: batch {index} holds clips that are not planned in its place, such as {here.sample_id} of "
                f"seed {here.seed} for {here.prompt!r}; prompts, seed, size, samples_per_prompt and batch_size must be "
                "those that it was begun with"
            )


def _sampled(
    generator: Generator, told: PromptConditions, batch: Sequence[Sample], sampling: Sampling
) -> tuple[Tensor, np.ndarray]:
    """Clean latents (B, C, F, h, w) on the CPU and uint8 frames (B, F, H, W, 3) of a batch."""
    latents = generator.sample(
        stacked([told.prompts[sample.prompt_id] for sample in batch]),
        told.unwanted,
        generator.draw_noise([sample.seed for sample in batch], generator.latent_shape),
        sampling.steps,
        sampling.guidance,
        sampling.solver,
    )
    try:
        return latents.cpu(), generator.decode(latents).numpy()
    except NonFiniteClipError as error:
        raise NonFiniteClipError(error.what, [batch[int(row)].sample_id for row in error.clips]) from error


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
