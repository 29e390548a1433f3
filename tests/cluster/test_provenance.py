"""What policy.json says a policy is made with."""

import subprocess

import pytest
import torch

from cluster import provenance
from cluster.provenance import code, differences, in_words, made_with, versions


@pytest.fixture
def repository(tmp_path):
    """A git repository of one commit, and a function that runs git in it."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    for name in ("params.yaml", "dvc.lock", "rl/loss.py", "metrics/evaluate.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("as committed")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    return tmp_path, git


def test_the_commit_of_a_clean_tree_is_named(repository):
    root, git = repository
    assert code(root) == {"commit": git("rev-parse", "HEAD"), "changed": []}


def test_changed_files_and_new_code_are_named_and_what_a_run_writes_is_not(repository):
    root, _ = repository
    for name in ("params.yaml", "dvc.lock", "metrics/evaluate.json", "metrics/new.json", "unsure.png", "my judge.py"):
        (root / name).write_text("changed")
    (root / "rl/loss.py").unlink()
    assert code(root)["changed"] == ["my judge.py", "params.yaml", "rl/loss.py"]


def test_without_git_or_a_repository_the_commit_is_null(tmp_path, monkeypatch):
    assert code(tmp_path / "nowhere") == {"commit": None, "changed": None}
    monkeypatch.setenv("PATH", "")
    assert code(tmp_path) == {"commit": None, "changed": None}


def test_a_repository_around_an_installed_copy_is_not_the_code(repository):
    root, _ = repository
    inner = root / "lib/site-packages"
    inner.mkdir(parents=True)
    assert code(inner) == {"commit": None, "changed": None}


def test_a_library_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "LIBRARIES", ("diffusers", "no-such-library"))
    found = versions()
    assert list(found) == ["video-feedback-rl", "python", "torch", "diffusers", "no-such-library"]
    assert found["diffusers"] and found["no-such-library"] is None


def test_a_cpu_is_named_with_its_threads_and_without_a_path_of_the_machine():
    device = made_with(torch.device("cpu"))["device"]
    assert (device["type"], device["processes"], device["threads"]) == ("cpu", 1, torch.get_num_threads())
    assert device["name"] and "/" not in device["name"]


def test_what_differs_is_told_beside_what_was_before():
    before = {"device": {"type": "cpu", "threads": 2}, "versions": {"torch": "2.9"}}
    now = {"device": {"type": "cpu", "threads": 1}, "versions": {"torch": "2.9"}}
    assert differences(before, now) == {"device": {"threads": 1}}
    assert in_words(before, differences(before, now)) == "threads 1 (was 2)"
    assert differences(now, now) == {} and in_words(now, {}) == ""
