"""From labels to training rows: weighted rows, pairs, and counts of what they are made of. rl.tables writes them."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from data.labels import match_labels
from data.records import Label, Pair, Preference, Sample, Weighted
from rl.pairing import PREFERRED, RewardedClip, check_source, pair, pair_preferred
from rl.rewards import effective_sizes, prompt_weights, reward_of

logger = logging.getLogger(__name__)


class Datasets(NamedTuple):
    """The rows that `build` makes from a labelled clip set."""

    weighted: list[Weighted]
    paired: list[Pair]
    composition: dict[str, Any]  # plain JSON


def build(
    samples: Sequence[Sample],
    labels: Sequence[Label],
    *,
    name: str,
    reward: str,
    shaping: str,
    scale: float,
    shift: float,
    temperature: float,
    pairs: str,
    pairs_per_prompt: int,
    min_margin: float,
    seed: int,
    quantile: float = 0.5,
    source: str = "",
    preferences: Sequence[Preference] | None = None,
) -> Datasets:
    """Weighted and paired rows of one clip set, in the order of `samples`.

    name: the clip set and source, such as "r1/judge", for the errors. A clip whose reward is null is in no table.
    shaping, scale, shift, temperature: of `rl.rewards.prompt_weights`, over a prompt's clips with a reward.
    source, preferences: of a source that compares clips, its name and what it prefers.
    Raises ValueError as `rl.pairing.check_source` does, where samples and labels are not of the same clips, and where
    there is nothing to learn from: no accepted clip (reward "label"), or no clip with a positive
    weight ("p_accept", "score").
    """
    check_source(preferences is not None, pairs, reward, source or name)
    label_of = match_labels(samples, labels, name)
    clips = [
        RewardedClip(s.sample_id, s.prompt_id, label_of[s.sample_id].label, reward_of(label_of[s.sample_id], reward))
        for s in samples
    ]
    weighted = weigh(clips, partial(prompt_weights, shaping=shaping, scale=scale, shift=shift, temperature=temperature))
    if not any(row.reward > 0 if reward == "label" else row.weight > 0 for row in weighted):
        lacking = "accepted clip" if reward == "label" else f"clip with a positive weight (reward {reward})"
        nulls = len(clips) - len(weighted)
        raise ValueError(f"{name}: no {lacking} among {len(clips)}, {nulls} of them unlabelled: nothing to learn from")
    if pairs == PREFERRED:
        pairing = pair_preferred(clips, preferences or (), pairs_per_prompt, min_margin)
    else:
        pairing = pair(clips, pairs, pairs_per_prompt, min_margin, seed, quantile)
    if not pairing.pairs:
        logger.warning("%s: no prompt has a pair (%s): DPO cannot be trained on it", name, _count(pairing.unpaired))
    sizes = effective_sizes([row.prompt_id for row in weighted], [row.weight for row in weighted])
    composition = {
        "name": name,
        "samples": len(clips),
        "weighted": len(weighted),
        "pairs": len(pairing.pairs),
        "weights": {"rwr": sizes},
        "categories": _categories(samples, clips),
        "pairs_per_prompt": _pairs_per_prompt(clips, pairing.pairs),
        "prompts_without_a_pair": pairing.unpaired,
        "reasons": _count(pairing.unpaired),
    }
    counts = (len(weighted), sizes["effective"], len(pairing.pairs), len(clips))
    logger.info("%s: %d weighted clips worth %.0f of equal weight, %d pairs, of %d clips", name, *counts)
    return Datasets(weighted, pairing.pairs, composition)


def weigh(clips: Sequence[RewardedClip], weights_of: Callable[[list[float]], list[float]]) -> list[Weighted]:
    """The clips that have a reward, in their order, each with its weight.

    weights_of: from the rewards of one prompt's clips to their weights.
    """
    rewards: dict[str, dict[str, float]] = {}  # prompt_id -> sample_id -> reward
    for clip in clips:
        if clip.reward is not None:
            rewards.setdefault(clip.prompt_id, {})[clip.sample_id] = clip.reward
    weight_of: dict[str, float] = {}
    for of in rewards.values():
        weight_of |= zip(of, weights_of(list(of.values())), strict=True)
    return [
        Weighted(clip.sample_id, clip.prompt_id, clip.reward, weight_of[clip.sample_id])
        for clip in clips
        if clip.reward is not None
    ]


def _categories(samples: Sequence[Sample], clips: Sequence[RewardedClip]) -> dict[str, dict[str, int]]:
    """Per category: how many samples, accepted, rejected and unlabelled by their label, and how many have no reward."""
    categories: dict[str, dict[str, int]] = {}
    verdicts = {True: "accepted", False: "rejected", None: "unlabelled"}
    for sample, clip in zip(samples, clips, strict=True):
        counts = categories.setdefault(
            sample.category, {"samples": 0, "accepted": 0, "rejected": 0, "unlabelled": 0, "without_reward": 0}
        )
        counts["samples"] += 1
        counts[verdicts[clip.accepted]] += 1
        counts["without_reward"] += clip.reward is None
    return categories


def _pairs_per_prompt(clips: Sequence[RewardedClip], pairs: Sequence[Pair]) -> dict[str, int]:
    """Number of pairs of each prompt, 0 included."""
    counts = {clip.prompt_id: 0 for clip in clips}
    for row in pairs:
        counts[row.prompt_id] += 1
    return counts


def _count(reasons: dict[str, str]) -> dict[str, int]:
    """How many prompts each reason stands for."""
    return dict(sorted(Counter(reasons.values()).items()))
