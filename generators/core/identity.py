"""The identity of a generator: which weights a policy was trained from."""

import hashlib
from pathlib import Path

from data.content.hub import commit_in_cache, commit_on_hub
from data.manifest import sha256_of


def identify(family: str, path: str, revision: str | None) -> dict[str, str | None]:
    """family, path, revision and fingerprint of a generator, as the base policy's policy.json holds them.

    The fingerprint is a hash over every file of a local folder, or the commit that a hub id and revision resolve to
    (from the local cache when there is no network). Raises ValueError for a path that is neither.
    """
    folder = Path(path)
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if not files:
            raise ValueError(f"generator.path: {path} is an empty folder")
        listed = "\n".join(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}" for file in files)
        fingerprint = hashlib.sha256(listed.encode()).hexdigest()
    else:
        fingerprint = _commit(path, revision)
    return {"family": family, "path": path, "revision": revision, "fingerprint": fingerprint}


def _commit(path: str, revision: str | None) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    no_model = f"generator.path: {path} is no local folder, and no hub id that resolves"
    try:
        found = commit_on_hub(path, revision) or commit_in_cache(path, revision)
    except (HFValidationError, HfHubHTTPError) as error:
        raise ValueError(f"{no_model} ({error})") from error
    if found is None:
        raise ValueError(f"{no_model}: the hub cannot be reached from here, and the local cache does not have it")
    return found
