"""Whether the rounds, policies, sources, selection and evaluation of params.yaml make a graph."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from stages.params import ParamsError

BASE = "base"  # the untrained generator, which every other policy starts from, at first or at last
SELECTED = "-selected"  # ends the name of a policy that stage select makes of another's checkpoint
TAKEN = ("audit", "policies", "eval", "evaluation", "select")  # folders under runs/ that are no round's
ROUND = ("policy",)
POLICY = ("start", "round", "objective")
COMPARED = (*POLICY, "source")
EXTENDED = ("policy", "prompts", "template")
POINT = ("step", "rate", "low", "high", "n")  # what a point of select's curve has beside judges


def validate_graph(
    params: Mapping[str, Any], families: Collection[str], kinds: Collection[str], objectives: Collection[str]
) -> None:
    """Raises ParamsError listing everything in params.yaml that does not fit together.

    families, kinds, objectives: the generator families, kinds of source and objectives that the libraries know.
    """
    problems = list(_entry_problems(params))
    if not problems:
        problems = [
            *_name_problems(params),
            *_unknown("generator.family", params["generator"]["family"], families),
            *_source_problems(params, kinds),
            *_round_problems(params),
            *_policy_problems(params, objectives),
            *_selection_problems(params),
            *_extension_problems(params),
            *_cycle_problems(params),
            *_evaluation_problems(params),
        ]
    if problems:
        raise ParamsError("\n  ".join(["params.yaml does not fit together:", *problems]))


def trained_policies(params: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The entries of `policies` and `comparison.policies` by name."""
    return {**params["policies"], **params["comparison"]["policies"]}


def selected_policies(params: Mapping[str, Any]) -> dict[str, str]:
    """The policies that stage select makes, by name, each with the one that it is a checkpoint of."""
    return {f"{name}{SELECTED}": name for name in params["select"]["policies"]}


def _all_policies(params: Mapping[str, Any]) -> list[str]:
    return [BASE, *trained_policies(params), *selected_policies(params)]


def _entry_problems(params: Mapping[str, Any]) -> Iterator[str]:
    groups = (
        ("rounds", params["rounds"], ROUND),
        ("policies", params["policies"], POLICY),
        ("comparison.policies", params["comparison"]["policies"], COMPARED),
        ("extend", params["extend"], EXTENDED),
    )
    for group, entries, keys in groups:
        for name, entry in entries.items():
            given = entry if isinstance(entry, dict) else {}
            for key in given.keys() - set(keys):
                yield f"{group}.{name}.{key} ({given[key]!r}) is unknown; known keys are {', '.join(keys)}"
            for key in keys:
                if not isinstance(given.get(key), str):
                    yield f"{group}.{name}.{key} is {given.get(key)!r}, expected a name; keys are {', '.join(keys)}"


def _name_problems(params: Mapping[str, Any]) -> Iterator[str]:
    policies, compared = params["policies"], params["comparison"]["policies"]
    groups = {
        "rounds": params["rounds"],
        "policies": policies,
        "comparison.policies": compared,
        "extend": params["extend"],
        "feedback.sources": params["feedback"]["sources"],
    }
    for group, names in groups.items():
        for name in names:
            if not re.fullmatch(r"[a-z0-9_-]+", str(name)):
                yield f"{group}.{name}: a name is made of a-z, 0-9, - and _"
    if BASE in policies or BASE in compared:
        yield f"policies.{BASE}: this name is the untrained generator's"
    for name in TAKEN:
        if name in params["rounds"]:
            yield f"rounds.{name}: runs/{name}/ is no round's; taken are {', '.join(TAKEN)}"
    for name in sorted(policies.keys() & compared.keys()):
        yield f"{name} stands in policies and in comparison.policies; one of the two needs another name"


def _source_problems(params: Mapping[str, Any], kinds: Collection[str]) -> Iterator[str]:
    sources = params["feedback"]["sources"]
    yield from _unknown("feedback.source", params["feedback"]["source"], sources)
    for name, source in sources.items():
        yield from _unknown(f"feedback.sources.{name}.kind", (source or {}).get("kind"), kinds)
    for name in params["comparison"]["sources"]:
        yield from _unknown("comparison.sources", name, sources)


