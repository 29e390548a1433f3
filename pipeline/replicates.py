"""Replicates: every trained policy once more for each further training seed, as entries of params.yaml.

DVC loops over the entries of a section and not over entries times a list, so the entries stand in params.yaml:
`vfrl seeds` writes them from the key `seeds`, and a check compares the two. A replicate has the key `of`, which names
the entry that it repeats, and the name <of>-s<seed>. It repeats the whole chain: it starts from the replicate of its
start, on the round that this one sampled. What no trained policy made, such as the rounds of base, is shared; so is an
entry with a seed of its own, which is one policy whatever `seeds` says.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.params import PARAMS, ParamsError

SEEDS, OF, SEED = "seeds", "of", "seed"  # keys
TRAINED = ("policies", "comparison.policies", "online.policies")  # sections whose entries are trained
ENTRIES = ("rounds", "dense", *TRAINED, "extend")  # whose entries may be replicates
LISTS = ("comparison.rounds", "select.policies", "evaluate.policies")  # of their names
ROUNDS = ("rounds", "dense", "pools", "comparison.rounds")  # names of rounds, in the others of policies
SELECTED = "-selected"  # suffix of a policy that stage select makes from a checkpoint
SHOWN = 4  # names in a message

Node = tuple[str, str]  # "policy" or "round", and its name


class Names(NamedTuple):
    """By name, the name of the replicate; what has none is shared by all seeds."""

    policies: dict[str, str]  # the selected and the extended ones among them
    rounds: dict[str, str]  # dense sets and pools among them


def replica(name: str, seed: int) -> str:
    """The name of an entry's replicate."""
    return f"{name}-s{seed}"


def check_seeds(seeds: Any) -> list[int]:
    """Key `seeds`. Raises ParamsError where it is no list of different whole numbers from 0."""
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ParamsError(f"{PARAMS}: {SEEDS} is {seeds!r}, expected different whole numbers from 0, such as [1, 2, 3]")
    return list(seeds)


def originals(params: Mapping[str, Any]) -> dict[str, Any]:
    """These params without replicates."""
    found = copy.deepcopy(dict(params))
    rounds, policies = set[str](), set[str]()  # names that are gone
    for key in ENTRIES:
        section = value(found, key)
        for name in [name for name, entry in section.items() if is_replicate(entry)]:
            del section[name]
            (rounds if key in ROUNDS else policies).add(name)
    for name in replicated_pools(params):
        del found["pools"][name]
    policies |= {f"{name}{SELECTED}" for name in policies}
    for key in LISTS:
        gone, listed = rounds if key in ROUNDS else policies, value(found, key)
        listed[:] = [name for name in listed if name not in gone]
    return found


def is_replicate(entry: Any) -> bool:
    """Whether an entry of a section repeats another."""
    return isinstance(entry, Mapping) and entry.get(OF) is not None


def replicated_pools(params: Mapping[str, Any]) -> set[str]:
    """The pools that repeat another: named <pool>-s<seed>, with a part that is a replicate. A pool has no key `of`."""
    rounds = {name for name, entry in params["rounds"].items() if is_replicate(entry)}
    named = {
        name: set(parts)
        for name, parts in params["pools"].items()
        if (stem := re.fullmatch(r"(.+)-s\d+", str(name))) and stem[1] in params["pools"]
    }
    found = set[str]()
    while more := {name for name, parts in named.items() if name not in found and parts & (rounds | found)}:
        found |= more
    return found


def names(params: Mapping[str, Any], seed: int) -> Names:
    """The names of the replicates of one seed. params: without replicates."""
    policies = {
        name: replica(name, seed)
        for key in TRAINED
        for name, entry in value(params, key).items()
        if entry.get(SEED) is None
    }
    selected = {
        f"{name}{SELECTED}": f"{policies[name]}{SELECTED}" for name in params["select"]["policies"] if name in policies
    }
    policies |= selected
    policies |= {name: replica(name, seed) for name, entry in params["extend"].items() if entry["policy"] in policies}
    rounds = {name: replica(name, seed) for name, entry in params["rounds"].items() if entry["policy"] in policies}
    rounds |= {
        name: replica(name, seed)
        for name, entry in params["dense"].items()
        if entry["policy"] in policies or entry["round"] in rounds
    }
    while more := {
        name: replica(name, seed)
        for name, parts in params["pools"].items()
        if name not in rounds and rounds.keys() & {*parts}
    }:
        rounds |= more
    return Names(policies, rounds)


