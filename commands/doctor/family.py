"""Which family reads a checkpoint, what of it is missing, and what memory the stages need, from its configs alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.doctor.generator import missing_weights
from commands.doctor.machine import BROKEN, GIB, NOTE, OK, Finding
from data.doors import find
from data.records import DensePair, Pair
from generators.core import memory
from generators.core.checkpoint import Checkpoint, open_checkpoint, with_components
from generators.core.families import FAMILIES
from generators.core.generator import PARTS, Generator, as_dtype
from generators.core.memory import Item, Need, TrainingSettings
from generators.core.rollout import Sampling
from generators.core.size import VideoSize
from pipeline.configs import GeneratorConfig, train_config
from pipeline.graph import entry_of, trained_policies
from rl.objectives import OBJECTIVES

if TYPE_CHECKING:
    from torch import nn

    from rl.training.config import TrainConfig

AUTO = "auto"  # the family that reads the checkpoint
WHAT = "family"
LABEL = "the generator is not loaded, so it takes nothing; the judge's own memory is not counted here"
NOT_COUNTED = (
    "tokens of the text, workspaces of kernels, the allocator's reserve, and attention matrices, which fused attention "
    "does not keep"
)


class Reader(NamedTuple):
    """A family whose pipelines have the checkpoint's class. error: why it does not make such clips of it."""

    name: str
    cls: type[Generator]
    generator: Generator | None
    error: str | None


@dataclass(frozen=True)
class Settings:
    """What of params.yaml the estimate depends on."""

    model: GeneratorConfig
    size: VideoSize
    sampling: Sampling
    training: TrainingSettings


def settings(params: Mapping[str, Any], model: GeneratorConfig, size: VideoSize, sampling: Sampling) -> Settings:
    """With the objective of the trained policies that has most clips in a forward; a pair has two."""
    known = dict.fromkeys(sorted(OBJECTIVES.keys() & params["train"].keys()))
    trained = [(entry["objective"], entry_of(params, name)) for name, entry in trained_policies(params).items()]
    configs = [(name, train_config(OBJECTIVES[name], entry)) for name, entry in trained or known.items()]
    clips, config = max(((_clips(name, config), config) for name, config in configs), key=lambda found: found[0])
    training = TrainingSettings(
        clips, config.lora_rank, config.lora_targets or (), config.gradient_checkpointing, config.denoisers,
        config.precision == "bf16",
    )  # fmt: skip
    return Settings(model, size, sampling, training)


