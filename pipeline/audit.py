"""What stage `audit` puts together: clips of known truth, a judge's labels of them, and how far they agree."""

import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.configs import AuditConfig

if TYPE_CHECKING:
    from data.known import Known, World
    from data.prompts import Prompt
    from data.store import ClipSet
    from feedback.core.audit import Asking, Judgements
    from feedback.core.source import Source

logger = logging.getLogger(__name__)


def world_of(config: AuditConfig) -> "World | None":
    """The world that `audit.set` names: WORLD of the module `known` in a package folder; None for a clip set's folder.

    A folder, since DVC waits for it and follows its content in both cases. Raises ValueError where it has no WORLD.
    """
    if not (Path(config.set) / "known.py").is_file():
        return None
    from data.doors import find

    world: World = find(f"{'.'.join(Path(config.set).parts)}.known", {}, "audit.set", "WORLD")
    return world


def check_known(config: AuditConfig, prompts: "Sequence[Prompt]") -> None:
    """Raises ValueError saying what is needed where no clip's right verdict is known."""
    needed = "a column reference in the prompt set and audit.set: a round's clips, such as runs/r1/samples"
    world = world_of(config)
    if world is not None and (texts := world.unknown_prompts(prompts)):
        raise ValueError(
            f"audit.set is {config.set}, but {len(texts)} of {len(prompts)} prompts are none of its captions, such as "
            f"{texts[0]!r}. To audit a judge on these prompts takes {needed}. To audit none: audit.sources: []"
        )
    if world is None and not any(prompt.reference for prompt in prompts):
        raise ValueError(
            f"audit.set is {config.set}, but none of {len(prompts)} prompts has a reference clip to compare its clips "
            f"with. It takes {needed}. To audit none: audit.sources: []"
        )


Found = tuple["Known", "Judgements", dict[str, Any]]


def by_renderer(
    asking: "Asking", source: "Source", prompts: "Sequence[Prompt]", config: AuditConfig, world: "World", fps: float
) -> Found:
    """The judge's labels of the world's clips, and how far they agree with its truth."""
    from data.known import FULFILLED
    from evaluation.accuracy import against_truth

    known = world.known_clips(asking.out / "samples", prompts, config.clips, config.seed, fps)
    judged = asking.judge(known.clip_set, source, "labels", config.votes)
    figures = against_truth(judged.samples, judged.labels, known.made, FULFILLED, config.draws, config.seed)
    return known, judged, figures | {"truth": world.truth}


def by_references(
    asking: "Asking", source: "Source", prompts: "Sequence[Prompt]", config: AuditConfig, base: Path | None
) -> Found:
    """The judge's labels of reference clips and of generated clips, and how often it prefers the reference."""
    from evaluation.accuracy import against_generated

    known, generated, truth = references_and_generated(asking, prompts, config, base)
    judged = asking.judge(known.clip_set, source, "labels", config.votes)
    other = asking.judge(generated, source, "generated")
    figures = against_generated(judged.samples, judged.labels, other.samples, other.labels, config.draws, config.seed)
    return known, judged, figures | {"truth": truth}


