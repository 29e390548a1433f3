"""Stages `generate`, `eval-generate` and `generate-select`: sample a clip set from a policy, or its checkpoints."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.command import PATH, device_option, metrics_option, out_option, stage_command, write_metrics
from pipeline.configs import GeneratorConfig, PromptsConfig
from pipeline.identity import RECORDED
from pipeline.params import section
from pipeline.state import stage_state

if TYPE_CHECKING:
    from collections.abc import Collection

    from generators.core.generator import Generator


@stage_command
@click.option("--set", "set_name", required=True, help="Name of the clip set; sets of one name share their seeds.")
@click.option("--policy", type=PATH, required=True, help="Folder of the policy to sample from.")
@click.option("--sampling", required=True, help="Section of params.yaml, such as evaluate.generate.")
@click.option("--checkpoints", is_flag=True, help="From each of its checkpoints, on the same noise, into one set.")
@out_option
@metrics_option
@device_option
def main(set_name: str, policy: Path, sampling: str, checkpoints: bool, out: Path, metrics: Path, device: str) -> None:
    """Sample a clip set: every prompt of a split, N clips each."""
    from cluster.devices import pick_device
    from data.policies import candidates
    from data.prompts import load_prompts, texts_for
    from generators.core.load import load_generator
    from generators.core.lora import apply_policy
    from generators.core.rollout import ClipSetName, Sampling, generate_checkpoint_set, generate_clip_set
    from generators.core.size import VideoSize

    model, prompts = section("generator", GeneratorConfig), section("prompts", PromptsConfig)
    size, how = section("video", VideoSize), section(sampling, Sampling)
    prompt_set = load_prompts(Path(prompts.path))
    inputs = [policy, *model.folders, RECORDED / "generator.json", Path(prompts.path)]
    inputs += [Path(one.image) for one in prompt_set if one.image]
    params = {"set": set_name, "generator": model, "video": size, sampling: how, "checkpoints": checkpoints}
    place, called = pick_device(device), ClipSetName(set_name, policy.name)

    def load(folder: Path, parts: "Collection[str]") -> "Generator":
        generator = load_generator(**asdict(model), size=size, device=place, parts=parts)
        if "denoiser" in parts:
            apply_policy(generator, folder)
        return generator

    with stage_state("generate", out, params, inputs) as work:
        clips = work / "clips"
        if checkpoints:
            loads = {one.name: partial(load, one.folder) for one in candidates(policy)}
            count = generate_checkpoint_set(loads, prompt_set, size, how, called, clips, out)
        else:
            texts = texts_for(policy, prompt_set)
            count = generate_clip_set(partial(load, policy), prompt_set, size, how, called, clips, out, texts)
        write_metrics(metrics, {"clips": count})


if __name__ == "__main__":
    main()
