"""Whether the rounds, pools, policies, sources, selection and evaluation of params.yaml make a graph."""

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from data.config import ConfigError, read_config
from data.policies import off_policy
from feedback.core.kinds import NESTED, REWARD_MODEL, TRAINED
from pipeline.configs import (
    NAME,
    ComparedEntry,
    DenseEntry,
    ExtendConfig,
    OnlineEntry,
    PolicyEntry,
    PreferenceEntry,
    RewardEntry,
    RoundEntry,
)
from pipeline.params import PARAMS, ParamsError
from pipeline.replicates import SEEDS, SELECTED, seed_problems

BASE = "base"  # the untrained generator, which every other policy starts from, at first or at last
# Folders under runs/ that are no round's
TAKEN = ("audit", "policies", "eval", "evaluation", "preferences", "rewards", "select")
POINT = ("step", "rate", "low", "high", "n")  # what a point of select's curve has beside judges


DENSE = "dense_dpo"  # the objective that is trained on sets of `dense`, and no other is


SHAPES: dict[str, type] = {  # what the graph and dvc.yaml take names and entries from
    "rounds": dict,
    "pools": dict,
    "dense": dict,
    "policies": dict,
    SEEDS: list,
    "feedback": dict,
    "feedback.source": str,
    "feedback.sources": dict,
    "build": dict,
    "train": dict,
    "train.common": dict,
    "comparison": dict,
    "comparison.rounds": list,
    "comparison.sources": list,
    "comparison.policies": dict,
    "evaluate": dict,
    "evaluate.policies": list,
    "evaluate.judges": list,
    "select": dict,
    "select.policies": list,
    "online": dict,
    "online.policies": dict,
    "extend": dict,
    "preferences": dict,
    "reward": dict,
    "reward.models": dict,
    "reward.settings": dict,
}
IN_WORDS: dict[type, str] = {dict: "a section ({} for none)", list: "a list ([] for none)", str: "a name"}
SEEDS_IN_WORDS = "a list of training seeds ([1] for one)"  # no list of none


def check_shapes(params: Mapping[str, Any]) -> None:
    """Raises ParamsError for a part of the graph that is missing or is no section, list or name, each in a line."""
    problems = []
    for key, shape in SHAPES.items():
        *outer, last = key.split(".")
        expected = SEEDS_IN_WORDS if key == SEEDS else IN_WORDS[shape]
        around = params.get(outer[0]) if outer else params
        if not isinstance(around, Mapping):
            continue  # it has a line of its own
        if last not in around:
            problems.append(f"{key} is missing, expected {expected}; beside it there is {', '.join(around)}")
        elif not isinstance(around[last], shape):
            found = "empty" if around[last] is None else repr(around[last])
            problems.append(f"{key} is {found}, expected {expected}")
    if problems:
        raise ParamsError("\n  ".join([f"{PARAMS}:", *problems]))


def check_entries(params: Mapping[str, Any]) -> None:
    """Raises ParamsError for entries that cannot be read, each in a line."""
    if problems := list(_entry_problems(params)):
        raise ParamsError("\n  ".join([f"{PARAMS}:", *problems]))


def validate_graph(params: Mapping[str, Any], objectives: Collection[str]) -> None:
    """Raises ParamsError listing everything in params.yaml that does not fit together.

    objectives: the names that `objective` may have.
    """
    problems = list(_entry_problems(params)) or list(seed_problems(params))
    if not problems:
        problems = [
            *_name_problems(params),
            *_source_problems(params),
            *_reward_problems(params),
            *_round_problems(params),
            *_pool_problems(params),
            *_dense_problems(params),
            *_policy_problems(params, objectives),
            *_online_problems(params),
            *_selection_problems(params),
            *_extension_problems(params),
            *_cycle_problems(params),
            *_evaluation_problems(params),
            *_preference_problems(params),
        ]
    if problems:
        raise ParamsError("\n  ".join(["params.yaml does not fit together:", *problems]))


def needed_sources(params: Mapping[str, Any]) -> set[str]:
    """The sources that a run of these params uses: for labels, comparison, evaluation, selection, audit and online."""
    needed = {params["feedback"]["source"], *params["comparison"]["sources"], *params["evaluate"]["judges"]}
    needed |= set(params["select"]["judges"]) if params["select"]["policies"] else set()
    needed |= set(params["audit"]["sources"])
    needed |= {entry["source"] for entry in params["preferences"].values()}
    needed |= {entry[key] for entry in params["online"]["policies"].values() for key in ("judge", "held_out")}
    return needed


