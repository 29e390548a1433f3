"""Stage `audit`: ask a judge about clips whose right verdict is known, before its labels are believed."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.command import PATH, device_option, metrics_option, out_option, stage_command, write_metrics
from stages.params import PromptsConfig, block, section
from stages.state import stage_state

if TYPE_CHECKING:
    from data.known import Known
    from data.prompts import Prompt
    from feedback.audit import Asking, Judged
    from feedback.source import Source

logger = logging.getLogger(__name__)

TABLETOP = "data/tabletop"  # the `set` whose renderer knows the truth


@dataclass(frozen=True)
class AuditConfig:
    """Section `audit`."""

    sources: tuple[str, ...]  # dvc.yaml makes a stage of each
    set: str  # TABLETOP, or the folder of a clip set of the base policy
    clips: int
    votes: int
    frames: int | None
    human: dict | None  # set: folder of a clip set, source: of kind human
    draws: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("clips", "votes", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames is {self.frames}, expected at least 1, or null")
        if self.human is not None and self.human.keys() != {"set", "source"}:
            raise ValueError(f"human is {self.human}, expected null or {{set: folder of clips, source: of kind human}}")


@stage_command
@click.option("--source", "name", required=True, help="A name in feedback.sources.")
@click.option("--base", type=PATH, help="The base policy, whose clips references are compared with.")
@out_option
@metrics_option
@device_option
def main(name: str, base: Path | None, out: Path, metrics: Path, device: str) -> None:
    """Judge clips whose right verdict is known, and write down how far the judge can be believed."""
    from data.manifest import publish, write_manifest
    from data.prompts import load_prompts
    from feedback import make_source, needs_device
    from feedback.audit import Asking
    from feedback.label import who

    config, source_block = section("audit", AuditConfig), block(f"feedback.sources.{name}")
    human = config.human or {}
    people = block(f"feedback.sources.{human['source']}") if human else None
    path, fps = Path(section("prompts", PromptsConfig).path), float(block("video.fps"))
    how = (block("label.batch_size"), block("label.votes"), block("label.max_failed"))
    prompts = load_prompts(path)
    check_known(config, prompts)
    if needs_device(source_block):
        from rl.devices import pick_device  # and torch with it, which takes seconds

        device = str(pick_device(device))
    inputs = [path, *(Path(folder) for folder in (config.set, human.get("set")) if folder)]
    with stage_state("audit", out, (name, config, source_block, people, fps, how), inputs) as work:
        source, folder = make_source(name, source_block, device), work / "audit"
        asking, notes = Asking(work, folder, *how), dict[str, str]()
        if config.set == TABLETOP:
            known, judged, figures = _by_renderer(asking, source, prompts, config, fps)
        else:
            known, judged, figures = _by_references(asking, source, prompts, config, base)
        figures |= _stability(asking, source, source_block, known, judged, config, notes)
        figures |= {"human": _beside_people(asking, source, config, people, notes), "notes": notes}
        _write_rows(folder / "known.jsonl", known, judged)
        (folder / "audit.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        facts = who(source, source_block) | {key: figures[key] for key in ("accuracy", "clips")}
        write_manifest(folder, "audit", **facts)
        publish(folder, out)
    write_metrics(metrics, figures)
    told = "%s: right on %.1f %% (%.1f to %.1f) by %d known-answer clips, %d of them labelled"
    percent = (100 * figures[key] for key in ("accuracy", "low", "high"))
    logger.info(told, name, *percent, figures["clips"], figures["labelled"])


def check_known(config: AuditConfig, prompts: "Sequence[Prompt]") -> None:
    """Raises ValueError saying what is needed where no clip's right verdict is known."""
    from data.known import foreign

    needed = "a column reference in the prompt set and audit.set: a round's clips, such as runs/r1/samples"
    if config.set == TABLETOP and (texts := foreign(prompts)):
        raise ValueError(
            f"audit.set is {TABLETOP}, but {len(texts)} of {len(prompts)} prompts are none of its captions, such as "
            f"{texts[0]!r}. To audit a judge on these prompts takes {needed}. To audit none: audit.sources: []"
        )
    if config.set != TABLETOP and not any(prompt.reference for prompt in prompts):
        raise ValueError(
            f"audit.set is {config.set}, but none of {len(prompts)} prompts has a reference clip to compare its clips "
            f"with. It takes {needed}. To audit none: audit.sources: []"
        )


