"""The effects of every evaluated policy as means, intervals and differences to the base."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from evaluation.effects.pass_at import by_prompt, within
from evaluation.effects.reasons import count_reasons
from evaluation.effects.rows import Effects
from evaluation.effects.wins import wins
from evaluation.intervals import Estimate, difference_by_clip, difference_by_prompt, estimate
from evaluation.measures import Clips, only
from evaluation.sets import EvaluationSet, accepted

BASE = "base"
EVERY = "all"  # clips, beside those that a judge accepts

Measures = dict[tuple[str, ...], np.ndarray]  # keys of the summary -> (N,) of clips or (P,) of prompts, nan: not known
Means = Callable[[np.ndarray, np.ndarray], Estimate]  # values, prompts -> an estimate
Gaps = Callable[[np.ndarray, np.ndarray, np.ndarray], Estimate]  # values, others, prompts -> an estimate


def effects_of(
    sets: Mapping[str, EvaluationSet],
    measured: Mapping[str, Effects],
    labelling: Sequence[str],
    wanted: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """By policy what summary.json holds as `policies.<name>.effects`; equal inputs give an equal result.

    sets, measured: by policy, base among them, clips in one order. labelling: judges that accept and reject. wanted:
    the k of pass@k. draws, seed: of the bootstrap.

        pass_at.<judge>.<k>.<split>      rate, low, high, n (prompts)
        vendi.<split>, distance.<split>  mean, low, high, n (prompts): evaluation.effects.diversity
        motion.all.<split>               mean, low, high, n (clips), in pixels
        motion.<judge>.<split>           likewise, of the clips that the judge accepts
        drift.<split>                    mean, low, high, n (clips of the base): mean squared change of prediction
        drift_by_t                       t, mean: of each time, all clips; empty where drift is not measured
        minus_base.<any but drift>       diff, low, high; not of base
        reasons.<judge>.<reason>         clips that were not accepted for it, numbers in it written as #
        wins.<judge>.<split>             prompts (rose, fell, equal), clips (gained, lost, both); not of base

    A mean over prompts weighs each prompt once. An unlabelled clip is in no pass@k, win or reason of acceptance.
    """
    clips = Clips(sets[BASE].samples)
    judged = {name: {judge: accepted(one.labels[judge]) for judge in labelling} for name, one in sets.items()}
    reasons = {judge: count_reasons({name: one.labels[judge] for name, one in sets.items()}) for judge in labelling}
    mean, by_clip, by_group = (
        partial(how, draws=draws, seed=seed) for how in (estimate, difference_by_clip, difference_by_prompt)
    )
    of_prompts = {name: _of_prompts(clips, judged[name], measured[name], wanted) for name in sets}
    of_clips = {name: _of_clips(judged[name], measured[name]) for name in sets}
    cells = {split: (cell, cell[_first(clips)]) for split, cell in clips.cells[None].items()}
    found: dict[str, dict[str, Any]] = {}
    for name in sets:
        own: dict[str, Any] = {}
        other: dict[str, Any] = {}
        for split, (of_clip, of_prompt) in cells.items():
            for key, values in of_prompts[name].items():
                names = np.arange(len(values))[of_prompt]
                base = of_prompts[BASE][key]
                _put(own, (*key, split), _named(mean(values[of_prompt], names), "rate" if "pass_at" in key else "mean"))
                _put(other, (*key, split), _gap(by_clip(values[of_prompt], base[of_prompt], names)))
            for key, values in of_clips[name].items():
                names, base = clips.prompts[of_clip], of_clips[BASE][key]
                gap = by_clip if EVERY in key else by_group  # a judge accepts other clips of each policy
                _put(own, (*key, split), _named(mean(values[of_clip], names), "mean"))
                _put(other, (*key, split), _gap(gap(values[of_clip], base[of_clip], names)))
        own |= _drift(measured[name], sets[BASE], mean)
        if name != BASE:
            own["minus_base"] = other
            own["wins"] = {
                judge: {
                    split: wins(values[cell], judged[BASE][judge][cell], clips.prompts[cell])
                    for split, (cell, _) in cells.items()
                }
                for judge, values in judged[name].items()
            }
        own["reasons"] = {judge: counts[name] for judge, counts in reasons.items() if counts}
        found[name] = own
    return found


def _first(clips: Clips) -> np.ndarray:
    """(P,) int, the first clip of each prompt in the order of its number."""
    return np.unique(clips.prompts, return_index=True)[1]


def _of_prompts(clips: Clips, judged: Mapping[str, np.ndarray], effects: Effects, wanted: Sequence[int]) -> Measures:
    """(P,) each: pass@k by judge, Vendi score and mean distance."""
    largest = int(np.bincount(clips.prompts).max())
    found: Measures = {
        ("pass_at", judge, str(k)): by_prompt(values, clips.prompts, k)
        for judge, values in judged.items()
        for k in within(tuple(wanted), largest)
    }
    by_id = {row.prompt_id: row for row in effects.spread}
    rows = [by_id[prompt_id] for prompt_id in clips.prompt_ids[_first(clips)]]
    return found | {
        ("vendi",): _floats([row.vendi for row in rows]),
        ("distance",): _floats([row.distance for row in rows]),
    }


def _of_clips(judged: Mapping[str, np.ndarray], effects: Effects) -> Measures:
    """(N,) each: motion of every clip, and of those that each judge accepts."""
    motion = _floats([row.motion for row in effects.motion])
    return {("motion", EVERY): motion} | {
        ("motion", judge): only(motion, values == 1) for judge, values in judged.items()
    }


def _drift(effects: Effects, base: EvaluationSet, mean: Means) -> dict[str, Any]:
    """Drift by split, over the base's clips that were looked at, each the mean over its times."""
    rows: dict[str, list[float]] = {}
    times: dict[float, list[float]] = {}
    for row in effects.drift:
        rows.setdefault(row.sample_id, []).append(row.squared)
        times.setdefault(row.t, []).append(row.squared)
    if not rows:
        return {"drift": {}, "drift_by_t": []}
    chosen = Clips(tuple(sample for sample in base.samples if sample.sample_id in rows))
    values = np.array([np.mean(rows[sample.sample_id]) for sample in chosen.samples])
    means = {split: mean(values[cell], chosen.prompts[cell]) for split, cell in chosen.cells[None].items()}
    by_t = [{"t": t, "mean": float(np.mean(found))} for t, found in sorted(times.items())]
    return {"drift": {split: _named(one, "mean") for split, one in means.items()}, "drift_by_t": by_t}


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *outer, last = keys
    for key in outer:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _named(found: Estimate, called: str) -> dict[str, Any]:
    return {called: found.mean, "low": found.low, "high": found.high, "n": found.n}


def _gap(found: Estimate) -> dict[str, Any]:
    return {"diff": found.mean, "low": found.low, "high": found.high}
