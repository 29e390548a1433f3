"""A Ray cluster of several nodes on loopback addresses of this machine; nodes can be killed, and others joined."""

import os
import secrets
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

# Of a killed node: what Ray notices first, that it is dead or that what runs there does not answer.
GONE = r"the node is gone|its (worker|process) is gone"
STORE = 100 * 2**20  # bytes of a node's object store; Ray takes no less than 75 MB
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "500",  # by default a dead node is noticed after half a minute
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",  # a busy machine answers late; a dead node refuses at once
    "RAY_health_check_failure_threshold": "5",
    "RAY_worker_niceness": "0",  # by default workers give way to all else on the machine
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process each of Ray's own
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # the number of threads changes bytes
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


class LoopbackCluster:
    """A head that does no work, and nodes of one CPU each. Use it in a `with`, and in the main thread."""

    def __init__(self, folder: Path) -> None:
        """folder: for Ray's own files; a short path, since sockets lie in it."""
        self.folder = folder
        self.nodes: list[Any] = []
        self._next = 3  # 127.0.0.1 would become the machine's own address

    def __enter__(self) -> "LoopbackCluster":
        with ExitStack() as stack:
            own = {"RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_TMPDIR": str(self.folder)}
            stack.enter_context(mock.patch.dict(os.environ, ENVIRONMENT | own))
            (self.folder / "ray").mkdir()
            import ray
            from ray.cluster_utils import Cluster

            head = {
                "num_cpus": 0,
                "include_dashboard": False,
                "node_ip_address": "127.0.0.2",
                "object_store_memory": STORE,
            }
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
            stack.callback(self.cluster.shutdown)
            stack.callback(ray.shutdown)
            os.environ["RAY_ADDRESS"] = self.cluster.address
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def join(self, count: int = 1, cpus: int = 1) -> None:
        """Start nodes of so many CPUs each."""
        for _ in range(count):
            address, self._next = f"127.0.0.{self._next}", self._next + 1
            self.nodes.append(self.cluster.add_node(num_cpus=cpus, node_ip_address=address, object_store_memory=STORE))

    def kill(self, place: int = 0) -> str:
        """Kill a node without a word, as a machine loses its power; returns its address."""
        node = self.nodes.pop(place)
        self.cluster.remove_node(node, allow_graceful=False)
        return str(node.node_ip_address)

    def settle(self, count: int) -> None:
        """Have so many nodes, as alive as Ray knows."""
        import ray

        while len(self.nodes) > count:
            self.kill()
        self.join(count - len(self.nodes))
        if ray.is_initialized():
            until = time.monotonic() + 30
            while sum(node["Alive"] for node in ray.nodes()) != count + 1 and time.monotonic() < until:
                time.sleep(0.1)
