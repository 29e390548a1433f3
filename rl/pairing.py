"""Pairs for DPO: two clips of one prompt, of which the source prefers one.

A strategy takes one prompt's clips and returns its pairs, or the reason why there are none. Clips whose label or
reward is null are never paired, and neither are ties. `pair_preferred` takes the pairs that a source compared itself.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from data.preferences import FIRST, SECOND
from data.records import Pair, Preference


class RewardedClip(NamedTuple):
    """A clip with its label and reward."""

    sample_id: str
    prompt_id: str
    accepted: bool | None
    reward: float | None


class Pairing(NamedTuple):
    """The pairs of a clip set, and the prompts that gave none."""

    pairs: list[Pair]
    unpaired: dict[str, str]  # prompt_id -> reason


Strategy = Callable[[list[RewardedClip], int, float, random.Random], list[Pair] | str]

ALL_ACCEPTED, ALL_REJECTED, ALL_UNLABELLED = "all accepted", "all rejected", "all unlabelled"
GAPS_UNDER_MINIMUM = "gaps under the minimum"
NOT_COMPARED, ALL_TIED = "no comparison answered", "all ties"


def _pair_of(chosen: RewardedClip, rejected: RewardedClip) -> Pair | None:
    """The pair, or None where the rewards are unknown or do not prefer the chosen clip."""
    if chosen.reward is None or rejected.reward is None or not chosen.reward > rejected.reward:
        return None
    return Pair(chosen.prompt_id, chosen.sample_id, rejected.sample_id, chosen.reward - rejected.reward)


def _classes(clips: list[RewardedClip]) -> tuple[list[RewardedClip], list[RewardedClip]] | str:
    """Accepted and rejected clips of a prompt, or why one of the two is missing. Unlabelled clips count as neither."""
    accepted = [clip for clip in clips if clip.accepted is True]
    rejected = [clip for clip in clips if clip.accepted is False]
    if not accepted and not rejected:
        return ALL_UNLABELLED
    if not rejected:
        return ALL_ACCEPTED
    if not accepted:
        return ALL_REJECTED
    return accepted, rejected


def all_pairs(
    clips: list[RewardedClip], pairs_per_prompt: int, min_margin: float, rng: random.Random
) -> list[Pair] | str:
    """Every accepted clip against every rejected one; `pairs_per_prompt` and `min_margin` are not read."""
    classes = _classes(clips)
    if isinstance(classes, str):
        return classes
    accepted, rejected = classes
    pairs = [_pair_of(chosen, other) for chosen in accepted for other in rejected]
    return [pair for pair in pairs if pair] or GAPS_UNDER_MINIMUM


def balanced_pairs(
    clips: list[RewardedClip], pairs_per_prompt: int, min_margin: float, rng: random.Random
) -> list[Pair] | str:
    """`pairs_per_prompt` different accepted × rejected pairs, or all if there are fewer; `min_margin` is not read.

    No clip stands in more than one pair more than another of its class.
    """
    classes = _classes(clips)
    return classes if isinstance(classes, str) else _evenly(*classes, pairs_per_prompt, rng) or GAPS_UNDER_MINIMUM


def _evenly(
    better: list[RewardedClip], worse: list[RewardedClip], pairs_per_prompt: int, rng: random.Random
) -> list[Pair]:
    """That many different pairs of the two sides, all clips of a side as often as one another, give or take one."""
    accepted, rejected = (rng.sample(side, len(side)) for side in (better, worse))
    # Walking both lists in step repeats after lcm(m, n) pairs; one place further each time makes every pair new.
    period = math.lcm(len(accepted), len(rejected))
    wanted = range(min(pairs_per_prompt, len(accepted) * len(rejected)))
    pairs = [_pair_of(accepted[i % len(accepted)], rejected[(i + i // period) % len(rejected)]) for i in wanted]
    return [pair for pair in pairs if pair]


def margin_pairs(
    clips: list[RewardedClip], pairs_per_prompt: int, min_margin: float, rng: random.Random
) -> list[Pair] | str:
    """Up to `pairs_per_prompt` pairs whose reward gap is positive and >= `min_margin`, the most separated first.

    For soft rewards: the label is not read. Equal gaps stand in the order of their sample_ids.
    """
    rewarded = [clip for clip in clips if clip.reward is not None]
    if not rewarded:
        return ALL_UNLABELLED
    pairs = [_pair_of(chosen, other) for chosen in rewarded for other in rewarded]
    wide = [pair for pair in pairs if pair and pair.margin >= min_margin]
    return sorted(wide, key=lambda pair: (-pair.margin, pair.chosen, pair.rejected))[:pairs_per_prompt] or (
        GAPS_UNDER_MINIMUM
    )


def quantile_pairs(
    clips: list[RewardedClip], pairs_per_prompt: int, min_margin: float, rng: random.Random, quantile: float
) -> list[Pair] | str:
    """Up to `pairs_per_prompt` pairs of the best `quantile` of a prompt's clips with the worst, taken evenly.

    For soft rewards whose scale differs between prompts: the label is not read. At least one clip is on each side;
    equal rewards stand in the order of their sample_ids. Pairs with a gap under `min_margin` are left out.
    """
    rewarded = [clip for clip in clips if clip.reward is not None]
    if not rewarded:
        return ALL_UNLABELLED
    ranked = sorted(rewarded, key=lambda clip: (-(clip.reward or 0.0), clip.sample_id))
    side = max(1, int(quantile * len(ranked)))
    pairs = _evenly(ranked[:side], ranked[-side:], pairs_per_prompt, rng)
    return [pair for pair in pairs if pair.margin >= min_margin] or GAPS_UNDER_MINIMUM


STRATEGIES: dict[str, Strategy] = {"all": all_pairs, "balanced": balanced_pairs, "margin": margin_pairs}
QUANTILE = "quantile"
PREFERRED = "preferred"
KNOWN = (*STRATEGIES, QUANTILE, PREFERRED)
BY_LABEL = ("all", "balanced")  # strategies that need accepted and rejected clips


def check_pairing(strategy: str, pairs_per_prompt: int, min_margin: float, quantile: float = 0.5) -> None:
    """Raises ValueError for an unknown strategy, listing the known, and for numbers that can give no pair."""
    if strategy not in KNOWN:
        raise ValueError(f"pairing strategy {strategy!r} is unknown; known: {', '.join(KNOWN)}")
    if pairs_per_prompt < 1:
        raise ValueError(f"pairs_per_prompt must be >= 1, found {pairs_per_prompt}")
    if min_margin < 0:
        raise ValueError(f"min_margin must be >= 0, found {min_margin}")
    if not 0 < quantile <= 0.5:
        raise ValueError(f"quantile must be > 0 and at most 0.5, found {quantile}")


def check_source(compares: bool, strategy: str, reward: str, source: str) -> None:
    """Raises ValueError, with the cure, where a source gives nothing that this strategy and reward could use.

    compares: whether it compares clips: it then gives preferences and, as the score, the share of won comparisons.
    """
    if compares and (strategy in BY_LABEL or reward != "score"):
        raise ValueError(
            f"{source} compares clips, so it labels none: no pairs: {', '.join(BY_LABEL)} and no reward: label, "
            f"p_accept (found pairs: {strategy}, reward: {reward}). Its preferences are pairs for DPO, and the part of "
            f"its comparisons that a clip won is a reward for RWR: build.sources.{source}: "
            "{reward: score, pairs: preferred}"
        )
    if not compares and strategy == PREFERRED:
        raise ValueError(
            f"pairs: {PREFERRED} takes the preferences of a source that compares clips, but {source} judges one clip "
            f"at a time: {', '.join(name for name in KNOWN if name != PREFERRED)}; or a rubric with compares: true"
        )


def pair_preferred(
    clips: Iterable[RewardedClip], preferences: Sequence[Preference], pairs_per_prompt: int, min_margin: float
) -> Pairing:
    """The pairs of which a source prefers one clip, in the order in which the prompts first appear.

    The margin is the probability that the chosen clip is better minus the probability that the rejected one is, mean
    over both orders; 1 for a source that gives none. Of each prompt up to `pairs_per_prompt` with at least `min_margin`
    are taken, the most certain first.
    """
    by_prompt: dict[str, list[Preference]] = {clip.prompt_id: [] for clip in clips}
    for row in preferences:
        by_prompt[row.prompt_id].append(row)
    pairing = Pairing([], {})
    for prompt_id, rows in by_prompt.items():
        decided = [found for row in rows if (found := _pair_from(row))]
        wide = [found for found in decided if found.margin >= min_margin]
        chosen = sorted(wide, key=lambda found: (-found.margin, found.chosen, found.rejected))[:pairs_per_prompt]
        pairing.pairs.extend(chosen)
        if not chosen:
            known = any(row.preferred for row in rows)
            pairing.unpaired[prompt_id] = GAPS_UNDER_MINIMUM if decided else ALL_TIED if known else NOT_COMPARED
    return pairing


def _pair_from(row: Preference) -> Pair | None:
    if row.preferred not in (FIRST, SECOND) or row.p_first is None:
        return None
    better, worse = (row.first, row.second) if row.preferred == FIRST else (row.second, row.first)
    return Pair(row.prompt_id, better, worse, abs(2 * row.p_first - 1))


def pair(
    clips: Iterable[RewardedClip],
    strategy: str,
    pairs_per_prompt: int,
    min_margin: float,
    seed: int,
    quantile: float = 0.5,
) -> Pairing:
    """Pairs of all prompts, in the order in which the prompts first appear, and the prompts without a pair.

    A prompt's pairs depend on its own clips and the seed only. Raises ValueError as `check_pairing` does, and for
    `preferred`, which needs preferences: `pair_preferred`.
    """
    check_pairing(strategy, pairs_per_prompt, min_margin, quantile)
    if strategy == PREFERRED:
        raise ValueError(f"pairing strategy {PREFERRED!r} needs a source that compares clips")
    chosen = partial(quantile_pairs, quantile=quantile) if strategy == QUANTILE else STRATEGIES[strategy]
    by_prompt: dict[str, list[RewardedClip]] = {}
    for clip in clips:
        by_prompt.setdefault(clip.prompt_id, []).append(clip)
    pairing = Pairing([], {})
    for prompt_id, group in by_prompt.items():
        rng = random.Random(hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest())
        found = chosen(group, pairs_per_prompt, min_margin, rng)
        if isinstance(found, str):
            pairing.unpaired[prompt_id] = found
        else:
            pairing.pairs.extend(found)
    return pairing
