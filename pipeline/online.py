"""An online run from its order: prompts, their questions, the judges, and who looks on."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.prompts import Prompt
from pipeline.configs import TABLETOP, CheckConfig
from pipeline.recipe import Recipe

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

    from feedback.differentiable.asks import Ask
    from feedback.differentiable.overlay import Overlay
    from feedback.questions.references import RealClip
    from generators.core.generator import Generator
    from generators.core.rollout import VideoSize
    from rl.online.guards import Point
    from rl.online.judging import Judge, WeightedJudge
    from rl.online.trainer import Conditions, OnlineReport

logger = logging.getLogger(__name__)

ASKS, OVERLAY = "asks.jsonl", "overlay.png"  # in the policy's folder
CLIP_SET = "online"  # name of the clip sets that judges look at between updates


class Job(NamedTuple):
    """An online run as it was ordered."""

    recipe: Recipe
    prompts: Sequence[Prompt]
    asks: "Mapping[str, tuple[Ask, ...]] | None"  # by prompt_id; null: the recipe's writer writes them
    references: str | None
    overlay: "Overlay | None"
    judge: str
    held_out: str
    sources: Mapping[str, Any]  # the blocks of feedback.sources
    check: CheckConfig
    size: "VideoSize"


class Asked(NamedTuple):
    """The judges of a run, and the prompts that they can be asked about."""

    judges: "list[WeightedJudge]"
    looking: "list[WeightedJudge]"  # the same without augmentation
    asks: "dict[str, tuple[Ask, ...]]"  # none for a metric
    prompts: list[Prompt]


def run(
    job: Job, load: "Callable[[], Generator]", start: Path, work: Path, out: Path, device: "torch.device"
) -> "OnlineReport":
    """Train a policy from `start` on what the job's judges answer, and publish it as `out`.

    load: the generator, which is trained. work: resume state.
    Under torchrun each process takes a part of every update's clips, and of those that are looked at between updates.
    """
    from cluster import devices
    from generators.core.decoding import decode_frames
    from rl.online.trainer import train_online

    devices.join_group(device)
    asked = prepare_judges(job, device)
    generator = shifted(load(), job.recipe)
    conditions = conditions_of(generator, asked.prompts, job.size)
    check = LookOn(job, generator, asked, work / "looks", device) if job.recipe.engine.held_out_every else None
    origin = {"recipe": asdict_of(job.recipe), "judge": job.judge, "held_out": job.held_out}
    decode = partial(decode_frames, generator, decoding=job.recipe.decoding)
    add = partial(keep_what_was_asked, job, asked)
    return train_online(
        generator, conditions, asked.judges, decode, job.recipe.engine, start, work, out, origin, check, add
    )


def prepare_judges(job: Job, device: "torch.device") -> Asked:
    """The judges with their questions. Raises ValueError naming what does not fit."""
    blocks = members_of(job.judge, job.sources)
    if job.recipe.questions is None:
        return _metrics(job, blocks, str(device))
    return _vlms(job, blocks, str(device))


def _metrics(job: Job, blocks: Mapping[str, Any], device: str) -> Asked:
    """Metrics in the judges' place, which are asked nothing."""
    from feedback.differentiable.augment import Augmentation
    from feedback.differentiable.metric import MetricJudge, load_metric

    texts = {prompt.prompt_id: prompt.prompt for prompt in job.prompts}
    loaded = {name: load_metric(name, block, device) for name, block in blocks.items()}
    training, looking = (
        _weighted([MetricJudge(name, metric, texts, augment) for name, metric in loaded.items()])
        for augment in (job.recipe.augment, Augmentation())
    )
    return Asked(training, looking, {}, list(job.prompts))


