"""Stage `effects`: what accept rates do not show of a policy's evaluation clips: diversity, motion, drift."""

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
from pipeline.configs import EffectsConfig, GeneratorConfig
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
    from evaluation.effects.diversity import FEATURES, spreads
    from evaluation.effects.rows import Effects, write_effects
    from feedback.metrics.flow import Dis, Motion
    from generators.core.rollout import load_policy
    from generators.core.size import VideoSize
    from pipeline.effects import figures, has_weights, measure_drift, measure_motion

    config, model = section("effects", EffectsConfig), section("generator", GeneratorConfig)
    size, together = section("video", VideoSize), block("evaluate.generate.batch_size")
    inputs = [policy, samples, base, base_samples, *model.folders, RECORDED / "generator.json"]
    params = {"effects": config, "generator": model, "video": size, "evaluate.generate.batch_size": together}
    with stage_state("effects", out, params, inputs) as work:
        clips, of_base = ClipSet.open(samples), ClipSet.open(base_samples)
        flow = Motion(Dis("medium"), "sum")  # as kind optical_flow_dis by default
        own, other = (partial(load_policy, asdict(model), size, folder, device) for folder in (policy, base))
        moved, differ = measure_motion(clips, flow), spreads(clips, of_base)
        pool = pool_of(engine, workers, device)  # after the forks that measure motion
        far = measure_drift(other, own, has_weights(policy), of_base, config.drift, together, pool)
        effects = Effects(moved, differ, far)
        folder = work / "effects"
        shutil.rmtree(folder, ignore_errors=True)
        facts = {"policy": policy.name, "clip_set": clips.fingerprint(), "base": of_base.fingerprint()}
        write_effects(folder, effects, motion=flow.definition, features=FEATURES, **facts)
        publish(folder, out)
        write_metrics(metrics, figures(effects))


if __name__ == "__main__":
    main()
