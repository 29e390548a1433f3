"""Sources that judge the clips of an online run, asked by the processes that may ask them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from data.prompts import Prompt
    from data.records import Label
    from data.store import ClipSet
    from feedback.core.label import Look
    from feedback.core.source import FirstFrame, Request, Source
    from generators.core.size import VideoSize


class RunJudge(NamedTuple):
    """A source, and which processes ask it."""

    by_first: bool  # asked by the first process alone, about the clips of all; else by each about its own
    source: "Source | None"  # None: this process does not ask

    def scores_of(self, own: "Sequence[ClipSet]") -> dict[str, float | None]:
        """Scores by sample_id: of this process's clips, or of all where the first one asks. Every process calls it.

        p of acceptance, else the label, else the score; None of a clip that it could not judge.
        """
        from cluster import devices
        from data.store import ClipSet
        from feedback.core.label import look_at_all

        def ask(clip_sets: Sequence[ClipSet]) -> dict[str, float | None]:
            looks = look_at_all(clip_sets, self._there, sum(len(clip_set.samples) for clip_set in clip_sets))
            return {look.sample.sample_id: score_of(look.label) for look in self._counted(looks)}

        if not self.by_first:
            return ask(own) if own else {}
        folders = [folder for of_rank in devices.gather_over_ranks([one.folder for one in own]) for folder in of_rank]
        return devices.of_first(lambda: ask([ClipSet.open(folder) for folder in folders]))

    def labels_of(self, own: "Sequence[Request]") -> "dict[str, Label]":
        """Labels of the clips of all processes, by sample_id, on every process. own: those of this process."""
        from cluster import devices
        from feedback.core.label import look_at_requests

        def ask(requests: "Sequence[Request]") -> "dict[str, Label]":
            looks = look_at_requests(requests, self._there)
            return {look.sample.sample_id: look.label for look in self._counted(looks)}

        if self.by_first:
            of_all = [request for of_rank in devices.gather_over_ranks(list(own)) for request in of_rank]
            return devices.of_first(lambda: ask(of_all))
        found = devices.gather_over_ranks(ask(own) if own else {})
        return {name: label for of_rank in found for name, label in of_rank.items()}

    def model_version(self) -> str | None:
        """The source's, on every process. Every process calls it."""
        from cluster import devices

        version: str | None = devices.of_first(lambda: self._there.model_version)
        return version

    @property
    def _there(self) -> "Source":
        assert self.source is not None  # of the process that asks
        return self.source

    def _counted(self, looks: "list[Look]") -> "list[Look]":
        """The looks, whose verdicts are counted for the caller."""
        from data.counts import count
        from feedback.core.spent import spent_on

        count(spent_on([verdict for look in looks for verdict in look.verdicts], self.source))
        return looks


def open_asked(name: str, block: Mapping[str, Any], device: str) -> RunJudge:
    """The source of a block. The first process alone opens one whose answers a ledger keeps: a file of one machine."""
    from cluster import devices
    from feedback.core.kinds import keeps_answers, make_source

    if not keeps_answers(name, block):
        return RunJudge(False, make_source(name, block, device))
    made: list[Source] = []
    devices.of_first(lambda: made.append(make_source(name, block, device)))
    return RunJudge(True, made[0] if made else None)


def clip_request(
    frames: "np.ndarray",
    prompt: "Prompt",
    size: "VideoSize",
    name: str,
    folder: Path,
    purpose: str,
    *,
    policy: str = "online",
    seed: int = 0,
    first: "FirstFrame | None" = None,
    place: int = 0,
) -> "Request":
    """A clip that is in no set as folder/<name>.mp4, and the request to judge it, whose sample_id is the name.

    frames: uint8 (F, H, W, 3).
    """
    from data.manifest import sha256_of
    from data.records import Sample
    from data.store import encode_clips
    from feedback.core.source import Request

    sample = Sample(
        sample_id=name,
        prompt_id=prompt.prompt_id,
        prompt=prompt.prompt,
        category=prompt.category,
        split=prompt.split,
        policy=policy,
        seed=seed,
        num_frames=size.num_frames,
        fps=size.fps,
        height=size.height,
        width=size.width,
        file_name=f"{name}.mp4",
    )
    path = folder / sample.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_clips([sample], frames[None])[0])
    return Request(sample, path, 1, purpose, sha256_of(path), first, place)


def first_frame_at(path: Path, image: "np.ndarray") -> "FirstFrame":
    """A first frame as a PNG at that path; every process writes the same."""
    from data.first_frames import png_bytes
    from data.manifest import sha256_of
    from feedback.core.source import FirstFrame

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(image))
    return FirstFrame(path, sha256_of(path))


def score_of(label: "Label") -> float | None:
    """p of acceptance, else the label, else the score."""
    if label.p_accept is not None:
        return label.p_accept
    return float(label.label) if label.label is not None else label.score