def _vlms(job: Job, blocks: Mapping[str, Any], device: str) -> Asked:
    """VLMs with the questions that are written for each prompt, and answered about its real clip where there is one."""
    from cluster import devices
    from feedback.differentiable.augment import Augmentation
    from feedback.differentiable.overlay import render
    from feedback.differentiable.vlm import Clip, VlmJudge, load_judge
    from feedback.questions import write_questions

    recipe, size, writing = job.recipe, job.size, job.recipe.questions
    assert writing is not None and recipe.judge.loss is not None  # a recipe has both or neither
    loaded = {name: load_judge(name, block, device) for name, block in blocks.items()}
    with devices.first_alone():  # a writer that is paid is asked once: the others find its replies in the ledger
        asks = job.asks or write_questions(job.prompts, writing, job.sources, device).asks
    real: Mapping[str, RealClip] = {}
    if writing.explanation or writing.with_reference:
        real = real_clips(job)
        first = next(iter(blocks))
        asks = answered(asks, real, first, loaded[first], blocks[first], writing.explanation)
    shown = {prompt_id: _in_unit(real[prompt_id].frames) for prompt_id in asks if prompt_id in real}
    overlay = render(job.overlay, size.num_frames, size.height, size.width) if job.overlay else None
    training, looking = (
        _weighted([
            VlmJudge(
                name, one.model, one.processor, asks, recipe.judge.loss, recipe.judge.frames or size.num_frames,
                Clip(size.num_frames, size.fps), shown, overlay, augment, blocks[name].get("pixels"),
                checkpointing=recipe.engine.gradient_checkpointing,
            )
            for name, one in loaded.items()
        ])
        for augment in (recipe.augment, Augmentation())
    )  # fmt: skip
    kept = [prompt for prompt in job.prompts if prompt.prompt_id in asks]
    return Asked(training, looking, dict(asks), kept)


def _weighted(judges: "Sequence[Judge]") -> "list[WeightedJudge]":
    """Judges that count the same, and together as one."""
    from rl.online.judging import WeightedJudge

    return [WeightedJudge(judge, 1 / len(judges)) for judge in judges]


