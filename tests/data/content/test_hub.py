"""What a branch of a model on the Hub stands for, and that nothing waits for a hub that does not answer."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub.errors import RevisionNotFoundError

from data.content.hub import commit_in_cache, commit_on_hub
from feedback.core.rubric import load_rubric
from generators.core.identity import identify
from pipeline.inputs import hub_commit
from tests.support.fake_hub import giving_models, silent_hub
from tests.support.judges import build_judge

ROOT = Path(__file__).parents[3]
ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with giving_models() as running:
        running.commits = {ONE: tmp_path / "one", TWO: tmp_path / "two"}
        running.branches = {"main": ONE, "next": TWO}
        reach(running.url, monkeypatch, tmp_path)
        yield running


def reach(url: str, monkeypatch, tmp_path: Path) -> None:
    """Let this process use a hub, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_branch_stands_for_the_commit_that_the_hub_has_now(hub):
    assert commit_on_hub("some/judge", None) == commit_on_hub("some/judge", "main") == ONE
    assert commit_on_hub("some/judge", "next") == TWO
    hub.branches["main"] = TWO
    assert commit_on_hub("some/judge", None) == TWO
    assert identify("wan", "some/judge", None)["fingerprint"] == TWO
    with pytest.raises(RevisionNotFoundError):
        commit_on_hub("some/judge", "gone")
    with pytest.raises(ValueError, match="generator.path: some/judge is no local folder, and no hub id that resolves"):
        identify("wan", "some/judge", "gone")


def test_a_hub_that_cannot_be_reached_is_given_up_in_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr("data.content.hub.PATIENCE", 0.5)
    with silent_hub() as silent:
        for url in (silent, "http://127.0.0.1:9"):
            reach(url, monkeypatch, tmp_path)
            started = time.monotonic()
            assert commit_on_hub("some/judge", None) is None
            assert hub_commit("some/judge", None, ask=True) is None  # as stage base asks
            with pytest.raises(ValueError, match="some/judge .*: the hub cannot be reached from here"):
                identify("wan", "some/judge", None)
            assert time.monotonic() - started < 5, url
    assert commit_in_cache("some/judge", None) is None


def test_a_hub_that_fails_is_as_one_that_cannot_be_reached(hub):
    hub.status = 503
    assert commit_on_hub("some/judge", None) is None
    hub.status = 403
    with pytest.raises(ValueError, match="no hub id that resolves"):
        identify("wan", "some/judge", None)


LOOK = """
import sys
import torch
from feedback.core.kinds import make_source
from pipeline.inputs import hub_commit
torch.set_num_threads(1)
block = {"kind": "qwen", "path": "some/judge", "revision": "main", "rubric": "tabletop/rubric.yaml", "batch_size": 1,
         "dtype": "float32"}
asked = hub_commit("some/judge", None, ask=True)
print("FOUND", asked, make_source("judge", block).model_version, hub_commit("some/judge", None, ask=False))
"""


@pytest.mark.ci
def test_a_branch_counts_by_the_commit_that_was_loaded_also_offline(tmp_path):
    rubric = load_rubric(ROOT / "tabletop/rubric.yaml").of("")
    words = [word for question in rubric.questions for word in rubric.text(question, "").split()]
    for name in ("one", "two"):
        build_judge(tmp_path / name, [*dict.fromkeys([*words, "Accept", "Reject"])])
    with giving_models() as hub:
        hub.commits = {ONE: tmp_path / "one", TWO: tmp_path / "two"}
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}

        def looked(**more: str) -> list[str]:
            """The commit that is recorded before the load, that of the loaded model, and the recorded one after it."""
            command = [sys.executable, "-c", LOOK]
            done = subprocess.run(
                command, env=environment | more, cwd=ROOT, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.rpartition("FOUND ")[2].split()

        hub.branches = {"main": ONE}
        assert looked(HF_HUB_OFFLINE="0") == [ONE, ONE, ONE]
        hub.branches = {"main": TWO}
        assert looked(HF_HUB_OFFLINE="1") == [ONE, ONE, ONE]
        assert looked(HF_HUB_OFFLINE="0") == [ONE, TWO, TWO]  # the load brings the new commit; the next run records it
    assert json.loads((tmp_path / "one/config.json").read_text())