def _round_problems(params: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in params["rounds"].items():
        yield from _unknown(f"rounds.{name}.policy", entry["policy"], _all_policies(params))
    for name in params["comparison"]["rounds"]:
        yield from _unknown("comparison.rounds", name, params["rounds"])


def _policy_problems(params: Mapping[str, Any], objectives: Collection[str]) -> Iterator[str]:
    comparison, rounds = params["comparison"], params["rounds"]
    for name, entry in trained_policies(params).items():
        compared = name in comparison["policies"]
        where = f"comparison.policies.{name}" if compared else f"policies.{name}"
        yield from _unknown(f"{where}.objective", entry["objective"], objectives)
        yield from _unknown(f"{where}.round", entry["round"], comparison["rounds"] if compared else rounds)
        yield from _unknown(f"{where}.start", entry["start"], _all_policies(params))
        maker = rounds.get(entry["round"], {}).get("policy", entry["start"])
        if entry["start"] != maker:
            yield f"{where}.start is {entry['start']}, but {maker} made its round {entry['round']}: start from {maker}"
        if compared:
            yield from _unknown(f"{where}.source", entry["source"], comparison["sources"])


def _selection_problems(params: Mapping[str, Any]) -> Iterator[str]:
    select, trained = params["select"], trained_policies(params)
    for name in select["policies"]:
        yield from _unknown("select.policies", name, trained)
    for name in sorted(selected_policies(params).keys() & trained.keys()):
        yield f"{name} stands in policies, but is the name that select gives to a checkpoint; rename it"
    for name in select["judges"]:
        yield from _unknown("select.judges", name, params["feedback"]["sources"])
        if name in POINT:
            yield f"select.judges: {name} is a name that the curve has for something else; rename this source"
    if select["policies"] and not select["judges"]:
        yield "select.judges is empty; the first of them chooses the checkpoint"
    for key in ("policies", "judges"):
        for twice in sorted({name for name in select[key] if select[key].count(name) > 1}):
            yield f"select.{key}: {twice} stands there twice"


def _extension_problems(params: Mapping[str, Any]) -> Iterator[str]:
    known = _all_policies(params)
    for name, entry in params["extend"].items():
        yield from _unknown(f"extend.{name}.policy", entry["policy"], known)
        if name in known:
            yield f"extend.{name}: there is a policy of this name already; rename one"


def _cycle_problems(params: Mapping[str, Any]) -> Iterator[str]:
    """Each cycle once: a policy is trained on the clips of a round, and a round's clips are made by a policy."""
    policies, rounds, selected = trained_policies(params), params["rounds"], selected_policies(params)
    makers = {name: rounds.get(entry["round"], {}).get("policy") for name, entry in policies.items()}
    maker = {name: selected.get(made_by, made_by) for name, made_by in makers.items()}
    seen: set[str] = set()
    for first in policies:
        path: list[str] = []
        name: str | None = first
        while name in policies and name not in seen:
            seen.add(name)
            path.append(name)
            name = maker[name]
        if name in path:
            loop = path[path.index(name) :]
            steps = (f"{name} is trained on {policies[name]['round']}, which {makers[name]} makes" for name in loop)
            yield f"a cycle: {'; '.join(steps)}"


def _evaluation_problems(params: Mapping[str, Any]) -> Iterator[str]:
    evaluate = params["evaluate"]
    for name in evaluate["policies"]:
        yield from _unknown("evaluate.policies", name, [*_all_policies(params), *params["extend"]])
    for name in evaluate["judges"]:
        yield from _unknown("evaluate.judges", name, params["feedback"]["sources"])
    if BASE not in evaluate["policies"]:
        yield f"evaluate.policies lacks {BASE}, which every policy is compared with"
    stages = [f"{policy}-{judge}" for policy in evaluate["policies"] for judge in evaluate["judges"]]
    for twice in sorted({stage for stage in stages if stages.count(stage) > 1}):
        yield f"evaluate: {twice} would name two stages; list each policy and judge once, or rename one"


def _unknown(where: str, name: Any, known: Collection[str]) -> Iterator[str]:
    if name not in known:
        yield f"{where}: {name!r} is unknown; known are {', '.join(known) or 'none'}"
