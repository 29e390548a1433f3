"""Stage `panel`: what accept rates do not show of a policy's evaluation clips: diversity, motion, drift."""

import shutil
from dataclasses import asdict
from functools import partial
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
from pipeline.configs import GeneratorConfig, PanelConfig
from pipeline.identity import RECORDED
from pipeline.params import block, section
from pipeline.state import stage_state


@stage_command
@click.option("--policy", type=PATH, required=True, help="Folder of the policy.")
@click.option("--samples", type=PATH, required=True, help="Folder with its evaluation clips.")
@click.option("--base", type=PATH, required=True, help="Folder of the base policy.")
@click.option("--base-samples", type=PATH, required=True, help="Folder with the base's evaluation clips.")
@out_option
@metrics_option
@device_option
@engine_options
def main(
    policy: Path, samples: Path, base: Path, base_samples: Path, out: Path, metrics: Path, device: str, engine: str,
    workers: str,
) -> None:  # fmt: skip
    """Measure diversity within prompts, motion, and drift from the base."""
    from cluster.pool import pool_of
    from data.manifest import publish
    from data.store import ClipSet
    from evaluation.panel.diversity import FEATURES, spreads
    from evaluation.panel.rows import Panel, write_panel
    from feedback.metrics.flow import Dis, Motion
    from generators.core.rollout import load_policy
    from generators.core.size import VideoSize
    from pipeline.panel import figures, has_weights, measure_drift, measure_motion

    config, model = section("panel", PanelConfig), section("generator", GeneratorConfig)
    size, together = section("video", VideoSize), block("evaluate.generate.batch_size")
    inputs = [policy, samples, base, base_samples, *model.folders, RECORDED / "generator.json"]
    params = {"panel": config, "generator": model, "video": size, "evaluate.generate.batch_size": together}
    with stage_state("panel", out, params, inputs) as work:
        clips, of_base = ClipSet.open(samples), ClipSet.open(base_samples)
        flow = Motion(Dis("medium"), "sum")  # as kind optical_flow_dis by default
        own, other = (partial(load_policy, asdict(model), size, folder, device) for folder in (policy, base))
        moved, differ = measure_motion(clips, flow), spreads(clips, of_base)
        pool = pool_of(engine, workers, device)  # after the forks that measure motion
        far = measure_drift(other, own, has_weights(policy), of_base, config.drift, together, pool)
        panel = Panel(moved, differ, far)
        folder = work / "panel"
        shutil.rmtree(folder, ignore_errors=True)
        facts = {"policy": policy.name, "clip_set": clips.fingerprint(), "base": of_base.fingerprint()}
        write_panel(folder, panel, motion=flow.definition, features=FEATURES, **facts)
        publish(folder, out)
        write_metrics(metrics, figures(panel))


if __name__ == "__main__":
    main()
