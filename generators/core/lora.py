"""The trained part of a denoiser, a LoRA adapter (peft) or all of it, and the reference policy beside it.

    start is base      adapter `policy` alone; the reference is the base, adapters off
    start is a LoRA    adapter `policy` continues it; the reference is `reference`, its frozen second copy
    full               every weight; the reference is the weights as they were, held aside

Either way one adapter (or one set of weights) is the whole change from the base, so what is saved loads as it is
in plain diffusers. All functions take the bare module, not a DDP or compile wrapper around it.

A policy's folder, of a generator with one denoiser and with two:

    pytorch_lora_weights.safetensors                  pipe.load_lora_weights(folder)
    transformer_2/pytorch_lora_weights.safetensors    pipe.load_lora_weights(folder / "transformer_2",
                                                          load_into_transformer_2=True)
    transformer/, transformer_2/                      where all weights are trained, for from_pretrained

Both files have keys that begin with `transformer.` (of a U-Net: `unet.`); diffusers silently loads nothing of one file
that has `transformer_2.` keys too, and reads the first file for subfolder="transformer_2".
"""

import contextlib
import copy
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.manifest import atomically, naming
from data.policies import BASE, PROJECTED, sampled_with
from generators.core.generator import Generator

logger = logging.getLogger(__name__)

POLICY, REFERENCE = "policy", "reference"  # peft adapter names
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' load_lora_weights looks for
FIRST = ("transformer", "unet")  # denoisers whose LoRA file lies in the policy's folder itself
PREFIXES = re.compile(r"^(transformer|unet)\.")  # of the component, before every key, as diffusers stores LoRA


class LoraError(ValueError):
    """An adapter that would train nothing, or a policy folder with missing or wrong files."""


# LoRA


