"""An online run: its prompts, their questions, the judges, and the check between updates."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.policies import HEATMAPS, SAMPLED, name_of
from data.prompts import Prompt
from pipeline.asked import RunJudge, open_asked
from pipeline.configs import CheckConfig, GeneratorConfig
from pipeline.cost import COST
from pipeline.fidelity import DecoderFidelity
from pipeline.heatmaps import draw_heatmap
from pipeline.judges import answers_about, in_unit, open_judges, written_asks
from pipeline.params import ParamsError
from pipeline.recipes import Recipe, as_written, sampled_as
from pipeline.trained_clip import TrainedClipCheck

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

    from data.records import Sample
    from data.store import ClipSet
    from feedback.differentiable.asks import Ask
    from feedback.differentiable.overlay import Overlay, RenderedOverlay
    from generators.core.encoding import Encoded
    from generators.core.generator import Generator
    from generators.core.rollout import Sampling
    from generators.core.size import VideoSize
    from rl.online.config import OnlineConfig
    from rl.online.guards import CurvePoint
    from rl.online.judging import WeightedJudge
    from rl.online.loop import Check, PromptInputs
    from rl.training.run import TrainReport
    from rl.training.tracking import Tracker

logger = logging.getLogger(__name__)

ASKS, OVERLAY = "asks.jsonl", "overlay.png"  # in the policy's folder
CLIP_SET = "online"  # name of the clip sets that the check samples


class Job(NamedTuple):
    """All that an online run is made from, but for its start."""

    recipe: Recipe
    prompts: Sequence[Prompt]
    asks: "Mapping[str, tuple[Ask, ...]] | None"  # by prompt_id; None: the recipe's writer writes them
    references: str | None
    overlay: "Overlay | None"
    judge: str
    held_out: str
    sources: Mapping[str, Any]  # the blocks of feedback.sources
    check: CheckConfig
    size: "VideoSize"


class OnlineTraining(NamedTuple):
    """All that stage `online` trains a policy from and by."""

    job: Job
    model: GeneratorConfig
    start: Path
    out: Path
    tracker: str | None


def for_other_machines(job: Job) -> Job:
    """The job as processes of other machines can do it: keys and the ledger stay on this one.

    So it has the questions that a writer over the network writes. Raises ValueError for a held-out judge that answers
    over the network, or by people.
    """
    from feedback.core.kinds import keeps_answers
    from feedback.questions import is_source

    asked_there = {"held_out": job.held_out} if job.recipe.engine.held_out_every else {}
    asked_there |= {"judge": job.judge} if job.recipe.by_rewards else {}
    for key, name in asked_there.items():
        if keeps_answers(name, job.sources[name]):
            raise ValueError(
                f"{key}: {name} is asked over the network, and keys stay on this machine, which engine ray does "
                "not train on: name a judge with a model of its own, or take engine here"
            )
    writing = job.recipe.questions
    asked = writing is not None and job.asks is None and is_source(writing.writer)
    if writing is None or not asked or not keeps_answers(writing.writer, job.sources[writing.writer]):
        return job
    return job._replace(asks=written_asks(job.prompts, writing, job.sources, "cpu", job.size))


def train(given: OnlineTraining, work: Path, device: str) -> dict[str, Any]:
    """What each process of stage `online` does; returns the figures of the stage.

    work: resume state. device: as `cluster.devices.pick_device` takes it.
    """
    from cluster.devices import pick_device
    from generators.core.load import load_generator
    from rl.training.tracking import Tracker

    place = pick_device(device)
    load = partial(load_generator, **asdict(given.model), size=given.job.size, device=place)
    tracker = Tracker(given.tracker, given.out.name) if given.tracker else None
    report = run(given.job, load, given.start, work, given.out, place, tracker)
    facts = {"updates": report.last["step"], "kept": report.kept, "stopped": report.stopped}
    measured = "reward" if given.job.recipe.by_rewards else "question_loss"
    others = report.last.get("held_out", {}).get("others", {})
    return {**facts, measured: report.last.get(measured), **others, COST: report.counts}


def run(
    job: Job, load: "Callable[..., Generator]", start: Path, work: Path, out: Path, device: "torch.device",
    tracker: "Tracker | None" = None,
) -> "TrainReport":  # fmt: skip
    """Train a policy from `start` on the answers of the job's judges, and publish it as `out`.

    load: `load_generator` but for its argument parts. work: resume state. tracker: is sent the log.
    Under torchrun each process takes a part of every update's clips, and of those of the check between updates.
    """
    from cluster import devices
    from generators.core.decoding import decode_frames, open_lighter
    from generators.core.encoding import ENCODING, encode
    from generators.core.generator import SAMPLING
    from rl.online.trainer import train_online

    devices.join_group(device)
    recipe = job.recipe
    check_held_out(job.held_out, job.sources[job.held_out], recipe.engine)
    if recipe.by_rewards:
        from pipeline.by_rewards import run_by_rewards

        return run_by_rewards(job, load, start, work, out, device, tracker)
    # 1. The judges, and each prompt's questions to them
    judges, asks, prompts, overlay = open_judges(job, str(device))
    # 2. The generator, and the check of its samples between updates
    encoded = encode(load(parts=ENCODING), prompts, recipe.engine.negative_prompt)
    generator = with_recipe_sampling(load(parts=SAMPLING, on_host=recipe.engine.shard), recipe, start)
    lighter = open_lighter(generator, recipe.decoding, device)
    fidelity = DecoderFidelity(generator, recipe.decoding, lighter) if lighter else None
    check: Check | None = None
    if recipe.engine.held_out_every:
        held_out = open_asked(job.held_out, job.sources[job.held_out], str(device))
    if is_of_trained_clip(job):
        check = TrainedClipCheck(generator, judges.plain, held_out, prompts[0], encoded, recipe, work / "looks")
    elif recipe.engine.held_out_every:
        chosen, sampling = checked_prompts(prompts, job.check), check_sampling(recipe, job.check)
        check = HeldOutCheck(
            generator, judges.plain, held_out, chosen, encoded, sampling, work / "looks", recipe.engine.shard,
            partial(draw_checked, judges.plain, asks, work / HEATMAPS), fidelity,
        )  # fmt: skip
    if fidelity and not isinstance(check, HeldOutCheck) and not recipe.engine.shard:  # whose denoisers are in parts
        fidelity.of_one_clip(prompts[0], encoded, check_sampling(recipe, job.check))
    # 3. The run
    named = {"judge": job.judge, "held_out": job.held_out, "judge_versions": judges.versions}
    origin = {"recipe": as_written(recipe), SAMPLED: sampled_as(recipe, start), **named}
    decode = partial(decode_frames, generator, decoding=recipe.decoding, lighter=lighter)
    add = partial(keep_inputs, asks, overlay, work / HEATMAPS)
    return train_online(
        generator, inputs_of(encoded), judges.training, decode, recipe.engine, start, work, out, origin, check, add,
        tracker=tracker,
    )  # fmt: skip


# The generator's side


def with_recipe_sampling(generator: "Generator", recipe: Recipe, start: Path) -> "Generator":
    """The generator that samples as the recipe, else as the policy in `start`, names flow shift and unconditional."""
    from generators.core.lora import sampling_as

    return sampling_as(generator, sampled_as(recipe, start))


def inputs_of(encoded: "Encoded") -> "PromptInputs":
    """The encoded prompts as the trainer takes them."""
    from generators.core.conditions import stacked
    from rl.online.loop import PromptInputs

    prompts = encoded.conditions.prompts
    return PromptInputs(tuple(prompts), stacked(list(prompts.values())), encoded.conditions.unwanted)


def keep_inputs(
    asks: "Mapping[str, Sequence[Ask]]", overlay: "RenderedOverlay | None", heatmaps: Path, folder: Path
) -> None:
    """Write the questions, the overlay as a picture and the sheets in `heatmaps`, if any, into the policy's folder."""
    from feedback.differentiable.asks import write_asks
    from feedback.differentiable.overlay import save_picture

    if asks:
        write_asks(folder / ASKS, asks)
    if overlay:
        save_picture(overlay, None, folder / OVERLAY)
    if heatmaps.is_dir():
        shutil.copytree(heatmaps, folder / HEATMAPS, dirs_exist_ok=True)


