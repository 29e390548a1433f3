"""Recipes of online training: YAML files in configs/recipes/, each a published method by its own values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, Positive
from data.policies import BASE, OF_POLICY, sampled_with
from pipeline.command import ROOT
from pipeline.params import ParamsError, load_params, read_section

if TYPE_CHECKING:  # torch takes seconds to import
    from feedback.differentiable.augment import Augmentation
    from feedback.questions import Writing
    from generators.core.decoding import Decoding
    from rl.online.config import OnlineConfig

FOLDER = ROOT / "configs/recipes"
COMMON = "common"  # its values are the defaults of every recipe


@dataclass(frozen=True, config=STRICT)
class JudgeSettings:
    """What a judge sees, and its loss."""

    loss: str | None  # a name in feedback.differentiable.losses; null: a metric, whose loss is minus its score
    frames: Count | None  # of the generated clip; null: a metric's own
    reference_frames: Count | None  # of the real clip; null: the judge sees none
    ask_template: str  # the words around a question of `vfrl online --ask`, with {question} in it


@dataclass(frozen=True, config=STRICT)
class SamplingSettings:
    """How full samples are drawn, beside the engine's solver and guidance."""

    inference_steps: Count
    shift: Positive | None  # of the flow's time, in training too; null: the start's, else the generator's own
    unconditional: Literal["policy", "base"] | None  # who predicts without the prompt, in training too; null: alike
    unconditional_scale: Literal["one", "projected"] | None  # of that prediction; null: alike


class Recipe(NamedTuple):
    """The settings of an online run: all but its start, prompts and judges."""

    engine: "OnlineConfig"
    judge: JudgeSettings
    questions: "Writing | None"  # None for a metric, which answers no questions
    decoding: "Decoding"
    augment: "Augmentation"
    sampling: SamplingSettings

    @property
    def by_rewards(self) -> bool:
        """Whether it trains by rewards of any source, with no gradient through the judge (rollouts sde and best)."""
        from rl.online.config import RewardsConfig

        return isinstance(self.engine, RewardsConfig)


def load_recipe(name: str, changes: Mapping[str, Any], folder: Path = FOLDER) -> Recipe:
    """A recipe: common.yaml, overridden by the recipe's file, overridden by an entry's changes.

    name: of a file in the folder, or the path of one elsewhere.
    changes: by section and key, such as {engine: {updates: 40}}.
    Raises ParamsError naming the file, the section and the key that is unknown, missing or has a wrong value.
    """
    from feedback.differentiable.asks import QUESTION
    from feedback.differentiable.augment import Augmentation
    from feedback.differentiable.losses import LOSSES
    from feedback.questions import Writing
    from generators.core.decoding import Decoding
    from rl.online.config import engine_class

    common, path = recipe_files(name, folder)
    below = merged(load_params(common), load_params(path))
    classes: dict[str, type] = {
        "engine": engine_class(_rollout(below, changes)), "judge": JudgeSettings, "questions": Writing,
        "decoding": Decoding,
        "augment": Augmentation, "sampling": SamplingSettings,
    }  # fmt: skip
    _check_changes(changes, classes)
    given = merged(below, changes)
    if unknown := sorted(set(given) - set(classes)):
        raise ParamsError(f"{path}: section {unknown[0]} is unknown; known are {', '.join(classes)}")
    read: dict[str, Any] = {
        section: read_section(given.get(section), cls, section, path)
        for section, cls in classes.items()
        if section != "questions" or given.get(section) is not None
    }
    recipe = Recipe(**{"questions": None, **read})
    if problem := _problem(recipe, QUESTION, sorted(LOSSES)):
        raise ParamsError(f"{path}: {problem}")
    return recipe


def as_written(recipe: Recipe) -> dict[str, Any]:
    """The recipe with its changes, as policy.json holds it; `shard` as rl.training.config.as_written has it."""
    written = {name: None if part is None else asdict(part) for name, part in recipe._asdict().items()}
    engine = {name: value for name, value in asdict(recipe.engine).items() if name != "shard" or value}
    return written | {"engine": engine}


def sampled_as(recipe: Recipe, start: Path | None = None) -> dict[str, Any]:
    """How the clips of an update are sampled, as `data.policies.sampled_with` reads it.

    start: folder of the policy that training starts from; what belongs to it holds where the recipe names nothing.
    """
    engine, inherited = recipe.engine, sampled_with(start) if start else {}
    own = {key: getattr(recipe.sampling, key) for key in OF_POLICY}
    return {
        **{key: inherited.get(key) if value is None else value for key, value in own.items()},
        "steps": engine.steps,
        "inference_steps": recipe.sampling.inference_steps,
        "guidance": engine.guidance,
        "solver": engine.solver,
        "negative_prompt": engine.negative_prompt,
    }


