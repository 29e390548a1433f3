"""What is known of a generator's checkpoint without its weights: its files, their sizes and its small configs.

Of a hub id these come from the Hub, or from its cache where the Hub cannot be reached. No weights are downloaded.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

INDEX = "model_index.json"
WANTED = f"wanted is a diffusers pipeline folder, with a {INDEX}, or the hub id of one (Wan's end in -Diffusers)"
HUB_ID = r"[\w.-]+/[\w.-]+"
PATIENCE = 5.0  # seconds for the Hub's answer
LORAS = ("adapter_config.json", "pytorch_lora_weights.safetensors")
SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".gguf")  # weights of a whole model in one file
WEIGHTS = re.compile(r"(.*/)?(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")  # what from_pretrained looks for
POINTER = 1024  # bytes; a file of weights below it is git-lfs's pointer, or half a download


class NotReachedError(ValueError):
    """Nothing is known of a hub id: the Hub cannot be reached, and its cache does not hold the file."""


class Config(dict[str, Any]):
    """A saved config of a diffusers class. What it leaves out, [] takes from the defaults of the class.

    Some configs were saved before the class had all of its arguments, such as that of Wan2.1's VAE. diffusers, which
    takes seconds to import, is imported only then.
    """

    def __init__(self, class_name: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.class_name = class_name

    def __missing__(self, key: str) -> Any:
        import diffusers

        default = inspect.signature(getattr(diffusers, self.class_name).__init__).parameters[key].default
        self[key] = default
        return default


class Place(NamedTuple):
    """Where the files of a component lie."""

    checkpoint: "Checkpoint"  # of which only files and configs count
    folder: str  # within it; "" is the top

    def within(self, file: str) -> str:
        """The file's path in the checkpoint."""
        return f"{self.folder}/{file}" if self.folder else file

    def files(self) -> dict[str, int] | None:
        """Bytes of the component's files by their path in the checkpoint; None where the Hub was not reached."""
        files, inside = self.checkpoint.files, f"{self.folder}/"
        if files is None:
            return None
        return {name: n for name, n in files.items() if (name.startswith(inside) if self.folder else "/" not in name)}

    def check_folder(self) -> None:
        """Raises ValueError where there is no file."""
        if self.files() == {}:
            raise ValueError(
                f"path: {self.checkpoint.path} has no {f'folder {self.folder}' if self.folder else 'file'}"
            )

    def check_weights(self) -> None:
        """Raises ValueError where there are no whole safetensors."""
        path, inside = self.checkpoint.path, self.files()
        if inside is None:
            return
        there = [name for name in inside if WEIGHTS.fullmatch(name)]
        if not there:
            where = f" in {self.folder}" if self.folder else ""
            others = [name for name in inside if name.endswith((".bin", *SINGLE))]
            found = f"no weights{where}" if not others else f"only {', '.join(others)}{where}"
            raise ValueError(f"path: {path} has {found}; wanted is *model.safetensors (no pickle, no variant)")
        if small := [name for name in there if inside[name] < POINTER]:
            raise ValueError(
                f"path: {path}: {small[0]} has {inside[small[0]]} bytes and is no weights: a git-lfs pointer (git "
                "lfs pull), or half a download"
            )
        indices = [self.checkpoint.config(name) for name in inside if name.endswith(".index.json")]
        shards = {self.within(name) for index in indices for name in index["weight_map"].values()}
        if absent := sorted(shards - inside.keys()):
            raise ValueError(f"path: {path} lacks {len(absent)} files of weights, such as {absent[0]}")


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers pipeline, local or on the Hub, without its weights."""

    path: str
    revision: str | None  # of a hub id
    files: Mapping[str, int] | None  # bytes by path within it; None: the Hub was not reached
    configs: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # what was read, by file
    elsewhere: Mapping[str, Place] = field(default_factory=dict)  # components that do not lie in it, by name
    classes: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # their library and class

    def place(self, component: str) -> Place:
        """Where a component's files lie; whether there are any is not looked at."""
        return self.elsewhere.get(component, Place(self, component))

    @property
    def weights(self) -> list[tuple["Checkpoint", str, int]] | None:
        """Its files of weights: the checkpoint that each lies in, path within it, bytes.

        None where the Hub was not reached.
        """
        if self.files is None:
            return None
        own = {name: size for name, size in self.files.items() if name.partition("/")[0] not in self.elsewhere}
        found = [(self, own)]
        for place in self.elsewhere.values():
            if (files := place.files()) is None:
                return None
            found.append((place.checkpoint, files))
        return [
            (one, name, size) for one, files in found for name, size in files.items() if name.endswith(".safetensors")
        ]

    @property
    def size(self) -> int | None:
        """Bytes of its weights; None where the Hub was not reached."""
        return None if self.weights is None else sum(size for _, _, size in self.weights)

    @property
    def index(self) -> dict[str, Any]:
        """model_index.json: the pipeline's class, and library and class of each component, wherever it lies."""
        return self.config(INDEX) | {name: list(found) for name, found in self.classes.items()}

    def class_of(self, component: str) -> str | None:
        """The class of a component; None where the pipeline has none of that name, or leaves it out."""
        entry = self.index.get(component)
        return entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None

    def component(self, name: str) -> Config:
        """The config of a component. Raises ValueError where the pipeline has none of that name."""
        class_name = self.class_of(name)
        if class_name is None:
            raise ValueError(f"path: {self.path} has no component {name}")
        kinds = {"Scheduler": "scheduler_config.json", "Tokenizer": "tokenizer_config.json"}
        file = next((file for kind, file in kinds.items() if kind in class_name), "config.json")
        place = self.place(name)
        with self._named(name):
            return Config(class_name, place.checkpoint.config(place.within(file)))

    def config(self, name: str) -> dict[str, Any]:
        """A JSON file in it, such as vae/config.json. Raises ValueError where it is missing or no JSON mapping."""
        if name not in self.configs:
            self.configs[name] = self._read(name)
        found: dict[str, Any] = self.configs[name]
        return found

    def _read(self, name: str) -> dict[str, Any]:
        if self.files is not None and name not in self.files:
            raise ValueError(f"path: {self.path} has no {name}")
        file = Path(self.path, name) if Path(self.path).is_dir() else _downloaded(self, name)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"path: {self.path}: {name} cannot be read ({error})") from error
        if not isinstance(found, dict):
            raise ValueError(f"path: {self.path}: {name} holds {str(found)[:40]!r}, expected a JSON object")
        return found

    def modules(self, part: str) -> list[str]:
        """Names of the modules that hold a part's weights, such as blocks.0.attn1.to_q; empty for a hub id."""
        from safetensors import safe_open

        found, place = set(), self.place(part)
        for file in sorted(Path(place.checkpoint.path, place.folder).glob("*.safetensors")):
            with safe_open(file, framework="np") as weights:
                found |= {name.rpartition(".")[0] for name in weights.keys()}  # noqa: SIM118 (no mapping)
        return sorted(found)

    def check_folders(self, weights: Iterable[str], files: Iterable[str]) -> None:
        """Raises ValueError for a component without a folder, and for one of `weights` without whole safetensors."""
        weights = list(weights)
        for name in (*weights, *files):
            with self._named(name):
                self.place(name).check_folder()
        for name in weights:
            with self._named(name):
                self.place(name).check_weights()

    @contextmanager
    def _named(self, component: str) -> Iterator[None]:
        """Errors of a component that lies elsewhere begin with its key."""
        try:
            yield
        except ValueError as error:
            if component not in self.elsewhere:
                raise
            raise type(error)(f"components.{component}.{error}") from error


