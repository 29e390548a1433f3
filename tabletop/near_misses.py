"""Captions that almost fit a clip: what a judge has to tell apart from the caption that does."""

from collections.abc import Sequence

import numpy as np

from tabletop.captions import Claim, all_claims


def other_event_or_things(claim: Claim, rng: np.random.Generator) -> Claim:
    """Another event of the same things or the same event of other things, as often where there are both."""
    things = set(claim.things)
    events = [other for other in all_claims() if other.kind != claim.kind and set(other.things) == things]
    others = [other for other in all_claims() if other.kind == claim.kind and set(other.things) != things]
    return _pick(events, others, 0.5, rng)


def near_miss(claim: Claim, allowed: Sequence[Claim], rng: np.random.Generator) -> Claim:
    """Another allowed claim; mostly one that shares the kind or a thing, which is harder to tell apart."""
    others = [other for other in allowed if other.event != claim.event]
    near = [other for other in others if other.kind == claim.kind or set(other.things) & set(claim.things)]
    return _pick(near, others, 0.7, rng)


def pick(claims: Sequence[Claim], rng: np.random.Generator) -> Claim:
    """One of the claims, all equally likely."""
    return claims[int(rng.integers(len(claims)))]


def _pick(near: Sequence[Claim], others: Sequence[Claim], probability: float, rng: np.random.Generator) -> Claim:
    """One of the near ones with this probability where there are any, else one of the others."""
    return pick(near if near and rng.random() < probability else others, rng)