Found = tuple["Known", "Judged", dict[str, Any]]


def _by_renderer(
    asking: "Asking", source: "Source", prompts: "Sequence[Prompt]", config: AuditConfig, fps: float
) -> Found:
    from data.known import FULFILLED, rendered_clips
    from evaluation.audit import against_truth

    known = rendered_clips(asking.out / "samples", prompts, config.clips, config.seed, fps)
    judged = asking.judge(known.clip_set, source, "labels", config.votes)
    figures = against_truth(judged.samples, judged.labels, known.made, FULFILLED, config.draws, config.seed)
    truth = "the renderer's: half of the clips fulfil their prompt, a quarter is botched, a quarter shows another event"
    return known, judged, figures | {"truth": truth}


def _by_references(
    asking: "Asking", source: "Source", prompts: "Sequence[Prompt]", config: AuditConfig, base: Path | None
) -> Found:
    from data.known import first_clips, reference_clips
    from data.store import ClipSet
    from evaluation.audit import against_generated

    clips = ClipSet.open(Path(config.set))
    maker = clips.manifest["facts"].get("policy")
    if base and maker != base.name:
        raise ValueError(f"audit.set {config.set} is of the policy {maker}; wanted are clips of {base.name}")
    ids = [prompt.prompt_id for prompt in prompts if prompt.reference]
    generated = first_clips(clips, ids, max(1, config.clips // len(ids) - 1))
    known = reference_clips(asking.out / "samples", prompts)
    judged = asking.judge(known.clip_set, source, "labels", config.votes)
    other = asking.judge(generated, source, "generated")
    figures = against_generated(judged.samples, judged.labels, other.samples, other.labels, config.draws, config.seed)
    truth = f"the reference clip of each of {len(ids)} prompts is better than the clips of its prompt in {config.set}"
    return known, judged, figures | {"truth": truth}


def _stability(
    asking: "Asking",
    source: "Source",
    source_block: dict[str, Any],
    known: "Known",
    judged: "Judged",
    config: AuditConfig,
    notes: dict[str, str],
) -> dict[str, Any]:
    """votes and frames, each null where `notes` says why."""
    from feedback import read_block
    from feedback.audit import frame_stability, shown_other_frames, vote_stability

    _, options = read_block(source.name, source_block)
    votes = vote_stability(judged, source)
    other = shown_other_frames(source, options, judged.samples, config.frames)
    notes |= {key: reason for key, reason in (("votes", votes), ("frames", other)) if isinstance(reason, str)}
    frames = None
    if not isinstance(other, str):
        again = asking.judge(known.clip_set, other, "labels-other-frames")
        frames = frame_stability(judged, again) | {"frames": config.frames}
    return {"votes": None if isinstance(votes, str) else votes, "frames": frames}


def _beside_people(
    asking: "Asking", source: "Source", config: AuditConfig, people: dict[str, Any] | None, notes: dict[str, str]
) -> dict[str, Any] | None:
    """Agreement with people on the clips of audit.human.set that they have rated; null where `notes` says why."""
    from dataclasses import replace

    from data.store import ClipSet
    from evaluation.audit import agreement
    from feedback import make_source
    from feedback.audit import rated

    if config.human is None or people is None:
        notes["human"] = "audit.human is null"
        return None
    clips, name = ClipSet.open(Path(config.human["set"])), config.human["source"]
    labels = rated(make_source(name, people), clips)
    if not labels:
        rate = f"python -m stages.rate --set {clips.folder} --source {name} --rater NAME"
        notes["human"] = f"no clip of {clips.folder} is rated by all raters of {name}; {rate}"
        logger.warning(notes["human"])
        return None
    both = replace(clips, samples=[clips.by_id[label.sample_id] for label in labels])
    return agreement(asking.judge(both, source, "rated").labels, labels)


def _write_rows(path: Path, known: "Known", judged: "Judged") -> None:
    """A line for each known-answer clip: what it is and what the judge said."""
    rows = [
        {"sample_id": one.sample_id, "made": known.made[one.sample_id], "label": one.label, "p_accept": one.p_accept}
        for one in judged.labels
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
