"""The clip sets of a pool: rounds that a policy is trained on together. They are named, and no clip is copied.

manifest.json     kind clip_sets; facts: rounds, a list of {round, policy, folder, clip_set} in the order of training:
                  the round's name, who sampled it, its clip set from here, and the sha256 of that set's manifest
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.manifest import StoreError, kind_of, read_manifest, write_manifest
from data.policies import off_policy
from data.store import ClipSet

logger = logging.getLogger(__name__)

KIND = "clip_sets"


def write_pool(work: Path, folders: Sequence[Path], out: Path) -> list[str]:
    """Write into `work` what will be the folder `out`: the clip sets in `folders`, which may be pools too.

    Returns the rounds' names. Raises ValueError as `check_alike` does, and for a round that is named twice.
    """
    clip_sets = [clip_set for folder in folders for clip_set in open_clip_sets(folder)]
    names = [str(clip_set.manifest["facts"]["set"]) for clip_set in clip_sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{out}: {twice[0]} is in it twice, by {' and '.join(map(str, folders))}")
    check_alike(clip_sets)
    work.mkdir(parents=True, exist_ok=True)
    rounds = [
        {**one, "folder": os.path.relpath(clip_set.folder, out), "clip_set": clip_set.fingerprint()}
        for one, clip_set in zip(sampled_by(clip_sets), clip_sets, strict=True)
    ]
    write_manifest(work, KIND, rounds=rounds)
    return names


def open_clip_sets(folder: Path) -> list[ClipSet]:
    """The clip set in a folder, or those of the pool there.

    Raises StoreError as `ClipSet.open` does, and for a set that is not the one that was pooled.
    """
    if kind_of(folder) != KIND:
        return [ClipSet.open(folder)]
    clip_sets = []
    for one in read_manifest(folder, KIND)["facts"]["rounds"]:
        clip_set = ClipSet.open(Path(os.path.normpath(folder / one["folder"])))
        if clip_set.fingerprint() != one["clip_set"]:
            raise StoreError(
                f"{clip_set.folder}: sampled again since {folder} was made; make the pool again, `dvc repro`"
            )
        clip_sets.append(clip_set)
    return clip_sets


def check_alike(clip_sets: Sequence[ClipSet]) -> None:
    """Raises ValueError, naming both, where sets are of another family, size or embedded guidance than the first."""
    for other in clip_sets[1:]:
        first, second = _shared(clip_sets[0]), _shared(other)
        for fact in first.keys() & second.keys():
            if first[fact] != second[fact]:
                raise ValueError(
                    f"{clip_sets[0].folder} and {other.folder} cannot be trained on together: "
                    f"{fact} is {first[fact]} and {second[fact]}"
                )


def _shared(clip_set: ClipSet) -> dict[str, Any]:
    """The facts that sets must share; a set of the first version does not know its family and size."""
    facts = clip_set.manifest["facts"]
    known = {fact: facts[fact] for fact in ("family", "size") if fact in facts}
    return known | {"embedded_guidance": facts.get("embedded_guidance")}


def sampled_by(clip_sets: Sequence[ClipSet]) -> list[dict[str, str]]:
    """Each set's round and the policy that sampled it."""
    facts = (clip_set.manifest["facts"] for clip_set in clip_sets)
    return [{"round": fact["set"], "policy": fact["policy"]} for fact in facts]


def origin_of(clip_sets: Sequence[ClipSet], start: str) -> dict[str, Any]:
    """`rounds` for a policy's policy.json, as `sampled_by` lists them; nothing where they are one round of its start's.

    start: name of the policy that training starts from. Warns of each round that another policy sampled.
    """
    rounds = sampled_by(clip_sets)
    for one in rounds:
        if one["policy"] != start:
            logger.warning(off_policy(one["round"], one["policy"], start))
    return {"rounds": rounds} if len(rounds) > 1 or rounds[0]["policy"] != start else {}
