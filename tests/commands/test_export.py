"""Clips and labels as a dataset for others. What is pushed goes to a server of the test."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from commands.export import main
from commands.export.hub import Part, gather
from data.manifest import StoreError
from tests.support.fake_hub import FakeHub, serving
from tests.support.labelled import JUDGE, make_labels, make_round

ROOT = Path(__file__).parents[2]
TOKEN = "hf_of_the_test_alone"


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Path:
    """Do not write into it."""
    return make_round(tmp_path_factory.mktemp("runs") / "r1")


@pytest.fixture(scope="module")
def parts(round_) -> dict[str, Part]:
    folders = [round_ / "labels/judge", round_ / "compare/gpt/labels"]
    return {part.path: part for part in gather(round_ / "samples", folders, "someone/rolls", "cc0-1.0")}


def words(round_: Path, *more: str) -> list[str]:
    return ["--hub", "someone/rolls", "--set", f"{round_}/samples", "--labels", f"{round_}/labels/judge", *more]


def error_of(*options: str) -> str:
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return result.output


def test_a_dataset_loads_with_its_labels_beside_its_clips_by_the_split_of_their_prompts(parts, tmp_path):
    from datasets import Video, load_dataset

    for part in parts.values():
        (tmp_path / "set" / part.path).parent.mkdir(parents=True, exist_ok=True)
        content = part.content if isinstance(part.content, bytes) else part.content.read_bytes()
        (tmp_path / "set" / part.path).write_bytes(content)
    found = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    train = found["train"].cast_column("video", Video(decode=False))

    assert {split: rows["sample_id"][:] for split, rows in found.items()} == {
        "train": ["roll0", "roll1", "roll2"],
        "test": ["drop0", "drop1", "drop2"],
    }
    assert train["label_judge"][:] == [True, False, None]
    assert train["p_accept_gpt"][:] == [0.8, 0.7, 0.75]
    assert train[1]["reason_judge"] == "It shows: <roll1>"
    assert train[1]["video"]["path"].endswith("train/p-roll/roll1.mp4")


def test_the_card_is_written_from_the_manifests(parts):
    _, header, text = parts["README.md"].content.decode().split("---\n", 2)

    assert yaml.safe_load(header)["license"] == "cc0-1.0"
    assert yaml.safe_load(header)["configs"][0]["data_files"] == [
        {"split": "test", "path": "test/**"},
        {"split": "train", "path": "train/**"},
    ]
    assert "- Set: r1, sampled from the policy base" in text
    assert "- Clips: 9 frames of 32 x 32 at 8 per second" in text
    assert "- Rubric: sheet, hash 0123456789ab; votes a clip: 1" in text
    assert "| roll | 3 | 1 | 1 | 1 |" in text  # of judge
    assert "| all | 6 | 4 | 1 | 1 |" in text  # of gpt


def test_verdicts_are_whole_but_for_the_folders_of_this_machine(round_, tmp_path, monkeypatch):
    own = make_round(tmp_path / "r1")
    answers = JUDGE | {"roll2": (None, None, f"unreadable clip: {own}/samples/videos/roll2.mp4: torn")}
    make_labels(own / "labels/judge", "judge", answers, own / "samples")
    monkeypatch.chdir(tmp_path)
    (verdicts,) = (
        part for part in gather(own / "samples", [own / "labels/judge"], "a/b") if part.path == "verdicts/judge.parquet"
    )
    rows = pq.read_table(io.BytesIO(verdicts.content)).to_pylist()

    assert [row["raw"] for row in rows] == [f"raw {clip}" for clip in JUDGE]
    assert rows[2]["error"] == "unreadable clip: r1/samples/videos/roll2.mp4: torn"


def test_without_push_it_says_what_would_go_and_sends_nothing(round_):
    result = CliRunner().invoke(main, words(round_), env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN})
    clips = sum(path.stat().st_size for path in (round_ / "samples/videos").glob("roll*.mp4"))

    assert result.exit_code == 0
    assert f"train/**/*.mp4              3  {clips:>6,}" in result.output
    assert "# rolls\n\n6 generated clips with the labels of judge." in result.output
    assert "Nothing was pushed; --push does it." in result.output
    assert TOKEN not in result.output


@pytest.fixture
def hub():
    with serving() as server:
        yield server


def pushed(hub: FakeHub, *options: str) -> subprocess.CompletedProcess:
    """A process of its own, for the Hub's library reads its address when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "LOG_LEVEL": "DEBUG", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "commands", "export", *options, "--push"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_push_makes_one_private_commit_that_replaces_an_earlier_export(hub, round_, parts):
    hub.files |= {"train/p-roll/gone.mp4": b"of an earlier export", "notes.md": b"somebody's", ".gitattributes": b""}
    done = pushed(hub, *words(round_))

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"pushed: {hub.url}/datasets/someone/rolls\n")
    clips = {f"{folder}{i}.mp4" for folder in ("train/p-roll/roll", "test/p-drop/drop") for i in range(3)}
    rest = {"README.md", "train/metadata.parquet", "test/metadata.parquet", "verdicts/judge.parquet"}
    assert hub.files.keys() == {*clips, *rest, "notes.md", ".gitattributes"}
    assert hub.files["test/p-drop/drop1.mp4"] == (round_ / "samples/videos/drop1.mp4").read_bytes()
    assert (hub.commits, hub.created[0]["visibility"], hub.created[0]["type"]) == (1, "private", "dataset")
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr


