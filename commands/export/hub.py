"""An exported dataset on the Hugging Face Hub."""

import os
from collections.abc import Sequence

from commands.export.dataset import Part

FOLDERS = ("train/", "test/", "first/", "verdicts/")
MOST_FILES = 25_000  # that one commit may hold, by the Hub's documentation
TOKEN = "HF_TOKEN"  # environment variable


def check_count(repo: str, parts: Sequence[Part]) -> None:
    """Raises ValueError where these are more files than the Hub takes in a commit."""
    if len(parts) > MOST_FILES:
        raise ValueError(
            f"--hub {repo}: {len(parts)} files, and the Hub takes at most {MOST_FILES} in a commit; write them with "
            "--out, and push the folder with `hf upload-large-folder`"
        )


def push(repo: str, parts: Sequence[Part], token: str, private: bool) -> str:
    """Make the dataset repository hold these files, and no others in their folders, in one commit; its address.

    Raises ValueError with the Hub's message where it refuses or cannot be reached.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    api, ours = HfApi(token=token), {part.path for part in parts}
    try:
        address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(repo, repo_type="dataset")
        stale = [path for path in there if path.startswith(FOLDERS) and path not in ours]
        changes: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationDelete(path) for path in stale),
            *(CommitOperationAdd(part.path, part.content) for part in parts),
        ]
        message = f"{len(parts)} files from their manifests"
        api.create_commit(repo, changes, commit_message=message, repo_type="dataset")
    except (httpx2.HTTPError, OSError, ValueError) as error:  # the Hub's own errors are among them
        raise ValueError(f"{repo}: not pushed: {error}") from error
    return str(address)


def token_from_environment() -> str:
    """The token for the Hub. Raises ValueError naming the variable where it is not set."""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    raise ValueError(f"the environment variable {TOKEN} is not set; set it to a token of the Hub with write access")


def check_repo(repo: str) -> None:
    """Raises ValueError where this is no name of a repository, user/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--hub {repo}: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"--hub {repo}: expected user/name")
