"""Which pairs of a clip set are compared.

All N (N - 1) / 2 pairs of a prompt's N clips are too many to pay for, so each clip meets `opponents` others: rounds of
a round-robin tournament by the circle method (the clips of a prompt stand in a circle in a random order, one is fixed,
and the others turn by one place a round). In a round each clip is in one pair, but for one clip where N is odd. So all
clips are compared equally often, or nearly so where N is odd, and shares of won comparisons have the same weight.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from data.records import Sample


def round_robin(samples: Iterable[Sample], opponents: int) -> list[tuple[Sample, Sample]]:
    """The pairs of all prompts, in the order in which the prompts first appear; a prompt of one clip has none.

    opponents: rounds, so other clips of its prompt that a clip meets; all of them where it has fewer. The random order
    is by a hash of the clips' names, so that more clips of other prompts change nothing.
    """
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt_id, []).append(sample)
    return [pair for clips in by_prompt.values() for pair in _rounds(sorted(clips, key=_shuffled), opponents)]


def _shuffled(sample: Sample) -> bytes:
    return hashlib.sha256(f"{sample.prompt_id}/{sample.sample_id}".encode()).digest()


def _rounds(clips: Sequence[Sample], rounds: int) -> Iterator[tuple[Sample, Sample]]:
    circle: list[Sample | None] = [*clips, *([None] if len(clips) % 2 else [])]  # the partner of None sits out
    for _ in range(min(rounds, len(circle) - 1)):
        for one, other in zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True):
            if one is not None and other is not None:
                yield one, other
        circle = [circle[0], circle[-1], *circle[1:-1]]
