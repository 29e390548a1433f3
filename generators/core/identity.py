"""The identity of a generator: which weights a policy was trained from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.content.hub import commit_in_cache, commit_on_hub
from data.manifest import sha256_of


def identify(
    family: str, path: str, revision: str | None, components: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """family, path, revision and fingerprint of a generator, as the base policy's policy.json holds them.

    The fingerprint is a hash over every file of a local folder, or the commit that a hub id and revision resolve to
    (from the local cache when there is no network). With components that lie elsewhere, `components` holds each of
    them with its own fingerprint, and the fingerprint is a hash over all. Raises ValueError for a path that is neither.
    """
    found = {"family": family, "path": path, "revision": revision, "fingerprint": _fingerprint(path, revision)}
    if not components:
        return found
    others = {}
    for name, source in components.items():
        folder, key = Path(source["path"], source["subfolder"] or ""), f"generator.components.{name}.path"
        where = str(folder) if folder.is_dir() else source["path"]
        others[name] = dict(source) | {"fingerprint": _fingerprint(where, source["revision"], key)}
    fingerprints = {name: other["fingerprint"] for name, other in others.items()}
    listed = json.dumps([found["fingerprint"], fingerprints], sort_keys=True)
    return found | {"components": others, "fingerprint": hashlib.sha256(listed.encode()).hexdigest()}


def _fingerprint(path: str, revision: str | None, key: str = "generator.path") -> str:
    folder = Path(path)
    if not folder.is_dir():
        return _commit(path, revision, key)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise ValueError(f"{key}: {path} is an empty folder")
    listed = "\n".join(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _commit(path: str, revision: str | None, key: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    no_model = f"{key}: {path} is no local folder, and no hub id that resolves"
    try:
        found = commit_on_hub(path, revision) or commit_in_cache(path, revision)
    except (HFValidationError, HfHubHTTPError) as error:
        raise ValueError(f"{no_model} ({error})") from error
    if found is None:
        raise ValueError(f"{no_model}: the hub cannot be reached from here, and the local cache does not have it")
    return found
