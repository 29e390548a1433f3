"""Sampling a clip set: every prompt of a split, N clips each, from the generator with a policy's weights."""

import contextlib
import gc
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from cluster.devices import pick_device
from cluster.pool import Here, Pool, Unit
from data.config import STRICT, Count
from data.counts import Counts, collected_counts
from data.dense import pairs_of_starts
from data.first_frames import read_png
from data.manifest import StoreError, atomically, publish
from data.pace import measured
from data.policies import OF_POLICY
from data.prompts import Prompt, select
from data.records import Sample, SharedStart
from data.store import ClipSet, ClipSetWriter, PromptConditions, encode_clips
from generators.core.conditions import stacked
from generators.core.encoding import ENCODING, Encoded, encode
from generators.core.generator import SAMPLING, Generator, NonFiniteClipError, first_step
from generators.core.load import load_generator
from generators.core.lora import apply_policy, with_own_sampling
from generators.core.size import VideoSize
from generators.core.solvers import Solver

logger = logging.getLogger(__name__)

Load = Callable[[Collection[str]], Generator]
"""PARTS -> the generator with those of its parts, and with a policy's weights.

Called for the encoders first, which are freed before it is called for what samples; on a cluster each by workers of
their own.
"""


def load_policy(
    settings: Mapping[str, Any], size: VideoSize, folder: Path, device: str, parts: Collection[str]
) -> Generator:
    """The generator with those of its parts, weights and sampling of the policy in `folder`, on this machine's device.

    settings: arguments of `load_generator`. device: as `pick_device` takes it.
    """
    generator = load_generator(**settings, size=size, device=pick_device(device), parts=parts)
    generator = with_own_sampling(generator, folder)
    if "denoiser" in parts:
        apply_policy(generator, folder)
    return generator


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


class _Latents:
    """Clean latents of clips of a set, read where they are used; to another process they take their tensor along."""

    def __init__(self, clip_set: ClipSet, sample_ids: Sequence[str]) -> None:
        self._clip_set, self._ids = clip_set, sample_ids

    def read(self) -> Tensor:
        """(B, C, F, h, w)."""
        return self._clip_set.latents(self._ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Sent, (self.read(),)


class _Sent(NamedTuple):
    """`_Latents` at another process."""

    tensor: Tensor

    def read(self) -> Tensor:
        return self.tensor


class _Begin(NamedTuple):
    """What the clips of a set are sampled from in place of noise: clips of another set, partly noised."""

    clip_set: ClipSet
    start_of: Mapping[str, str]  # sample_id -> that of the clip that it starts from
    share: float  # of the solver's steps, which is run


class _Batch(NamedTuple):
    """Clips that are sampled in one forward."""

    part: int
    samples: Sequence[Sample]
    conditions: Mapping[str, Mapping[str, Tensor]]  # of their prompts, by prompt_id
    clean: _Latents | _Sent | None = None  # what they start from; None: noise alone


class Made(NamedTuple):
    """What is kept of a batch."""

    videos: list[bytes]  # an mp4 a clip
    latents: Tensor  # (B, C, F, h, w) clean, on the CPU
    counts: Counts  # what it took


class _Encoder:
    """Encodes prompts and first frames."""

    def __init__(self, load: Load) -> None:
        self.generator = load(ENCODING)

    def work(self, data: tuple[Sequence[Prompt], str | None, Mapping[str, str] | None]) -> Encoded:
        """As `encode`, whose arguments these are."""
        return encode(self.generator, *data)


class _Sampler:
    """Samples batches, and holds the generator of one part at a time."""

    def __init__(
        self, loads: Sequence[Load], unwanted: Mapping[str, Tensor], sampling: Sampling, share: float | None
    ) -> None:
        self.loads, self.unwanted, self.sampling, self.share = loads, unwanted, sampling, share
        self.loaded: tuple[int, Generator] | None = None

    def work(self, batch: _Batch) -> Made:
        """The clips of a batch. Raises NonFiniteClipError naming those that came out infinite or NaN."""
        generator = self._generator_of(batch.part)
        with collected_counts() as counts:
            latents, frames = self._sampled(generator, batch)
        counts.add(Counts(clips=len(batch.samples)))
        return Made(encode_clips(batch.samples, frames), latents.cpu(), counts)

    def _sampled(self, generator: Generator, batch: _Batch) -> tuple[Tensor, np.ndarray]:
        """Latents (B, C, F, h, w) and frames (B, F, H, W, 3)."""
        how = (
            stacked([batch.conditions[sample.prompt_id] for sample in batch.samples]),
            self.unwanted,
            generator.draw_noise([sample.seed for sample in batch.samples], generator.latent_shape),
            self.sampling.steps,
            self.sampling.guidance,
            self.sampling.solver,
        )
        if batch.clean is None or self.share is None:
            latents = generator.sample(*how)
        else:
            latents = generator.sample_from(batch.clean.read(), self.share, *how)
        try:
            return latents, generator.decode(latents).numpy()
        except NonFiniteClipError as error:
            raise NonFiniteClipError(error.what, [batch.samples[int(row)].sample_id for row in error.clips]) from error

    def _generator_of(self, part: int) -> Generator:
        if self.loaded is None or self.loaded[0] != part:
            self.loaded = None
            gc.collect()  # before the next is loaded: compiled modules hold themselves
            self.loaded = part, self.loads[part](SAMPLING)
        return self.loaded[1]


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
    pool: Pool | None = None,
) -> int:
    """Sample the clips of a set and publish it as `out`; returns their number.

    work: resume state. A restart samples only the batches that are missing, and ends with the same bytes.
    texts: the generator's inputs in place of the prompts, by prompt_id. The rows keep the prompts, and the manifest's
        fact `texts` holds the texts.
    encoded: the prompts, where they are encoded already.
    size: the generator's. pool: who encodes and samples; None: this process. This process alone writes.
    Raises ValueError for a prompt longer than the text encoder takes, first frames that the generator needs and the
    prompts lack, and a split without prompts; NonFiniteClipError naming the clips that came out infinite or NaN.
    """
    part = _Part(called.policy, called.name, load)
    return _generate([part], prompts, size, sampling, called, work, out, pool or Here(), texts, encoded)