def trained_policies(params: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The entries of `policies` and `comparison.policies` by name: what is trained on the clips of a round."""
    return {**params["policies"], **params["comparison"]["policies"]}


def entry_of(params: Mapping[str, Any], name: str) -> str:
    """The dotted name of the entry of one of `trained_policies`."""
    return f"policies.{name}" if name in params["policies"] else f"comparison.policies.{name}"


def online_policies(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of `online.policies` by name: what is trained on a judge's answers, without a round."""
    return dict(params["online"]["policies"])


def selected_policies(params: Mapping[str, Any]) -> dict[str, str]:
    """The policies that stage select makes, by name, each with the policy whose checkpoint it is."""
    return {f"{name}{SELECTED}": name for name in params["select"]["policies"]}


def reward_models(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of `reward.models` by name: reward models that are trained here, each for the source of its name."""
    return dict(params["reward"]["models"])


def rounds_of(params: Mapping[str, Any], name: str) -> list[str]:
    """The rounds that a name of `rounds` or `pools` stands for, in the order of training."""
    return _rounds_within(params["pools"], name, ())


def _rounds_within(pools: Mapping[str, Any], name: str, around: tuple[str, ...]) -> list[str]:
    """As `rounds_of`. around: the pools that the name stands in, so that a cycle ends."""
    if name in around:
        return []
    if name not in pools:
        return [name]
    return [found for part in pools[name] for found in _rounds_within(pools, part, (*around, name))]


def maker_of(params: Mapping[str, Any], name: str) -> str | None:
    """The policy that samples a round or a set of `dense`; None for another name."""
    entry = (params["rounds"] | params["dense"]).get(name)
    return None if entry is None else str(entry["policy"])


def off_policy_rounds(params: Mapping[str, Any]) -> Iterator[str]:
    """A line for each round that a policy is trained on, while another policy than its start samples it."""
    for name, entry in trained_policies(params).items():
        for part in rounds_of(params, entry["round"]):
            if (maker := str(maker_of(params, part))) != entry["start"]:
                yield f"{name}: {off_policy(part, maker, entry['start'])}"


def unused_policies(params: Mapping[str, Any]) -> Iterator[str]:
    """A line for each policy that is trained, while nothing else names it."""
    named = {
        *params["evaluate"]["policies"],
        *params["select"]["policies"],
        *(entry["policy"] for group in ("rounds", "dense", "extend") for entry in params[group].values()),
        *(entry["start"] for entry in online_policies(params).values()),
    }
    for name in [*trained_policies(params), *online_policies(params)]:
        if name not in named:
            yield f"{name} is trained, but it is not in evaluate.policies and nothing else uses it"


def unused_rounds(params: Mapping[str, Any]) -> Iterator[str]:
    """A line for each round whose clips nothing is trained on, and for each pool."""
    trained = {entry["round"] for entry in trained_policies(params).values()}
    used = {part for name in trained for part in rounds_of(params, name)} | set(params["comparison"]["rounds"])
    used |= {entry["round"] for entry in params["dense"].values()}
    used |= {part for entry in reward_models(params).values() for part in rounds_of(params, entry["round"])}
    for name in params["dense"]:
        if name not in trained:
            yield f"dense.{name} is sampled and judged, but no policy is trained on it"
    for name in params["rounds"]:
        if name not in used:
            yield f"rounds.{name} is sampled and judged, but no policy is trained on it"
    joined = {part for parts in params["pools"].values() for part in parts}
    joined |= {entry["round"] for entry in reward_models(params).values()}
    for name in params["pools"]:
        if name not in trained | joined:
            yield f"pools.{name}: no policy is trained on it"


def unused_rewards(params: Mapping[str, Any]) -> Iterator[str]:
    """A line for each reward model that is trained, while no stage asks the source."""
    for name in reward_models(params):
        if name not in needed_sources(params):
            yield f"reward.models.{name} is trained, but no policy is trained on it and no judge is named so"


def _all_policies(params: Mapping[str, Any]) -> list[str]:
    return [BASE, *trained_policies(params), *online_policies(params), *selected_policies(params)]


def _entry_problems(params: Mapping[str, Any]) -> Iterator[str]:
    groups: tuple[tuple[str, dict[str, Any], type], ...] = (
        ("rounds", params["rounds"], RoundEntry),
        ("dense", params["dense"], DenseEntry),
        ("policies", params["policies"], PolicyEntry),
        ("comparison.policies", params["comparison"]["policies"], ComparedEntry),
        ("online.policies", params["online"]["policies"], OnlineEntry),
        ("extend", params["extend"], ExtendConfig),
        ("preferences", params["preferences"], PreferenceEntry),
        ("reward.models", params["reward"]["models"], RewardEntry),
    )
    for name, parts in params["pools"].items():
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            yield (
                f"pools.{name} is {parts!r}, expected two names, each of a round or of a pool, such as [r1, r1b]; "
                f"join a third round in another pool: [{name}, r2]"
            )
    for group, entries, cls in groups:
        for name, entry in entries.items():
            if isinstance(entry, Mapping) and isinstance(listed := entry.get("round"), list):
                yield (
                    f"{group}.{name}.round is {listed}, expected a name, because DVC cannot loop over a list in deps: "
                    f"join the rounds in pools.<name>: {listed[:2]}, and write round: <name>"
                )
                continue
            try:
                read_config(cls, entry, f"{group}.{name}")
            except ConfigError as error:
                yield str(error)


def _name_problems(params: Mapping[str, Any]) -> Iterator[str]:
    named = {
        "policies": params["policies"],
        "comparison.policies": params["comparison"]["policies"],
        "online.policies": online_policies(params),
    }
    groups = {
        "rounds": params["rounds"],
        "pools": params["pools"],
        "dense": params["dense"],
        **named,
        "extend": params["extend"],
        "preferences": params["preferences"],
        "reward.models": params["reward"]["models"],
        "feedback.sources": params["feedback"]["sources"],
    }
    for group, names in groups.items():
        for name in names:
            if not NAME.fullmatch(str(name)):
                yield f"{group}.{name}: a name is made of a-z, 0-9, - and _"
    if any(BASE in policies for policies in named.values()):
        yield f"policies.{BASE}: this name belongs to the untrained generator"
    for group in ("rounds", "pools", "dense"):
        for name in TAKEN:
            if name in params[group]:
                yield f"{group}.{name}: runs/{name}/ is used otherwise; a round may not be named {', '.join(TAKEN)}"
    for one, other in combinations(("rounds", "pools", "dense"), 2):
        for name in sorted(params[one].keys() & params[other].keys()):
            yield f"{name} is a name in {one} and in {other}; rename one"
    for one, other in combinations(named, 2):
        for name in sorted(named[one].keys() & named[other].keys()):
            yield f"{name} is a name in {one} and in {other}; rename one"


def _source_problems(params: Mapping[str, Any]) -> Iterator[str]:
    sources = params["feedback"]["sources"]
    yield from _unknown("feedback.source", params["feedback"]["source"], sources)
    for name, source in sources.items():
        if not isinstance(source, dict):
            yield f"feedback.sources.{name} is {source!r}, expected a section with the key kind"
    for name in params["comparison"]["sources"]:
        yield from _unknown("comparison.sources", name, sources)


def _reward_problems(params: Mapping[str, Any]) -> Iterator[str]:
    """Reward models that are trained here, and the sources that read them: DVC finds a model by its source's name."""
    sources, models = params["feedback"]["sources"], reward_models(params)
    for name, entry in models.items():
        yield from _unknown(f"reward.models.{name}.round", entry["round"], [*params["rounds"], *params["pools"]])
        if name not in sources:
            yield (
                f"reward.models.{name}: feedback.sources has no {name}, which would read it; add "
                f"{name}: {{kind: {REWARD_MODEL}, path: {TRAINED}/{name}}}"
            )
        elif not _reads(sources[name], name):
            yield (
                f"feedback.sources.{name}: stage reward trains a model of this name, so kind is {REWARD_MODEL} and "
                f"path {TRAINED}/{name}; or rename reward.models.{name}"
            )
        for where, named in (("feedback.source", [params["feedback"]["source"]]), *_listed_within(sources)):
            if name in named:
                yield (
                    f"{where}: {name} is trained by this run, on labels of feedback.source; it can stand in "
                    "comparison.sources, evaluate.judges, select.judges, audit.sources and online.policies, and "
                    "anywhere as a copy of its folder under another path"
                )
    for name, block in sources.items():
        path = block.get("path") if isinstance(block, Mapping) and block.get("kind") == REWARD_MODEL else None
        if isinstance(path, str) and TRAINED in Path(path).parents and name not in models:
            yield (
                f"feedback.sources.{name}.path: {path} is what stage reward writes, and reward.models has no {name}; "
                f"add {name}: {{round: …}} there"
            )


def _reads(block: Any, name: str) -> bool:
    """Whether a source's block is of the reward model of this name."""
    return isinstance(block, Mapping) and (block.get("kind"), block.get("path")) == (REWARD_MODEL, f"{TRAINED}/{name}")


def _listed_within(sources: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The names that sources list, such as a panel's members."""
    for name, block in sources.items():
        for key in NESTED if isinstance(block, Mapping) else ():
            if isinstance(listed := block.get(key), list):
                yield f"feedback.sources.{name}.{key}", listed


def _round_problems(params: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in params["rounds"].items():
        yield from _unknown(f"rounds.{name}.policy", entry["policy"], _all_policies(params))
    for name in params["comparison"]["rounds"]:
        yield from _unknown("comparison.rounds", name, params["rounds"])


def _pool_problems(params: Mapping[str, Any]) -> Iterator[str]:
    pools = params["pools"]
    for name, parts in pools.items():
        for part in parts:
            yield from _unknown(f"pools.{name}", part, [*params["rounds"], *pools])
        rounds = rounds_of(params, name)
        for twice in sorted({one for one in rounds if rounds.count(one) > 1}):
            yield f"pools.{name}: {twice} is in it twice"
        if any(name in pools[one] for one in _pools_within(pools, name)):
            yield f"pools.{name}: it is a part of itself"


def _dense_problems(params: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in params["dense"].items():
        yield from _unknown(f"dense.{name}.round", entry["round"], params["rounds"])
        yield from _unknown(f"dense.{name}.policy", entry["policy"], _all_policies(params))


def _pools_within(pools: Mapping[str, list[str]], name: str) -> set[str]:
    """The pools that a pool is made of, itself among them."""
    found, todo = set(), [name]
    while todo:
        if (one := todo.pop()) in pools and one not in found:
            found.add(one)
            todo += pools[one]
    return found


def _policy_problems(params: Mapping[str, Any], objectives: Collection[str]) -> Iterator[str]:
    comparison = params["comparison"]
    for name, entry in trained_policies(params).items():
        compared = name in comparison["policies"]
        where = f"comparison.policies.{name}" if compared else f"policies.{name}"
        yield from _unknown(f"{where}.objective", entry["objective"], objectives)
        known = comparison["rounds"] if compared else [*params["rounds"], *params["pools"]]
        if entry["objective"] == DENSE:  # it needs pairs with one start, which rounds have none of
            known = [] if compared else [*params["dense"]]
        yield from _unknown(f"{where}.round", entry["round"], known)
        yield from _unknown(f"{where}.start", entry["start"], _all_policies(params))
        if compared:
            yield from _unknown(f"{where}.source", entry["source"], comparison["sources"])


def _online_problems(params: Mapping[str, Any]) -> Iterator[str]:
    sources = params["feedback"]["sources"]
    for name, entry in online_policies(params).items():
        where = f"online.policies.{name}"
        yield from _unknown(f"{where}.start", entry["start"], _all_policies(params))
        for key in ("judge", "held_out"):
            yield from _unknown(f"{where}.{key}", entry[key], sources)
    for key in ("judge", "held_out"):
        yield from _unknown(f"online.prompt.{key}", params["online"]["prompt"][key], sources)
    for source in params["online"]["prompt"].get("also", []):
        yield from _unknown("online.prompt.also", source, sources)


def _selection_problems(params: Mapping[str, Any]) -> Iterator[str]:
    select, trained = params["select"], trained_policies(params) | online_policies(params)
    for name in select["policies"]:
        yield from _unknown("select.policies", name, trained)
    for name in sorted(selected_policies(params).keys() & trained.keys()):
        yield f"policies.{name}: select gives this name to a checkpoint; rename the policy"
    for name in select["judges"]:
        yield from _unknown("select.judges", name, params["feedback"]["sources"])
        if name in POINT:
            yield f"select.judges: {name} is also a column of the curve; rename the source"
    if select["policies"] and not select["judges"]:
        yield "select.judges is empty; the first of them chooses the checkpoint"
    for key in ("policies", "judges"):
        for twice in sorted({name for name in select[key] if select[key].count(name) > 1}):
            yield f"select.{key}: {twice} is listed twice"


def _extension_problems(params: Mapping[str, Any]) -> Iterator[str]:
    known = _all_policies(params)
    for name, entry in params["extend"].items():
        yield from _unknown(f"extend.{name}.policy", entry["policy"], known)
        if name in known:
            yield f"extend.{name}: a policy has this name; rename one"


def _cycle_problems(params: Mapping[str, Any]) -> Iterator[str]:
    """Cycles of policies, each of which comes after its start and the policies that sampled its rounds."""
    before = {name: dict(_made_after(params, name)) for name in trained_policies(params) | online_policies(params)}
    seen: set[str] = set()

    def cycle_from(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in seen or name not in before:
            return []
        seen.add(name)
        return next((found for other in before[name] if (found := cycle_from(other, [*path, name]))), [])

    for first in before:
        if path := cycle_from(first, []):
            steps = (before[name][other] for name, other in zip(path, [*path[1:], path[0]], strict=True))
            yield f"a cycle: {'; '.join(steps)}"


def _made_after(params: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    """The policies that a policy comes after, a selected one by the policy whose checkpoint it is, and why in words."""
    selected, entry = selected_policies(params), (trained_policies(params) | online_policies(params))[name]
    start = entry["start"]
    yield selected.get(start, start), f"{name} starts from {start}"
    for judge in dict.fromkeys(entry[key] for key in ("judge", "held_out") if key in entry):
        model = reward_models(params).get(judge)
        for part in rounds_of(params, model["round"]) if model else []:
            if maker := maker_of(params, part):
                yield selected.get(maker, maker), f"{name} is trained on {judge}, which learns from {part} of {maker}"
    for part in rounds_of(params, entry["round"]) if "round" in entry else []:
        if maker := maker_of(params, part):
            yield selected.get(maker, maker), f"{name} is trained on {part}, which {maker} samples"
        if part in params["dense"] and (first := maker_of(params, begun := params["dense"][part]["round"])):
            yield selected.get(first, first), f"{part} starts from clips of {begun}, which {first} samples"


def _evaluation_problems(params: Mapping[str, Any]) -> Iterator[str]:
    evaluate = params["evaluate"]
    for name in evaluate["policies"]:
        yield from _unknown("evaluate.policies", name, [*_all_policies(params), *params["extend"]])
    for name in evaluate["judges"]:
        yield from _unknown("evaluate.judges", name, params["feedback"]["sources"])
    if not evaluate["judges"]:
        yield "evaluate.judges is empty, so nothing would be measured; name one of feedback.sources"
    if BASE not in evaluate["policies"]:
        yield f"evaluate.policies lacks {BASE}, which every policy is compared with"
    stages = [f"{policy}-{judge}" for policy in evaluate["policies"] for judge in evaluate["judges"]]
    for twice in sorted({stage for stage in stages if stages.count(stage) > 1}):
        yield f"evaluate: two stages would be named {twice}; list each policy and judge once, or rename one"


def _preference_problems(params: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in params["preferences"].items():
        where = f"preferences.{name}"
        for key in ("policy", "against"):
            if entry[key] not in params["evaluate"]["policies"]:
                known = ", ".join(params["evaluate"]["policies"])
                yield f"{where}.{key}: {entry[key]!r} has no evaluation clips; evaluate.policies are {known}"
        if entry["policy"] == entry["against"]:
            yield f"{where}: {entry['policy']} cannot be compared with itself"
        yield from _unknown(f"{where}.source", entry["source"], params["feedback"]["sources"])


def _unknown(where: str, name: Any, known: Collection[str]) -> Iterator[str]:
    if name not in list(known):  # a name may be of any type
        yield f"{where}: {name!r} is unknown; known are {', '.join(known) or 'none'}"
