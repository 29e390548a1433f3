"""Clips, a ledger of the test's own and a server, for all tests of network judges."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.store import ClipSet
from tests.support.faulty_provider import Server, serving
from tests.support.network import CLIPS, make_clips, use_ledger, write_params


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> ClipSet:
    return make_clips(tmp_path_factory.mktemp("set") / "samples", CLIPS)


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch) -> Path:
    return use_ledger(tmp_path / "ledger.sqlite", monkeypatch)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with the params that a stage reads."""
    folder = tmp_path / "home"
    folder.mkdir()
    write_params(folder, "http://127.0.0.1:9")
    return folder
