"""The effects of every evaluated policy as means, intervals and differences to the base."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.effects.figures import BASE, Column, Figures, Keys
from evaluation.effects.reasons import count_reasons
from evaluation.effects.rows import Effects
from evaluation.effects.seeds import difference_by_seed, estimate_by_seed
from evaluation.effects.wins import wins
from evaluation.intervals import Estimate
from evaluation.measures import Clips
from evaluation.replicates import between_seeds, difference_over_seeds, estimate_over_seeds

Bootstrap = tuple[int, int]  # draws and seed
Found = dict[Keys, dict[str, Any]]  # figures by their keys in the summary


def effects_of(figures: Figures, draws: int, seed: int) -> dict[str, dict[str, Any]]:
    """By policy what summary.json holds as `policies.<name>.effects`; equal inputs give an equal result.

    draws, seed: of the bootstrap.

        pass_at.<judge>.<k>.<split>      rate, low, high, n (prompts)
        vendi.<split>, distance.<split>  mean, low, high, n (prompts): evaluation.effects.diversity
        motion.all.<split>               mean, low, high, n (clips), in pixels
        motion.<judge>.<split>           likewise, of the clips that the judge accepts
        drift.<split>                    mean, low, high, n (clips of the base): mean squared change of prediction
        drift_by_t                       t, mean: of each time, all clips; empty where drift is not measured
        minus_base.<any but drift>       diff, low, high; not of base
        wins.<judge>.<split>             prompts (rose, fell, equal), clips (gained, lost, both); not of base
        reasons.<judge>.<reason>         clips that were not accepted for it, numbers in it written as #

    A mean over prompts weighs each prompt once. An unlabelled clip is in no pass@k, win or reason of acceptance.
    """
    sets, clips, judged = figures.sets, figures.clips, figures.judged
    reasons = {
        judge: count_reasons({name: one.labels[judge] for name, one in sets.items()}) for judge in figures.labelling
    }
    found: dict[str, dict[str, Any]] = {}
    for name in sets:
        own = _tree(_means(figures, [name], (draws, seed)))
        own |= {"drift": own.get("drift", {}), "drift_by_t": _drift_by_t([figures.measured[name]])}
        if name != BASE:
            own["minus_base"] = _tree(_gaps(figures, [name], (draws, seed)))
            own["wins"] = {
                judge: {
                    split: wins(values[cell], judged[BASE][judge][cell], clips.prompts[cell])
                    for split, cell in clips.cells[None].items()
                }
                for judge, values in judged[name].items()
            }
        own["reasons"] = {judge: counts[name] for judge, counts in reasons.items() if counts}
        found[name] = own
    return found


def effects_over_seeds(
    figures: Figures,
    effects: Mapping[str, Mapping[str, Any]],
    by_seed: Mapping[str, Mapping[int, str]],
    draws: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """What summary.json holds as `replicates.<name>.effects`: the keys of `effects_of`, over a policy's seeds.

    effects: what `effects_of` returned. by_seed: of each policy with several seeds the policies by seed.

    Each estimate also has of_seeds, the mean of each seed, and between_seeds, their standard deviation. low and high
    are over seeds and prompts (evaluation.replicates; of accepted clips evaluation.effects.seeds), n is the sum over
    the seeds. Counts, those of wins and of reasons, are means over the seeds, to be compared with those of a single
    policy.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, seeds in by_seed.items():
        policies, bootstrap = list(seeds.values()), (draws, seed)
        singles = [effects[policy] for policy in policies]
        own = _tree(_with_seeds(_means(figures, policies, bootstrap), singles))
        gaps = _with_seeds(_gaps(figures, policies, bootstrap), [one["minus_base"] for one in singles])
        found[name] = own | {
            "drift": own.get("drift", {}),
            "drift_by_t": _drift_by_t([figures.measured[policy] for policy in policies]),
            "minus_base": _tree(gaps),
            **{key: _mean_count([one[key] for one in singles]) for key in ("wins", "reasons")},
        }
    return found


def _means(figures: Figures, policies: Sequence[str], bootstrap: Bootstrap) -> Found:
    """Every mean over these policies, seeds of one."""

    def of(column: Column) -> dict[str, Any]:
        mean = estimate_by_seed if column.chosen else estimate_over_seeds
        return _named(mean(column.values, column.prompts, *bootstrap), "rate" if "pass_at" in column.keys else "mean")

    found = {column.keys: of(column) for column in figures.columns(policies)}
    return found | _drift(figures, policies, bootstrap)


def _gaps(figures: Figures, policies: Sequence[str], bootstrap: Bootstrap) -> Found:
    """The differences of these policies, seeds of one, to base."""

    def of(column: Column) -> dict[str, Any]:
        gap = difference_by_seed if column.chosen else difference_over_seeds
        found = gap(column.values, column.base, column.prompts, *bootstrap)
        return {"diff": found.mean, "low": found.low, "high": found.high}

    return {column.keys: of(column) for column in figures.columns(policies)}


def _drift(figures: Figures, policies: Sequence[str], bootstrap: Bootstrap) -> Found:
    """Drift by split, over the base's clips that were looked at, each the mean over its times."""
    rows = [_squared(figures.measured[policy]) for policy in policies]
    seen = {sample_id for one in rows for sample_id in one}
    if not seen:
        return {}
    chosen = Clips(tuple(sample for sample in figures.clips.samples if sample.sample_id in seen))
    values = np.array([[np.mean(one.get(sample.sample_id, np.nan)) for sample in chosen.samples] for one in rows])
    return {
        ("drift", split): _named(estimate_over_seeds(values[:, cell], chosen.prompts[cell], *bootstrap), "mean")
        for split, cell in chosen.cells[None].items()
    }


def _squared(effects: Effects) -> dict[str, list[float]]:
    """The squared changes of each clip, at all times."""
    found: dict[str, list[float]] = {}
    for row in effects.drift:
        found.setdefault(row.sample_id, []).append(row.squared)
    return found


def _drift_by_t(effects: Sequence[Effects]) -> list[dict[str, float]]:
    """The mean of each time over all clips of these policies, of which each has as many."""
    times: dict[float, list[float]] = {}
    for one in effects:
        for row in one.drift:
            times.setdefault(row.t, []).append(row.squared)
    return [{"t": t, "mean": float(np.mean(found))} for t, found in sorted(times.items())]


def _with_seeds(found: Found, singles: Sequence[Mapping[str, Any]]) -> Found:
    """The figures, each with what every seed has by itself. singles: of each seed the tree of the same keys."""
    seeds: Found = {}
    for keys, one in found.items():
        called = next(iter(one))
        of_seeds = [_at(single, keys)[called] for single in singles]
        means = np.array(of_seeds, float)  # None: nan
        seeds[keys] = {**one, "between_seeds": between_seeds(means[:, None]), "of_seeds": of_seeds}
    return seeds


def _mean_count(counts: Sequence[Any]) -> Any:
    """Numbers, or dictionaries of them with the same keys, as their mean."""
    if isinstance(counts[0], Mapping):
        return {key: _mean_count([one[key] for one in counts]) for key in counts[0]}
    return float(np.mean(counts))


def _tree(found: Found) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*outer, last), value in found.items():
        inner = tree
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return tree


def _at(tree: Mapping[str, Any], keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _named(found: Estimate, called: str) -> dict[str, Any]:
    return {called: found.mean, "low": found.low, "high": found.high, "n": found.n}