def attach(transformer: Any, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Freeze the transformer and add the trainable adapter `policy`, which changes nothing yet.

    W + alpha/rank · B A, B zero, A drawn on the CPU from `seed`, the same on any device; float32 whatever W is.
    targets: suffixes of module names, e.g. attn1.to_q. Raises LoraError for one that matches no linear layer.
    """
    from peft import LoraConfig

    _check_targets(transformer, targets)
    transformer.requires_grad_(False)
    _add_adapter(transformer, LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(targets)), POLICY)
    generator = torch.Generator().manual_seed(seed)  # of params.yaml: the low 32 bits tell a person's few seeds apart
    for name, parameter in sorted(_adapter_parameters(transformer, POLICY).items()):
        values = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(values, a=5**0.5, generator=generator)  # peft's own initialisation
        parameter.data.copy_(values)


def load_start(transformer: Any, folder: Path) -> None:
    """Freeze the transformer, continue the folder's adapter as `policy` and hold its frozen copy as `reference`.

    Rank, alpha and targets are the start's. Raises LoraError as `load_adapter` does.
    """
    transformer.requires_grad_(False)
    load_adapter(transformer, folder, REFERENCE, trainable=False)
    load_adapter(transformer, folder, POLICY, trainable=True)


def load_adapter(transformer: Any, folder: Path, name: str = POLICY, trainable: bool = False) -> None:
    """Add the folder's LoRA under that adapter name and make it the active one, in float32.

    Raises LoraError where the file is missing, lacks rank and alpha, or does not fit this transformer.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from peft.utils import get_peft_model_state_dict

    path = Path(folder) / LORA_FILE
    weights, config = _read_lora(path)
    _check_targets(transformer, config["target_modules"])
    _add_adapter(transformer, LoraConfig(**config), name)
    expected = {key: value.shape for key, value in get_peft_model_state_dict(transformer, adapter_name=name).items()}
    found = {key: value.shape for key, value in weights.items()}
    if found != expected:
        differing = sorted({key for key, _ in found.items() ^ expected.items()})
        raise LoraError(f"{path}: does not fit this transformer; {len(differing)} keys differ, such as {differing[0]}")
    set_peft_model_state_dict(transformer, weights, adapter_name=name)
    for parameter in _adapter_parameters(transformer, name).values():
        parameter.requires_grad_(trainable)


def save(transformer: Any, folder: Path, denoiser: str = FIRST[0]) -> None:
    """Write the adapter `policy` as pytorch_lora_weights.safetensors, for stock `pipe.load_lora_weights(folder)`.

    Rank, alpha and targets go into the file's metadata, where diffusers looks for them: without, it would take
    alpha for rank. Equal adapters give equal bytes. Atomic. denoiser: its name in the pipeline.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = transformer.peft_config[POLICY]
    facts = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
    facts |= {"lora_dropout": config.lora_dropout}
    weights = get_peft_model_state_dict(transformer, adapter_name=POLICY)
    prefix = "unet." if denoiser == "unet" else "transformer."  # also of transformer_2
    path = Path(folder) / LORA_FILE
    tensors = {prefix + key: value.detach().float().cpu().contiguous() for key, value in weights.items()}
    metadata = json.dumps({prefix + key: value for key, value in facts.items()}, sort_keys=True)
    with atomically(path) as partial:
        # One metadata entry: safetensors writes several in random order, so the bytes would differ.
        save_file(tensors, partial, metadata={LORA_ADAPTER_METADATA_KEY: metadata})


def trainable_parameters(transformer: nn.Module) -> list[nn.Parameter]:
    """What an optimizer should hold. Raises LoraError where nothing is trainable."""
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    if not parameters:
        raise LoraError("the transformer has no trainable parameter: attach a LoRA, load a start or train it in full")
    return parameters


def fuse(transformer: Any) -> None:
    """Add the active adapter to the weights and drop it: the same predictions to float tolerance, faster.

    Exact enough in float32 alone; bfloat16 weights would round most of a small change away.
    """
    transformer.fuse_lora()
    transformer.unload_lora()
    del transformer.tuner_layers


# Full fine-tuning


def train_full(transformer: Any, hold: bool = True) -> None:
    """Make every weight trainable and, where wanted, hold a copy of all as they are now, the reference.

    Raises LoraError unless the weights are float32: in bfloat16 most optimizer steps would round to nothing.
    """
    if wrong := {p.dtype for p in transformer.parameters()} - {torch.float32}:
        raise LoraError(f"full fine-tuning needs generator.dtype: float32; the transformer has {wrong}")
    transformer.requires_grad_(True)
    if not hold:
        return
    # A tuple is no submodule, so neither state_dict nor parameters() sees the copy.
    transformer.reference_weights = tuple(parameter.detach().clone() for parameter in transformer.parameters())


def save_full(module: Any, folder: Path, denoiser: str) -> None:
    """Write the whole denoiser as folder/<denoiser>, for from_pretrained of its class."""
    with naming(Path(folder) / denoiser):
        module.save_pretrained(Path(folder) / denoiser, safe_serialization=True)


def load_full(module: Any, folder: Path, denoiser: str) -> None:
    """Replace every weight by the folder's. Raises LoraError where they do not fit."""
    path = Path(folder) / denoiser
    if not is_full(folder, denoiser):
        raise LoraError(f"{path}: no config.json, so no fully trained {denoiser}")
    loaded = type(module).from_pretrained(path, use_safetensors=True)
    try:
        module.load_state_dict(loaded.state_dict())
    except RuntimeError as error:
        raise LoraError(f"{path}: does not fit this {denoiser} ({error})") from error


# A policy's folder


def lora_folder(folder: Path, denoiser: str) -> Path:
    """Where a policy's folder has the LoRA file of that denoiser."""
    return Path(folder) if denoiser in FIRST else Path(folder) / denoiser


def is_lora(folder: Path, denoiser: str) -> bool:
    """Whether a policy's folder has a LoRA of that denoiser."""
    return (lora_folder(folder, denoiser) / LORA_FILE).is_file()


def is_full(folder: Path, denoiser: str) -> bool:
    """Whether a policy's folder has all weights of that denoiser."""
    return (Path(folder) / denoiser / "config.json").is_file()


def copy_denoiser(source: Path, folder: Path, denoiser: str) -> None:
    """Copy what one policy's folder has of a denoiser into another; nothing where it has none."""
    if is_lora(source, denoiser):
        target = lora_folder(folder, denoiser) / LORA_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lora_folder(source, denoiser) / LORA_FILE, target)
    elif is_full(source, denoiser):
        shutil.copytree(source / denoiser, folder / denoiser, dirs_exist_ok=True)


