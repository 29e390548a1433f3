"""What it took to make each policy, to evaluate it, and to sample a clip of it.

The figures of a stage, metrics/<stage>/<key>.json, have its own cost under `cost`. The cost of a policy is that of all
stages that it comes from, each once: its start; each round that it was trained on, with the policy that sampled it, its
clips and its labels; each reward model that judged it while it was made, with its round; its training. An amount that
is not known is None, and so is a sum with such a part, never 0.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from report.table import UNKNOWN, Cell, ResultTable, Row, judges, verdict

BASE, SELECTED = "base", "-selected"  # as pipeline.graph names them, which this package does not import
COST = "cost"  # key of a stage's figures
UNJUDGED = ("sft",)  # objectives whose rows are the same whatever a judge says


class Cost(NamedTuple):
    """What something took; None where it is not known."""

    clips: int | None = 0  # sampled, or rolled out online
    judge_calls: int | None = 0  # answers to a question, in a vote, about a clip or about two
    usd: float | None = 0.0  # US dollars, paid for answers
    forwards: int | None = 0  # of a denoiser, by clips; without what a backward computes again
    backwards: int | None = 0
    decodes: int | None = 0  # clips through the VAE's decoder
    seconds: float | None = 0.0  # of the stages, one after the other
    accelerator_seconds: float | None = 0.0  # each second times the accelerators that were held

    def plus(self, other: "Cost") -> "Cost":
        """The sum, amount by amount."""
        amounts: list[Any] = [None if a is None or b is None else a + b for a, b in zip(self, other, strict=True)]
        return Cost(*amounts)


UNKNOWN_COST = Cost(*(None for _ in Cost._fields))


class Entries(NamedTuple):
    """The sections of params.yaml that say what policies are made from, as they are."""

    rounds: Mapping[str, Mapping[str, Any]]
    dense: Mapping[str, Mapping[str, Any]]
    pools: Mapping[str, Sequence[str]]
    policies: Mapping[str, Mapping[str, Any]]
    compared: Mapping[str, Mapping[str, Any]]  # comparison.policies
    online: Mapping[str, Mapping[str, Any]]  # online.policies
    selected: Sequence[str]  # select.policies
    select_judges: Sequence[str]  # of which the first chooses
    extended: Mapping[str, Mapping[str, Any]]  # extend
    rewards: Mapping[str, Mapping[str, Any]]  # reward.models, each the source of its name


def read_costs(metrics: Path) -> dict[str, Cost]:
    """The cost of each stage that has figures with one, by `<stage>/<key>`. metrics: the folder."""
    found = {}
    for path in sorted(metrics.glob("*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and isinstance(cost := document.get(COST), dict):
            found[f"{path.parent.name}/{path.stem}"] = Cost(*(cost.get(name) for name in Cost._fields))
    return found


def stages_of(entries: Entries, policy: str) -> list[str]:
    """The stages that a policy is made by and that cost something, as `<stage>/<key>`, in their order, each once.

    Without `build`, `pool`, `select` and `extend`, which compute tables and copies in seconds; without `audit`, which
    is of a judge; and without `pretrain`: base is given. Of the judges of `select` the one that chooses.
    """
    return list(dict.fromkeys(_made_by(entries, policy)))


def cost_of(entries: Entries, costs: Mapping[str, Cost], policy: str) -> Cost:
    """What making a policy took: all zeros for base. costs: by stage, from `read_costs`."""
    return _sum(costs, stages_of(entries, policy))


def costs_of(
    entries: Entries, costs: Mapping[str, Cost], policies: Mapping[str, Any], sources: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """What summary.json holds as `costs`: of each policy of the evaluation, its three costs.

    policies: of the summary; a baseline that is only computed has no stages of its own. sources: judges of the
    evaluation.

        making       a Cost: of the policy's whole chain
        evaluation   a Cost: of its evaluation clips and their labels, which the chain does not need
        a_clip       forwards and judge_calls of one clip that it makes: of best of n, n times those of its policy

    Making a computed baseline takes what its policy took, and evaluating it nothing more.
    """
    named = list(sources)
    found: dict[str, dict[str, Any]] = {}
    for name, policy in policies.items():
        how = policy.get("baseline") or {}
        computed = how.get("kind") == "best_of"
        origin = how["of"] if computed else name
        evaluation = _sum(costs, [f"eval-generate/{origin}", *(f"eval-label/{origin}-{one}" for one in named)])
        found[name] = {
            "making": cost_of(entries, costs, origin)._asdict(),
            "evaluation": (Cost() if computed else evaluation)._asdict(),
            "a_clip": _of_a_clip(costs, origin, how if computed else None),
        }
    return found


def tables(summary: Mapping[str, Any]) -> list[ResultTable]:
    """What the page shows of `costs_of`: what each policy took, with its gain, and what evaluating it took."""
    costs = summary.get("costs", {})
    if not any(any(one["making"].values()) for one in costs.values()):
        return []
    making = [Row(name, _gains(summary, name) | _cells(one["making"]) | _a_clip(one)) for name, one in costs.items()]
    evaluation = [
        Row(name, _cells(one["evaluation"])) for name, one in costs.items() if any(one["evaluation"].values())
    ]
    found = [
        ResultTable("What each policy took", "policy", _columns(making), making),
        ResultTable("What its evaluation took", "policy", _columns(evaluation), evaluation),
    ]
    return [table for table in found if table.rows]


def _made_by(entries: Entries, policy: str) -> Iterator[str]:
    if policy in entries.extended:
        yield from _made_by(entries, entries.extended[policy]["policy"])
    elif policy in entries.online:
        entry = entries.online[policy]
        yield from _made_by(entries, entry["start"])
        yield from _reward_models(entries, entry["judge"], entry["held_out"])
        yield f"online/{policy}"
    elif policy in entries.policies:
        entry = entries.policies[policy]
        yield from _made_by(entries, entry["start"])
        yield from _rows_of(entries, entry["round"], entry["objective"])
        yield f"train/{policy}"
    elif policy in entries.compared:
        entry = entries.compared[policy]
        yield from _made_by(entries, entry["start"])
        yield from _clips_of(entries, entry["round"])
        if entry["objective"] not in UNJUDGED:
            yield from _reward_models(entries, entry["source"])
            yield f"label-compare/{entry['round']}-{entry['source']}"
        yield f"train-compare/{policy}"
    elif policy.removesuffix(SELECTED) in entries.selected and policy.endswith(SELECTED):
        name = policy.removesuffix(SELECTED)
        yield from _made_by(entries, name)
        yield f"generate-select/{name}"
        yield from _reward_models(entries, entries.select_judges[0])
        yield f"label-select/{name}-{entries.select_judges[0]}"


def _rows_of(entries: Entries, of: str, objective: str) -> Iterator[str]:
    """The stages that made the rows of a round or a pool for an objective."""
    for name in _rounds(entries, of):
        yield from _clips_of(entries, name)
        if objective not in UNJUDGED:
            yield f"{'label-dense' if name in entries.dense else 'label'}/{name}"


def _reward_models(entries: Entries, *sources: str) -> Iterator[str]:
    """The stages that made those of these sources that stage reward trains."""
    for name in sources:
        if name in entries.rewards:
            yield from _rows_of(entries, entries.rewards[name]["round"], "dpo")
            yield f"reward/{name}"


def _clips_of(entries: Entries, name: str) -> Iterator[str]:
    """The stages that made a round's clips; pairs with one start come from the clips of a round."""
    if name in entries.dense:
        yield from _clips_of(entries, entries.dense[name]["round"])
        yield from _made_by(entries, entries.dense[name]["policy"])
        yield f"generate-dense/{name}"
        return
    yield from _made_by(entries, entries.rounds[name]["policy"])
    yield f"generate/{name}"