def test_a_refusal_of_the_hub_is_an_error_without_the_token(hub, round_):
    hub.refuses = True
    done = pushed(hub, *words(round_))

    assert done.returncode == 1
    assert "Error: someone/rolls: not pushed: " in done.stderr
    assert "403" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_a_push_without_a_token_ends_before_anything_is_read(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "environment variable HF_TOKEN is not set" in error_of("--hub", "a/b", "--set", "no/such", "--push")


def test_what_cannot_be_exported_is_an_error(round_, tmp_path):
    judged = str(round_ / "labels/judge")
    assert "expected user/name" in error_of("--hub", "rolls", "--set", "no/such")
    assert "--hub a/b c: " in error_of("--hub", "a/b c", "--set", "no/such")
    assert "no such folder" in error_of("--hub", "a/b", "--set", "no/such")
    assert "two sets by judge" in error_of(*words(round_, "--labels", judged))
    other = make_round(tmp_path / "r1")
    video = other / "samples/videos/roll0.mp4"
    video.write_bytes(video.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreError, match=r"roll0.mp4: changed: sha256"):
        gather(other / "samples", [], "a/b")

    make_labels(tmp_path / "few", "judge", dict(list(JUDGE.items())[:2]), round_ / "samples")
    with pytest.raises(ValueError, match="its 2 labels are not of the 6 clips"):
        gather(round_ / "samples", [tmp_path / "few"], "a/b")


# For VBench


def test_vbench_gets_the_clips_and_the_prompt_of_each_file(round_, tmp_path):
    out = tmp_path / "for vbench"
    result = CliRunner().invoke(main, ["--for", "vbench", "--set", f"{round_}/samples", "--out", str(out)])

    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (out / "videos").iterdir())
    assert names == sorted(json.loads((out / "prompts.json").read_text()))
    assert json.loads((out / "prompts.json").read_text())["roll1.mp4"] == "a ball rolls"
    assert (out / "videos" / "roll1.mp4").read_bytes() == (round_ / "samples/videos/roll1.mp4").read_bytes()
    words = shlex.split(result.output.splitlines()[-1])  # as a shell reads the command
    assert words[words.index("--videos_path") + 1] == str(out / "videos")
    assert words[words.index("--prompt_file") + 1] == str(out / "prompts.json")
    assert "6 clips in" in result.output and "custom_input" in words
    assert "exists already" in error_of("--for", "vbench", "--set", f"{round_}/samples", "--out", str(out))


def test_an_export_goes_to_one_place(round_):
    for options in ([], ["--for", "vbench"], ["--for", "vbench", "--out", "x", "--hub", "a/b"]):
        result = CliRunner().invoke(main, ["--set", f"{round_}/samples", *options])

        assert result.exit_code == 2, options
        assert "name either --hub USER/NAME, or --for vbench with --out FOLDER" in result.output, options
