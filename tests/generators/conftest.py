"""What tests of generators share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from generators.tiny.variants import VARIANTS, write_tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a variant's tiny model, written once a session. Do not write into it."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def written(name: str) -> Path:
        write_tiny(VARIANTS[name], folder / name)
        return folder / name

    return written
