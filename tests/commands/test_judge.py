"""`vfrl judge`: the cost of a source before anything is sent, and its answers about a few clips."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import commands.judge
from tests.support.faulty_provider import Server, meant, serving
from tests.support.network import PRICE, make_clips, use_ledger, write_params


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty project, in which the command runs."""
    use_ledger(tmp_path / "ledger.sqlite", monkeypatch)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def run(*options: str) -> str:
    """The command's output about the set here, for the source gpt."""
    done = CliRunner().invoke(commands.judge.main, ["--set", "set", "--source", "gpt", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_dry_run_prints_the_cost_and_sends_nothing(home, server, monkeypatch):
    make_clips(home / "set", 3)
    write_params(home, server.base, price=PRICE)
    monkeypatch.delenv("OPENAI_API_KEY")
    output = run("--dry-run")
    assert "3 clips, 3 calls" in output and "prices of 2026-11-21" in output
    assert not server.attempts


def test_a_limit_prints_the_answers_to_single_calls_at_the_price_of_its_dry_run(home, server):
    make_clips(home / "set", 6)
    write_params(home, server.base, sources=("gpt",), price=PRICE, batch=True)
    assert "2 clips, 2 calls" in (priced := run("--limit", "2", "--dry-run"))
    assert "(prices of 2026-11-21)" in priced  # and not those of batches
    assert "(batch prices of 2026-11-21)" in run("--dry-run")
    output = run("--limit", "2")
    assert len(server.attempts) == 2  # at the path of single calls: the server has no other
    for n, attempt in zip((0, 3), sorted(server.attempts, key=lambda one: one["id"]), strict=True):
        assert f"videos/clip{n}.mp4: scene {n}." in output
        assert f"accept: {meant(attempt['key'])}" in output
    assert output.count(": as the hash says") == 2
    assert "2 clips, 2 calls, 2 answered before" in run("--limit", "2", "--dry-run")
    assert not (home / "labels").exists()


def test_a_limit_of_assumed_clips_is_refused(home):
    write_params(home, "http://127.0.0.1:9")
    options = ["--source", "gpt", "--dry-run", "--assume", "32x32x9@8", "--limit", "2"]
    done = CliRunner().invoke(commands.judge.main, options)
    assert done.exit_code == 2 and "--assume with --count" in done.output
