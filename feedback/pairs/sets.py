"""The pairs of a clip set, and those of two policies' sets."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from data.records import Sample
from data.store import ClipSet
from feedback.core.label import requests_for
from feedback.core.source import Request
from feedback.pairs.plan import round_robin
from feedback.pairs.shown import ShownPair


def pairs_of(clip_set: ClipSet, opponents: int, votes: int) -> list[ShownPair]:
    """The pairs of a set that are compared (feedback.pairs.plan). Raises ValueError if no prompt has two clips."""
    requests = {request.sample.sample_id: request for request in requests_for(clip_set, votes)}
    planned = round_robin(clip_set.samples, opponents)
    if not planned:
        raise ValueError(f"{clip_set.folder}: no prompt has two clips, so there is nothing to compare")
    return [ShownPair(requests[one.sample_id], requests[other.sample_id]) for one, other in planned]


def pairs_between(
    policy: Path, against: Path, names: tuple[str, str], clips: int | None, votes: int
) -> list[ShownPair]:
    """Each clip of a policy's set with the other policy's clip of the same prompt and noise.

    names: of the policies; they stand before the sample_ids, which are the same in both sets. clips: only so many of
    each prompt, those of the lowest seeds; None: all. votes: in each order.
    Raises ValueError for a clip without a partner of the same prompt, noise and size, and for one set twice.
    """
    if policy.resolve() == against.resolve():
        raise ValueError(f"{policy}: compared with itself; wanted the evaluation clips of two policies")
    first, second = (_by_noise(folder, name, votes) for folder, name in zip((policy, against), names, strict=True))
    if alone := sorted(first.keys() ^ second.keys()):
        prompt, seed = alone[0][:2]
        raise ValueError(
            f"{policy} and {against}: {len(alone)} clips have no partner of the same prompt, noise and size, such as "
            f"the one of prompt {prompt} and seed {seed}; run eval-generate for both with the same evaluate section"
        )
    taken: Counter[str] = Counter()
    purpose = f"{next(iter(first.values())).purpose} {next(iter(second.values())).purpose}"
    pairs = []
    for key in sorted(first):
        prompt_id = first[key].sample.prompt_id
        taken[prompt_id] += 1
        if clips is None or taken[prompt_id] <= clips:
            one, other = (replace(side[key], purpose=purpose) for side in (first, second))
            pairs.append(ShownPair(one, other))
    return pairs


def _by_noise(folder: Path, name: str, votes: int) -> dict[tuple[str | int | float, ...], Request]:
    """The clips of a set, named after the policy, by what two policies' clips have in common."""
    named = (
        replace(request, sample=replace(request.sample, sample_id=f"{name}/{request.sample.sample_id}"))
        for request in requests_for(ClipSet.open(folder), votes)
    )
    return {_made_from(request.sample): request for request in named}


def _made_from(sample: Sample) -> tuple[str | int | float, ...]:
    size = (sample.num_frames, sample.height, sample.width, sample.fps)
    return (sample.prompt_id, sample.seed, sample.prompt, *size)
