"""One cluster on loopback for all tests of a session that ask for it."""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_cluster import LoopbackCluster


@pytest.fixture(scope="session")
def _cluster() -> Iterator[LoopbackCluster]:
    if importlib.util.find_spec("ray") is None:  # to import it here would read its environment before it is set
        pytest.skip("needs Ray: pip install -e '.[cluster]'")
    with tempfile.TemporaryDirectory(prefix="ray") as folder, LoopbackCluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def loopback(_cluster) -> LoopbackCluster:
    """A cluster with two nodes of one CPU beside its head."""
    _cluster.settle(2)
    return _cluster
