"""The origin of a judge's or a metric's weights, a folder or the Hugging Face hub, and their version."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from data.content.hub import commit_in_cache
from feedback.core.source import UNKNOWN_VERSION

# The files in a model's folder that determine its answers: weights, configs, tokenizer.
DECIDES = ("*.safetensors", "*config.json", "tokenizer*", "vocab*", "merges.txt", "chat_template*")
Dtype = Literal["float32", "bfloat16", "float16"]


def is_local(path: str) -> bool:
    """Whether a model is a local folder and not a hub id."""
    return Path(path).is_dir()


def _folder_or_hub_id(path: str) -> str:
    if not is_local(path) and path.count("/") != 1:
        raise ValueError(f"{path} is neither a folder nor a hub id")
    return path


FolderOrHubId = Annotated[str, AfterValidator(_folder_or_hub_id)]


def hub_page(path: str, revision: str, file: str) -> str:
    """The URL of a file of a hub id."""
    return f"https://huggingface.co/{path}/resolve/{revision}/{file}"


def weights_version(path: str, revision: str | None, config: object) -> str:
    """The version of a model: the fingerprint of a local folder, or the loaded commit of a hub id.

    config: the loaded model's config, in which some versions of transformers store the commit; otherwise it is the one
    that the load has left in the local cache. The commit has priority over `revision`, which may name a branch: `main`
    is another model after the branch has moved.
    """
    if is_local(path):
        return fingerprint(Path(path))
    loaded = getattr(config, "_commit_hash", None) or commit_in_cache(path, revision)
    return loaded or revision or UNKNOWN_VERSION


def fingerprint(folder: Path) -> str:
    """Twelve hex digits of the files in a model's folder that determine its answers: weights, configs, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in DECIDES for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
