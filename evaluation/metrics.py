"""What metrics/evaluate.json holds: the headline, which DVC shows, and beside it the figures that git compares."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from evaluation.accept import BASE, BEST_OF
from evaluation.measures import ALL

DETAIL = "in detail"  # has a space, so that no policy is called so
OVER_SEEDS = "over seeds"  # likewise, in it
DIGITS = {100: 1, 1: 4}  # after the point: of rates as pages show them, where a rate of 1 is 100; of scores
COUNTED = ("accepted", "rejected", "unlabelled")  # of a round's clips
RATES = {"accept": "rate", "minus_base": "diff", "minus_start": "diff"}  # key of the summary -> what it averages
SCORES = {"scores": "mean", "score_minus_base": "diff", "score_minus_start": "diff"}


def metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The headline; and what a table of a run shows, as lists, which `dvc metrics` leaves out.

        in detail.accept.<judge>.<policy>.<split>    per cent: rate, low, high
        in detail.minus_base, minus_start            likewise in points: difference, low, high
        in detail.scores, score_minus_base, score_minus_start    likewise mean scores, of judges that label nothing
        in detail.rounds.<name>                      clips: accepted, rejected, unlabelled
        in detail.over seeds.<key>.<judge>.<policy>.<split>    the same keys, of a policy that was trained with several
                                                     seeds: mean over them, low, high, and what each seed has
        in detail.over seeds.minus.<judge>.<policy>.<other>.<split>    its difference to another such policy

    A key without entries is left out; a figure that is not known is null.
    """
    labelling = summary["policies"][BASE]["accept"]
    detail = _detail(summary["policies"], labelling)
    if replicated := summary.get("replicates"):
        detail[OVER_SEEDS] = _detail(replicated, labelling) | _between(replicated, labelling)
    if rounds := summary["rounds"]:
        detail["rounds"] = {name: [counts[key] for key in COUNTED] for name, counts in rounds.items()}
    return headline(summary) | {DETAIL: detail}


def _detail(policies: Mapping[str, Any], labelling: Collection[str]) -> dict[str, Any]:
    """The figures of policies by key and judge."""
    found: dict[str, Any] = {}
    for keys, scale, labels in ((RATES, 100, True), (SCORES, 1, False)):
        for key, called in keys.items():
            for judge, policy, splits in _tables(policies, key):
                if (judge in labelling) is labels:
                    figures = {split: _figures(one, called, scale) for split, one in splits.items()}
                    found.setdefault(key, {}).setdefault(judge, {})[policy] = figures
    return found


def _between(replicated: Mapping[str, Any], labelling: Collection[str]) -> dict[str, Any]:
    """The differences of policies that were trained with several seeds to each other."""
    found: dict[str, Any] = {}
    for key, scale, labels in (("minus", 100, True), ("score_minus", 1, False)):
        for name, policy in replicated.items():
            for judge, other, splits in _tables(policy.get(key, {}), None):
                if (judge in labelling) is labels:
                    figures = {split: _figures(one, "diff", scale) for split, one in splits.items()}
                    found.setdefault(key, {}).setdefault(judge, {}).setdefault(name, {})[other] = figures
    return found


def headline(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `dvc metrics` compares between runs: two numbers a policy, on all clips.

    `rwr1` is its accept rate under the first judge that labels clips, in per cent, and `Δrwr1` the paired difference
    to base in points; where no judge labels, mean scores of the first. Baselines that choose among a policy's clips are
    left out. Names of policies are lower-case ASCII, so the keys are distinct. Of a policy that was trained with three
    seeds, `rwr1 of 3 seeds` is the mean over them, and the further ones have no row of their own.
    """
    replicated = summary.get("replicates", {})
    further = {name for one in replicated.values() for name in one["policies"][1:]}
    shown = [name for name, one in summary["policies"].items() if (one["baseline"] or {}).get("kind") != BEST_OF]
    policies = {name: summary["policies"][name] for name in shown if name not in further} | {
        f"{name} of {len(one['seeds'])} seeds": one for name, one in replicated.items() if name in shown
    }
    labels = bool(policies[BASE]["accept"])
    means, minus_base, scale = ("accept", "minus_base", 100) if labels else ("scores", "score_minus_base", 1)
    judge = next(iter(policies[BASE][means]))
    found: dict[str, float | None] = {}
    for name, one in policies.items():
        found[name] = _scaled(one[means][judge][ALL]["rate" if labels else "mean"], scale, 2)
        if minus_base in one:
            found[f"Δ{name}"] = _scaled(one[minus_base][judge][ALL]["diff"], scale, 2)
    return found


def _tables(policies: Mapping[str, Any], key: str | None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Judge, policy and figures by split, of one key of the policies' summaries; None: of all that stands there."""
    for name, policy in policies.items():
        for judge, splits in (policy if key is None else policy.get(key, {})).items():
            yield judge, name, splits


def _figures(found: Mapping[str, Any], called: str, scale: int) -> list[float | None]:
    ends = [found[called], found["low"], found["high"], *found.get("of_seeds", ())]
    return [_scaled(value, scale, DIGITS[scale]) for value in ends]


def _scaled(value: float | None, scale: int, digits: int) -> float | None:
    return None if value is None else round(scale * value, digits)
