"""Where a judge looks on clips of a policy: the gradient of its answers by the pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.command import PATH, device_option, out_option, stage_command

if TYPE_CHECKING:  # torch takes seconds to import
    from data.prompts import Prompt
    from data.records import Sample
    from data.store import ClipSet
    from pipeline.online import Job

POLICIES, EVALUATIONS = Path("runs/policies"), Path("runs/eval")


@stage_command
@click.argument("policy")
@click.option("--clips", type=PATH, help="Folder of a clip set; default: POLICY's evaluation clips.")
@click.option("--prompt", help="Only this prompt_id, or else prompts with these words.")
@click.option("--first", type=click.IntRange(1), default=4, show_default=True, help="Prompts, a clip of each.")
@click.option("--judge", help="Name in feedback.sources; default: that of POLICY's entry, else online.prompt.judge.")
@click.option("--recipe", help="Name in configs/recipes/; default: that of POLICY's entry, else online.prompt.recipe.")
@click.option("--ask", "asks", multiple=True, help="'question=answer'; default: the recipe's questions.")
@click.option("--set", "changes", multiple=True, help="section.key=value over the recipe, such as judge.frames=4.")
@out_option
@device_option
def main(
    policy: str,
    clips: Path | None,
    prompt: str | None,
    first: int,
    judge: str | None,
    recipe: str | None,
    asks: tuple[str, ...],
    changes: tuple[str, ...],
    out: Path,
    device: str,
) -> None:
    """Draw where a judge looks on clips of POLICY, as OUT/<sample_id>.png.

    A sheet has the frames that the judge sees, and below them, for each question, how much each pixel changes its
    answer. The judge is one that torch can differentiate. Nothing is sampled and nothing is trained.
    """
    from cluster.devices import pick_device
    from data.store import ClipSet
    from pipeline.heatmaps import draw_heatmap
    from pipeline.judges import in_unit, open_judges

    place = pick_device(device)
    folder = clips or EVALUATIONS / policy / "samples"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there: name a clip set with --clips, or evaluate {policy} with dvc repro")
    clip_set = ClipSet.open(folder)
    chosen = chosen_clips(clip_set.samples, prompt, first)
    job = job_of(JudgeSetting.of(policy, recipe, judge, changes), policy, clip_set, chosen, asks)
    opened = open_judges(job, str(place))
    answered = {one.prompt_id for one in opened.prompts}
    if not answered.intersection(sample.prompt_id for sample in chosen):
        raise ValueError(f"{clip_set.folder}: no prompt of these clips has a question to {job.judge}")
    out.mkdir(parents=True, exist_ok=True)
    for sample in chosen:
        if sample.prompt_id not in answered:
            continue
        frames = in_unit(clip_set.frames(sample)).to(place)
        path = out / f"{sample.sample_id}.png"
        draw_heatmap(path, opened.judges.plain, opened.asks, sample.prompt_id, sample.prompt, frames)
        click.echo(path.resolve())


def chosen_clips(samples: "Sequence[Sample]", prompt: str | None, first: int) -> "list[Sample]":
    """The first clip of each of the first prompts. prompt: an id, or words of the prompt in any case; None: all.

    Raises ValueError where no clip has such a prompt.
    """
    of_prompts: dict[str, Sample] = {}
    for sample in samples:
        of_prompts.setdefault(sample.prompt_id, sample)
    found = list(of_prompts.values())
    if prompt is not None:
        named = [one for one in found if one.prompt_id == prompt]
        found = named or [one for one in found if prompt.casefold() in one.prompt.casefold()]
    if not found:
        raise ValueError(f"--prompt: no clip has the prompt id, or {prompt!r} in its prompt")
    return found[:first]


class JudgeSetting(NamedTuple):
    """What a judge is asked by: values of an entry of online.policies, or of section online.prompt."""

    recipe: str
    judge: str
    references: str | None
    overlay: str | None
    changes: Mapping[str, Any]  # over the recipe

    @classmethod
    def of(cls, policy: str, recipe: str | None, judge: str | None, changes: Sequence[str]) -> "JudgeSetting":
        """That of the entry that the policy was trained by, if any and no other recipe is given, with the options."""
        from commands.online.one_prompt import with_changes
        from pipeline.advice import online_entry
        from pipeline.configs import PromptConfig
        from pipeline.params import load_params, section

        entry = online_entry(policy, load_params())
        if entry is not None and recipe is None:
            over = with_changes(entry.all_changes, changes)
            return cls(entry.recipe, judge or entry.judge, entry.references, entry.overlay, over)
        config = section("online.prompt", PromptConfig)
        over = with_changes(config.changes_of(recipe or config.recipe), changes)
        return cls(recipe or config.recipe, judge or config.judge, None, None, over)


def job_of(
    setting: JudgeSetting, policy: str, clip_set: "ClipSet", chosen: "Sequence[Sample]", asks: Sequence[str]
) -> "Job":
    """The judges and questions of an online run about these clips.

    asks: as on the command line; none: those that the policy was trained on, where it has some about all these prompts,
    else the recipe's.
    """
    from commands.online.one_prompt import own_asks
    from feedback.differentiable.asks import read_asks
    from feedback.differentiable.overlay import load_overlay
    from generators.core.size import VideoSize
    from pipeline.configs import CheckConfig
    from pipeline.online import ASKS, Job
    from pipeline.params import block, section, source_block
    from pipeline.recipes import load_recipe

    recipe, ids = load_recipe(setting.recipe, setting.changes), [sample.prompt_id for sample in chosen]
    trained = {} if recipe.questions is None else read_asks(POLICIES / policy / ASKS)
    known = {one: trained[one] for one in ids} if set(ids) <= trained.keys() else None
    sample = chosen[0]
    return Job(
        recipe=recipe,
        prompts=prompts_of(chosen),
        asks=dict.fromkeys(ids, own_asks(asks, recipe)) if asks else known,
        references=setting.references,
        overlay=load_overlay(Path(setting.overlay)) if setting.overlay else None,
        judge=setting.judge,
        held_out=setting.judge,
        sources={name: source_block(name) for name in block("feedback.sources")},
        check=section("online.check", CheckConfig),
        size=VideoSize(sample.num_frames, sample.height, sample.width, sample.fps),
    )


def prompts_of(chosen: "Sequence[Sample]") -> "list[Prompt]":
    """The clips' prompts, with the image and the real clip that the prompt set has."""
    from data.prompts import Prompt, load_prompts
    from pipeline.configs import PromptsConfig
    from pipeline.params import section

    known = {one.prompt_id: one for one in load_prompts(Path(section("prompts", PromptsConfig).path))}
    return [
        known.get(one.prompt_id) or Prompt(one.prompt_id, one.prompt, one.category, one.split, None, None)
        for one in chosen
    ]