# The check between updates


def check_held_out(name: str, block: Mapping[str, Any], engine: "OnlineConfig") -> None:
    """Raises ParamsError for a metric whose score `stop_held_out` would be compared with.

    block: as `resolve` returns it.
    """
    from feedback.core.kinds import read_block

    if engine.stop_right is not None and not read_block(name, block).labels:
        raise ParamsError(
            f"engine.stop_held_out is a probability, and held_out, {name}, a metric, has none; engine.stop_right: null"
        )


def is_of_trained_clip(job: Job) -> bool:
    """Whether the check looks at the clip that is trained, and not at clips of other noise."""
    engine = job.recipe.engine
    return engine.stop_right is not None and engine.noise == "fixed" and len(job.prompts) == 1


def draw_checked(
    judges: "Sequence[WeightedJudge]", asks: "Mapping[str, Sequence[Ask]]", folder: Path, update: int,
    sample: "Sample", frames: "torch.Tensor",
) -> None:  # fmt: skip
    """Write the sheet of where the judges look on a clip of the check, as `draw_heatmap` does, into the folder."""
    path = folder / f"{name_of(update)}.png"
    draw_heatmap(path, judges, asks, sample.prompt_id, sample.prompt, frames)


def checked_prompts(prompts: Sequence[Prompt], check: CheckConfig) -> list[Prompt]:
    """The prompts of the check: at most so many as it names, evenly spread."""
    from data.prompts import select

    return select(prompts, "all", None if check.prompts is None else min(check.prompts, len(prompts)))


def check_sampling(recipe: Recipe, check: CheckConfig) -> "Sampling":
    """How the check's clips are sampled."""
    from generators.core.rollout import Sampling

    return Sampling(
        steps=recipe.sampling.inference_steps,
        guidance=recipe.engine.full_guidance,
        solver=recipe.engine.solver,
        samples_per_prompt=check.samples_per_prompt,
        batch_size=check.batch_size,
        split="all",
        seed=check.seed,
        negative_prompt=recipe.engine.negative_prompt,
    )


