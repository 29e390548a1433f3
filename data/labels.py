"""A labelled set: the clips of a set with one source's labels and verdicts.

    labels.parquet     Label, a row a clip
    verdicts.parquet   Verdict, a row a clip, question and vote
    questions.parquet  Asked, a row a prompt and question; only of a source that asks several questions
    manifest.json      its facts name the source, and by `clip_set` the manifest of the clips by its sha256

Written by feedback.core.label; opened and checked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data import records
from data.manifest import MANIFEST, read_manifest, sha256_of
from data.records import Asked, Label, Sample, Verdict, read_rows
from data.store import KIND as CLIP_SET
from data.store import METADATA

KIND = "labels"
LABELS, VERDICTS, QUESTIONS = "labels.parquet", "verdicts.parquet", "questions.parquet"


@dataclass(frozen=True)
class LabelSet:
    """One source's labels of a clip set."""

    folder: Path
    facts: dict[str, Any]  # of its manifest
    labels: list[Label]  # one a clip, in the order of the clips

    @cached_property
    def by_id(self) -> dict[str, Label]:
        """The labels by sample_id."""
        return records.by_id(self.labels)

    @property
    def source(self) -> str:
        """The source's name in feedback.sources."""
        return str(self.facts["source"])

    def verdicts(self) -> list[Verdict]:
        """By clip, then question, then vote."""
        return read_rows(self.folder / VERDICTS, Verdict)


def read_samples(clips: Path, verify: bool = False) -> list[Sample]:
    """The clips of a finished set, without opening their files. Raises StoreError as `read_manifest` does."""
    read_manifest(clips, CLIP_SET, verify)
    return read_rows(clips / METADATA, Sample)


def open_labels(
    folder: Path, clips: Path, samples: Sequence[Sample], verify: bool = False, window: int | None = None
) -> LabelSet:
    """The labels in a finished folder, in the order of `samples`, which are all clips of the set in `clips`.

    window: frames of a window, where `samples` are windows of the clips (data/dense.py); None: they are clips.
    Raises StoreError for a half-written folder, with `verify` also for changed bytes; ValueError where the labels are
    of another clip set, or of windows where clips are wanted.
    """
    facts = read_manifest(folder, KIND, verify)["facts"]
    if window is None and "window" in facts:
        raise ValueError(f"{folder}: its labels are of windows of {facts['window']} frames, not of whole clips")
    label_of = match_labels(samples, read_rows(folder / LABELS, Label), str(folder))
    if "clip_set" in facts and facts["clip_set"] != sha256_of(clips / MANIFEST):
        raise ValueError(f"{folder}: its labels are of another clip set than {clips}, made from other clips")
    return LabelSet(folder, facts, [label_of[sample.sample_id] for sample in samples])


def match_labels(samples: Sequence[Sample], labels: Sequence[Label], where: str) -> dict[str, Label]:
    """Labels by sample_id, exactly one for each sample.

    where: names the labels in errors. Raises ValueError for an empty clip set, and where samples and labels are not of
    the same clips.
    """
    if not samples:
        raise ValueError(f"{where}: the clip set has no clip")
    try:
        sample_ids, label_of = records.by_id(samples), records.by_id(labels)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    unlabelled = [sample_id for sample_id in sample_ids if sample_id not in label_of]
    unknown = [sample_id for sample_id in label_of if sample_id not in sample_ids]
    if unlabelled or unknown:
        raise ValueError(
            f"{where}: its {len(label_of)} labels are not of the {len(sample_ids)} clips beside them: "
            f"{len(unlabelled)} clips without a label row {unlabelled[:3]}, {len(unknown)} labels without a clip "
            f"{unknown[:3]}"
        )
    return label_of


def read_asked(folder: Path) -> dict[tuple[str, str], Asked]:
    """What was asked, by the prompt and the question's name; empty where the source asks one question."""
    path = folder / QUESTIONS
    return {(one.prompt, one.question): one for one in (read_rows(path, Asked) if path.is_file() else [])}


def read_labels(folder: Path) -> list[Label]:
    """The labels of a finished label folder, in the order of its clip set."""
    read_manifest(folder, KIND)
    return read_rows(folder / LABELS, Label)


def read_verdicts(folder: Path) -> list[Verdict]:
    """The verdicts of a finished label folder, by clip in the order of its clip set, then question, then vote."""
    read_manifest(folder, KIND)
    return read_rows(folder / VERDICTS, Verdict)
