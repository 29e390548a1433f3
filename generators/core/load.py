"""A generator by the name of its family; `generators.core.generator` says what a family is."""

import logging
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch

from cluster.devices import fit_threads
from data.doors import find
from generators.core.checkpoint import Checkpoint, open_checkpoint, with_components
from generators.core.families import FAMILIES
from generators.core.generator import PARTS, Generator, as_dtype
from generators.core.size import VideoSize

FLOAT32 = ("image", "vae")  # bfloat16 decoding flickers; the authors of Wan recommend float32 for both


def load_generator(
    family: str,
    path: str,
    size: VideoSize,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    max_prompt_tokens: int = 512,
    vae_tiling: bool = False,
    attention: str | None = None,
    compile: bool = False,
    embedded_guidance: float | None = None,
    components: Mapping[str, Mapping[str, Any]] | None = None,
    parts: Collection[str] = PARTS,
    denoisers: Collection[str] | None = None,
    on_host: bool = False,
) -> Generator:
    """A generator ready to sample, its modules frozen and in eval mode.

    family: a key of FAMILIES, or the dotted path of a user's module, such as my_lab.generators.ltx.
    path: a local diffusers folder or a hub id; revision: a hub id's commit, tag or branch.
    size: of the clips. dtype: float32 or bfloat16, of denoisers and text encoder; the other parts are float32.
    vae_tiling: decode in the VAE's own spatial tiles. attention: a backend of diffusers, None is its default.
    compile: the denoisers' blocks with torch.compile.
    embedded_guidance: the guidance scale that is an input of a distilled denoiser; None: the family's.
    components: those that lie elsewhere than in `path`: path, revision and subfolder by the pipeline's names for them.
    parts: of PARTS, those to load; training needs ("denoiser",) alone. denoisers: of several, those to load; None: all.
    on_host: leave the denoisers in the host's memory, from where rl.training.policies puts shards on the device.
    Reads safetensors only, never a pickle, and downloads no other part. Raises ValueError naming the argument that is
    wrong.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"parts: found {', '.join(unknown)}; known are {', '.join(PARTS)}")
    cls = _family(family)
    checkpoint = _opened(cls, path, revision, components)
    where = torch.device(device)
    generator = _configured(cls, checkpoint, size, max_prompt_tokens, None, as_dtype(dtype), where, embedded_guidance)
    names = {name: part for part in PARTS if part in parts for name in cls.components_of.get(part, ())}
    for name, part in names.items():
        left_out = part == "denoiser" and denoisers is not None and name not in denoisers
        if checkpoint.class_of(name) and not left_out:
            place = torch.device("cpu") if part == "denoiser" and on_host else where
            generator.components[name] = _load_component(checkpoint, name, part, generator, place)
    fit_threads(generator.components.values())
    _check_options(generator, vae_tiling, attention)
    if vae_tiling and {"denoiser", "vae"} <= set(parts):  # clips are decoded in tiles; first frames are encoded whole
        generator.component("vae").enable_tiling()
    for denoiser in generator.denoisers.values():
        if attention:
            _set_attention(denoiser, attention)
        if compile:
            denoiser.compile_repeated_blocks() if denoiser._repeated_blocks else denoiser.compile()
    return generator


def examine_generator(
    family: str, path: str, size: VideoSize, revision: str | None = None, max_prompt_tokens: int = 512,
    vae_tiling: bool = False, attention: str | None = None, embedded_guidance: float | None = None,
    components: Mapping[str, Mapping[str, Any]] | None = None, **_: Any,
) -> Generator:  # fmt: skip
    """The generator without any component, where the family can read the checkpoint and make such clips.

    By the checkpoint's small files alone. Raises ValueError that begins with the argument that is wrong,
    NotReachedError where nothing is known of a hub id.
    """
    cls = _family(family)
    checkpoint = _opened(cls, path, revision, components)
    settings = {"max_prompt_tokens": max_prompt_tokens, "embedded_guidance": embedded_guidance}
    generator = _configured(cls, checkpoint, size, **settings)
    names = [name for part in PARTS for name in cls.components_of.get(part, ()) if checkpoint.class_of(name)]
    files = [name for name in names if _is_files(checkpoint, name)]
    checkpoint.check_folders([name for name in names if name not in files], (*files, "scheduler"))
    most = None
    if "tokenizer" in names:  # or a processor, which has one
        place = checkpoint.place("tokenizer")
        most = place.checkpoint.config(place.within("tokenizer_config.json")).get("model_max_length")
    if most is not None and max_prompt_tokens > most:
        raise ValueError(
            f"max_prompt_tokens: {max_prompt_tokens}, but the tokenizer of {checkpoint.path} ends at {most}"
        )
    _check_options(generator, vae_tiling, attention)
    return generator


def _check_options(generator: Generator, vae_tiling: bool, attention: str | None) -> None:
    """Raises ValueError for an option that the generator's family does not take."""
    path = generator.checkpoint.path
    if vae_tiling and not generator.tiles:
        raise ValueError(f"vae_tiling: true, but the tiles of the VAE of {path} do not fit together; false")
    if attention and not generator.attention_backends:
        raise ValueError(f"attention: {attention}, but the attention of {path} takes no backend; null")
    if attention:
        from diffusers.models.attention_dispatch import AttentionBackendName

        if attention not in (known := [one.value for one in AttentionBackendName]):
            raise ValueError(f"attention: {attention} is no backend of diffusers; known are {', '.join(known)}")