def generate_checkpoint_set(
    checkpoints: Mapping[str, Load],
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
    pool: Pool | None = None,
) -> int:
    """Sample one set from every checkpoint of a policy, each on the same prompts and noise.

    The other arguments are those of `generate_clip_set`.

    checkpoints: by name; not called where its clips exist.
    Its rows have the policy `<policy>/<name>`, its sample ids begin with `<set>-<name>-`.
    """
    parts = [_Part(f"{called.policy}/{n}", f"{called.name}-{n}", load) for n, load in checkpoints.items()]
    return _generate(parts, prompts, size, sampling, called, work, out, pool or Here())


def generate_pairs(
    load: Load,
    starts: ClipSet,
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    share: float,
    pairs_per_prompt: int,
    work: Path,
    out: Path,
    pool: Pool | None = None,
) -> int:
    """Sample pairs of clips, both of a pair from one clip of the set `starts` as `Generator.sample_from` does.

    The other arguments are those of `generate_clip_set`; of `sampling`, samples_per_prompt, split, prompts and
    negative_prompt are not used: the prompts and their conditions are those of `starts`.
    share: of the solver's steps, which is run. pairs_per_prompt: each from another clip of the prompt, in the
        order of `starts`.
    The set has the table starts.parquet (data/dense.py), and a fact `starts`. Returns the number of clips.
    Raises ValueError as `sample_from` does, and for a prompt with fewer clips than pairs_per_prompt.
    """
    left = sampling.steps - first_step(share, sampling.steps)
    sample_of = {sample.prompt_id: sample for sample in starts.samples}
    prompts = [Prompt(one.prompt_id, one.prompt, one.category, one.split, None, None) for one in sample_of.values()]
    sampling = replace(sampling, samples_per_prompt=2 * pairs_per_prompt, split="all", prompts=None)
    pairs = pairs_of_starts(starts.samples, plan(prompts, size, sampling, called), pairs_per_prompt)
    start_of = {sample_id: pair.start for pair in pairs for sample_id in (pair.first, pair.second)}
    facts = starts.manifest["facts"]
    begun = {
        "round": facts["set"],
        "clip_set": starts.fingerprint(),
        "noise": share,
        "steps": left,
        "latent_frames": starts.latents([pairs[0].start]).shape[2],
    }
    known = {key: facts[key] for key in ("family", "negative_prompt", "embedded_guidance", *OF_POLICY) if key in facts}
    encoded = Encoded(_conditions_of(starts), _images_of(starts), {**known, "starts": begun})
    part, begin = _Part(called.policy, called.name, load), _Begin(starts, start_of, share)
    message = "%s: %d pairs, each from a clip of %s with the last %d of %d solver steps to run"
    logger.info(message, called.name, len(pairs), facts["set"], left, sampling.steps)
    return _generate([part], prompts, size, sampling, called, work, out, pool or Here(), None, encoded, begin, pairs)


def _conditions_of(clip_set: ClipSet) -> PromptConditions:
    """The conditions that a set was sampled with."""
    ids = list(dict.fromkeys(sample.prompt_id for sample in clip_set.samples))
    rows = clip_set.conditions(ids)
    prompts = {one: {name: tensor[place] for name, tensor in rows.items()} for place, one in enumerate(ids)}
    return PromptConditions(prompts, clip_set.empty, clip_set.negative)


