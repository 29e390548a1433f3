"""A policy trained on the rows of a round or a pool: what each process of stage `train` does."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.cost import COST

if TYPE_CHECKING:  # torch takes seconds to import
    from generators.core.size import VideoSize
    from pipeline.configs import GeneratorConfig
    from rl.training.config import TrainConfig


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


def run(job: TrainJob, work: Path, device: str) -> dict[str, Any]:
    """Train, and publish the policy as `job.out`; returns the figures of the stage.

    work: resume state. device: as `cluster.devices.pick_device` takes it.
    """
    from cluster.devices import pick_device
    from data.pools import open_clip_sets, origin_of
    from generators.core.generator import SAMPLING
    from generators.core.load import load_generator
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
    report = train(
        generator, clip_sets, table.rows, objective, job.config, job.start, work, job.out, origin, job.resume_from,
        tracker,
    )  # fmt: skip
    return {"rows": len(table.rows), "parameters": report.parameters, **report.last, COST: report.counts}
