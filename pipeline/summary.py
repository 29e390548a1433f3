"""What a valid params.yaml asks for, in the lines that `vfrl check` prints: models, prompts, rounds, clips, hours."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.dense import window_frames
from data.prompts import SPLITS, Prompt, select
from generators.core.checkpoint import INDEX
from generators.core.generator import Generator
from generators.core.rollout import Sampling
from pipeline.check import Checked
from pipeline.configs import GeneratorConfig, OnlineEntry
from pipeline.graph import entry_of, online_policies, reward_models, rounds_of, trained_policies
from pipeline.params import section
from pipeline.recipes import load_recipe
from pipeline.replicates import SEEDS, is_replicate
from rl.objectives import OBJECTIVES
from rl.online.config import RewardsConfig

SHOWN = 8  # categories, or names, of a line
HOURS = "sampling hours = clips x seconds a clip / 3600"


def summarise(checked: Checked, seconds_per_clip: float | None) -> list[str]:
    """The lines, each with a title of its own; notes come last.

    seconds_per_clip: what sampling one clip takes; None where nobody has measured it.
    """
    params, prompts = checked.params, checked.prompts
    clips = sampled_clips(params, prompts)
    lines = {
        "generator": generator_line(section("generator", GeneratorConfig), checked.generator),
        "video": "{num_frames} frames of {width}x{height} at {fps} frames/s".format(**params["video"]),
        "prompts": f"{params['prompts']['path']}: {prompts_line(prompts)}",
        "rounds": _round_line(params, clips),
        "policies": _names(_policies(params)),
        "evaluation": _evaluation_line(params, clips),
        "judges": _names(f"{name} {_parts(parts)}" for name, parts in judged_clips(params, clips).items()),
    }
    if params["dense"]:
        lines["dense"] = _names(
            f"{name} by {entry['policy']} from {entry['round']} {clips[name] // 2:,} pairs, window {entry['window']}"
            for name, entry in params["dense"].items()
        )
    if len(params[SEEDS]) > 1:
        lines["seeds"] = f"{', '.join(map(str, params[SEEDS]))}: each policy is trained once with each"
    if params["select"]["policies"]:
        chosen = _names(f"{name} {clips[f'select {name}']:,}" for name in params["select"]["policies"])
        lines["selection"] = f"clips of checkpoints: {chosen}"
    if reward_models(params):
        settings = params["reward"]["settings"]
        lines["rewards"] = _names(
            f"{name} on {entry['round']}, {(settings | entry.get('changes', {}))['path']} with a LoRA"
            for name, entry in reward_models(params).items()
        )
    if params["online"]["policies"]:
        lines["online"] = _names(_online(params))
    lines["sampling"] = _hours_line(sum(clips.values()), seconds_per_clip)
    width = max(map(len, lines))
    return [*(f"{title:<{width}}  {line}" for title, line in lines.items()), *(f"note: {x}" for x in checked.notes)]


def headline(checked: Checked) -> str:
    """One line: the prompts by split, the rounds, the policies."""
    params = checked.params
    policies = len(trained_policies(params)) + len(online_policies(params))
    rounds, total = len(params["rounds"]), sum(sampled_clips(params, checked.prompts).values())
    return f"{prompts_line(checked.prompts)}; {policies} policies, {rounds} rounds, {total:,} clips to sample"


def generator_line(config: GeneratorConfig, generator: Generator | None) -> str:
    """family, class, path, revision and size."""
    words = [f"{config.family}, {config.path}"]
    if config.revision:
        words[0] += f" at {config.revision}"
    if generator is not None:
        checkpoint = generator.checkpoint
        words.append(checkpoint.config(INDEX)["_class_name"])
        words += [f"{name} of {place.checkpoint.path}" for name, place in checkpoint.elsewhere.items()]
        if checkpoint.size is not None:
            words.append(
                f"{checkpoint.size / 1e9:.1f} GB" if checkpoint.size > 1e8 else f"{checkpoint.size / 1e6:.1f} MB"
            )
    return ", ".join([*words, config.dtype])


def prompts_line(prompts: Sequence[Prompt]) -> str:
    """How many by split, with a first frame, and by category, the categories with most prompts first."""
    splits = Counter(prompt.split for prompt in prompts)
    categories = Counter(prompt.category for prompt in prompts).most_common()
    shown = ", ".join(f"{name} {count}" for name, count in categories[:SHOWN])
    more = f", and {len(categories) - SHOWN} more" if len(categories) > SHOWN else ""
    counts = ", ".join(f"{splits[split]} {split}" for split in SPLITS)
    images = sum(prompt.image is not None for prompt in prompts)
    first = f", {images} with a first frame" if images else ""
    return f"{len(prompts)} ({counts}){first}; {len(categories)} categories: {shown}{more}"


def sampled_clips(params: Mapping[str, Any], prompts: Sequence[Prompt]) -> dict[str, int]:
    """Clips by clip set: `<round>`, `<set of dense>`, `eval <policy>`, `select <policy>`; none of online training."""

    def of(name: str) -> int:
        how = section(name, Sampling)
        return len(select(prompts, how.split, how.prompts)) * how.samples_per_prompt

    counts = {name: of("generate") for name in params["rounds"]}
    each = section("generate", Sampling).samples_per_prompt
    counts |= {name: of("generate") // each * 2 * one["pairs_per_prompt"] for name, one in params["dense"].items()}
    counts |= {f"eval {name}": of("evaluate.generate") for name in params["evaluate"]["policies"]}
    for name in params["select"]["policies"]:
        counts[f"select {name}"] = of("select.generate") * _checkpoints(params, name)
    return counts


def judged_clips(params: Mapping[str, Any], clips: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """By judge, how many clips it labels for rounds, rollouts, comparison, evaluation, selection and audit."""
    found: dict[str, dict[str, int]] = {}

    def add(judges: Iterable[str], what: str, count: int) -> None:
        for judge in judges:
            found.setdefault(judge, {}).setdefault(what, 0)
            found[judge][what] += count

    add([params["feedback"]["source"]], "rounds", sum(clips[name] for name in params["rounds"]))
    frames = params["video"]["num_frames"]
    for name, entry in params["dense"].items():
        count = clips[name] * len(window_frames(frames, entry["window"]))
        add([params["feedback"]["source"]], "dense, windows", count)
    for name in params["online"]["policies"]:
        entry = section(f"online.policies.{name}", OnlineEntry)
        engine = load_recipe(entry.recipe, entry.changes).engine
        if isinstance(engine, RewardsConfig):
            add([entry.judge], "rollouts", engine.rolled_out)
    compared = params["comparison"]
    add(compared["sources"], "comparison", sum(clips[name] for name in compared["rounds"]))
    add(params["evaluate"]["judges"], "evaluation", _with_prefix(clips, "eval "))
    if params["select"]["policies"]:
        add(params["select"]["judges"], "selection", _with_prefix(clips, "select "))
    add(params["audit"]["sources"], "audit, about", params["audit"]["clips"])
    return found


def _with_prefix(clips: Mapping[str, int], prefix: str) -> int:
    return sum(count for name, count in clips.items() if name.startswith(prefix))


def _checkpoints(params: Mapping[str, Any], name: str) -> int:
    """How many checkpoints the training of a policy leaves."""
    if name in params["online"]["policies"]:
        entry = section(f"online.policies.{name}", OnlineEntry)
        engine = load_recipe(entry.recipe, entry.changes).engine
        return -(-engine.updates // engine.checkpoint_every)
    from pipeline.configs import train_config

    config = train_config(OBJECTIVES[trained_policies(params)[name]["objective"]], entry_of(params, name))
    return -(-config.steps // config.checkpoint_every)


def _round_line(params: Mapping[str, Any], clips: Mapping[str, int]) -> str:
    return _names(f"{name} by {entry['policy']} {clips[name]:,} clips" for name, entry in params["rounds"].items())


def _policies(params: Mapping[str, Any]) -> Iterable[str]:
    for name, entry in trained_policies(params).items():
        if is_replicate(entry):
            continue  # the line of seeds says so
        rounds = rounds_of(params, on := entry["round"])
        words = on if rounds == [on] else f"{on} ({', '.join(rounds)})"
        yield f"{name} = {entry['objective']} on {words} from {entry['start']}"


def _online(params: Mapping[str, Any]) -> Iterable[str]:
    for name in params["online"]["policies"]:
        entry = section(f"online.policies.{name}", OnlineEntry)
        if entry.of is not None:
            continue
        engine = load_recipe(entry.recipe, entry.changes).engine
        clips, how = engine.updates * engine.batch_size, "with gradient"
        if isinstance(engine, RewardsConfig):
            clips, how = engine.rolled_out, f"in groups of {engine.group_size}, each judged"
        yield f"{name} = {entry.recipe} from {entry.start}, judge {entry.judge}: {clips:,} clips {how}"


def _evaluation_line(params: Mapping[str, Any], clips: Mapping[str, int]) -> str:
    policies, samples = params["evaluate"]["policies"], params["evaluate"]["generate"]["samples_per_prompt"]
    each = clips[f"eval {policies[0]}"]
    counted = (
        f"{len(policies)} policies x {each // samples} prompts x {samples} samples = {each * len(policies):,} clips"
    )
    return f"{counted}: {_names(policies)}"


def _hours_line(clips: int, seconds: float | None) -> str:
    if seconds is None:
        return f"{clips:,} clips; {HOURS}: give --seconds-per-clip (docs/generators.md has published figures)"
    return f"{clips:,} clips x {seconds:g} s / 3600 = {clips * seconds / 3600:,.1f} h on one device"


def _parts(parts: Mapping[str, int]) -> str:
    return f"{sum(parts.values()):,} ({', '.join(f'{what} {count:,}' for what, count in parts.items())})"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = [f"and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return "; ".join([*listed[:SHOWN], *more]) or "none"
