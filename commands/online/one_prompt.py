"""One prompt, optimised from a terminal: what `vfrl online` does."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.online.outcome import OUTCOME, in_words, opinions_of, write_outcome
from data.content.hashes import remembered
from data.prompts import Prompt
from feedback.core.kinds import TRAINED
from pipeline.configs import GeneratorConfig, PromptConfig
from pipeline.heatmaps import draw_heatmap
from pipeline.inputs import CACHE, online_inputs, source_inputs
from pipeline.judges import OpenJudges, differentiated, in_unit, open_judges
from pipeline.online import ASKS, Job, run, with_recipe_sampling
from pipeline.params import ParamsError, block, section, source_block
from pipeline.recipes import Recipe, load_recipe
from pipeline.state import stage_state
from pipeline.trained_clip import trained_clip

if TYPE_CHECKING:  # torch takes seconds to import
    import numpy as np
    import torch

    from data.store import PromptConditions
    from feedback.differentiable.asks import Ask
    from feedback.differentiable.overlay import Overlay
    from generators.core.generator import Generator
    from generators.core.size import VideoSize

logger = logging.getLogger(__name__)

PROMPT_ID = "prompt"
BEFORE, AFTER, CURVE = "before.mp4", "after.mp4", "curve.svg"


class OnePrompt(NamedTuple):
    """The options of the command line."""

    prompt: str
    image: Path | None  # the first frame
    asks: Sequence[str]
    marks: Mapping[str, Sequence[str]]  # kind -> texts
    overlay: Path | None
    recipe: str | None
    judge: str | None
    held_out: str | None
    changes: Sequence[str]
    heatmap: bool = False


def train_one_prompt(
    given: OnePrompt, start: Path | None, out: Path, device: "torch.device", tracker: str | None = None
) -> None:
    """Train for the prompt from a policy, else from the generator itself, and show before and after."""
    from feedback.differentiable.asks import read_asks
    from generators.core.encoding import ENCODING, encode
    from generators.core.generator import SAMPLING
    from generators.core.load import load_generator
    from generators.core.size import VideoSize
    from rl.training.tracking import Tracker

    config, model = section("online.prompt", PromptConfig), section("generator", GeneratorConfig)
    size, sources = section("video", VideoSize), {name: source_block(name) for name in block("feedback.sources")}
    name = given.recipe or config.recipe
    recipe = load_recipe(name, with_changes(config.changes_of(name), given.changes))
    check_one_prompt(given, model, size, recipe)
    image = str(given.image) if given.image else None
    prompt = Prompt(PROMPT_ID, given.prompt, category=PROMPT_ID, split="train", image=image, reference=None)
    job = Job(
        recipe=recipe,
        prompts=[prompt],
        asks={PROMPT_ID: own_asks(given.asks, recipe)} if given.asks else None,
        references=None,
        overlay=overlay_of(given),
        judge=given.judge or config.judge,
        held_out=given.held_out or config.held_out,
        sources=sources,
        check=config.check,
        size=size,
    )
    for source in (job.judge, job.held_out, *config.also):
        if source not in sources:
            raise ParamsError(f"judge {source!r} is unknown; feedback.sources has {', '.join(sources)}")
    if given.heatmap:
        differentiated(job)  # before hours of training
    params, inputs = made_of(given, job, name, config, model, start)
    with stage_state("online", out, params, inputs) as work:
        base = start or base_policy(model, work / "base")
        load = partial(load_generator, **asdict(model), size=size, device=device)
        report = run(job, load, base, work, out, device, Tracker(tracker, out.name) if tracker else None)
        conditions = encode(load(parts=ENCODING), [prompt], recipe.engine.negative_prompt).conditions
        clips = {}
        for name, folder in ((BEFORE, base), (AFTER, out)):
            generator = with_recipe_sampling(load(parts=SAMPLING), recipe, base)
            clips[name] = write_clip(generator, conditions, folder, recipe, out / name)
        draw_curve(out)
        asks = read_asks(out / ASKS) or None
        answers = asks is not None or not recipe.by_rewards  # else the judge gave labels
        opened = open_judges(job._replace(asks=asks), str(device)) if answers or given.heatmap else None
        if given.heatmap and opened:
            draw_heatmaps(opened, prompt, clips, out, device)
        said = opinions_of(job, config.also, opened if answers else None, clips, str(device))
        write_outcome(out / OUTCOME, said, AFTER, report)
    reason = ", stopped: " + report.stopped if report.stopped else ""
    where = f"{out / BEFORE} and {AFTER}"
    logger.info("%d updates, kept after %d%s; see %s", report.last["step"], report.kept, reason, where)
    for line in in_words(said, BEFORE, AFTER):
        logger.info(line)


def made_of(
    given: OnePrompt, job: Job, recipe: str, config: PromptConfig, model: GeneratorConfig, start: Path | None
) -> tuple[dict[str, Any], list[Path]]:
    """What decides the run's output, for `stage_state`: params by name, and files. recipe: its name.

    Of the judges it is what they are asked, as in stage `online`, so that a killed run goes on with another budget.
    """
    asked = list(dict.fromkeys((job.judge, job.held_out)))
    inputs = [*model.folders, *(path for path in (start, given.overlay, given.image) if path)]
    inputs += [TRAINED / one for one in asked if (TRAINED / one).is_dir()]  # reward models of this repository's run
    changes = with_changes(config.changes_of(recipe), given.changes)
    entry = {"recipe": recipe, "changes": changes, "overlay": str(given.overlay) if given.overlay else None}
    sources = block("feedback.sources")
    with remembered(CACHE) as hashes:
        judges = {one: source_inputs(one, sources, hashes) for one in asked}
        files = online_inputs(entry, sources, hashes)
    params = {
        "options": given,
        "recipe": job.recipe,
        "generator": model,
        "judges": judges,
        "files": files,
        "check": job.check,
        "video": job.size,
    }
    return params, inputs


def check_one_prompt(given: OnePrompt, model: GeneratorConfig, size: "VideoSize", recipe: Recipe) -> None:
    """Raises ParamsError where the generator and `--image` or the recipe do not fit, by the model's small files.

    A hub id of which nothing is known is not looked at.
    """
    from data.first_frames import check_image
    from generators.core.checkpoint import NotReachedError
    from pipeline.check import check_decoding, check_generator

    try:
        generator = check_generator(model, size)
        if given.image:
            check_image(given.image)
    except NotReachedError:
        return
    except ValueError as error:
        raise ParamsError(str(error)) from error
    if generator.image == "none" and given.image:
        raise ParamsError(f"--image: {model.path} makes clips from text alone")
    if generator.image == "needed" and not given.image:
        raise ParamsError(f"{model.path} makes a clip from a prompt and its first frame: give it by --image FILE")
    if not recipe.by_rewards:
        check_decoding(recipe.decoding, generator, "the recipe")


def with_changes(below: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Changes by section and key, those of `section.key=value` texts over `below`.

    Raises ParamsError naming the text.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    changes = {name: dict(values) for name, values in below.items()}
    for text in given:
        where, equals, value = text.partition("=")
        name, dot, key = where.strip().partition(".")
        if not (equals and dot and key):
            raise ParamsError(f"--set {text}: write section.key=value, such as engine.updates=40")
        try:
            changes.setdefault(name, {})[key] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as error:
            raise ParamsError(f"--set {text}: {error}") from error
    return changes


def own_asks(texts: Sequence[str], recipe: Recipe) -> "tuple[Ask, ...]":
    """The questions of --ask in the recipe's words. Raises ParamsError where the recipe has none."""
    from feedback.differentiable.asks import parse_ask

    if recipe.questions is None and not recipe.by_rewards:
        raise ParamsError("--ask: this recipe trains on a metric, which has no questions")
    names = [f"ask_{number}" for number in range(1, len(texts) + 1)]
    template = recipe.judge.ask_template
    return tuple(parse_ask(text, name, template=template) for text, name in zip(texts, names, strict=True))