def in_memory(pipeline: str, components: Mapping[str, Any], **index: Any) -> Checkpoint:
    """The checkpoint that diffusers and transformers components in memory would be, known by their configs alone.

    pipeline: its class. index: further entries of model_index.json, such as boundary_ratio.
    """
    configs: dict[str, Any] = {INDEX: {"_class_name": pipeline, **index}}
    for name, component in components.items():
        cls = type(component)
        configs[INDEX][name] = [cls.__module__.partition(".")[0], cls.__name__]
        if config := getattr(component, "config", None):
            file = "scheduler_config.json" if "Scheduler" in cls.__name__ else "config.json"
            values = config if isinstance(config, Mapping) else config.to_dict()
            configs[f"{name}/{file}"] = {**values, "_class_name": cls.__name__}
    return Checkpoint(pipeline, None, None, configs)


def open_checkpoint(path: str, revision: str | None) -> Checkpoint:
    """The checkpoint that is a local folder or a hub id, with a model_index.json.

    Raises ValueError that says what is there instead, NotReachedError where nothing is known of a hub id.
    """
    found = _opened(path, revision)
    if found.files is not None and INDEX not in found.files:
        raise ValueError(f"path: {path} {_instead(found)}; {WANTED}")
    return found


def with_components(
    checkpoint: Checkpoint, components: Mapping[str, Mapping[str, Any]], class_names: Mapping[str, str]
) -> Checkpoint:
    """The checkpoint with these of its components from elsewhere, or with these added to it.

    components: `path`, `revision` and `subfolder` of each, as `generator.components` has them. class_names: the names
    of diffusers' classes by those that configs may have for them. Raises ValueError that begins with the key that is
    wrong, such as components.transformer.path, NotReachedError where nothing is known of a hub id.
    """
    elsewhere, classes = dict[str, Place](), dict[str, tuple[str, str]]()
    for name, source in components.items():
        try:
            place = Place(_opened(source["path"], source.get("revision")), source.get("subfolder") or "")
            classes[name] = _class_in(place, name, class_names)
        except ValueError as error:
            raise type(error)(f"components.{name}.{error}") from error
        elsewhere[name] = place
    return replace(checkpoint, elsewhere=elsewhere, classes=classes)


