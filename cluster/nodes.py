"""The nodes of a running Ray cluster: the way to it, which of them are refused, and what is raised on them.

Ray is imported where it is needed alone.
"""

import importlib
import logging
import os
import socket
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from cluster.provenance import ROOT, code_hash, describe_device, differences, in_words, versions

TOKEN = "RAY_AUTH_MODE"  # Ray's variable: `token` refuses whoever has none
ADDRESS = "RAY_ADDRESS"  # Ray's variable: host:port of the head
REACH = 10.0  # seconds for the head to answer; Ray itself would try for minutes
LOGS = "session_latest/logs in the folder RAY_TMPDIR, by default /tmp/ray"
LOSSES = 3  # workers that a piece of work, or their start, may cost
PATIENCE = 60.0  # seconds without any worker, after which a warning says what is waited for


class WorkerError(RuntimeError):
    """What was raised in a worker; the text holds its traceback."""


class LostError(ValueError):
    """Workers were lost so often that to go on is no use."""


class RefusedError(ValueError):
    """A node whose results would be others."""


class Facts(NamedTuple):
    """What a worker is."""

    node: str  # Ray's id of it
    code: str  # of `code_hash`
    made_with: dict[str, dict[str, Any]]  # versions and device, as cluster.provenance has them
    token: bool  # whether its node asks for one


class Ours(NamedTuple):
    """What every worker must have as this process has it."""

    code: str
    versions: dict[str, str | None]

    def problem_of(self, facts: Facts) -> str | None:
        """Why a node is refused, in words that follow its name; None where it is not."""
        if not facts.token:
            return f"was started without {TOKEN}=token: whoever reaches its ports runs code on it"
        if facts.code != self.code:
            return (
                f"has other code in {Path.cwd()} than this process: {facts.code}, here {self.code}. Give every node "
                "the same commit"
            )
        ours, theirs = {"versions": self.versions}, {"versions": facts.made_with["versions"]}
        if differing := differences(ours, theirs):
            return f"has other versions than this process: {in_words(ours, differing)}. Install the same on every node"
        return None


def settle_in(root: str, device: str) -> Facts:
    """Where this process of a node works from now on: in the project's folder. Raises RefusedError where it has none.

    device: as `cluster.devices.pick_device` takes it.
    """
    from cluster.devices import pick_device

    ray: Any = importlib.import_module("ray")
    if not Path(root).is_dir():
        raise RefusedError(f"node {ray.util.get_node_ip_address()} has no folder {root}, where this project lies")
    os.chdir(root)
    logging.getLogger().setLevel(os.environ.get("LOG_LEVEL", "INFO").upper())
    made_with = {"versions": compared_versions(), "device": describe_device(pick_device(device))}
    node, token = ray.get_runtime_context().get_node_id(), os.environ.get(TOKEN) == "token"
    return Facts(node, code_hash(), made_with, token)


def compared_versions() -> dict[str, str | None]:
    """What must be the same on every node: what policies are made with, and PyAV, which encodes clips."""
    return versions() | {"av": metadata.version("av")}


def kind_of_worker(ray: Any, device: str) -> str:
    """What a worker takes one of: GPU, TPU, or CPU on a cluster without any."""
    there = ray.cluster_resources()
    for name, wanted in (("GPU", "cuda"), ("TPU", "tpu")):
        if device == wanted or (device == "auto" and there.get(name)):
            return name
    return "CPU"


def room_for(ray: Any, kind: str) -> int:
    """How many workers of a kind the cluster has room for as it is now."""
    return int(ray.cluster_resources().get(kind, 0))


def alive(ray: Any) -> set[str]:
    """Ray's ids of the nodes that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def name_of(ray: Any, node: str) -> str:
    """What messages call a node. node: Ray's id of it."""
    known = {one["NodeID"]: one["NodeManagerAddress"] for one in ray.nodes()}
    return f"node {known.get(node, 'unknown')} ({node[:8]})"


def connected() -> Any:
    """The module ray, connected to the cluster that runs. Raises ValueError saying what is missing."""
    if os.environ.get(TOKEN) != "token":
        raise ValueError(
            f"engine ray: {TOKEN} is not token, and without tokens whoever reaches the cluster's ports runs code on "
            f"it. Make one (ray get-auth-token --generate), and start every node and this command under {TOKEN}=token"
        )
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError("engine ray: Ray is not installed here: pip install -e '.[cluster]'") from error
    if not ray.is_initialized():
        address = os.environ.get(ADDRESS, "auto")
        if ":" in address and not _answers(address):
            raise ValueError(
                f"engine ray: no cluster answers at {ADDRESS}={address}, and none is started for you: start it again, "
                "or unset the variable"
            )
        try:
            ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
        except ConnectionError as error:
            raise ValueError(
                "engine ray: no cluster runs here, and none is started for you: start one (docs/cluster.md), and run "
                f"this on one of its nodes, or take engine here ({first_line(error)})"
            ) from error
    return ray


def _answers(address: str) -> bool:
    """Whether anything listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except (OSError, ValueError):
        return False
    return True


def is_ours(error: Exception) -> bool:
    """Whether our own code raised it, to say what is wrong."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def first_line(error: BaseException) -> str:
    """Its type and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
