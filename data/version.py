"""The version of this project."""

import tomllib
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def version() -> str:
    """The version of the code here: that in pyproject.toml, also before the environment is made again.

    Without that file it is the version that is installed.
    """
    if not PYPROJECT.is_file():
        return metadata.version("video-feedback-rl")
    return str(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"])
