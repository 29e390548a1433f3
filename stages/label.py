"""Stages `label`, `label-compare`, `label-select`, `label-dense` and `eval-label`: a source labels a clip set."""

from dataclasses import replace
from pathlib import Path

import click

from pipeline.command import (
    PATH,
    device_option,
    engine_options,
    metrics_option,
    out_option,
    stage_command,
    write_metrics,
)
from pipeline.configs import LabelConfig
from pipeline.cost import ASKED_NOW, COST, with_cost
from pipeline.identity import RECORDED
from pipeline.params import section, source_block
from pipeline.state import stage_state

# Where stage `audit` puts its results. It is read for a warning only and is no dependency in dvc.yaml: otherwise a
# new audit would label all clips again, to the same labels.
AUDITS = Path("runs/audit")


@stage_command
@click.option("--set", "clips", type=PATH, required=True, help="Folder of the clip set.")
@click.option("--source", "name", required=True, help="A name in feedback.sources.")
@click.option("--window", type=int, help="Judge windows of so many frames, as clips of their own.")
@out_option
@metrics_option
@device_option
@engine_options
def main(
    clips: Path, name: str, window: int | None, out: Path, metrics: Path, device: str, engine: str, workers: str
) -> None:
    """Label a clip set: verdicts with the source's own words, and the labels that they combine to."""
    from data.manifest import read_manifest
    from data.pace import collected_measurements
    from data.store import ClipSet
    from feedback.core.kinds import open_source, question_files, read_block, what_is_asked
    from feedback.core.label import judge_identity, label_clip_set, warn_of_audit
    from feedback.core.spent import spent_in
    from feedback.core.windows import label_windows
    from feedback.pairs.compare import as_comparer
    from feedback.pairs.label import compare_clip_set

    config, given = section("label", LabelConfig), source_block(name)
    blocks = [given, *given.get("members", {}).values()]  # of a panel, its members' too
    inputs: list[Path] = [clips, *(Path(one[key]) for one in blocks for key in ("path", "rubric") if key in one)]
    inputs += [*map(Path, question_files(name, given)), RECORDED / f"sources/{name}.json"]
    compares = read_block(name, given).compares
    shaping = replace(config, min_audited_accuracy=None, opponents=config.opponents if compares else 1)  # of a label
    params = {"label": shaping, f"feedback.sources.{name}": what_is_asked(given)}
    if window is not None:
        params["window"] = window
    with stage_state("label", out, params, inputs) as work:
        source = open_source(name, given, device, engine, workers, config.batch_size)
        if config.min_audited_accuracy is not None:
            warn_of_audit(AUDITS / name, judge_identity(source, given), config.min_audited_accuracy)
        clip_set = ClipSet.open(clips)
        how = (config.batch_size, config.votes, config.max_failed)
        with collected_measurements() as measured:
            if window is not None:
                labelled = label_windows(clip_set, source, window, work, out, *how)
                counts = {"windows": sum(labelled[:3]), **labelled._asdict()}
            elif compares:
                counts = compare_clip_set(clip_set, as_comparer(source), work, out, config.opponents, *how)
            else:
                counts = label_clip_set(clip_set, source, work, out, *how)._asdict()
        agreed = read_manifest(out, "labels")["facts"]["agreement"]
        figures = with_cost({"samples": len(clip_set.samples), **counts, "agreement": agreed}, spent_in(out, source))
        # Clips, shown pairs or calls, of each member of a panel; the other verdicts were kept from before.
        figures[COST][ASKED_NOW] = sum(one.amount for one in measured)
        write_metrics(metrics, figures)


if __name__ == "__main__":
    main()
