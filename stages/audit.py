"""Stage `audit`: ask a judge about clips whose right verdict is known, before its labels are believed."""

import json
import logging
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
from pipeline.configs import AuditConfig, PromptsConfig
from pipeline.identity import RECORDED
from pipeline.params import block, section, source_block
from pipeline.state import stage_state

logger = logging.getLogger(__name__)


@stage_command
@click.option("--source", "name", required=True, help="A name in feedback.sources.")
@click.option("--base", type=PATH, help="The base policy, whose clips references are compared with.")
@out_option
@metrics_option
@device_option
@engine_options
def main(name: str, base: Path | None, out: Path, metrics: Path, device: str, engine: str, workers: str) -> None:
    """Judge clips whose right verdict is known, and write down how far the judge can be believed."""
    from data.manifest import publish, write_manifest
    from data.prompts import load_prompts
    from feedback.core.audit import Asking
    from feedback.core.kinds import open_source, read_block, what_is_asked
    from feedback.core.label import judge_identity
    from pipeline.audit import (
        beside_people,
        by_pairs,
        by_references,
        by_renderer,
        check_known,
        rows_of,
        stability,
        world_of,
        write_lines,
    )

    config, given = section("audit", AuditConfig), source_block(name)
    people = source_block(config.human.source) if config.human else None
    path, fps = Path(section("prompts", PromptsConfig).path), float(block("video.fps"))
    how = (block("label.batch_size"), block("label.votes"), block("label.max_failed"))
    prompts = load_prompts(path)
    check_known(config, prompts)
    world = world_of(config)
    inputs = [
        path,
        *(RECORDED / file for file in (f"sources/{name}.json", "images.json", "references.json")),
        *([RECORDED / f"sources/{config.human.source}.json"] if config.human else []),
        *([base] if base else []),
        *(Path(folder) for folder in (None if world else config.set, config.human and config.human.set) if folder),
    ]
    params = {"audit": config, f"feedback.sources.{name}": what_is_asked(given), "people": people}
    params |= {"video.fps": fps, "label": dict(zip(("batch_size", "votes", "max_failed"), how, strict=True))}
    with stage_state("audit", out, params, inputs) as work:
        source, folder = open_source(name, given, device, engine, workers, how[0]), work / "audit"
        asking, notes = Asking(work, folder, *how), dict[str, str]()
        if read_block(name, given).compares:
            figures, rows = by_pairs(asking, source, prompts, config, world, base, fps)
        else:
            if world:
                known, judged, figures = by_renderer(asking, source, prompts, config, world, fps)
            else:
                known, judged, figures = by_references(asking, source, prompts, config, base)
            figures |= stability(asking, source, given, known, judged, config, notes)
            figures |= {"human": beside_people(asking, source, config, people, notes), "notes": notes}
            rows = rows_of(known, judged)
        write_lines(folder / "known.jsonl", rows)
        (folder / "audit.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        facts = judge_identity(source, given) | {key: figures[key] for key in ("accuracy", "clips")}
        if figures.get("decided"):  # ties make no pairs, so `label` warns of preferences that are wrong
            facts |= {"accuracy": figures["decided_accuracy"], "clips": figures["decided"]}
        write_manifest(folder, "audit", **facts)
        publish(folder, out)
        write_metrics(metrics, figures)
    interval = "too few prompts for an interval"
    if figures["low"] is not None:
        interval = f"{100 * figures['low']:.1f} to {100 * figures['high']:.1f}"
    message = "%s: right on %.1f %% (%s) by %d known-answer clips or pairs, %d of them labelled"
    logger.info(message, name, 100 * figures["accuracy"], interval, figures["clips"], figures["labelled"])


if __name__ == "__main__":
    main()