def _family(name: str) -> type[Generator]:
    return cast(type[Generator], find(name, FAMILIES, "generator.family", "Family"))


def _opened(
    cls: type[Generator], path: str, revision: str | None, components: Mapping[str, Mapping[str, Any]] | None
) -> Checkpoint:
    """The checkpoint with the components that lie elsewhere. Raises ValueError for one that the family has not."""
    known = ["scheduler", *(name for names in cls.components_of.values() for name in names)]
    if unknown := [name for name in components or () if name not in known]:
        raise ValueError(f"components: {unknown[0]!r} is none of family {cls.family}; known are {', '.join(known)}")
    checkpoint = open_checkpoint(str(path), revision)
    return with_components(checkpoint, components, cls.class_names) if components else checkpoint


def _configured(cls: type[Generator], checkpoint: Checkpoint, *settings: Any, **named: Any) -> Generator:
    """The generator without components. Raises ValueError that lists what is read, where the pipeline is another."""
    name = checkpoint.index.get("_class_name")
    if name not in cls.pipelines:
        read = "; ".join(f"{family} reads {', '.join(_family(family).pipelines)}" for family in FAMILIES)
        raise ValueError(
            f"path: {checkpoint.path} is a {name}, and family {cls.family} does not read it. Family {read}"
        )
    return cls(checkpoint, *settings, **named)


def _is_files(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a component has no weights."""
    return any(kind in (checkpoint.class_of(name) or "") for kind in ("Tokenizer", "Processor", "FeatureExtractor"))


def _load_component(checkpoint: Checkpoint, name: str, part: str, generator: Generator, place: torch.device) -> Any:
    import importlib

    library, (source, folder) = checkpoint.index[name][0], checkpoint.place(name)
    where: dict[str, Any] = {"revision": source.revision} | ({"subfolder": folder} if folder else {})
    if "Tokenizer" in (checkpoint.class_of(name) or ""):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source.path, **where)
    cls = getattr(importlib.import_module(library), checkpoint.class_of(name) or "")
    if _is_files(checkpoint, name):
        return cls.from_pretrained(source.path, **where)
    logging.getLogger("diffusers.configuration_utils").addFilter(_is_no_surplus)
    dtype = torch.float32 if part in FLOAT32 else generator.dtype
    module = cls.from_pretrained(source.path, **where, dtype=dtype, use_safetensors=True)
    return module.to(place).eval().requires_grad_(False)


def _is_no_surplus(record: logging.LogRecord) -> bool:
    """Whether a warning is another than that a config has entries that its class ignores: some are the pipeline's."""
    return "are not expected and will be ignored" not in record.getMessage()


def _set_attention(denoiser: Any, backend: str) -> None:
    """Raises ValueError for a backend that is not installed."""
    try:
        denoiser.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"attention: {error}") from error