def members_of(name: str, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks of the judges that `name` means: its own, or those of a panel of rule mean, whose losses are averaged.

    Raises ValueError for an unknown name and a panel of another rule.
    """
    if name not in sources:
        raise ValueError(f"judge {name!r} is unknown; feedback.sources has {', '.join(sources)}")
    block = sources[name]
    if block.get("kind") != "panel":
        return {name: block}
    if block["rule"] != "mean":
        raise ValueError(f"feedback.sources.{name}.rule is {block['rule']}; losses can be averaged: rule mean")
    return dict(block["members"])


def real_clips(job: Job) -> "Mapping[str, RealClip]":
    """A real clip of each prompt that has one, as many frames of it as are shown of the generated one.

    Raises ValueError where the recipe wants another number.
    """
    from feedback.questions.references import RealClips, rendered_clips

    frames = job.recipe.judge.frames or job.size.num_frames
    if job.references is None:
        return RealClips([], frames)
    if job.recipe.judge.reference_frames != frames:
        wanted = job.recipe.judge.reference_frames
        raise ValueError(f"judge.reference_frames is {wanted}, expected as many as judge.frames, {frames}")
    if job.references == TABLETOP:
        return rendered_clips(job.prompts, frames, job.size.fps)
    return RealClips(job.prompts, frames)


def answered(
    asks: "Mapping[str, Sequence[Ask]]",
    real: "Mapping[str, RealClip]",
    name: str,
    loaded: Any,
    block: Mapping[str, Any],
    explain: bool,
) -> "dict[str, tuple[Ask, ...]]":
    """The questions with the judge's own answers about the real clips, those of prompts that it affirms."""
    from feedback.core.kinds import read_block
    from feedback.judges.qwen import source_of
    from feedback.questions.references import MOST_TOKENS, asking, reference_answers

    options = replace(read_block(name, block)[1], max_new_tokens=MOST_TOKENS)
    return reference_answers(asks, real, asking(source_of(name, options, loaded)), explain).asks


def shifted(generator: "Generator", recipe: Recipe) -> "Generator":
    """The generator under the recipe's flow shift, if it names one."""
    return generator if recipe.sampling.shift is None else generator.with_shift(recipe.sampling.shift)


def conditions_of(generator: "Generator", prompts: Sequence[Prompt], size: "VideoSize") -> "Conditions":
    """The prompts' embeddings, and the size of their clips' latents."""
    from rl.online.trainer import Conditions

    encoded = generator.encode_text([*(prompt.prompt for prompt in prompts), ""])
    return Conditions(
        prompt_ids=tuple(prompt.prompt_id for prompt in prompts),
        embeddings=encoded[:-1],
        empty_embedding=encoded[-1],
        latent_shape=generator.latent_shape(size.num_frames, size.height, size.width),
        num_frames=size.num_frames,
    )


def keep_what_was_asked(job: Job, asked: Asked, folder: Path) -> None:
    """Write the questions, and the overlay as a picture, beside the policy that they make."""
    from feedback.differentiable.asks import write_asks
    from feedback.differentiable.overlay import render, save_picture

    if asked.asks:
        write_asks(folder / ASKS, asked.asks)
    if job.overlay:
        save_picture(render(job.overlay, job.size.num_frames, job.size.height, job.size.width), None, folder / OVERLAY)


class Opinion(NamedTuple):
    """What both judges say of a clip."""

    sample_id: str
    training: float
    held_out: float | None  # null: it could not judge the clip


class LookOn:
    """What the judges say of full samples of the policy, between updates: the trainer's `check`.

    Under torchrun each process looks at the clips of its own prompts, in a folder of its own.
    """

    def __init__(self, job: Job, generator: "Generator", asked: Asked, work: Path, device: "torch.device") -> None:
        from cluster import devices
        from data.prompts import select
        from feedback.core.kinds import make_source

        self.job, self.generator, self.asked = job, generator, asked
        self.held_out = make_source(job.held_out, job.sources[job.held_out], str(device))
        wanted = job.check.prompts
        looked_at = select(asked.prompts, "all", None if wanted is None else min(wanted, len(asked.prompts)))
        self.prompts = looked_at[devices.rank() :: devices.world_size()]
        self.work = work / f"rank-{devices.rank()}"

    def __call__(self, update: int) -> "Point":
        """training: mean p of the wanted answers, or a metric's mean score. held_out: mean p of acceptance, else the
        label's mean, else the score's, of the clips that it could judge."""
        from cluster import devices
        from rl.online.guards import Point

        opinions = sorted(one for mine in devices.gather_over_ranks(self._opinions(update)) for one in mine)
        return Point(_mean([one.training for one in opinions]), _mean([one.held_out for one in opinions]))

    def _opinions(self, update: int) -> list[Opinion]:
        """Of this process's clips."""
        from feedback.core.label import look_at

        if not self.prompts:
            return []
        folder = self.work / f"step-{update:06d}"
        clip_set = self._clips(folder / "samples", update)
        opinions = [
            Opinion(look.sample.sample_id, self._training(clip_set, look.sample), _opinion(look.label))
            for look in look_at(clip_set, self.held_out, len(clip_set.samples))
        ]
        shutil.rmtree(folder)
        return opinions

    def _clips(self, folder: Path, update: int) -> Any:
        from data.store import ClipSet
        from generators.core.rollout import ClipSetName, Sampling, generate_clip_set

        engine, check = self.job.recipe.engine, self.job.check
        if not folder.exists():
            sampling = Sampling(
                steps=self.job.recipe.sampling.inference_steps,
                guidance=engine.guidance,
                solver=engine.solver,
                samples_per_prompt=check.samples_per_prompt,
                batch_size=check.batch_size,
                split="all",
                seed=check.seed,
            )
            called, work = ClipSetName(CLIP_SET, f"step-{update:06d}"), folder.with_name("work")
            generate_clip_set(self.generator, self.prompts, self.job.size, sampling, called, work, folder)
        return ClipSet.open(folder)

    def _training(self, clip_set: Any, sample: Any) -> float:
        """The training judges' opinion of a clip, weighted."""
        frames = _in_unit(clip_set.frames(sample)).to(self.generator.device)
        total = 0.0
        for judge, weight in self.asked.looking:
            answers = judge(frames[judge.shown(len(frames), 0)], sample.prompt_id, 0)
            metric = bool(answers.p_wanted.isnan().all())
            total += weight * float((-answers.loss if metric else answers.p_wanted).mean())
        return total


def _opinion(label: Any) -> float | None:
    if label.p_accept is not None:
        return label.p_accept
    return float(label.label) if label.label is not None else label.score


def _mean(values: Sequence[float | None]) -> float:
    """Raises ValueError where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        raise ValueError("the held-out judge could judge none of the clips that it looked at")
    return sum(known) / len(known)


def _in_unit(frames: Any) -> "torch.Tensor":
    """uint8 (F, H, W, 3) as float32 in [0, 1]."""
    import torch

    return torch.from_numpy(frames).float() / 255


def asdict_of(recipe: Recipe) -> dict[str, Any]:
    """Everything that the recipe and its changes amount to, as plain JSON."""
    return {name: None if part is None else asdict(part) for name, part in recipe._asdict().items()}
