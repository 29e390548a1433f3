"""Which pairs of clips the rating page shows."""

from collections.abc import Sequence
from pathlib import Path

from data.store import ClipSet
from feedback.pairs.sets import pairs_between, pairs_of
from feedback.pairs.shown import ShownPair


def pairs_to_compare(
    sets: Sequence[Path], against: Path | None, per_prompt: int | None, opponents: int
) -> list[ShownPair]:
    """The pairs that labelling these sets asks about; with `against`, those of stage `eval-prefer`.

    per_prompt: only so many pairs of each prompt in each set. opponents: label.opponents.
    """
    found = []
    for folder in sets:
        if against:
            found += pairs_between(folder, against, (str(folder), str(against)), per_prompt, votes=1)
            continue
        left: dict[str, int] = {}
        for pair in pairs_of(ClipSet.open(folder), opponents, votes=1):
            taken = left.setdefault(pair.first.sample.prompt_id, 0)
            if per_prompt is None or taken < per_prompt:
                left[pair.first.sample.prompt_id] += 1
                found.append(pair)
    return found
