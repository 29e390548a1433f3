"""`served` against a real vLLM server on this machine: it must answer as the same judge in this process.

Runs by `pytest -m vllm` where the command `vllm` is there, or where VLLM_PYTHON names a Python that has vLLM
(docs/servers.md). Takes minutes.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.prompts import load_prompts
from data.records import Verdict
from data.store import ClipSet
from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.core.source import LabelError, Request
from feedback.pairs.shown import ShownPair
from tabletop.known import known_clips
from tests.support.network import ROOT, use_ledger

CLIPS = 64
READY = 900.0  # seconds in which a server must start: two slow cores take 100 to 300
PYTHON, COMMAND = os.environ.get("VLLM_PYTHON"), shutil.which("vllm")
NAME = "tiny-judge"
RUBRIC = str(ROOT / "tabletop/rubric.yaml")
JUDGE = str(ROOT / "models/tabletop/judge")
PAIRS = str(ROOT / "tabletop/pairs.yaml")
CLIP_TOKENS = 64  # of the 8 frames of a clip
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not (PYTHON or COMMAND), reason="no vLLM: neither the command vllm nor VLLM_PYTHON"),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    prompts = load_prompts(ROOT / "configs/prompt_sets/tabletop.csv")
    return known_clips(tmp_path_factory.mktemp("clips") / "samples", prompts, CLIPS, 0, 8.0).clip_set


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The base_url of a server of the judge, started as docs/servers.md says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model"]
    command = module if PYTHON else [str(COMMAND), "serve"]
    command += [JUDGE, "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    command += [
        "--trust-request-mm-kwargs",
        "--limit-mm-per-prompt",
        '{"video": 2, "image": 8}',
        "--max-logprobs",
        "20",
    ]
    for_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=log.parent, env=os.environ | for_cpu, stdout=out, stderr=out, start_new_session=True
        )
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    """Return when the server answers."""
    end = time.monotonic() + READY
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(2)
    pytest.fail(f"vLLM did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch) -> Path:
    return use_ledger(tmp_path / "ledger.sqlite", monkeypatch)


def verdicts(clips: ClipSet, count: int, block: dict[str, Any]) -> dict[str, Verdict]:
    """The verdict on each of the first clips."""
    source = make_source("j", {"rubric": RUBRIC} | block)
    return {rows[0].sample_id: rows[0] for rows in source.judge(requests_for(clips, 1)[:count])}


def served_block(server: str, **more: Any) -> dict[str, Any]:
    """A block of the server. The first call of a server compiles, for minutes on slow cores."""
    return {"kind": "served", "base_url": server, "model": NAME, "concurrency": 8, "timeout": 600.0} | more


def test_vllm_and_this_process_give_equal_probabilities(server, clips, record_property):
    here_block = {"kind": "qwen", "path": JUDGE, "revision": None, "batch_size": 16, "dtype": "float32"}
    there = verdicts(clips, CLIPS, served_block(server, check_with=JUDGE))
    here = verdicts(clips, CLIPS, here_block)
    assert len(there) == CLIPS
    differences = {}
    for sample_id, row in here.items():
        other = there[sample_id]
        assert other.error is None and other.p_yes is not None and other.frames == row.frames, other
        differences[sample_id] = abs(other.p_yes - row.p_yes)
    largest = max(differences, key=differences.__getitem__)
    record_property("largest_difference", differences[largest])
    assert differences[largest] <= 1e-2, (largest, differences[largest])
    print(f"largest difference of p_accept over {CLIPS} clips: {differences[largest]:.2e}")  # noqa: T201
    assert len({row.answer for row in here.values()}) == 2  # the clips are not all alike


def test_another_model_under_the_same_name_is_found_out(server, clips):
    second = str(ROOT / "models/tabletop/second_judge")
    with pytest.raises(LabelError, match=r"check_with( is)?: 8 frames of the first clip.*vllm serve"):
        verdicts(clips, 1, served_block(server, check_with=second))


def test_pictures_and_whole_clips_are_answered_too(server, clips):
    pictures = verdicts(clips, 2, served_block(server, clip="frames"))
    whole = verdicts(clips, 2, served_block(server, clip="video"))
    for row in pictures.values():
        assert row.error is None and row.frames == [0, 1, 2, 3, 5, 6, 7, 8], row
    for row in whole.values():
        assert row.error is None and row.frames == [], row


def test_both_clips_of_a_pair_are_shown(server, clips):
    of_prompt: dict[str, list[Request]] = {}
    for request in requests_for(clips, 1):
        of_prompt.setdefault(request.sample.prompt, []).append(request)
    first, second = next(requests[:2] for requests in of_prompt.values() if len(requests) > 1)
    one_clip = next(iter(verdicts(clips, 1, served_block(server)).values()))
    source = make_source("j", served_block(server, rubric=PAIRS))
    shown = ShownPair(first, second)
    rows = [row for of_pair in source.compare([shown, shown.swapped()]) for row in of_pair]
    for row in rows:
        assert row.error is None and row.p_first is not None and row.first_frames == row.second_frames, row
        assert row.tokens > one_clip.tokens + CLIP_TOKENS - 1, (row, one_clip)
    assert {(row.first, row.second) for row in rows} == {shown.ids, shown.swapped().ids}
    assert rows[0].p_first != rows[1].p_first  # the order is part of what is seen