def overlay_of(given: OnePrompt) -> "Overlay | None":
    """The marks of the command line over those of the YAML; None where there are none."""
    from feedback.differentiable.overlay import Overlay, load_overlay, parse_mark

    marks = list(load_overlay(given.overlay).marks) if given.overlay else []
    marks += [parse_mark(kind, text) for kind, texts in given.marks.items() for text in texts]
    return Overlay(tuple(marks)) if marks else None


def base_policy(model: GeneratorConfig, folder: Path) -> Path:
    """A policy's folder that is the generator itself."""
    from generators.core.identity import identify

    folder.mkdir(parents=True, exist_ok=True)
    found = identify(model.family, model.path, model.revision, asdict(model)["components"])
    (folder / "policy.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder


def write_clip(
    generator: "Generator", conditions: "PromptConditions", policy: Path, recipe: Recipe, path: Path
) -> "np.ndarray":
    """Write the clip that is trained, of a policy; returns its frames, uint8 (F, H, W, 3)."""
    from generators.core.lora import apply_policy
    from report.playable import write_playable

    apply_policy(generator, policy)
    frames = trained_clip(generator, conditions, PROMPT_ID, recipe)
    write_playable(path, frames, generator.size.fps)
    return frames


def draw_heatmaps(
    opened: OpenJudges, prompt: Prompt, clips: "Mapping[str, np.ndarray]", out: Path, device: "torch.device"
) -> None:
    """Write heatmap-<name>.png for each of these clips, by its file name: where the judge looks, by its questions."""
    for name, frames in clips.items():
        path = out / f"heatmap-{Path(name).stem}.png"
        whole = in_unit(frames).to(device)
        draw_heatmap(path, opened.judges.plain, opened.asks, prompt.prompt_id, prompt.prompt, whole)


def draw_curve(out: Path) -> None:
    """Write curve.svg: over the updates, the probability of each wanted answer and the judges' scores of samples."""
    from report.figures import LIGHT, answer_curves

    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    (out / CURVE).write_text(answer_curves({out.name: rows}, LIGHT), encoding="utf-8")
