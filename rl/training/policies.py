"""What is trained, by LoRA or in full: made from a start, and its optimizer."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from cluster import devices
from generators.core import lora
from generators.core.generator import Generator
from rl.training import sharding
from rl.training.config import PolicyConfig


class Policy(NamedTuple):
    """What is trained, by LoRA or in full."""

    parameters: dict[str, Parameter]  # by <denoiser>.<name>
    reference: Callable[[], contextlib.AbstractContextManager[None]]  # within it the generator is the reference
    save: Callable[[Path], None]  # called on every process, of which the first writes
    trains: Callable[[Tensor], bool]  # whether a process time (1,) is that of a denoiser which is trained
    sharded: bool = False  # whether the parameters are shards, whose gradients are sums over all processes


def make_trainable(generator: Generator, config: PolicyConfig, start: Path) -> Policy:
    """Make the trained denoisers trainable from `start`, whose weights they then have; sharded where it is wanted.

    Raises LoraError where start is no policy or nothing would be trained, ValueError where a LoRA would not be the
    whole change from the base, and for a denoiser that the generator does not have.
    """
    names = trained_denoisers(generator.denoiser_names, config)
    check_trainable(generator, config)
    shards = config.shard and sharding.is_possible()
    if not shards:
        for module in generator.denoisers.values():
            module.to(generator.device)  # from the host, where a run that shards loads them
    trained = {name: generator.component(name) for name in names}
    if config.full:
        lora.apply_policy(generator, start)
        for module in trained.values():
            lora.train_full(module, hold=not shards)
    else:
        _prepare_lora(generator, trained, config, start)
    for module in generator.denoisers.values():
        # Dropout would make policy and reference differ by chance; gradient checkpointing works in eval mode as well.
        module.eval()
        if config.gradient_checkpointing:
            module.enable_gradient_checkpointing()
    if shards:
        for name, module in generator.denoisers.items():
            shard = sharding.shard_all if config.full and name in trained else sharding.shard_frozen
            shard(module, generator.device)
        generator.always_asked = tuple(trained)
    switch = sharding.reference if config.full and shards else lora.reference

    @contextlib.contextmanager
    def reference() -> Iterator[None]:
        with contextlib.ExitStack() as switched:
            for module in trained.values():
                switched.enter_context(switch(module))
            yield

    def save(folder: Path) -> None:
        for name in generator.denoiser_names:
            whole = trained.get(name)
            if shards and config.full and name in trained:
                whole = sharding.whole_copy(trained[name])
            if devices.rank() != 0:
                continue
            if name not in trained:  # the policy is the whole change from the base
                lora.copy_denoiser(start, folder, name)
            elif config.full:
                lora.save_full(whole, folder, name)
            else:
                lora.save(whole, lora.lora_folder(folder, name), name)

    parameters = {
        f"{name}.{key}": p
        for name, module in trained.items()
        for key, p in module.named_parameters()
        if p.requires_grad
    }

    def trains(t: Tensor) -> bool:
        return generator.denoiser_at(generator.process.model_timestep(t).item()) in trained

    return Policy(parameters, reference, save, trains, sharded=shards and config.full)


def check_trainable(generator: Generator, config: PolicyConfig) -> None:
    """Raises ValueError where this generator's denoisers cannot be trained so."""
    path = generator.checkpoint.path
    if not config.full and not generator.takes_lora:
        raise ValueError(f"full: false, but {path} takes no LoRA; true trains all of its weights")
    if config.full and generator.unconditional is not None:
        raise ValueError("full: true, but the start or the recipe has unconditional: base, which switches a LoRA off")
    if config.gradient_checkpointing and not generator.checkpoints:
        raise ValueError(f"gradient_checkpointing: true, but the denoiser of {path} has none; false")
    if config.shard and generator.device.type == "tpu":
        raise ValueError("shard: true, but torch_tpu has no FSDP2; false")


def trained_denoisers(names: Sequence[str], config: PolicyConfig) -> list[str]:
    """Those of a generator's denoisers that are trained, in its order. Raises ValueError for one that it lacks."""
    wanted = names if config.denoisers is None else config.denoisers
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"denoisers: found {', '.join(unknown)}; this generator has {', '.join(names)}")
    return [name for name in names if name in wanted]


def _prepare_lora(generator: Generator, trained: Mapping[str, Any], config: PolicyConfig, start: Path) -> None:
    """Attach new adapters to the base, or continue the start's."""
    lora.apply_policy(generator, start, [name for name in generator.denoisers if name not in trained])
    for name, module in trained.items():
        if lora.is_full(start, name):
            raise ValueError(f"{start}: fully trained, so a LoRA is not the whole change from the base; set full: true")
        if lora.is_lora(start, name):
            lora.load_start(module, lora.lora_folder(start, name))
            _check_continued(module, config, start)
        else:
            targets = config.lora_targets or generator.lora_targets
            seed = config.seed + generator.denoiser_names.index(name)
            lora.attach(module, config.lora_rank, config.lora_alpha, targets, seed)


def _check_continued(module: Any, config: PolicyConfig, start: Path) -> None:
    """Raises ValueError where the config's adapter is another than the start's, which is continued."""
    adapter = module.peft_config[lora.POLICY]
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
