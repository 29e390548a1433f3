"""The default values of params.yaml for tests: a copy of the file, since users edit params.yaml itself.

A change of a default goes into both files. tests/pipeline/test_check.py fails where the copy lacks a required key.
"""

from pathlib import Path
from typing import Any

import yaml

DEFAULTS = Path(__file__).parent / "params.yaml"


def default_params() -> dict[str, Any]:
    """The default params, a new object at each call."""
    params: dict[str, Any] = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    return params
