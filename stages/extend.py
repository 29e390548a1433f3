"""Stage `extend`: a policy with the same weights and longer prompts, as a baseline for training."""

import shutil
from pathlib import Path

import click

from pipeline.command import PATH, out_option, stage_command
from pipeline.configs import ExtendConfig, PromptsConfig
from pipeline.params import section
from pipeline.state import stage_state


@stage_command
@click.option("--name", required=True, help="An entry of the section extend.")
@click.option("--policy", type=PATH, required=True, help="Folder of the policy whose prompts are extended.")
@out_option
def main(name: str, policy: Path, out: Path) -> None:
    """Copy the policy under another name, with a text in place of each prompt."""
    from data.manifest import publish, read_manifest, write_manifest
    from data.policies import copy_policy
    from data.prompts import EXTENDED, extended, load_prompts, write_prompts

    config, prompts = section(f"extend.{name}", ExtendConfig), Path(section("prompts", PromptsConfig).path)
    with stage_state("extend", out, {f"extend.{name}": config}, [policy, prompts, Path(config.prompts)]) as work:
        read_manifest(policy, "policy")
        texts = extended(load_prompts(prompts), load_prompts(Path(config.prompts)), config.template)
        folder = work / "policy"
        shutil.rmtree(folder, ignore_errors=True)
        copy_policy(policy, folder)
        write_prompts(folder / EXTENDED, texts)
        write_manifest(folder, "policy", extends=policy.name, prompts=config.prompts, template=config.template)
        publish(folder, out)


if __name__ == "__main__":
    main()