def expanded(params: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Params without replicates with those of the seeds after the first, and the key `seeds`.

    Raises ParamsError where an entry that is no replicate has the name of one.
    """
    found = copy.deepcopy(dict(params)) | {SEEDS: list(seeds)}
    by_seed = {seed: names(params, seed) for seed in seeds[1:]}
    for seed, of in by_seed.items():
        for key in ENTRIES:
            for name, entry in value(params, key).items():
                if name in of_key(of, key):
                    _add(found, key, name, seed, _repeated(entry, name, seed, of, trained=key in TRAINED))
        for name, parts in params["pools"].items():
            if name in of.rounds:
                _add(found, "pools", name, seed, [of.rounds.get(part, part) for part in parts])
    for key in LISTS:
        value(found, key)[:] = [
            one for name in value(params, key) for one in with_replicates(name, key, by_seed.values())
        ]
    return found


def of_key(of: Names, key: str) -> dict[str, str]:
    """The names that stand under a key."""
    return of.rounds if key in ROUNDS else of.policies


def with_replicates(name: str, key: str, by_seed: Collection[Names]) -> list[str]:
    """A name of a list, and after it those of its replicates. `select` makes its policies from names of its list."""
    return [name, *(of_key(of, key)[name] for of in by_seed if name in of_key(of, key))]


def _repeated(entry: Mapping[str, Any], name: str, seed: int, of: Names, trained: bool) -> dict[str, Any]:
    found = copy.deepcopy(dict(entry))
    found |= {key: of.policies.get(found[key], found[key]) for key in ("policy", "start") if key in found}
    if "round" in found:
        found["round"] = of.rounds.get(found["round"], found["round"])
    return found | ({SEED: seed} if trained else {}) | {OF: name}


def _add(params: dict[str, Any], key: str, name: str, seed: int, entry: Any) -> None:
    section, new = value(params, key), replica(name, seed)
    if new in section:
        raise ParamsError(
            f"{PARAMS}: {key}.{new} is an entry of your own, and the replicate of {name} with seed {seed} would have "
            "its name; rename it"
        )
    section[new] = entry


def seed_problems(params: Mapping[str, Any]) -> Iterator[str]:
    """A sentence where the entries are not those that `seeds` asks for."""
    if not all(isinstance(name, str) for key in LISTS for name in value(params, key)):
        return  # what checks the lists says what is wrong
    try:
        seeds = check_seeds(params[SEEDS])
        wanted = expanded(originals(params), seeds)
    except ParamsError as error:
        yield error.message.removeprefix(f"{PARAMS}: ")
        return
    wrong = [
        f"{key}.{name}" for key in (*ENTRIES, "pools") for name in _differing(value(params, key), value(wanted, key))
    ]
    wrong += [f"{key}: {name}" for key in LISTS for name in _not_in_both(value(params, key), value(wanted, key))]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        yield f"the entries are not those of {SEEDS} ({seeds}): {', '.join(wrong[:SHOWN])}{more}; run vfrl seeds"


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names that are missing, too many, or of other entries."""
    return [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]


def _not_in_both(found: Sequence[str], wanted: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys([*wanted, *found]) if (name in found) != (name in wanted)]


def policies_by_seed(
    evaluated: Sequence[str],
    trained: Mapping[str, Mapping[str, Any]],
    extended: Mapping[str, Mapping[str, Any]],
    selected: Collection[str],
    seeds: Sequence[int],
) -> dict[str, dict[int, str]]:
    """The evaluated policies that are trained with several seeds: of each the policies by seed, the first its own.

    trained: the entries of all sections of TRAINED. extended: section `extend`. selected: select.policies. Empty where
    there is one seed.
    """
    found: dict[str, dict[int, str]] = {}
    for name, entry in {**trained, **extended}.items():
        if is_replicate(entry):
            seed = next(seed for seed in seeds if name == replica(entry[OF], seed))
            found.setdefault(entry[OF], {seeds[0]: entry[OF]})[seed] = name
    found |= {
        f"{first}{SELECTED}": {seed: f"{name}{SELECTED}" for seed, name in policies.items()}
        for first, policies in found.items()
        if first in selected
    }
    return {name: found[name] for name in evaluated if name in found}


def chains(
    trained: Mapping[str, Mapping[str, Any]],
    extended: Mapping[str, Mapping[str, Any]],
    selected: Collection[str],
    rounds: Mapping[str, Mapping[str, Any]],
    dense: Mapping[str, Mapping[str, Any]],
    pools: Mapping[str, Sequence[str]],
) -> dict[str, set[str]]:
    """By policy, itself and the policies that it comes from: starts, and those that sampled its rounds.

    trained, extended, selected: as of `policies_by_seed`. rounds, dense, pools: the sections.
    """
    before: dict[Node, set[Node]] = {("policy", f"{name}{SELECTED}"): {("policy", name)} for name in selected}
    before |= {("policy", name): {("policy", entry["policy"])} for name, entry in extended.items()}
    before |= {("round", name): {("policy", entry["policy"])} for name, entry in rounds.items()}
    before |= {
        ("round", name): {("policy", entry["policy"]), ("round", entry["round"])} for name, entry in dense.items()
    }
    before |= {("round", name): {("round", part) for part in parts} for name, parts in pools.items()}
    for name, entry in trained.items():
        before["policy", name] = {("policy", entry["start"])}
        before["policy", name] |= {("round", entry["round"])} if "round" in entry else set()
    return {name: _policies_before(before, (kind, name)) for kind, name in before if kind == "policy"}


def _policies_before(before: Mapping[Node, set[Node]], node: Node) -> set[str]:
    found, todo = set[Node](), [node]
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += before.get(one, ())
    return {name for kind, name in found if kind == "policy"}


def value(params: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted name that is there."""
    found: Any = params
    for part in key.split("."):
        found = found[part]
    return found
