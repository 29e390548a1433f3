"""Counts of the reasons that judges give, by policy: training may trade one failure for another."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from data.records import Label

MOST = 12  # reasons of a judge that are named; the others are counted together
OTHERS = "other reasons"
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def kind_of(reason: str) -> str:
    """A reason with # for each number, so that "moves 3 units" and "moves 4 units" are one reason."""
    return NUMBER.sub("#", " ".join(reason.split()))


def count_reasons(labels: Mapping[str, Iterable[Label]]) -> dict[str, dict[str, int]]:
    """By policy how often each reason was given for a clip that was not accepted; every policy has the same keys.

    labels: one judge's, by policy. The most frequent MOST over all policies are named, the most frequent first. A clip
    without a label counts with why it has none. Empty where the judge gives no reason.
    """
    counts = {
        policy: Counter(kind_of(label.reason) for label in own if not label.label and label.reason)
        for policy, own in labels.items()
    }
    total = sum(counts.values(), Counter[str]())
    named = sorted(total, key=lambda reason: (-total[reason], reason))[:MOST]
    if not named:
        return {}
    found = {policy: {reason: own[reason] for reason in named} for policy, own in counts.items()}
    if len(total) > len(named):
        for policy, own in counts.items():
            found[policy][OTHERS] = own.total() - sum(found[policy].values())
    return found