def _clips(objective: str, config: "TrainConfig") -> int:
    """Clips in one forward of one process that trains alone."""
    rows = -(-config.batch_size // config.gradient_accumulation)
    return rows * (2 if OBJECTIVES[objective].row_type in (Pair, DensePair) else 1)


def describe(family: str, chosen: Settings) -> Iterator[tuple[str, Iterable[Finding]]]:
    """Titles and their lines. family: of FAMILIES, a dotted path, or auto. Raises ValueError for an unknown one."""
    model = chosen.model
    checkpoint = open_checkpoint(model.path, model.revision)
    found = readers(checkpoint, [*FAMILIES, *({family} - {AUTO, *FAMILIES})], chosen)
    yield f"checkpoint {model.path}", _families(family, checkpoint, found)
    if not found:
        return
    wanted = [one for one in found if one.name == family]
    reader = (wanted or [one for one in found if one.generator] or found)[0]
    read = checkpoint if reader.generator is None else reader.generator.checkpoint
    parts = {name: part for part in PARTS for name in reader.cls.components_of.get(part, ())}
    modules, lines = components(read, parts)
    yield f"components, of {reader.name}", lines
    if reader.generator is None:
        yield "memory", [Finding(NOTE, "memory", "not estimated, because the family makes no such clips (above)")]
        return
    size = chosen.size
    tokens = f" ({reader.generator._tokens():,} tokens)" if _counts_tokens(modules.values()) else ""
    yield (
        f"memory, estimated for clips of {size.num_frames} frames of {size.width}x{size.height}{tokens}",
        _memory(reader.generator, modules, {name: parts[name] for name in modules}, chosen),
    )


def readers(checkpoint: Checkpoint, families: Iterable[str], chosen: Settings) -> list[Reader]:
    """The families whose pipelines the checkpoint is one of, those that make such clips of it first."""
    found, sources = [], asdict(chosen.model)["components"] or {}
    for name in families:
        cls = find(name, FAMILIES, "--family", "Family")
        if checkpoint.index.get("_class_name") not in cls.pipelines:
            continue
        try:
            own = with_components(checkpoint, sources, cls.class_names)
            generator = cls(own, chosen.size, chosen.model.max_prompt_tokens)
            found.append(Reader(name, cls, generator, None))
        except ValueError as error:
            found.append(Reader(name, cls, None, str(error)))
    return sorted(found, key=lambda one: one.generator is None)


def _families(family: str, checkpoint: Checkpoint, found: list[Reader]) -> Iterator[Finding]:
    name = checkpoint.index.get("_class_name")
    if not found:
        yield Finding(BROKEN, WHAT, f"no family reads a {name}; known are {', '.join(FAMILIES)}")
    elif family != AUTO and family not in [one.name for one in found]:
        others = ", ".join(one.name for one in found)
        yield Finding(BROKEN, WHAT, f"{family} does not read a {name}; {others} does")
    for one in found:
        if one.error is None:
            yield Finding(OK, WHAT, f"{one.name} reads it, a {name}, at the size of section video")
        else:
            state = BROKEN if family in (AUTO, one.name) and not any(other.generator for other in found) else NOTE
            yield Finding(state, WHAT, f"{one.name} reads a {name}, but {one.error}")


def components(checkpoint: Checkpoint, parts: Mapping[str, str]) -> tuple[dict[str, "nn.Module"], list[Finding]]:
    """Those with weights, on the meta device by name, and the line of every component of the family.

    parts: the part of each of the family's components.
    """
    modules: dict[str, nn.Module] = {}
    lines = []
    local = all(Path(place.checkpoint.path).is_dir() for place in map(checkpoint.place, parts))
    for name in parts:
        class_name = checkpoint.class_of(name)
        if class_name is None:
            lines.append(Finding(NOTE, name, "not in this pipeline"))
            continue
        files = any(kind in class_name for kind in ("Tokenizer", "Processor", "FeatureExtractor"))
        detail, problems = class_name, []
        if not files:
            try:
                modules[name] = memory.on_meta(checkpoint, name)
                detail += f", {memory.parameters_of(modules[name]):,} parameters"
            except ValueError as error:
                problems.append(str(error))
        try:
            checkpoint.check_folders(() if files else (name,), (name,) if files else ())
        except ValueError as error:
            problems.append(str(error))
        lines.append(Finding(BROKEN if problems else OK, name, "; ".join([detail, *problems])))
    if not local and (missing := missing_weights(checkpoint)):
        lines.append(Finding(NOTE, "weights", missing))
    return modules, lines


def _counts_tokens(modules: Iterable["nn.Module"]) -> bool:
    """Whether the denoiser is a transformer."""
    return not any(memory.is_unet(getattr(module, "config", {})) for module in modules)


def _memory(
    generator: Generator, modules: Mapping[str, "nn.Module"], parts: Mapping[str, str], chosen: Settings
) -> Iterator[Finding]:
    model, how = chosen.model, chosen.training
    dtype = as_dtype(model.dtype)
    if not how.targets:
        how = replace(how, targets=tuple(generator.lora_targets))
    yield from _lines("generate: encoding", memory.encoding_need(modules, parts, dtype))
    sampling = chosen.sampling
    need = memory.sampling_need(
        generator, modules, parts, dtype, sampling.batch_size, sampling.guidance, model.vae_tiling
    )
    yield from _lines("generate: sampling", need)
    yield Finding(NOTE, "label", LABEL)
    for title, full in (("train, LoRA", False), ("train, full", True)):
        if not full and not generator.takes_lora:
            yield Finding(NOTE, title, f"family {generator.family} takes none")
            continue
        plain, saving = (
            memory.training_need(generator, modules, parts, dtype, replace(how, checkpointing=on), full)
            for on in (False, True)
        )
        yield from _lines(title, plain)
        if not generator.checkpoints:
            yield Finding(NOTE, "", f"family {generator.family} has no gradient checkpointing")
            continue
        for item in saving.items:
            if item not in plain.items:
                yield Finding(NOTE, "", f"or {_line(item)}")
                yield Finding(NOTE, "", f"{_size(saving.total)} in all with checkpointing")
        for missing in saving.missing:
            if missing not in plain.missing:
                yield Finding(NOTE, "", f"not counted with checkpointing: {missing}")
    yield Finding(NOTE, "not counted", NOT_COUNTED)


def _lines(title: str, need: Need) -> Iterator[Finding]:
    """The total, each item with its formula, and what could not be counted."""
    yield Finding(OK, title, f"{_size(need.total)} in all" + (" but for what is not counted" if need.missing else ""))
    for item in need.items:
        yield Finding(NOTE, "", _line(item))
    for missing in need.missing:
        yield Finding(NOTE, "", f"not counted: {missing}")


def _line(item: Item) -> str:
    return f"{_size(item.bytes)} {item.what}: {item.how}"


def _size(count: int) -> str:
    return f"{count / GIB:,.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:,.2f} MiB"
