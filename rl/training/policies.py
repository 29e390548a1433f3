"""What is trained, by LoRA or in full: made from a start, optimised, kept as it goes, resumed."""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from cluster import devices
from data.manifest import MANIFEST, sha256_of
from data.policies import CHECKPOINTS, is_whole, keep_until, name_of
from generators.core import lora
from generators.core.generator import Generator
from rl.training import state
from rl.training.config import PolicyConfig

logger = logging.getLogger(__name__)

FOLDER = "policy"  # in a run's `work`, the folder that becomes the policy


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient that is not finite; the step was not applied."""


class Policy(NamedTuple):
    """What is trained, and the three ways to it: by LoRA or in full."""

    parameters: dict[str, Parameter]
    reference: Callable[[], contextlib.AbstractContextManager]  # within it the transformer is the reference policy
    save: Callable[[Path], None]


def prepare(generator: Generator, config: PolicyConfig, start: Path) -> Policy:
    """Make the transformer trainable from `start`, whose weights it then has.

    Raises LoraError where start is no policy or nothing would be trained, ValueError where a LoRA would not be the
    whole change from the base.
    """
    transformer = generator.transformer
    if config.full:
        lora.apply_policy(generator, start)
        lora.train_full(transformer)
        write = lora.save_full
    else:
        _prepare_lora(generator, config, start)
        write = lora.save
    # Dropout would make policy and reference differ by chance; gradient checkpointing works in eval mode as well.
    transformer.eval()
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    parameters = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    return Policy(parameters, lambda: lora.reference(transformer), lambda folder: write(transformer, folder))


def _prepare_lora(generator: Generator, config: PolicyConfig, start: Path) -> None:
    """Attach a new adapter to the base, or continue the start's."""
    if not (start / "policy.json").is_file():
        raise lora.LoraError(f"{start}: no policy.json, so no policy to start from")
    if (start / lora.FULL_FOLDER).is_dir():
        raise ValueError(f"{start}: fully trained, so a LoRA is not the whole change from the base; set full: true")
    if not (start / lora.LORA_FILE).is_file():
        targets = config.lora_targets or generator.lora_targets
        lora.attach(generator.transformer, config.lora_rank, config.lora_alpha, targets, config.seed)
        return
    lora.load_start(generator.transformer, start)
    continued = generator.transformer.peft_config[lora.POLICY]
    targets = sorted(continued.target_modules)
    for key, wanted, value in (
        ("lora_rank", config.lora_rank, continued.r),
        ("lora_alpha", config.lora_alpha, continued.lora_alpha),
        ("lora_targets", targets if config.lora_targets is None else sorted(config.lora_targets), targets),
    ):
        if value != wanted:
            raise ValueError(f"{key} is {wanted}, but {start} is continued, whose adapter has {value}")


def made_from(start: Path, config: PolicyConfig) -> dict[str, Any]:
    """What a policy's start and settings are, as policy.json holds them."""
    described = start / (MANIFEST if (start / MANIFEST).is_file() else "policy.json")
    return {"start": start.name, "start_sha256": sha256_of(described), "config": asdict(config)}


# Optimisation


def make_optimizer(parameters: Sequence[Parameter], config: PolicyConfig) -> torch.optim.Optimizer:
    """Adam, as in the paper, or AdamW where weight_decay is not 0."""
    first_moment, second_moment = config.betas
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (first_moment, second_moment), "eps": config.eps}
    settings["fused"] = devices.has_fused_adam(parameters[0].device)
    if config.weight_decay > 0:
        return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, **settings)
    return torch.optim.Adam(parameters, **settings)


def gradients(policy: Policy) -> list[Tensor]:
    """The parameters' gradients, zeros where no row of this process had one."""
    for parameter in policy.parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in policy.parameters.values() if parameter.grad is not None]


def check_finite(step: int, loss: float, norm: float, folder: Path) -> None:
    """Raises NonFiniteLossError for the step, counted from 1, unless its loss and gradient norm are finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NonFiniteLossError(
            f"step {step}: loss {loss}, gradient norm {norm}; step not applied, {last_good(folder)}"
        )


def last_good(folder: Path) -> str:
    """Which checkpoint a run that stopped early leaves in its policy folder, in words."""
    kept = sorted((folder / CHECKPOINTS).glob("step-*"))
    return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"


# Kept and resumed


def resume(
    work: Path,
    resume_from: Path | None,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    made_from: Mapping[str, Any],
    checkpoint_every: int,
) -> int:
    """Restore the state in `work`, if any, and tidy its policy folder up to it; returns the number of steps done."""
    if resume_from is not None and not (resume_from / state.STATE_FILE).is_file():
        raise state.ResumeError(f"{resume_from}: no {state.STATE_FILE} to resume from")
    if devices.rank() == 0 and resume_from is not None and not (work / state.STATE_FILE).is_file():
        shutil.copytree(resume_from, work, dirs_exist_ok=True)
    devices.barrier()
    done = 0
    if (work / state.STATE_FILE).is_file():
        state.check_identity(work, _identity(made_from))
        # Killed while publishing, a run has lost part of its folder: only a fresh start has the same bytes again.
        if is_whole(work / FOLDER, state.steps_done(work), checkpoint_every):
            done = state.read_state(work, parameters, optimizer)
            logger.info("resumed from %s after step %d", work / state.STATE_FILE, done)
    devices.barrier()
    if devices.rank() == 0:
        keep_until(work / FOLDER, done)
    return done


def checkpoint(
    work: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer, made_from: Mapping[str, Any]
) -> None:
    """Keep the policy as it is after `step` steps, and then the state to resume from it."""
    unfinished = work / FOLDER / CHECKPOINTS / ".unfinished"
    policy.save(unfinished)
    describe(unfinished, {**made_from, "step": step})
    unfinished.rename(unfinished.with_name(name_of(step)))
    state.write_state(work, step, policy.parameters, optimizer, _identity(made_from))


def describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write policy.json: what the weights beside it are made from."""
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False, default=list)
    (folder / "policy.json").write_text(text + "\n", encoding="utf-8")


def _identity(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of policy.json, one level deep: what a resumed run must share."""
    flat = {key: value for key, value in made_from.items() if key != "config"}
    return flat | {f"config.{key}": value for key, value in made_from["config"].items()}