# The reference, and whole policies


@contextlib.contextmanager
def reference(transformer: Any) -> Iterator[None]:
    """Within it the transformer predicts as the reference policy; afterwards as the policy, trainable as before.

    Call backward outside: a graph that the policy recorded holds the weights that are swapped here.
    """
    if hasattr(transformer, "reference_weights"):
        switch = _full_reference(transformer)
    elif REFERENCE in getattr(transformer, "peft_config", {}):
        switch = _adapter_reference(transformer)
    else:
        switch = _base_reference(transformer)
    with switch:
        yield


def apply_policy(generator: Generator, folder: Path, denoisers: Sequence[str] | None = None) -> None:
    """Make the generator sample as the policy in runs/policies/<name>: the base, LoRAs or full weights.

    denoisers: those of the loaded ones that it is applied to; None: all. A LoRA over float32 weights is fused, unless
    the generator has `unconditional`, which switches it off.
    Raises LoraError for a folder without policy.json, a policy of another family, and a trained policy (its policy.json
    names a start) that lacks a denoiser which it was trained on.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    family = (facts.get("generator") or facts).get("family", generator.family)
    if family != generator.family:
        raise LoraError(f"{folder}: a policy of a {family} generator, and this one is {generator.family}")
    if "start" in facts:
        _check_whole(generator, folder, facts)
    for name, module in generator.denoisers.items():
        if denoisers is not None and name not in denoisers:
            continue
        if is_lora(folder, name):
            load_adapter(module, lora_folder(folder, name))
            if generator.dtype == torch.float32 and generator.unconditional is None:
                fuse(module)
            logger.info("policy %s: LoRA applied to %s", folder.name, name)
        elif is_full(folder, name):
            load_full(module, folder, name)
            logger.info("policy %s: full weights of %s loaded", folder.name, name)


def sampling_as(generator: Generator, sampled: Mapping[str, Any]) -> Generator:
    """The same modules under the flow shift, and with the unconditional branch, of a policy's `sampling`.

    sampled: as `data.policies.sampled_with` returns it. Apply policies to what this returns: an
    adapter that is fused cannot be switched off.
    Raises ValueError for a shift where the generator is no flow model.
    """
    if (shift := sampled.get("shift")) is not None:
        generator = generator.with_shift(shift)
    changed = copy.copy(generator)
    if sampled.get("unconditional") == BASE:
        changed.unconditional = partial(as_base, generator)
    changed.projects = sampled.get("unconditional_scale") == PROJECTED
    return changed


def with_own_sampling(generator: Generator, folder: Path) -> Generator:
    """`sampling_as` of the policy in `folder`. Raises LoraError for a folder without policy.json."""
    read_facts(folder)
    return sampling_as(generator, sampled_with(folder))


@contextlib.contextmanager
def as_base(generator: Generator) -> Iterator[None]:
    """Within it the generator's denoisers predict without their adapters, also within `reference`.

    Call backward outside.
    """
    layers = [layer for module in generator.denoisers.values() for layer in getattr(module, "tuner_layers", ())]
    switched = [layer for layer in layers if not layer.disable_adapters]
    for layer in switched:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in switched:
            layer.enable_adapters(True)


def read_facts(folder: Path) -> dict[str, Any]:
    """What policy.json says. Raises LoraError for a folder without it."""
    if not (Path(folder) / "policy.json").is_file():
        raise LoraError(f"{folder}: no policy.json, so no policy")
    facts: dict[str, Any] = json.loads((Path(folder) / "policy.json").read_text())
    return facts


def _check_whole(generator: Generator, folder: Path, facts: Mapping[str, Any]) -> None:
    """Raises LoraError where the policy has nothing of a denoiser that it was trained on, which is all by default."""
    names = generator.denoiser_names
    lacking = [name for name in names if not (is_lora(folder, name) or is_full(folder, name))]
    trained = facts.get("config", {}).get("denoisers") or names
    if wrong := [name for name in lacking if name in trained]:
        raise LoraError(
            f"{folder}: a trained policy, but with neither {LORA_FILE} nor full weights of {', '.join(wrong)}; this "
            f"generator has {', '.join(names)}, and policy.json (config.denoisers) says which were trained"
        )


@contextlib.contextmanager
def _base_reference(transformer: Any) -> Iterator[None]:
    for layer in transformer.tuner_layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in transformer.tuner_layers:
            layer.enable_adapters(True)  # the active adapter, which is the policy, is trainable again


@contextlib.contextmanager
def _adapter_reference(transformer: Any) -> Iterator[None]:
    for layer in transformer.tuner_layers:
        layer.set_adapter(REFERENCE)
    try:
        yield
    finally:
        for layer in transformer.tuner_layers:
            layer.set_adapter(POLICY)  # trainable again, and the reference not


@contextlib.contextmanager
def _full_reference(transformer: Any) -> Iterator[None]:
    _swap_reference_weights(transformer)
    try:
        yield
    finally:
        _swap_reference_weights(transformer)


def _swap_reference_weights(transformer: Any) -> None:
    for parameter, held in zip(transformer.parameters(), transformer.reference_weights, strict=True):
        parameter.data, held.data = held.data, parameter.data


def _add_adapter(transformer: Any, config: Any, name: str) -> None:
    """Inject and activate an adapter with float32 parameters; peft would give them the base's dtype."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    with warnings.catch_warnings():  # a second adapter is meant: the reference
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        transformer.add_adapter(config, adapter_name=name)
    for parameter in _adapter_parameters(transformer, name).values():
        parameter.data = parameter.data.float()
    # Kept, because a training step switches them twice and a walk over all modules costs as much as a small layer.
    # A tuple is no submodule.
    transformer.tuner_layers = tuple(layer for layer in transformer.modules() if isinstance(layer, BaseTunerLayer))


