"""`vfrl judge`: the cost of a source before anything is sent, and its answers about a few clips."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import commands.judge
from data.records import SharedStart, write_rows
from data.store import STARTS
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


# Windows. A frame of 32 x 32 pixels is one patch of 1.2 tokens, so 2 tokens; the rubric is of 8 frames. Of 9 frames 8
# are sent, of a window of 4 (frames 0 to 4, and 5 to 8) 5 and 4. All prompts here are equally long.


def tokens_in(output: str) -> int:
    return int(re.search(r"to send: ([\d,]+) tokens in", output)[1].replace(",", ""))


def test_a_dry_run_of_windows_counts_the_windows_and_the_frames_of_each(home, server):
    """3 clips: 3 calls of 16 tokens and the text; by windows 6 calls, for each clip 10 + 8 tokens and two texts."""
    make_clips(home / "set", 3)
    write_params(home, server.base, price=PRICE)
    text = tokens_in(run("--dry-run")) // 3 - 16
    output = run("--dry-run", "--window", "4")

    assert "6 windows, 6 calls, 0 answered before" in output
    assert tokens_in(output) == 3 * (10 + 8 + 2 * text)
    assert f"360 out, ${(tokens_in(output) * 1.0 + 6 * 60 * 4.0) / 1e6:.4f}" in output  # 60 tokens an answer
    assert tokens_in(run("--dry-run", "--window", "8")) == 3 * (16 + text)  # one window: the clip
    assert "2 windows, 2 calls" in run("--dry-run", "--window", "4", "--limit", "2")
    assert not server.attempts

    first = {"prompts": {"path": "prompts.csv"}}
    params = yaml.safe_load((home / "params.yaml").read_text())
    (home / "params.yaml").write_text(yaml.safe_dump(params | first))
    (home / "prompts.csv").write_text("prompt_id,prompt,category,split\np0,scene 0.,c,train\n")
    options = ["--source", "gpt", "--dry-run", "--assume", "32x32x9@8", "--count", "3", "--window", "4"]
    done = CliRunner().invoke(commands.judge.main, options)
    assert done.exit_code == 0, done.output
    assert done.output == output


def test_a_look_at_windows_sends_their_frames_and_a_dry_run_leaves_out_what_is_answered(home, server):
    make_clips(home / "set", 3)
    write_params(home, server.base, sources=("gpt",), price=PRICE)
    output = run("--limit", "2", "--window", "4")

    assert "videos/clip0.mp4, frames 0 to 4: scene 0." in output
    assert "videos/clip1.mp4, frames 5 to 8: scene 1." in output  # of six windows the first and the fourth
    pictures = {str(body).count("'type': 'image_url'") for body in server.bodies}
    assert pictures == {5, 4}
    whole = tokens_in(run("--dry-run", "--window", "4"))
    assert "6 windows, 6 calls, 2 answered before" in run("--dry-run", "--window", "4")
    (text,) = {tokens_in(run("--dry-run")) // 3 - 16}
    assert whole == 2 * (10 + 8) + 4 * text  # without 10 of clip0 and 8 of clip1
    assert "3 clips, 3 calls, 0 answered before" in run("--dry-run")


def test_a_set_of_section_dense_is_judged_by_its_windows(home, server):
    clips = make_clips(home / "set", 2, set="d1")
    write_rows(clips.folder / STARTS, [SharedStart("p0", "r1-0", "clip0", "clip1")], SharedStart)
    write_params(home, server.base, price=PRICE)
    params = yaml.safe_load((home / "params.yaml").read_text())
    for section, expected in (({"d1": {"window": 2}}, "8 windows, 8 calls"), ({"d2": {"window": 2}}, None)):
        (home / "params.yaml").write_text(yaml.safe_dump(params | {"dense": section}))
        done = CliRunner().invoke(commands.judge.main, ["--set", "set", "--source", "gpt", "--dry-run"])
        if expected:
            assert expected in done.output  # frames 0 to 2, 3 to 4, 5 to 6, 7 to 8
        else:
            assert done.exit_code == 1
            assert "set: set d1 is not in section dense of params.yaml; give --window" in done.output
    assert "4 windows" in run("--dry-run", "--window", "4")