def _images_of(clip_set: ClipSet) -> dict[str, np.ndarray]:
    """The first frames that the generator was given when it sampled a set."""
    ids = dict.fromkeys(sample.prompt_id for sample in clip_set.samples)
    return {one: read_png(path) for one in ids if (path := clip_set.first_frame(one))}


def _generate(
    parts: Sequence[_Part],
    prompts: Sequence[Prompt],
    size: VideoSize,
    sampling: Sampling,
    called: ClipSetName,
    work: Path,
    out: Path,
    pool: Pool,
    texts: Mapping[str, str] | None = None,
    encoded: Encoded | None = None,
    begin: _Begin | None = None,
    pairs: Sequence[SharedStart] = (),
) -> int:
    chosen = select(prompts, sampling.split, sampling.prompts)
    plans = [plan(chosen, size, sampling, ClipSetName(called.name, part.policy), part.prefix) for part in parts]
    planned = [(part, batch) for part, rows in enumerate(plans) for batch in _batches(rows, sampling.batch_size)]
    writer = ClipSetWriter(work)
    done = writer.done_rows()
    _check_done(work, done, [batch for _, batch in planned])
    missing = {index: batch for index, (_, batch) in enumerate(planned) if index not in done}
    total, todo = sum(map(len, plans)), sum(map(len, missing.values()))
    began = time.monotonic()
    message = "%s: %d clips by %s, %d a batch, %d solver steps each; %d are done; the work lies in %s"
    logger.info(message, called.name, total, called.policy, sampling.batch_size, sampling.steps, total - todo, work)
    if encoded is None:
        texts_of = Unit(0, f"the texts of {len(chosen)} prompts", (chosen, sampling.negative_prompt, texts))
        ((_, encoded),) = pool.run(partial(_Encoder, parts[0].load), [texts_of])
    units = [_unit(index, *planned[index], encoded, begin) for index in missing]
    sampling_since = time.monotonic()
    share = begin.share if begin else None
    make = partial(_Sampler, [part.load for part in parts], encoded.conditions.unwanted, sampling, share)
    bar = tqdm(total=total, initial=total - todo, unit="clip", desc=f"{called.name} by {called.policy}")
    with bar as progress, contextlib.closing(pool.run(make, units)) as results:
        for index, made in results:
            _keep_counts(work, index, made.counts)  # before the batch, so that every batch has some
            writer.add_batch(index, missing[index], made.videos, made.latents)
            progress.set_postfix(pool.status(), refresh=False)
            progress.update(len(missing[index]))
    pool.release()
    measured("clips", todo, time.monotonic() - sampling_since)
    facts = {"set": called.name, "policy": called.policy, **encoded.facts}
    facts |= {"guidance": sampling.guidance, "size": [size.num_frames, size.height, size.width]}
    given = {"texts": {prompt.prompt_id: texts[prompt.prompt_id] for prompt in chosen}} if texts else {}
    writer.add_first_frames(encoded.images)
    if pairs:
        writer.add_starts(pairs)
    writer.finish(encoded.conditions, facts | given)
    publish(work, out)
    seconds = time.monotonic() - began
    logger.info("%s: %d clips by %s, %d of them now in %.1f s", called.name, total, called.policy, todo, seconds)
    return total


def counts_of(work: Path) -> Counts | None:
    """What the clip set took that was made in `work`, by all starts of the run; None where that is not known.

    Without batches that a kill cut off, which were made again.
    """
    found = Counts()
    for path in _counts_folder(work).glob("*.json"):
        found.add(Counts(**json.loads(path.read_text(encoding="utf-8"))))
    samples = sum(len(rows) for rows in ClipSetWriter(work).done_rows().values())
    return found if found.clips == samples else None  # else some batches are of a version that did not count


def _counts_folder(work: Path) -> Path:
    """A file a batch; beside `work`, all of which is published."""
    return work.with_name(f"{work.name}.counts")


def _keep_counts(work: Path, index: int, counts: Counts) -> None:
    with atomically(_counts_folder(work) / f"{index:05d}.json") as partial:
        partial.write_text(json.dumps(asdict(counts)) + "\n", encoding="utf-8")


def _unit(index: int, part: int, samples: Sequence[Sample], encoded: Encoded, begin: _Begin | None) -> Unit[_Batch]:
    conditions = {sample.prompt_id: encoded.conditions.prompts[sample.prompt_id] for sample in samples}
    what = f"clips {samples[0].sample_id} to {samples[-1].sample_id}"
    clean = _Latents(begin.clip_set, [begin.start_of[sample.sample_id] for sample in samples]) if begin else None
    return Unit(index, what, _Batch(part, samples, conditions, clean))


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