def _rounds(entries: Entries, name: str) -> list[str]:
    """The rounds of a pool, or the round of that name."""
    if name not in entries.pools:
        return [name]
    return [found for part in entries.pools[name] for found in _rounds(entries, part)]


def _sum(costs: Mapping[str, Cost], stages: Iterable[str]) -> Cost:
    total = Cost()
    for stage in stages:
        total = total.plus(costs.get(stage, UNKNOWN_COST))
    return total


def _of_a_clip(costs: Mapping[str, Cost], policy: str, best_of: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Forwards and judge calls of a clip. best_of: the baseline that keeps one clip of several by a judge's score."""
    sampled = costs.get(f"eval-generate/{policy}", UNKNOWN_COST)
    forwards = _per(sampled.forwards, sampled.clips)
    if best_of is None:
        return {"forwards": forwards, "judge_calls": 0}
    judged = costs.get(f"eval-label/{policy}-{best_of['judge'].partition('/')[0]}", UNKNOWN_COST)
    count, calls = best_of["samples_per_clip"], _per(judged.judge_calls, sampled.clips)
    return {
        "forwards": None if forwards is None else count * forwards,
        "judge_calls": None if calls is None else count * calls,
    }


def _per(amount: float | None, clips: int | None) -> float | None:
    return None if amount is None or not clips else amount / clips


# Cells

TITLES = {
    "clips": "clips sampled",
    "judge_calls": "judge calls",
    "usd": "paid, $",
    "forwards": "forwards",
    "backwards": "backwards",
    "decodes": "VAE decodes",
    "seconds": "time, s",
    "accelerator_seconds": "accelerators, s",
}


def _cells(cost: Mapping[str, Any]) -> dict[str, Cell]:
    return {title: Cell(_number(cost[name], 2 if name == "usd" else 0)) for name, title in TITLES.items()}


def _gains(summary: Mapping[str, Any], name: str) -> dict[str, Cell]:
    """The difference to base under each judge, in points."""
    cells = {}
    for judge in judges(summary):
        gap = summary["policies"][name].get("minus_base", {}).get(judge, {}).get("all")
        if gap and gap["diff"] is not None:
            cells[f"{judge} − base"] = Cell(f"{100 * gap['diff']:+.1f}", verdict(gap["low"], gap["high"]))
    return cells


def _a_clip(one: Mapping[str, Any]) -> dict[str, Cell]:
    of = one["a_clip"]
    return {"forwards a clip": Cell(_number(of["forwards"])), "judge calls a clip": Cell(_number(of["judge_calls"]))}


def _number(value: float | None, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def _columns(rows: Sequence[Row]) -> list[str]:
    fullest = max(rows, key=lambda row: len(row.cells), default=None)  # whose order is everybody's: base has no gain
    first = [] if fullest is None else list(fullest.cells)
    return list(dict.fromkeys([*first, *(column for row in rows for column in row.cells)]))
