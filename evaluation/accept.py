"""Accept rates and scores of policies under judges, and how they differ from the base's and from their start's."""

import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from evaluation.agreement import compare_judges
from evaluation.intervals import Estimate, difference_by_clip, difference_by_prompt, estimate
from evaluation.measures import ALL, MEASURES, Clips, Measured, Values, measure
from evaluation.over_seeds import Seeds, replicates, share_training
from evaluation.questions import in_all
from evaluation.replicates import difference_over_seeds
from evaluation.selection import BestOf, TopK, at_first_place, take_best_of
from evaluation.sets import EvaluationSet, check_paired, scores

BASE = "base"
BEST_OF = "best_of"  # the kind of a baseline that chooses among a policy's clips
ROUND_COUNTS = ("samples", "accepted", "rejected", "unlabelled")
MAX_UNLABELLED = 0.05  # share of a policy's clips; above it a rate may differ much from that of all clips


class Bootstrap(NamedTuple):
    """The last arguments of an estimate."""

    draws: int
    seed: int


class BestClips(NamedTuple):
    """The clips of a policy that a judge would choose out of every n, as a policy that costs n samples a clip."""

    of: str  # the policy
    measured: Measured  # a value for each n clips, at the place of the first of them
    counted: np.ndarray  # (N,) bool, these places
    not_ranked: int  # chosen where the judge scored none of the n