def _class_in(place: Place, name: str, class_names: Mapping[str, str]) -> tuple[str, str]:
    """Library and class of the component of that name, by its config."""
    kinds = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    kinds |= dict.fromkeys(("feature_extractor", "image_processor"), "preprocessor_config.json")
    file = next((file for kind, file in kinds.items() if name.startswith(kind)), "config.json")
    config = place.checkpoint.config(place.within(file))
    if found := config.get("_class_name"):
        return "diffusers", class_names.get(found, found)
    found = (
        config.get("image_processor_type")
        or config.get("tokenizer_class")
        or (config.get("architectures") or [None])[0]
    )
    if not found:
        raise ValueError(f"path: {place.checkpoint.path}: {place.within(file)} does not say of which class it is")
    return "transformers", str(found)


def _opened(path: str, revision: str | None) -> Checkpoint:
    """A local folder or a hub id, whatever lies there."""
    folder = Path(path)
    if path and folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision: {revision!r}, but {path} is a local folder: null")
        files = {
            file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()
        }
        return Checkpoint(path, None, files)
    if folder.is_file():
        raise ValueError(f"path: {path} is a file, and single-file checkpoints are not read; {WANTED}")
    if not re.fullmatch(HUB_ID, path):
        raise ValueError(f"path: {path!r} is no folder, and no hub id of the form owner/name")
    return _on_the_hub(path, revision)


def _instead(checkpoint: Checkpoint) -> str:
    """What a folder without a model_index.json is."""
    files = checkpoint.files or {}
    if not files:
        return "is an empty folder"
    if inner := [name.removesuffix(f"/{INDEX}") for name in files if name.endswith(f"/{INDEX}")]:
        return f"has no {INDEX}, but {checkpoint.path}/{inner[0]} has one"
    if any(name in files for name in LORAS):
        return "is a LoRA (a policy), not the generator under it"
    config = checkpoint.config("config.json") if "config.json" in files else {}
    if name := config.get("_class_name"):
        return f"is a single {name}, or a checkpoint in its authors' own form"
    if name := config.get("architectures") or config.get("model_type"):
        return f"is a transformers model ({name[0] if isinstance(name, list) else name}), no video generator"
    if single := [name for name in files if "/" not in name and name.endswith(SINGLE)]:
        return f"is a single-file checkpoint ({single[0]}), which is not read"
    return f"has no {INDEX}"


def _on_the_hub(path: str, revision: str | None) -> Checkpoint:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(path, revision=revision, files_metadata=True, timeout=PATIENCE)
    except (HTTPError, ConnectionError) as error:  # the latter where HF_HUB_OFFLINE is set
        if refused := _refusal(path, revision, error):
            raise ValueError(refused) from error
        return Checkpoint(path, revision, None)
    return Checkpoint(path, revision, {one.rfilename: one.size or 0 for one in info.siblings or ()})


def _downloaded(checkpoint: Checkpoint, name: str) -> Path:
    """A small file of a hub id, from the cache where it is there."""
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    path, reached = checkpoint.path, checkpoint.files is not None
    try:
        return Path(hf_hub_download(path, name, revision=checkpoint.revision, local_files_only=not reached))
    except (HTTPError, LocalEntryNotFoundError) as error:
        if refused := _refusal(path, checkpoint.revision, error):
            raise ValueError(refused) from error
        raise NotReachedError(
            f"path: {path} is no local folder, and could not be looked up as a hub id: the Hub cannot be reached from "
            f"here, and its cache has no {name}"
        ) from error


def _refusal(path: str, revision: str | None, error: Exception) -> str | None:
    """What is wrong where the Hub refuses; None where it was not reached."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"path: {path} is gated on the Hub: accept its terms there, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"path: {path} is no local folder, and on the Hub it is absent, or private (HF_TOKEN)"
    if isinstance(error, RevisionNotFoundError):
        return f"revision: {path} on the Hub has no {revision!r}"
    return None
