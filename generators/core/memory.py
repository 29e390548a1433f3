"""What a generator needs in memory, estimated from its configs: no weights are read.

Components are built on torch's meta device, so their numbers of parameters are exact. The rest is counted by these
formulas, in bytes:

    weights                   parameters x bytes of their dtype
    LoRA                      rank x (inputs + outputs) of every Linear that is adapted, each 4 (float32)
    training                  each trained parameter: gradient 4, Adam's two moments 8, its copy as reference 4
    activations               clips x tokens x width x bytes x layers x FACTOR
      with checkpointing      clips x tokens x width x bytes x (layers + FACTOR): inputs, and one layer
      without gradient        clips x tokens x width x bytes x FACTOR: one layer
      of a U-Net              clips x what one forward of one clip on the meta device keeps for the backward pass, all
                              weights trained, or without gradient the greatest sum of its tensors alive at once
    decoding                  the greatest sum of tensors alive while the VAE decodes one clip on the meta device

tokens: of the latents in the denoiser, text not counted. width, layers: of the denoiser's config. bytes: 2 where the
denoiser computes in bfloat16, else 4. Not counted: the allocator's reserve, workspaces of kernels, CUDA's own
memory, and attention matrices, which fused attention does not keep.
"""

import importlib
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from generators.core.checkpoint import Checkpoint
from generators.core.generator import Generator

# Values kept by a layer for its backward, for each token and unit of width. Blocks of Wan and CogVideoX of published
# proportions keep 21 to 54 of them: with LoRA in float32 least, with all weights in bfloat16 most, where norms keep
# float32. tests/generators/core/test_memory.py counts it.
FACTOR = 40
HEADS = ("num_attention_heads", "attention_head_dim")  # whose product is the width of most denoisers
WIDTH = "model_dim"  # the width itself, in others
LAYERS = ("num_layers", "num_single_layers", "num_visual_blocks")  # counts of layers over the latents' tokens
FLOAT32 = 4  # bytes
ADAM = 2 * FLOAT32  # of a parameter: two moments


@dataclass(frozen=True)
class Item:
    """One thing that takes memory."""

    what: str
    bytes: int
    how: str  # the formula with its numbers


@dataclass(frozen=True)
class Need:
    """What one stage holds at once. missing: what could not be counted, and why."""

    items: tuple[Item, ...]
    missing: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all items."""
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training run that its memory depends on.

    clips: of one forward of a process. rank, targets: of the LoRA. denoisers: those that are trained; None: all.
    autocast: whether the forward runs in bfloat16 over weights of another dtype.
    """

    clips: int
    rank: int
    targets: tuple[str, ...]
    checkpointing: bool
    denoisers: tuple[str, ...] | None = None
    autocast: bool = False


# Components


def on_meta(checkpoint: Checkpoint, name: str) -> nn.Module:
    """A component built from its config on the meta device, without weights, in eval mode.

    Raises ValueError where its class is not installed, or does not take the config.
    """
    class_name = checkpoint.class_of(name)
    config = dict(checkpoint.component(name))
    library = checkpoint.index[name][0]
    try:
        cls = getattr(importlib.import_module(library), class_name or "")
        with torch.device("meta"):
            module = cls.from_config(config) if hasattr(cls, "load_config") else cls(cls.config_class.from_dict(config))
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"path: {checkpoint.path}: {name}, a {library} {class_name}, cannot be built: {error}"
        ) from error
    found: nn.Module = module.eval()
    return found


