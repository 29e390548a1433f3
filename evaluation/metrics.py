"""What metrics/evaluate.json holds: the headline, which DVC shows, and beside it the figures that git compares."""

from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.accept import BASE, BEST_OF
from evaluation.measures import ALL

DETAIL = "in detail"  # has a space, so that no policy is called so
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

    A key without entries is left out; a figure that is not known is null.
    """
    labelling = summary["policies"][BASE]["accept"]
    detail: dict[str, Any] = {}
    for keys, scale, labels in ((RATES, 100, True), (SCORES, 1, False)):
        for key, called in keys.items():
            for judge, policy, splits in _tables(summary, key):
                if (judge in labelling) is labels:
                    figures = {split: _figures(one, called, scale) for split, one in splits.items()}
                    detail.setdefault(key, {}).setdefault(judge, {})[policy] = figures
    if rounds := summary["rounds"]:
        detail["rounds"] = {name: [counts[key] for key in COUNTED] for name, counts in rounds.items()}
    return headline(summary) | {DETAIL: detail}


def headline(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `dvc metrics` compares between runs: two numbers a policy, on all clips.

    `rwr1` is its accept rate under the first judge that labels clips, in per cent, and `Δrwr1` the paired difference
    to base in points; where no judge labels, mean scores of the first. Baselines that choose among the base's clips are
    left out. Names of policies are lower-case ASCII, so the keys are distinct.
    """
    policies = {
        name: one for name, one in summary["policies"].items() if (one["baseline"] or {}).get("kind") != BEST_OF
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


def _tables(summary: Mapping[str, Any], key: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Judge, policy and figures by split, of one key of the policies' summaries."""
    for name, policy in summary["policies"].items():
        for judge, splits in policy.get(key, {}).items():
            yield judge, name, splits


def _figures(found: Mapping[str, Any], called: str, scale: int) -> list[float | None]:
    return [_scaled(found[key], scale, DIGITS[scale]) for key in (called, "low", "high")]


def _scaled(value: float | None, scale: int, digits: int) -> float | None:
    return None if value is None else round(scale * value, digits)
