"""The version of this project."""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def version() -> str:
    """The version in pyproject.toml: that of the code here, also before the environment is made again."""
    found = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]
    return str(found)
