"""What a stage does, by its command and params.yaml, before it runs: how many clips, steps and answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.dense import window_frames
from data.prompts import Prompt
from data.records import DensePair, Pair
from feedback.core.kinds import read_block
from generators.core.rollout import Sampling
from pipeline.configs import LabelConfig, OnlineEntry, PreferenceEntry, RewardEntry, reward_config, train_config
from pipeline.params import ParamsError, block, section, source_block
from pipeline.rates import Command, TimedUnit, source_of, unit_of
from pipeline.recipes import load_recipe
from pipeline.summary import sampled_clips
from rl.objectives import OBJECTIVES
from rl.online.config import RewardsConfig

BACKWARD = 2  # forwards that a backward takes as long as
RECOMPUTED = 1  # further forwards under gradient checkpointing


class AskedSource(NamedTuple):
    """A source that a stage asks."""

    source: str
    amount: int  # clips, shown pairs or windows
    votes: int
    clips: Path | None  # the set that it is asked about; None: not one set
    window: int | None = None  # frames of a window; None: it is asked about no windows


class Work(NamedTuple):
    """What a stage does."""

    unit: TimedUnit
    amount: int  # units
    clips: int = 0  # that are sampled
    steps: int = 0  # of an optimizer
    forwards: float = 0.0  # of the denoiser that a row of training takes as long as
    asked: tuple[AskedSource, ...] = ()


def work_of(command: Command, params: Mapping[str, Any], prompts: Sequence[Prompt]) -> Work:
    """What a stage does. params: params.yaml; prompts: its prompt set."""
    unit, counts = unit_of(command), sampled_clips(params, prompts)
    match command.name:
        case "generate":
            count = counts[_set_name(Path(command.options["out"]))]
            return Work(unit, count, clips=count)
        case "label" | "prefer":
            asked = _asked(command, counts)
            return Work(unit, asked.amount, asked=(asked,))
        case "train":
            objective = OBJECTIVES[command.options["objective"]]
            config = train_config(objective, command.options.get("entry"))
            trained = 1 + BACKWARD + (RECOMPUTED if config.gradient_checkpointing else 0)
            clips = 2 if objective.row_type in (Pair, DensePair) else 1
            twice = objective.of_batch is not None and config.gradient_accumulation > 1
            forwards = clips * (trained + (1 if objective.uses_reference else 0) + (1 if twice else 0))
            return Work(unit, config.steps * config.batch_size, steps=config.steps, forwards=forwards)
        case "online":
            return _online(command, unit, params)
        case "reward":
            entry = section(f"reward.models.{command.options['name']}", RewardEntry)
            settings = reward_config(entry, block("reward.settings"))
            return Work(unit, settings.steps * settings.batch_size, steps=settings.steps)
        case "audit":
            config = params["audit"]
            asked = AskedSource(command.options["source"], config["clips"], config["votes"], None)
            return Work(unit, 1, asked=(asked,))
    return Work(unit, 1)


def _online(command: Command, unit: TimedUnit, params: Mapping[str, Any]) -> Work:
    """Updates, and what sources are asked about: checks between updates, and the rollouts of a recipe by rewards."""
    entry = section(f"online.policies.{command.options['entry']}", OnlineEntry)
    engine, check = load_recipe(entry.recipe, entry.changes).engine, params["online"]["check"]
    asked: Counter[str] = Counter()
    seen = check["prompts"] * check["samples_per_prompt"] if engine.held_out_every and check["prompts"] else 0
    checks = 1 + engine.updates // engine.held_out_every if engine.held_out_every else 0
    asked[entry.held_out] += checks * seen
    if isinstance(engine, RewardsConfig):
        asked[entry.judge] += engine.rolled_out + (checks * seen if entry.judge != entry.held_out else 0)
    sources = tuple(AskedSource(name, clips, 1, None) for name, clips in asked.items() if clips)
    return Work(unit, engine.updates * engine.batch_size, steps=engine.updates, asked=sources)


def _asked(command: Command, counts: Mapping[str, int]) -> AskedSource:
    """The source that a label stage asks, or eval-prefer."""
    name, votes = source_of(command), section("label", LabelConfig).votes
    if command.name == "prefer":
        entry = section(f"preferences.{command.options['entry']}", PreferenceEntry)
        each = block("evaluate.generate.samples_per_prompt")
        pairs = counts[f"eval {entry.policy}"] * min(entry.clips or each, each) // each
        return AskedSource(name, 2 * pairs, votes, None)
    folder = Path(command.options["set"])
    count = counts[_set_name(folder)]
    if window := command.options.get("window"):
        windows = len(window_frames(block("video.num_frames"), int(window)))
        return AskedSource(name, count * windows, votes, folder, int(window))
    if read_block(name, source_block(name)).compares:  # each clip meets others of its prompt, in both orders
        count *= min(section("label", LabelConfig).opponents, _samples_per_prompt(folder) - 1)
    return AskedSource(name, count, votes, folder)


def _samples_per_prompt(folder: Path) -> int:
    where = {"eval": "evaluate.generate", "select": "select.generate"}.get(folder.parts[1], "generate")
    return section(where, Sampling).samples_per_prompt


def _set_name(folder: Path) -> str:
    """The name in `sampled_clips` of runs/<round>/samples, runs/eval/<policy>/samples, runs/select/<policy>/samples.

    Raises ParamsError for another folder.
    """
    match folder.parts:
        case ("runs", name, "samples"):
            return name
        case ("runs", "eval" | "select" as kind, name, "samples"):
            return f"{kind} {name}"
    raise ParamsError(f"{folder} is no clip set of a stage")