class HeldOutCheck:
    """The judges' scores of full samples of the policy, between updates: the trainer's `check`.

    Under torchrun each process samples the clips of its own prompts, in a folder of its own, and their training judges
    score them there.
    """

    def __init__(
        self,
        generator: "Generator",
        judges: "Sequence[WeightedJudge] | RunJudge",
        held_out: RunJudge,
        prompts: Sequence[Prompt],
        encoded: "Encoded",
        sampling: "Sampling",
        work: Path,
        shards: bool = False,
        draw: "Callable[[int, Sample, torch.Tensor], None] | None" = None,
        fidelity: DecoderFidelity | None = None,
    ) -> None:
        """work: on a disk that all processes share, as resume state is.

        shards: whether processes share shards of the generator's weights, which they gather equally often.
        draw: called on the first process with the update, the first clip and its frames (F, H, W, 3) in [0, 1].
        fidelity: measures the lighter decoder that is trained through, on the same clips.
        """
        from cluster import devices

        self.generator, self.judges, self.held_out, self.encoded, self.sampling = (
            generator, judges, held_out, encoded, sampling
        )  # fmt: skip
        self.fidelity = fidelity
        self.prompts, self.draw = prompts[devices.rank() :: devices.world_size()], draw
        self.work = work / f"rank-{devices.rank()}-of-{devices.world_size()}"  # whose prompts are others among more
        self.idle = 0  # batches that another process has more
        if shards:
            shutil.rmtree(self.work, ignore_errors=True)  # what a killed run left need not be what others left
            clips = [len(own) * sampling.samples_per_prompt for own in devices.gather_over_ranks(self.prompts)]
            batches = [-(-count // sampling.batch_size) for count in clips]
            self.idle = max(batches) - batches[devices.rank()]

    def __call__(self, update: int) -> "CurvePoint":
        """Means over the clips.

        training: p of the wanted answers, or a metric's score. held_out: p of acceptance, else the label, else the
        score, of the clips that it could judge. others: what `fidelity` measures.
        """
        from cluster import devices
        from rl.online.guards import CurvePoint

        self._keep_pace()
        folder = self.work / f"step-{update:06d}"
        clip_sets = [self._clips(folder / "samples", update)] if self.prompts else []
        held_out = self.held_out.scores_of(clip_sets)
        if self.draw and clip_sets and devices.rank() == 0:
            first = clip_sets[0].samples[0]
            self.draw(update, first, in_unit(clip_sets[0].frames(first)).to(self.generator.device))
        if isinstance(self.judges, RunJudge):
            training = self.judges.scores_of(clip_sets)
        else:
            training = {sample.sample_id: self._training(one, sample) for one in clip_sets for sample in one.samples}
        others = self.fidelity.on_check(clip_sets, update) if self.fidelity else {}
        if clip_sets:
            shutil.rmtree(folder)
        of_ranks = zip(*devices.gather_over_ranks((training, held_out)), strict=True)
        training, held_out = ({one: score for own in parts for one, score in own.items()} for parts in of_ranks)
        return CurvePoint(_mean(training, "judge"), _mean(held_out, "held-out judge"), others)

    def _keep_pace(self) -> None:
        """Sample a clip, and forget it, for each batch that another process has more."""
        from generators.core.conditions import stacked

        generator, how, conditions = self.generator, self.sampling, self.encoded.conditions
        one = stacked(list(conditions.prompts.values())[:1])
        for _ in range(self.idle):
            noise = generator.draw_noise([0], generator.latent_shape)
            generator.sample(one, conditions.unwanted, noise, how.steps, how.guidance, how.solver)

    def _clips(self, folder: Path, update: int) -> "ClipSet":
        from data.counts import Counts, count
        from data.store import ClipSet
        from generators.core.rollout import ClipSetName, counts_of, generate_clip_set

        work = folder.with_name("work")
        if not folder.exists():
            called = ClipSetName(CLIP_SET, f"step-{update:06d}")
            size, encoded = self.generator.size, self.encoded.of([prompt.prompt_id for prompt in self.prompts])
            generate_clip_set(
                lambda _: self.generator, self.prompts, size, self.sampling, called, work, folder, None, encoded
            )
        count(counts_of(work) or Counts())  # also of what a run that was killed had sampled
        return ClipSet.open(folder)

    def _training(self, clip_set: "ClipSet", sample: "Sample") -> float:
        """The training judges' score of a clip, weighted."""
        assert not isinstance(self.judges, RunJudge)
        frames = in_unit(clip_set.frames(sample)).to(self.generator.device)
        return answers_about(self.judges, frames, sample.prompt_id).score


def _mean(scores: Mapping[str, float | None], whose: str) -> float:
    """The mean by sample_id, added up in its order. Raises ValueError where there is none."""
    known = [score for _, score in sorted(scores.items()) if score is not None]
    if not known:
        raise ValueError(f"the {whose} could judge none of the clips of the check")
    return sum(known) / len(known)
