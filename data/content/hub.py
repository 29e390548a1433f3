"""What a branch of a model on the Hugging Face Hub stands for: its commit."""

from pathlib import Path

PATIENCE = 10.0  # seconds for the hub's answer; the library's own calls wait for ever where a network swallows them
SMALL = ["config.json", "model_index.json"]  # enough of a model to know that it is there


def commit_on_hub(model: str, revision: str | None) -> str | None:
    """The commit that the hub has now; None where it cannot be reached.

    Raises HfHubHTTPError where the hub refuses, and HFValidationError for what is no hub id.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().model_info(model, revision=revision, timeout=PATIENCE).sha
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        raise
    except (HTTPError, OSError):  # the latter where HF_HUB_OFFLINE is set
        return None


def commit_in_cache(model: str, revision: str | None) -> str | None:
    """The commit that the local cache has; None where it has none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(model, revision=revision, allow_patterns=SMALL, local_files_only=True)
        return Path(found).name
    except (HFValidationError, LocalEntryNotFoundError):
        return None
