"""A policy trained on the rows of a round or a pool: what each process of stage `train` does."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.cost import COST

if TYPE_CHECKING:  # torch takes seconds to import
    from generators.core.size import VideoSize
    from pipeline.configs import GeneratorConfig
    from rl.training.config import TrainConfig

logger = logging.getLogger(__name__)


class TrainJob(NamedTuple):
    """All that a policy is trained from and by."""

    objective: str
    model: "GeneratorConfig"
    size: "VideoSize"
    config: "TrainConfig"
    start: Path
    clips: Path
    rows: Path
    out: Path
    tracker: str | None
    resume_from: Path | None


def with_audited_noise(config: "TrainConfig", rows: Path, audits: Path) -> "TrainConfig":
    """The config, a number in place of label_noise: from_audit.

    rows: folder of the pairs, whose manifest names their source. audits: what stage base recorded of the audits.
    Raises ClickException, with the cure, where the audit is missing or says too little.
    """
    from data.manifest import read_manifest
    from rl.objectives import FROM_AUDIT, flipped_pairs
    from rl.tables import KIND

    if getattr(config, "label_noise", None) != FROM_AUDIT:
        return config
    source = read_manifest(rows, KIND)["facts"]["source"]
    found = json.loads(audits.read_text(encoding="utf-8"))[source]
    where = "train.dpo.label_noise is from_audit"
    if found is None:
        raise click.ClickException(
            f"{where}, and {source} has no audit: name it in audit.sources, run `dvc repro audit@{source}`, "
            "then `dvc repro`"
        )
    rates = found["false_accept_rate"], found["false_reject_rate"]
    if found["decided_accuracy"] is not None:  # of a source that compares: the part of its preferences that is right
        noise = 1 - found["decided_accuracy"]
    elif None not in rates:
        noise = flipped_pairs(*rates)
    else:
        raise click.ClickException(
            f"{where}, and the audit of {source} knows {found}: both rates are needed, which an audit has whose clips "
            f"are to be accepted and to be rejected. Run `dvc repro audit@{source}` again, or set a number"
        )
    if not noise < 0.5:
        raise click.ClickException(f"{where}, and {source} orders {100 * noise:.1f} % of its pairs wrongly: too many")
    logger.info("label_noise of %s by its audit: %.4f", source, noise)
    return replace(config, label_noise=noise)  # type: ignore[call-arg]


def run(job: TrainJob, work: Path, device: str) -> dict[str, Any]:
    """Train, and publish the policy as `job.out`; returns the figures of the stage.

    work: resume state. device: as `cluster.devices.pick_device` takes it.
    """
    from cluster.devices import pick_device
    from data.pools import open_clip_sets, origin_of
    from generators.core.generator import SAMPLING
    from generators.core.load import load_generator
    from generators.core.lora import with_own_sampling
    from rl.objectives import get_objective
    from rl.tables import read_table
    from rl.training.tracking import Tracker
    from rl.training.trainer import train

    objective, drawn = get_objective(job.objective), job.config.preview is not None
    table, clip_sets = read_table(job.rows, objective), open_clip_sets(job.clips)
    origin = table.facts | origin_of(clip_sets, job.start.name)
    generator = load_generator(
        **asdict(job.model),
        size=job.size,
        device=pick_device(device),
        parts=SAMPLING if drawn else ("denoiser",),
        denoisers=None if drawn else job.config.denoisers,
        on_host=job.config.shard,
    )
    tracker = Tracker(job.tracker, job.out.name) if job.tracker else None
    generator = with_own_sampling(generator, job.start)  # previews are sampled
    report = train(
        generator, clip_sets, table.rows, objective, job.config, job.start, work, job.out, origin, job.resume_from,
        tracker,
    )  # fmt: skip
    return {"rows": len(table.rows), "parameters": report.parameters, **report.last, COST: report.counts}