def references_and_generated(
    asking: "Asking", prompts: "Sequence[Prompt]", config: AuditConfig, base: Path | None
) -> "tuple[Known, ClipSet, str]":
    """The reference clips, generated clips of their prompts, and a sentence that says which are better."""
    from data.known import first_clips, reference_clips
    from data.store import ClipSet

    clips = ClipSet.open(Path(config.set))
    maker = clips.manifest["facts"].get("policy")
    if base and maker != base.name:
        raise ValueError(f"audit.set {config.set} is of the policy {maker}; wanted are clips of {base.name}")
    ids = [prompt.prompt_id for prompt in prompts if prompt.reference]
    generated = first_clips(clips, ids, max(1, config.clips // len(ids) - 1))
    known = reference_clips(asking.out / "samples", prompts)
    truth = f"the reference clip of each of {len(ids)} prompts is better than the clips of its prompt in {config.set}"
    return known, generated, truth


def by_pairs(
    asking: "Asking",
    source: "Source",
    prompts: "Sequence[Prompt]",
    config: AuditConfig,
    world: "World | None",
    base: Path | None,
    fps: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of a judge that compares two clips at once, and a row for each pair whose better clip is known.

    Of a world each clip that fulfils its prompt beside each one of that prompt that does not; otherwise each reference
    beside generated clips of its prompt.
    """
    from data.known import FULFILLED
    from evaluation.accuracy import against_pairs
    from feedback.core.label import requests_for
    from feedback.pairs.compare import as_comparer, compare_pairs, votes_in_an_order
    from feedback.pairs.shown import ShownPair

    comparer = as_comparer(source)
    votes = votes_in_an_order(comparer, asking.votes)
    if world:
        known = world.known_clips(asking.out / "samples", prompts, config.clips, config.seed, fps)
        better = [one for one in requests_for(known.clip_set, votes) if known.made[one.sample.sample_id] == FULFILLED]
        worse = [one for one in requests_for(known.clip_set, votes) if known.made[one.sample.sample_id] != FULFILLED]
        truth = f"pairs of a clip that fulfils its prompt and one of that prompt that does not; {world.truth}"
    else:
        known, generated, truth = references_and_generated(asking, prompts, config, base)
        better, worse = requests_for(known.clip_set, votes), requests_for(generated, votes)
    pairs = [
        ShownPair(one, other) for one in better for other in worse if one.sample.prompt_id == other.sample.prompt_id
    ]
    if not pairs:
        raise ValueError(
            f"audit.clips is {config.clips}, so few that no prompt has a better and a worse clip: raise it"
        )
    compared = compare_pairs(pairs, comparer, asking.work / "pairs", asking.batch_size, asking.max_failed)
    figures = against_pairs([pair.first.sample for pair in pairs], compared.preferences, config.draws, config.seed)
    rows = [
        {
            "better": row.first,
            "worse": row.second,
            "made": known.made.get(row.second),
            "preferred": row.preferred,
            "p_better": row.p_first,
        }
        for row in compared.preferences
    ]
    nothing = dict.fromkeys(("votes", "frames", "human"))
    notes = dict.fromkeys(nothing, f"{source.name} compares two clips at once")
    return figures | {"truth": truth, **nothing, "notes": notes}, rows


def stability(
    asking: "Asking",
    source: "Source",
    source_block: dict[str, Any],
    known: "Known",
    judged: "Judgements",
    config: AuditConfig,
    notes: dict[str, str],
) -> dict[str, Any]:
    """votes and frames, each null where `notes` says why."""
    from feedback.core.audit import frame_stability, vote_stability, with_other_frames
    from feedback.core.kinds import read_block

    whole_clips = read_block(source.name, source_block).needs.whole_clips
    votes = vote_stability(judged, source)
    other = with_other_frames(source, whole_clips, judged.samples, config.frames)
    notes |= {key: reason for key, reason in (("votes", votes), ("frames", other)) if isinstance(reason, str)}
    frames = None
    if not isinstance(other, str):
        again = asking.judge(known.clip_set, other, "labels-other-frames")
        frames = frame_stability(judged, again) | {"frames": config.frames}
    return {"votes": None if isinstance(votes, str) else votes, "frames": frames}


def beside_people(
    asking: "Asking", source: "Source", config: AuditConfig, people: dict[str, Any] | None, notes: dict[str, str]
) -> dict[str, Any] | None:
    """Agreement with people on the clips of audit.human.set that they have rated; null where `notes` says why."""
    from dataclasses import replace

    from data.store import ClipSet
    from evaluation.agreement import cohen_of_labels
    from feedback.core.audit import rated
    from feedback.core.kinds import make_source

    if config.human is None or people is None:
        notes["human"] = "audit.human is null"
        return None
    clips, name = ClipSet.open(Path(config.human.set)), config.human.source
    labels = rated(make_source(name, people), clips)
    if not labels:
        rate = f"{shlex.join(['vfrl', 'rate', '--set', str(clips.folder), '--source', name])} --rater NAME"
        notes["human"] = f"no clip of {clips.folder} is rated by the raters of {name}; {rate}"
        logger.warning(notes["human"])
        return None
    both = replace(clips, samples=[clips.by_id[label.sample_id] for label in labels])
    return cohen_of_labels(asking.judge(both, source, "rated").labels, labels)


def write_lines(path: Path, rows: "Sequence[dict[str, Any]]") -> None:
    """A line of JSON for each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(known: "Known", judged: "Judgements") -> list[dict[str, Any]]:
    """A row for each known-answer clip: what it is, and the judge's label."""
    return [
        {"sample_id": one.sample_id, "made": known.made[one.sample_id], "label": one.label, "p_accept": one.p_accept}
        for one in judged.labels
    ]
