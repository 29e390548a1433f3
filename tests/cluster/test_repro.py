"""`dvc repro` itself on a cluster, with a node killed and then the head's own process: the bytes of one process."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.clone import DVC, ROOT, environment, make_clone, run
from tests.support.ray_cluster import GONE, LoopbackCluster

pytestmark = pytest.mark.cluster
STAGES = ("generate@r1", "label@r1", "train@rwr1")
OUTS = ("r1/samples", "r1/labels/judge", "policies/rwr1")
TWO = {"STAGE_PROCESSES": "2"}  # train together: torchrun's without a cluster
LONGEST = 90.0  # seconds to wait for what must happen


@pytest.fixture(scope="module")
def clones(tmp_path_factory) -> tuple[Path, Path]:
    """Two projects of 32 clips in 16 batches; the first is run without a cluster."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in folders:
        make_clone(folder)
        shutil.copytree(ROOT / "models/tabletop", folder / "models/tabletop")
        run(folder, sys.executable, "-m", "commands", "preset", "smoke")
        params = yaml.safe_load((folder / "params.yaml").read_text())
        params["generate"] |= {"steps": 12, "samples_per_prompt": 16, "prompts": 2, "batch_size": 2}
        params["label"]["batch_size"] = params["feedback"]["sources"]["judge"]["batch_size"] = 2
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    repro(folders[0], TWO)
    return folders


def repro(folder: Path, more: dict[str, str]) -> str:
    """What `dvc repro` of the stages logs. more: environment variables."""
    command = [*DVC, "repro", *STAGES]
    done = subprocess.run(command, cwd=folder, env=environment() | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr


def wait_until(condition, what: str) -> None:
    until = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {LONGEST:g} s"
        time.sleep(0.05)


def batches(folder: Path) -> int:
    return len(list(folder.glob(".state/generate-*/*/clips/.batches/*.parquet")))


def actors(cluster: LoopbackCluster) -> list[psutil.Process]:
    """The workers of this cluster; another test may have one of its own at the same time."""
    named = [one for one in psutil.process_iter(["cmdline"]) if "ray::_Actor" in " ".join(one.info["cmdline"] or [])]
    found = []
    for one in named:
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            if any(str(cluster.folder) in word for parent in one.parents() for word in parent.cmdline()):
                found.append(one)
    return found


def test_a_run_on_a_cluster_that_loses_a_node_and_its_head_ends_with_the_bytes_of_one_process(clones, loopback):
    one, two = clones
    ray = TWO | {"STAGE_ENGINE": "ray"}
    log = two / "log.txt"
    with log.open("w") as file:
        head = subprocess.Popen([*DVC, "repro", *STAGES], cwd=two, env=environment() | ray, stdout=file, stderr=file)
        wait_until(lambda: batches(two) >= 2 or head.poll() is not None, "two batches")
        while loopback.nodes:  # all of them: what is left cannot be done while the test starts another
            loopback.kill()
        loopback.join()
        ready = rf"node {re.escape(loopback.nodes[0].node_ip_address)} .* ready after"
        wait_until(lambda: re.search(ready, log.read_text()) or head.poll() is not None, "the node that joined")
        assert head.poll() is None, log.read_text()[-3000:]
        assert actors(loopback)
        head.send_signal(signal.SIGKILL)
        head.wait()
        wait_until(lambda: not actors(loopback), "the end of the workers")
    done = batches(two)
    loopback.join()  # training takes two
    again = repro(two, ray)

    assert f"32 clips by base, {32 - 2 * done} of them now" in again
    assert re.search(GONE, log.read_text())
    for out in OUTS:
        assert (one / f"runs/{out}/manifest.json").read_text() == (two / f"runs/{out}/manifest.json").read_text(), out
