"""What is trained, by LoRA or in full: made from a start, and its optimizer."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter

from cluster import devices
from generators.core import lora
from generators.core.generator import Generator
from rl.training.config import PolicyConfig


class Policy(NamedTuple):
    """What is trained, by LoRA or in full."""

    parameters: dict[str, Parameter]
    reference: Callable[[], contextlib.AbstractContextManager[None]]  # within it the transformer is the reference
    save: Callable[[Path], None]


def make_trainable(generator: Generator, config: PolicyConfig, start: Path) -> Policy:
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
    adapter = generator.transformer.peft_config[lora.POLICY]
    found = sorted(adapter.target_modules)
    for key, wanted, value in (
        ("lora_rank", config.lora_rank, adapter.r),
        ("lora_alpha", config.lora_alpha, adapter.lora_alpha),
        ("lora_targets", found if config.lora_targets is None else sorted(config.lora_targets), found),
    ):
        if value != wanted:
            raise ValueError(f"{key} is {wanted}, but {start} is continued, whose adapter has {value}")


def make_optimizer(parameters: Sequence[Parameter], config: PolicyConfig) -> torch.optim.Optimizer:
    """Adam, as in the paper, or AdamW where weight_decay is not 0."""
    first_moment, second_moment = config.betas
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (first_moment, second_moment), "eps": config.eps}
    settings["fused"] = devices.has_fused_adam(parameters[0].device)
    if config.weight_decay > 0:
        return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, **settings)
    return torch.optim.Adam(parameters, **settings)