def parameters_of(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the parameters when the module is loaded in that dtype.

    Some modules of diffusers and transformers stay in float32 (`_keep_in_fp32_modules`; of transformers' models in
    bfloat16 `_keep_in_fp32_modules_strict` alone).
    """
    transformers = type(module).__module__.startswith("transformers.")
    kept = getattr(module, "_keep_in_fp32_modules_strict" if transformers else "_keep_in_fp32_modules", None) or ()
    total = 0
    for name, parameter in module.named_parameters():
        whole = any(word in name.split(".") for word in kept)
        total += parameter.numel() * (FLOAT32 if whole else dtype.itemsize)
    return total


def lora_parameters(module: nn.Module, rank: int, targets: Sequence[str]) -> int:
    """Number of parameters of a LoRA: rank x (inputs + outputs) of every Linear whose name ends so.

    Raises ValueError for a target that matches no Linear.
    """
    linear = {name: one for name, one in module.named_modules() if isinstance(one, nn.Linear)}
    adapted: dict[str, nn.Linear] = {}
    for target in targets:
        own = {name: one for name, one in linear.items() if name == target or name.endswith(f".{target}")}
        if not own:
            raise ValueError(f"lora_targets: {target} matches no linear layer")
        adapted |= own
    return sum(rank * (one.in_features + one.out_features) for one in adapted.values())


# Activations


def width_and_layers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of a denoiser's config with all defaults. Raises ValueError naming what it lacks."""
    heads, dim = (config.get(name) for name in HEADS)
    width = heads * dim if isinstance(heads, int) and isinstance(dim, int) else config.get(WIDTH)
    if not isinstance(width, int):
        raise ValueError(f"the config has neither {' and '.join(HEADS)} nor {WIDTH} as whole numbers")
    layers = [config[name] for name in LAYERS if isinstance(config.get(name), int)]
    if not sum(layers):
        raise ValueError(f"the config has none of {', '.join(LAYERS)}")
    return width, sum(layers)


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps its inputs and its result, as fused kernels do; the meta device has none of them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            named = kwargs or {}
            query, key, value = (*args, *(named[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            return _Attended.apply(query, key, value)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Attended(torch.autograd.Function):
    """A result of attention's shape that keeps what fused kernels keep for their backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(…, L, E), (…, S, E), (…, S, V) to (…, L, V)."""
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result


def is_unet(config: Mapping[str, Any]) -> bool:
    """Whether a denoiser's activations are counted by a forward, since its blocks differ in width and resolution."""
    return "down_block_types" in config


def unet_training_activations(module: nn.Module, generator: Generator, clips: int, dtype: torch.dtype) -> Item:
    """What a U-Net's forward keeps for its backward pass, without checkpointing."""
    with torch.device("meta"):
        module = type(module).from_config(module.config).to(dtype).requires_grad_(True)  # type: ignore[attr-defined]
    weights = {one.untyped_storage()._cdata for one in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (key := tensor.untyped_storage()._cdata) not in weights:
            kept[key] = tensor
        return tensor

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = _ask(module, generator, dtype)
    each = sum(one.untyped_storage().nbytes() for one in kept.values())
    del result
    return Item("activations, without checkpointing", clips * each, f"{clips} clips x {each:,} bytes of one forward")


def unet_sampling_activations(module: nn.Module, generator: Generator, rows: int, dtype: torch.dtype) -> Item:
    """A U-Net's forward without gradient. rows: of its batch, which guidance doubles."""
    module = module.to(dtype)
    with _FusedAttention():
        each = live_bytes(lambda: _ask(module, generator, dtype))
    return Item("activations", rows * each, f"{rows} rows x {each:,} bytes, the greatest sum of one forward")


def _ask(module: nn.Module, generator: Generator, dtype: torch.dtype) -> Tensor:
    """The family's forward of a U-Net on one clip, on the meta device."""
    channels, _, *grid = generator.latent_shape
    with torch.device("meta"):
        latents = torch.empty(1, *generator.latent_shape, dtype=dtype)
        width = _config(module)["cross_attention_dim"]
        conditions = {"text": torch.empty(1, generator.max_prompt_tokens, width, dtype=dtype)}
        if generator.image != "none":
            conditions["first"] = torch.empty(1, channels, 1, *grid, dtype=dtype)
        return generator._ask(module, latents, torch.zeros(1), conditions)


def training_activations(clips: int, tokens: int, width: int, layers: int, itemsize: int, checkpointing: bool) -> Item:
    """What a forward keeps for its backward."""
    if checkpointing:
        name, kept, words = "activations, with checkpointing", layers + FACTOR, f"({layers} layers + {FACTOR})"
    else:
        name, kept, words = "activations, without checkpointing", layers * FACTOR, f"{layers} layers x {FACTOR}"
    how = f"{clips} clips x {tokens:,} tokens x {width} width x {itemsize} bytes x {words}"
    return Item(name, clips * tokens * width * itemsize * kept, how)


def sampling_activations(rows: int, tokens: int, width: int, itemsize: int) -> Item:
    """One layer's, without gradient. rows: of the denoiser's batch, which guidance doubles."""
    how = f"{rows} rows x {tokens:,} tokens x {width} width x {itemsize} bytes x {FACTOR}"
    return Item("activations", rows * tokens * width * itemsize * FACTOR, how)


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations within it make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self.seen: dict[int, int] = {}  # bytes by the storage's address

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._add(one.untyped_storage(), before)
        return made

    def _add(self, storage: torch.UntypedStorage, before: Collection[int]) -> None:
        key = storage._cdata
        if key in self.seen or key in before:  # a view, or what was there already
            return
        self.seen[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.seen.pop(key)


@torch.no_grad()
def live_bytes(function: Callable[[], Any]) -> int:
    """The greatest sum of bytes of the tensors that are made within the call and are alive at once."""
    with _Live() as live:
        kept = function()
    del kept
    peak: int = live.peak
    return peak


def decoding(generator: Generator, clips: int, tiling: bool = False) -> Item:
    """The tensors alive while the VAE decodes clips, by the family's own way, its parts on the meta device.

    tiling: in the VAE's own spatial tiles.

    Raises ValueError where it cannot be run there.
    """
    try:
        parts = {name: on_meta(generator.checkpoint, name).requires_grad_(False) for name in _vae_names(generator)}
        made = type(generator)(
            generator.checkpoint, generator.size, generator.max_prompt_tokens, parts, torch.float32, "meta"
        )
        if tiling:
            made.component("vae").enable_tiling()
        latents = torch.empty(clips, *generator.latent_shape, device="meta")
        peak = live_bytes(lambda: made._pixels(latents))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"the VAE cannot be run on the meta device: {error}") from error
    size = generator.size
    how = f"greatest sum of live tensors, {clips} x {size.num_frames} frames of {size.width}x{size.height}, float32"
    return Item("decoding, tiled" if tiling else "decoding", peak, how)


def _vae_names(generator: Generator) -> list[str]:
    return [name for name in generator.components_of["vae"] if generator.checkpoint.class_of(name)]


# What the stages hold


def encoding_need(modules: Mapping[str, nn.Module], parts: Mapping[str, str], dtype: torch.dtype) -> Need:
    """Stage generate while it encodes prompts and first frames: all parts but the denoisers.

    modules: by the pipeline's names, on the meta device. parts: the part of each.
    """
    chosen = {name: one for name, one in modules.items() if parts[name] != "denoiser"}
    return Need(_weights(chosen, parts, dtype), ("the encoders' activations: no formula",))


def sampling_need(
    generator: Generator, modules: Mapping[str, nn.Module], parts: Mapping[str, str], dtype: torch.dtype,
    clips: int, guidance: float, tiling: bool = False,
) -> Need:  # fmt: skip
    """Stage generate while it samples and decodes: denoisers, VAE, and the larger of activations and decoding."""
    chosen = {name: one for name, one in modules.items() if parts[name] in ("denoiser", "vae")}
    missing: list[str] = []
    either: list[Item] = []
    try:
        rows = clips * (2 if guidance > 1 else 1)
        denoisers = _denoisers(modules, parts).values()
        for unet in (one for one in denoisers if is_unet(_config(one))):
            either.append(unet_sampling_activations(unet, generator, rows, dtype))
        if widths := [width_and_layers(_config(one))[0] for one in denoisers if not is_unet(_config(one))]:
            either.append(sampling_activations(rows, generator._tokens(), max(widths), dtype.itemsize))
    except ValueError as error:
        missing.append(f"activations: {error}")
    try:
        either.append(decoding(generator, clips, tiling))
    except ValueError as error:
        missing.append(f"decoding: {error}")
    largest = sorted(either, key=lambda item: item.bytes)[-1:]
    return Need((*_weights(chosen, parts, dtype), *largest), tuple(missing))


def training_need(
    generator: Generator, modules: Mapping[str, nn.Module], parts: Mapping[str, str], dtype: torch.dtype,
    how: TrainingSettings, full: bool,
) -> Need:  # fmt: skip
    """Stage train: the trained denoisers and nothing else.

    dtype: of the weights under a LoRA; full training is float32.
    """
    dtype = torch.float32 if full else dtype
    trained = {
        name: one for name, one in _denoisers(modules, parts).items() if how.denoisers is None or name in how.denoisers
    }
    items, missing = [*_weights(trained, parts, dtype)], []
    try:
        number = sum(
            parameters_of(one) if full else lora_parameters(one, how.rank, how.targets) for one in trained.values()
        )
        items += _trained(number, full, how.rank)
    except ValueError as error:
        missing.append(str(error))
    if how.autocast and dtype == torch.float32:
        every = sum(parameters_of(one) for one in trained.values())
        items.append(Item("autocast's bfloat16 weights", 2 * every, f"{every:,} parameters x 2 bytes"))
    try:
        kept = [_kept(one, generator, how, torch.bfloat16 if how.autocast else dtype) for one in trained.values()]
        items += sorted(kept, key=lambda item: item.bytes)[-1:]
    except ValueError as error:
        missing.append(f"activations: {error}")
    return Need(tuple(items), tuple(missing))


def _kept(module: nn.Module, generator: Generator, how: TrainingSettings, dtype: torch.dtype) -> Item:
    """A trained denoiser's activations. Raises ValueError where its config does not tell them."""
    if is_unet(_config(module)):
        if how.checkpointing:
            raise ValueError("those of a U-Net are counted without checkpointing only")
        return unet_training_activations(module, generator, how.clips, dtype)
    width, layers = width_and_layers(_config(module))
    return training_activations(how.clips, generator._tokens(), width, layers, dtype.itemsize, how.checkpointing)


def _trained(number: int, full: bool, rank: int) -> list[Item]:
    """What trained parameters take besides the base's weights."""
    each = f"{number:,} parameters x"
    own = [] if full else [Item(f"LoRA of rank {rank}", number * FLOAT32, f"{each} 4 bytes")]
    return [
        *own,
        Item("gradients", number * FLOAT32, f"{each} 4 bytes"),
        Item("Adam", number * ADAM, f"{each} 8 bytes"),
        Item(
            "reference",
            number * FLOAT32,
            f"{each} 4 bytes" + ("" if full else ", where a LoRA is continued; the base takes none"),
        ),
    ]


def _weights(modules: Mapping[str, nn.Module], parts: Mapping[str, str], dtype: torch.dtype) -> tuple[Item, ...]:
    items = []
    for name, one in modules.items():
        own = torch.float32 if parts[name] in ("image", "vae") else dtype
        how = f"{parameters_of(one):,} parameters in {str(own).removeprefix('torch.')}"
        items.append(Item(f"weights of {name}", weight_bytes(one, own), how))
    return tuple(items)


def _denoisers(modules: Mapping[str, nn.Module], parts: Mapping[str, str]) -> dict[str, nn.Module]:
    return {name: one for name, one in modules.items() if parts[name] == "denoiser"}


def _config(module: nn.Module) -> Mapping[str, Any]:
    """A diffusers module's config, with its defaults."""
    config: Mapping[str, Any] = dict(module.config)  # type: ignore[arg-type]
    return config
