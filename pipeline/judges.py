"""The judges that an online run trains on, and each prompt's questions to them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.doors import find
from data.prompts import Prompt
from pipeline.recipes import JudgeSettings, Recipe

if TYPE_CHECKING:  # torch takes seconds to import
    import numpy as np
    import torch

    from feedback.differentiable.asks import Ask
    from feedback.differentiable.augment import Augmentation
    from feedback.differentiable.overlay import RenderedOverlay
    from feedback.questions import Writing
    from feedback.questions.references import RealClip
    from feedback.questions.sheet import Explanation
    from generators.core.size import VideoSize
    from pipeline.online import Job
    from rl.online.judging import Judge, WeightedJudge

logger = logging.getLogger(__name__)

REFERENCES = {  # `references` -> the module whose real_clips(prompts, frames, fps) finds them
    "tabletop": "tabletop.references",
    "prompts": "feedback.questions.references",
}


VERDICT_LOSS = "logit_difference"  # of the questions of a recipe that trains by rewards, where one is drawn


class Judges(NamedTuple):
    """The judges that a run trains on."""

    training: "list[WeightedJudge]"  # of augmented frames
    plain: "list[WeightedJudge]"  # the same without augmentation, for the check
    versions: dict[str, str]  # of each one's model, by name


class OpenJudges(NamedTuple):
    """The judges of a run, and what they are asked about."""

    judges: Judges
    asks: "Mapping[str, tuple[Ask, ...]]"  # by prompt_id; empty of metrics
    prompts: list[Prompt]  # those that have questions; of metrics all
    overlay: "RenderedOverlay | None"


def open_judges(job: "Job", device: str) -> OpenJudges:
    """The job's judges on a device, with each prompt's questions, which are written where the job has none.

    A recipe that trains by rewards has its judge's rubric for questions. Raises ValueError as `members_of`,
    `real_clips` and the judges do.
    """
    from data.video import sample_frames
    from feedback.differentiable.overlay import render, unseen
    from feedback.differentiable.vlm import load_judge

    (blocks, recipe), size = differentiated(job), job.size
    overlay = render(job.overlay, size.num_frames, size.height, size.width) if job.overlay else None
    seen = sample_frames(size.num_frames, recipe.judge.frames or size.num_frames)
    for mark in unseen(job.overlay, seen) if job.overlay else ():
        logger.warning("%s: on frames %s, of which the judge sees none; it sees %s", mark.shape, mark.frames, seen)
    prompts = list(job.prompts)
    if recipe.questions is None:
        return OpenJudges(metric_judges(blocks, prompts, recipe.augment, device, size.fps), {}, prompts, overlay)
    loaded = {name: load_judge(name, block, device) for name, block in blocks.items()}
    asks = dict(job.asks or written_asks(prompts, recipe.questions, job.sources, device, size))
    real: Mapping[str, RealClip] = {}
    if job.references or recipe.questions.explanation or recipe.questions.with_reference:
        real = real_clips(prompts, job.references, recipe.judge, size)
        first = next(iter(blocks))
        asks = answered(asks, real, first, loaded[first], blocks[first], recipe.questions.explanation or None)
    judges = vlm_judges(loaded, blocks, asks, real, overlay, recipe, size, shown_first(prompts, asks, size))
    return OpenJudges(judges, asks, [prompt for prompt in prompts if prompt.prompt_id in asks], overlay)


def differentiated(job: "Job") -> tuple[dict[str, Any], Recipe]:
    """The blocks of the judges whose answers are differentiated, by name, and the recipe with their questions.

    Of a recipe that trains by rewards these are the questions of its judge's rubric. Raises ValueError for a judge
    without a gradient, without loading it.
    """
    from feedback.differentiable.vlm import check_differentiable

    recipe, blocks = job.recipe, members_of(job.judge, job.sources)
    if recipe.by_rewards:
        blocks = {name: block for name, block in blocks.items() if block.get("rubric")}  # a panel's metrics ask nothing
        recipe = with_rubric(recipe, job.judge, blocks)
    for name, block in blocks.items() if recipe.questions else ():
        check_differentiable(name, block)
    return blocks, recipe


def with_rubric(recipe: Recipe, name: str, blocks: Mapping[str, Any]) -> Recipe:
    """The recipe with the questions and frames of its judge's rubric. blocks: with a rubric, by name of each member.

    Raises ValueError where there is none, as of a metric.
    """
    from feedback.core.rubric import load_rubric
    from feedback.differentiable.asks import RUBRIC
    from feedback.questions import Writing

    if not blocks:
        raise ValueError(f"judge {name} has no rubric, so no question that a gradient could be drawn of")
    path = next(iter(blocks.values()))["rubric"]
    frames = recipe.judge.frames or load_rubric(Path(path)).frames
    judge = replace(recipe.judge, loss=VERDICT_LOSS, frames=frames)
    return recipe._replace(
        judge=judge, questions=Writing(RUBRIC, str(path), None, explanation=False, with_reference=False)
    )


def metric_judges(
    blocks: Mapping[str, Any], prompts: Sequence[Prompt], augment: "Augmentation", device: str, fps: float
) -> Judges:
    """Metrics as judges, without questions. fps: of the clips."""
    from feedback.differentiable.augment import Augmentation
    from feedback.differentiable.metric import MetricJudge, load_metric

    texts = {prompt.prompt_id: prompt.prompt for prompt in prompts}
    loaded = {name: load_metric(name, block, device) for name, block in blocks.items()}
    for name, metric in loaded.items():
        logger.info("trained on %s: %s", name, metric.definition)
    training, plain = (
        _weighted([MetricJudge(name, metric, texts, one, fps) for name, metric in loaded.items()])
        for one in (augment, Augmentation())
    )
    return Judges(training, plain, {name: metric.model_version for name, metric in loaded.items()})


def vlm_judges(
    loaded: Mapping[str, Any],
    blocks: Mapping[str, Any],
    asks: "Mapping[str, tuple[Ask, ...]]",
    real: "Mapping[str, RealClip]",
    overlay: "RenderedOverlay | None",
    recipe: Recipe,
    size: "VideoSize",
    firsts: "Mapping[str, np.ndarray]",
) -> Judges:
    """VLMs as judges. loaded, blocks: by name. asks, real: each prompt's questions and real clip, by prompt_id.

    firsts: the first frames that questions show, likewise.
    """
    from feedback.differentiable.augment import Augmentation
    from feedback.differentiable.vlm import ClipShape, VlmJudge

    assert recipe.judge.loss is not None  # a recipe has both questions and a loss, or neither
    references = {prompt_id: in_unit(real[prompt_id].frames) for prompt_id in asks if prompt_id in real}
    training, plain = (
        _weighted([
            VlmJudge(
                name, one.model, one.processor, asks, recipe.judge.loss, recipe.judge.frames or size.num_frames,
                ClipShape(size.num_frames, size.fps), references, overlay, augment, blocks[name].get("pixels"),
                checkpointing=recipe.engine.gradient_checkpointing, firsts=firsts,
            )
            for name, one in loaded.items()
        ])
        for augment in (recipe.augment, Augmentation())
    )  # fmt: skip
    return Judges(training, plain, {name: one.version for name, one in loaded.items()})


def written_asks(
    prompts: Sequence[Prompt], writing: "Writing", sources: Mapping[str, Any], device: str, size: "VideoSize"
) -> "Mapping[str, tuple[Ask, ...]]":
    """Each prompt's questions by the recipe's writer, which the first process alone calls: it may be paid."""
    from cluster import devices
    from feedback.questions import write_questions

    return devices.of_first(lambda: write_questions(prompts, writing, sources, device, (size.height, size.width)).asks)


def shown_first(
    prompts: Sequence[Prompt], asks: "Mapping[str, Sequence[Ask]]", size: "VideoSize"
) -> "dict[str, np.ndarray]":
    """The first frames of the prompts whose questions show them, as the generator is given them."""
    from data.first_frames import first_frames

    shown = {prompt_id for prompt_id, of_prompt in asks.items() if any(ask.with_first_frame for ask in of_prompt)}
    pictured = [prompt for prompt in prompts if prompt.image and prompt.prompt_id in shown]
    return first_frames(pictured, size.height, size.width)


def _weighted(judges: "Sequence[Judge]") -> "list[WeightedJudge]":
    """Judges of equal weights, whose sum is 1."""
    from rl.online.judging import WeightedJudge

    return [WeightedJudge(judge, 1 / len(judges)) for judge in judges]


def members_of(name: str, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks of the judges behind a name: its own, or those of a panel of rule mean, whose losses are averaged.

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


def real_clips(
    prompts: Sequence[Prompt], references: str | None, judge: JudgeSettings, size: "VideoSize"
) -> "Mapping[str, RealClip]":
    """A real clip of each prompt that has one, with as many frames as the judge sees of the generated one.

    Raises ValueError where the recipe wants another number.
    """
    from feedback.questions.references import RealClips

    frames = judge.frames or size.num_frames
    if references is None:
        return RealClips([], frames)
    if judge.reference_frames != frames:
        wanted = judge.reference_frames
        raise ValueError(f"judge.reference_frames is {wanted}, expected as many as judge.frames, {frames}")
    of_prompts = find(references, REFERENCES, "references", "real_clips")
    found: Mapping[str, RealClip] = of_prompts(prompts, frames, size.fps)
    return found


def check_references(name: str | None) -> None:
    """Raises ValueError for a name that is neither in REFERENCES nor a dotted path, without importing anything."""
    if name is not None and name not in REFERENCES and "." not in name:
        raise ValueError(f"references is {name!r}; known are {', '.join(REFERENCES)}, a dotted path, or null")


def answered(
    asks: "Mapping[str, Sequence[Ask]]",
    real: "Mapping[str, RealClip]",
    name: str,
    loaded: Any,
    block: Mapping[str, Any],
    explanation: "Explanation | None",
) -> "dict[str, tuple[Ask, ...]]":
    """The questions with the judge's own answers about the real clips, of the prompts whose clips it affirms.

    The first process's: devices of several kinds may differ in a prompt that is left out.
    """
    from cluster import devices
    from feedback.core.kinds import read_block
    from feedback.judges.qwen import source_of
    from feedback.questions.references import MOST_TOKENS, asking, reference_answers

    options = replace(read_block(name, block)[1], max_new_tokens=MOST_TOKENS)
    ask = asking(source_of(name, options, loaded))
    return devices.of_first(lambda: reference_answers(asks, real, ask, explanation).asks)


class Answered(NamedTuple):
    """What judges that are trained on say of a clip."""

    score: float  # mean p of the wanted answers, or a metric's score; weighted over judges
    least: float | None  # p of a wanted answer; None where there is none
    answers: dict[str, float]  # p, or a metric's score, by judge/question


def answers_about(judges: "Sequence[WeightedJudge]", frames: "torch.Tensor", prompt_id: str) -> Answered:
    """The judges' answers about a whole clip, unaugmented. frames: float32 (F, H, W, 3) in [0, 1]."""
    import torch

    from data.counts import Counts, count

    score, least, by_question = 0.0, list[float](), dict[str, float]()
    for judge, weight in judges:
        with torch.no_grad():
            found = judge(frames[judge.frame_indices(len(frames), 0)], prompt_id, 0)
        count(Counts(judge_calls=len(found.questions)))
        metric = bool(found.p_wanted.isnan().all())
        values = -found.loss if metric else found.p_wanted
        score += weight * float(values.mean())
        least += [] if metric else [float(values.min())]
        by_question |= {
            f"{judge.name}/{name}": value for name, value in zip(found.questions, values.tolist(), strict=True)
        }
    return Answered(score, min(least, default=None), by_question)


def in_unit(frames: Any) -> "torch.Tensor":
    """uint8 (F, H, W, 3) as float32 in [0, 1]."""
    import torch

    return torch.from_numpy(frames).float() / 255
