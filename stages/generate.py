"""Stages `generate`, `eval-generate`, `generate-select` and `generate-dense`: sample a clip set from a policy."""

import logging
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
from pipeline.configs import GeneratorConfig, PromptsConfig
from pipeline.cost import with_cost
from pipeline.identity import RECORDED
from pipeline.params import section
from pipeline.state import stage_state

logger = logging.getLogger(__name__)


@stage_command
@click.option("--set", "set_name", required=True, help="Name of the clip set; sets of one name share their seeds.")
@click.option("--policy", type=PATH, required=True, help="Folder of the policy to sample from.")
@click.option("--sampling", required=True, help="Section of params.yaml, such as evaluate.generate.")
@click.option("--checkpoints", is_flag=True, help="From each of its checkpoints, on the same noise, into one set.")
@click.option("--from", "starts", type=PATH, help="Clip set: sample pairs, both of a pair from one of its clips.")
@click.option("--noise", type=float, default=0.5, help="With --from: share of the solver's steps that is run.")
@click.option("--pairs-per-prompt", "pairs", type=int, default=1, help="With --from: each from another clip.")
@out_option
@metrics_option
@device_option
@engine_options
def main(
    set_name: str,
    policy: Path,
    sampling: str,
    checkpoints: bool,
    starts: Path | None,
    noise: float,
    pairs: int,
    out: Path,
    metrics: Path,
    device: str,
    engine: str,
    workers: str,
) -> None:
    """Sample a clip set: every prompt of a split, N clips each."""
    from cluster.pool import pool_of
    from data.policies import candidates, sampled_otherwise, sampled_with
    from data.prompts import load_prompts, texts_for
    from data.store import ClipSet
    from generators.core.rollout import (
        ClipSetName,
        Sampling,
        counts_of,
        generate_checkpoint_set,
        generate_clip_set,
        generate_pairs,
        load_policy,
    )
    from generators.core.size import VideoSize

    model, prompts = section("generator", GeneratorConfig), section("prompts", PromptsConfig)
    size, how = section("video", VideoSize), section(sampling, Sampling)
    prompt_set = load_prompts(Path(prompts.path))
    inputs = [policy, *model.folders, RECORDED / "generator.json", Path(prompts.path)]
    inputs += [Path(one.image) for one in prompt_set if one.image]
    params = {"set": set_name, "generator": model, "video": size, sampling: how, "checkpoints": checkpoints}
    if starts:
        inputs, params = [*inputs, starts], params | {"from": starts, "noise": noise, "pairs_per_prompt": pairs}
    if differs := sampled_otherwise(sampled_with(policy), how.steps, how.guidance, how.negative_prompt):
        logger.warning("%s samples %s with %s: what it learned may not show", sampling, policy.name, differs)
    load, called = partial(load_policy, asdict(model), size), ClipSetName(set_name, policy.name)
    with stage_state("generate", out, params, inputs) as work:
        clips, pool = work / "clips", pool_of(engine, workers, device)
        if checkpoints:
            loads = {one.name: partial(load, one.folder, device) for one in candidates(policy)}
            count = generate_checkpoint_set(loads, prompt_set, size, how, called, clips, out, pool)
        elif starts:
            own, begun = partial(load, policy, device), ClipSet.open(starts)
            count = generate_pairs(own, begun, size, how, called, noise, pairs, clips, out, pool)
        else:
            own, texts = partial(load, policy, device), texts_for(policy, prompt_set)
            count = generate_clip_set(own, prompt_set, size, how, called, clips, out, texts, pool=pool)
        write_metrics(metrics, with_cost({"clips": count}, counts_of(clips)))


if __name__ == "__main__":
    main()