def _rollout(below: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """`engine.rollout` of a recipe with an entry's changes, before either is checked."""
    found = [part.get("engine") for part in (changes, below)]
    return next((one["rollout"] for one in found if isinstance(one, Mapping) and "rollout" in one), None)


def recipe_questions(name: str, changes: Mapping[str, Any], folder: Path = FOLDER) -> "Writing | None":
    """The section `questions` of a recipe, as `load_recipe` reads it, without torch."""
    from feedback.questions import Writing

    given = recipe_values(name, changes, "questions", folder)
    return None if given is None else read_section(given, Writing, "questions", recipe_files(name, folder)[1])


def recipe_values(name: str, changes: Mapping[str, Any], part: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """A section of a recipe as it is written, with the changes; None where it is null."""
    common, path = recipe_files(name, folder)
    found: dict[str, Any] | None = merged(merged(load_params(common), load_params(path)), changes).get(part)
    return found


def recipe_files(name: str, folder: Path = FOLDER) -> tuple[Path, Path]:
    """common.yaml and the file of a recipe: a name in the folder, or the path of a YAML file of one's own.

    Raises ParamsError where it is neither.
    """
    known = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != COMMON)
    path = folder / f"{name}.yaml" if name in known else Path(name)
    if name not in known and not path.is_file():
        raise ParamsError(f"recipe {name!r} is unknown; known are {', '.join(known)}, and the paths of YAML files")
    return folder / f"{COMMON}.yaml", path


def _check_changes(changes: Mapping[str, Any], classes: Mapping[str, type]) -> None:
    """Raises ParamsError naming a section or a key that no recipe has."""
    for section, values in changes.items():
        if section not in classes:
            raise ParamsError(f"changes.{section} is unknown; known are {', '.join(classes)}")
        if values is not None and not isinstance(values, Mapping):
            raise ParamsError(f"changes.{section} is {values!r}, expected keys of that section")
        keys = [field.name for field in fields(classes[section])]
        if unknown := [key for key in values or {} if key not in keys]:
            raise ParamsError(f"changes.{section}.{unknown[0]} is unknown; known are {', '.join(keys)}")


def _problem(recipe: Recipe, place: str, losses: Sequence[str]) -> str | None:
    """What does not fit together, or None. place: what stands for the question in a template."""
    judge, questions, rollout = recipe.judge, recipe.questions, f"engine.rollout {recipe.engine.rollout}"
    if recipe.by_rewards and questions is not None:
        return f"questions must be null with {rollout}: its judge is a source, which has a rubric of its own"
    if recipe.by_rewards and any(asdict(recipe.augment).values()):
        return f"augment is {asdict(recipe.augment)}; 0 wanted with {rollout}, whose judge sees clips as they are"
    if recipe.by_rewards and recipe.decoding.decoder is not None:
        return f"decoding.decoder must be null with {rollout}, which differentiates no decode"
    if recipe.engine.stop_right is not None and judge.loss is None and not recipe.by_rewards:
        return "engine.stop_right is a probability, and a metric has none; null"
    if recipe.sampling.unconditional == BASE and recipe.engine.full:
        return "sampling.unconditional is base, which switches a LoRA off, so engine.full must be false"
    if place not in judge.ask_template:
        return f"judge.ask_template is {judge.ask_template!r}, expected a text with {place} in it"
    if (questions is None) != (judge.loss is None):
        return "judge.loss and questions are null together, for a metric; else neither is"
    if judge.loss is not None and judge.loss not in losses:
        return f"judge.loss is {judge.loss!r}; known are {', '.join(losses)}"
    if judge.loss is not None and judge.frames is None:
        return "judge.frames is null, but a judge of questions needs some"
    if questions is not None and questions.with_reference and judge.reference_frames is None:
        return "questions.with_reference is true, but judge.reference_frames is null"
    return None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two levels of sections: the keys of `above` override those of `below`."""
    sections = {**below}
    for section, values in above.items():
        both = isinstance(values, Mapping) and isinstance(sections.get(section), Mapping)
        sections[section] = {**sections[section], **values} if both else values
    return sections