def _adapter_parameters(transformer: nn.Module, name: str) -> dict[str, nn.Parameter]:
    return {key: value for key, value in transformer.named_parameters() if f".{name}." in key and ".lora_" in key}


def _check_targets(transformer: nn.Module, targets: Sequence[str]) -> None:
    linear = [
        name.removesuffix(".base_layer")  # where an adapter wraps it already
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    suffixes = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in linear})
    unmatched = [t for t in targets if not any(name == t or name.endswith("." + t) for name in linear)]
    if unmatched or not targets:
        found = ", ".join(unmatched) or "none given"
        raise LoraError(f"LoRA target matches no linear layer: {found}; this transformer has {', '.join(suffixes)}")
    others = {name for name, _ in transformer.named_modules() if ".lora_" not in name} - set(linear)
    for target in targets:
        hit = sorted(name for name in others if name == target or name.endswith("." + target))
        if hit:
            raise LoraError(
                f"LoRA target {target} also matches {hit[0]}, which is no linear layer; name more of its path"
            )


def _read_lora(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and peft config of a LoRA file as diffusers stores it, the component's prefix taken off."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise LoraError(f"{path}: no such file, so no LoRA to load")
    try:
        weights = {PREFIXES.sub("", key): value for key, value in load_file(path).items()}
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except SafetensorError as error:
        raise LoraError(f"{path}: not a readable safetensors file ({error})") from error
    config = {PREFIXES.sub("", key): value for key, value in facts.items()}
    if missing := {"r", "lora_alpha", "target_modules"} - config.keys():
        raise LoraError(f"{path}: its metadata lacks {', '.join(sorted(missing))}, so its scale is unknown")
    return weights, config