def summarise(
    sets: Mapping[str, EvaluationSet],
    starts: Mapping[str, str],
    rounds: Mapping[str, Mapping[str, Any]],
    draws: int,
    seed: int,
    top_k: TopK | None = None,
    best_of: BestOf | None = None,
    by_seed: Mapping[str, Seeds] = MappingProxyType({}),
    chains: Mapping[str, Set[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """What summary.json holds; equal inputs give an equal summary.

    low and high are null below three prompts (evaluation.intervals), and all figures where nothing was known.

    sets: by policy, base among them. starts: policy -> the policy it was trained from. rounds: name -> counts.
    draws, seed: of the bootstrap. Judges that are named must be among those of the sets.
    by_seed, chains: of policies that were trained with several seeds, as `evaluation.over_seeds.replicates` takes them.

        policies.<name>.accept.<judge>.<split>        rate, low, high, n (clips labelled)
        policies.<name>.unlabelled.<judge>.<split>    clips left out of the rate
        policies.<name>.minus_base.<judge>.<split>    diff, low, high: same prompts and seeds, clips known to both
        policies.<name>.minus_start.<judge>.<split>   likewise, to the policy it was trained from; of a best of n, by
                                                      prompt, to the policy that it chooses from, if that is not base
        policies.<name>.scores.<judge>.<split>        mean, low, high, n: of judges whose scores are not all 0 or 1;
                                                      of metrics, which label nothing, scores stand alone
        policies.<name>.score_minus_base, score_minus_start    as minus_base and minus_start
        policies.<name>.categories.<category>         all of these again but unlabelled
        policies.<name>.baseline                      null, or how it was made of another policy's clips
        best.<judge>                                  policy, over, diff, low, high: of the policies that were trained
                                                      the one with the highest accept rate on all clips, and how it
                                                      differs from the second, clip by clip; only where there are two.
                                                      One of several seeds counts as one, over its seeds
        rounds.<name>                                 samples, accepted, rejected, unlabelled; of a source that compares
                                                      also comparisons (data.preferences.Tally)
        agreement                                     of judges: see evaluation.agreement
        warnings                                      sentences
        top_k                                         k, by; or null

    With top_k also, and for policies alone, not for baselines, which hold fewer clips:

        policies.<name>.top_k.<judge>.<split>         rate, low, high, n: of each prompt's best k clips
        policies.<name>.top_k_scores.<judge>.<split>  mean, low, high, n
        policies.<name>.top_k_minus_base, top_k_minus_start, top_k_score_minus_base, top_k_score_minus_start

    Only where a judge asks several questions, and for policies alone; a clip that was not asked one counts as unknown:

        policies.<name>.questions.<judge>.<question>.<split>    rate, low, high, n: of the wanted answer
        policies.<name>.questions_minus_base, questions_minus_start    likewise diff, low, high

    Only where a clip had more than one vote (feedback.core.agreement says what is computed):

        policies.<name>.agreement.<judge>             label, answers, questions.<question>, each with clips,
        rounds.<name>.agreement                       not_unanimous, observed, kappa

    Only where policies were trained with several seeds (evaluation.over_seeds says what it holds):

        replicates.<name>                             such a policy over all its seeds
    """
    check_paired(sets)
    clips, bootstrap = Clips(sets[BASE].samples), Bootstrap(draws, seed)
    ranked = {judge: scores(sets, judge) for judge in sets[BASE].labels}
    labelling = [judge for judge in ranked if not _only_measures(sets, judge)]
    measured = {name: measure(name, one, labelling, ranked, clips, top_k) for name, one in sets.items()}
    outcomes = {
        name: {judge: one["accept" if judge in labelling else "scores"][judge] for judge in ranked}
        for name, one in measured.items()
    }
    policies = {
        name: _policy(name, measured, starts.get(name), clips, bootstrap)
        | _by_question(name, sets, starts.get(name), clips, bootstrap)
        | _votes(one.agreement)
        for name, one in sets.items()
    }
    warnings = [*_lost_starts(starts, policies), *_much_unlabelled(policies)]
    chosen: dict[str, BestClips] = {}
    if best_of is not None:
        chosen = _choose(best_of, by_seed, ranked[best_of.judge], measured, clips)
        policies |= {name: _best_of(best_of, one, measured, clips, bootstrap) for name, one in chosen.items()}
    further = {name for seeds in by_seed.values() for name in list(seeds.values())[1:]}
    trained = {name: by_seed.get(name, {0: name}) for name in sets if name in starts and name not in further}
    replicated = _over_seeds(chosen, by_seed, chains, starts, measured, clips, bootstrap)
    return {
        "policies": policies,
        "best": _best(measured, trained, chains, clips, bootstrap),
        "rounds": {
            name: {key: counts[key] for key in ROUND_COUNTS}
            | _votes(counts.get("agreement"))
            | {key: counts[key] for key in ("comparisons",) if key in counts}
            for name, counts in rounds.items()
        },
        "agreement": compare_judges(outcomes, labelling, clips.prompts),
        "warnings": warnings,
        "top_k": None if top_k is None else asdict(top_k),
        "bootstrap": {
            "draws": draws, "seed": seed, "prompts": len(np.unique(clips.prompts)), "clips": len(clips.samples)
        },
    } | ({"replicates": replicated} if replicated else {})  # fmt: skip


def _only_measures(sets: Mapping[str, EvaluationSet], judge: str) -> bool:
    """Whether a judge gave scores and no label: a metric."""
    labels = [label for one in sets.values() for label in one.labels[judge]]
    return all(label.label is None for label in labels) and any(label.score is not None for label in labels)


def as_json(summary: Mapping[str, Any]) -> str:
    """A summary as it is written to disk."""
    return json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plot_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `dvc plots` draws: the accept rates on all clips, a row for each policy and judge that labelled any.

    A policy that was trained with several seeds has one row, over all of them.
    """
    replicated = summary.get("replicates", {})
    single = {name for one in replicated.values() for name in one["policies"]}
    policies = {name: replicated.get(name, one) for name, one in summary["policies"].items()}
    return [
        {"policy": name, "judge": judge} | {key: splits[ALL][key] for key in ("rate", "low", "high", "n")}
        for name, policy in policies.items()
        if name in replicated or name not in single
        for judge, splits in policy["accept"].items()
        if splits[ALL]["n"]
    ]


def _policy(
    name: str, measured: Mapping[str, Measured], start: str | None, clips: Clips, bootstrap: Bootstrap
) -> dict[str, Any]:
    compared = {"base": measured[BASE]} if name != BASE else {}
    if start is not None and start in measured:
        compared["start"] = measured[start]
    counted = np.ones(len(clips.samples), bool)
    return {"start": start, "baseline": None, **_tables(measured[name], compared, counted, clips, bootstrap)}


def _best(
    measured: Mapping[str, Measured],
    trained: Mapping[str, Seeds],
    chains: Mapping[str, Set[str]],
    clips: Clips,
    bootstrap: Bootstrap,
) -> dict[str, dict[str, Any]]:
    """By judge the best of the trained policies and its difference to the second; of equal ones the first is best.

    trained: by name the policy, or those of several seeds, which are compared over them.
    """
    found = {}
    for judge in measured[BASE]["accept"]:
        answers = {
            name: np.stack([measured[policy]["accept"][judge] for policy in seeds.values()])
            for name, seeds in trained.items()
        }
        rates = {name: float(np.nanmean(known)) for name, known in answers.items() if not np.isnan(known).all()}
        if len(rates) > 1:
            first, second = sorted(rates, key=lambda name: -rates[name])[:2]
            one, other = answers[first], answers[second]
            paired = len(one) == len(other) > 1 and share_training(trained[first], trained[second], chains)
            gap = difference_over_seeds(one, other, clips.prompts, *bootstrap, paired=paired)
            found[judge] = {"policy": first, "over": second, "diff": gap.mean, "low": gap.low, "high": gap.high}
    return found


def _by_question(
    name: str, sets: Mapping[str, EvaluationSet], start: str | None, clips: Clips, bootstrap: Bootstrap
) -> dict[str, Any]:
    """How often each question of each judge got its wanted answer, and the differences to base and start."""
    judges = in_all({policy: one.answers for policy, one in sets.items()})
    compared = {"base": BASE} if name != BASE else {}
    if start is not None and start in sets:
        compared["start"] = start
    cells, found = clips.cells[None], dict[str, Any]()
    for judge, names in judges.items():
        own = {question: sets[name].answers[judge][question] for question in names}
        found.setdefault("questions", {})[judge] = _means(own, "rate", cells, clips.prompts, bootstrap)
        for other, policy in compared.items():
            differences = _differences(
                own, sets[policy].answers[judge], difference_by_clip, cells, clips.prompts, bootstrap
            )
            found.setdefault(f"questions_minus_{other}", {})[judge] = differences
    return found


def _choose(
    how: BestOf,
    by_seed: Mapping[str, Seeds],
    ranked: Mapping[str, np.ndarray],
    measured: Mapping[str, Measured],
    clips: Clips,
) -> dict[str, BestClips]:
    """What the judge chooses by row, for each policy of `how.of` and its further seeds. ranked: policy -> (N,)."""
    found = {}
    first = take_best_of(np.zeros(len(clips.samples)), clips.prompt_ids, how.n)
    for policy in (policy for name in how.of for policy in by_seed.get(name, {0: name}).values()):
        taken = take_best_of(ranked[policy], clips.prompt_ids, how.n)
        own = {
            key: {
                judge: at_first_place(values, taken, clips.prompt_ids, how.n)
                for judge, values in measured[policy][key].items()
            }
            for key in ("accept", "scores")
        }
        found[how.row(policy)] = BestClips(policy, own, first, int(np.isnan(ranked[policy][taken]).sum()))
    return found


def _best_of(
    how: BestOf, one: BestClips, measured: Mapping[str, Measured], clips: Clips, bootstrap: Bootstrap
) -> dict[str, Any]:
    """A row of summary.json: chosen clips, compared with base and with the policy that they are of."""
    facts = {
        "kind": BEST_OF,
        "of": one.of,
        "judge": how.judge,
        "n": how.n,
        "samples_per_clip": how.n,
        "clips": int(one.counted.sum()),
        "not_ranked": one.not_ranked,
    }
    start = None if one.of == BASE else one.of
    compared = {"base": measured[BASE]} | ({} if start is None else {"start": measured[start]})
    tables = _tables(one.measured, compared, one.counted, clips, bootstrap, selects=True)
    return {"start": start, "baseline": facts, **tables}


def _over_seeds(
    chosen: Mapping[str, BestClips],
    by_seed: Mapping[str, Seeds],
    chains: Mapping[str, Set[str]],
    starts: Mapping[str, str],
    measured: Mapping[str, Measured],
    clips: Clips,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Policies over their seeds, and what was chosen of them likewise."""
    row_of = {one.of: name for name, one in chosen.items()}
    choosing = {
        row_of[first]: {seed: row_of[policy] for seed, policy in seeds.items()}
        for first, seeds in by_seed.items()
        if row_of.keys() >= {*seeds.values()}
    }
    return replicates(
        {**by_seed, **choosing},
        {**chains, **{name: chains.get(one.of, {one.of}) for name, one in chosen.items()}},
        {**starts, **{name: one.of for name, one in chosen.items()}},
        BASE,
        {**measured, **{name: one.measured for name, one in chosen.items()}},
        clips,
        bootstrap,
        choosing.keys(),
    )


def _tables(
    own: Measured,
    compared: Mapping[str, Measured],
    counted: np.ndarray,
    clips: Clips,
    bootstrap: Bootstrap,
    selects: bool = False,
) -> dict[str, Any]:
    """A policy's means and differences, of all clips and by category.

    compared: `base`, `start` -> what was measured there. counted: (N,) bool, the clips that are the policy's.
    selects: whether those are some of the clips alone, so that the others' are paired by prompt.
    """

    def means_and_differences(category: str | None) -> dict[str, Any]:
        cells, found = clips.cells[category], {}
        for key, mean, minus, some in MEASURES:
            if key not in own:
                continue
            found[key] = _means(own[key], mean, cells, clips.prompts, bootstrap)
            difference = difference_by_prompt if selects or some else difference_by_clip
            for other, values in compared.items():
                found[minus + other] = _differences(own[key], values[key], difference, cells, clips.prompts, bootstrap)
        return found

    return {
        **means_and_differences(None),
        "unlabelled": {
            judge: {split: int(np.isnan(values[cell & counted]).sum()) for split, cell in clips.cells[None].items()}
            for judge, values in own["accept"].items()
        },
        "categories": {category: means_and_differences(category) for category in clips.cells if category is not None},
    }


def _means(
    values: Values, called: str, cells: Mapping[str, np.ndarray], prompts: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    def named(found: Estimate) -> dict[str, Any]:
        return {called: found.mean, "low": found.low, "high": found.high, "n": found.n}

    return {
        judge: {split: named(estimate(known[cell], prompts[cell], *bootstrap)) for split, cell in cells.items()}
        for judge, known in values.items()
    }


def _differences(
    values: Values,
    others: Values,
    difference: Callable[..., Estimate],
    cells: Mapping[str, np.ndarray],
    prompts: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    def named(found: Estimate) -> dict[str, Any]:
        return {"diff": found.mean, "low": found.low, "high": found.high}

    return {
        judge: {
            split: named(difference(known[cell], others[judge][cell], prompts[cell], *bootstrap))
            for split, cell in cells.items()
        }
        for judge, known in values.items()
    }


def _votes(found: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"agreement": found} if found else {}


def _lost_starts(starts: Mapping[str, str], policies: Mapping[str, Any]) -> Iterator[str]:
    for name in policies:
        if name in starts and starts[name] not in policies:
            yield f"{name} was trained from {starts[name]}, which is not in evaluate.policies: no difference to it"


def _much_unlabelled(policies: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each policy and judge that left much unlabelled, with the bounds of the rate if it had not."""
    for name, policy in policies.items():
        for judge, splits in policy["accept"].items():
            unlabelled, labelled = policy["unlabelled"][judge][ALL], splits[ALL]["n"]
            clips = labelled + unlabelled
            if unlabelled > MAX_UNLABELLED * clips:
                yes = round((splits[ALL]["rate"] or 0) * labelled)
                yield (
                    f"{judge} left {unlabelled} of {name}'s {clips} clips unlabelled, {100 * unlabelled / clips:.1f} %."
                    f" Its accept rate is over the other {labelled}; over all of them it would lie between "
                    f"{100 * yes / clips:.1f} % and {100 * (yes + unlabelled) / clips:.1f} %"
                )
