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

from commands.export import folder as export_folder
from commands.export import main
from commands.export.dataset import Part, Sources, find_sources, gather, listing
from commands.export.hub import MOST_FILES, check_count
from data.manifest import StoreError, read_manifest, write_manifest
from data.records import Pair, Weighted, write_rows
from data.store import ClipSet
from pipeline.command import INTERRUPTED
from tests.support.fake_hub import FakeHub, serving
from tests.support.first_frames import with_first_frames
from tests.support.labelled import JUDGE, make_labels, make_round

ROOT = Path(__file__).parents[2]
TOKEN = "hf_of_the_test_alone"


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Path:
    """Do not write into it."""
    return make_round(tmp_path_factory.mktemp("runs") / "r1")


@pytest.fixture(scope="module")
def parts(round_) -> dict[str, Part]:
    labels, rows = (
        [round_ / "labels/judge", round_ / "compare/gpt/labels"],
        [round_ / "datasets/rwr", round_ / "datasets/dpo"],
    )
    sources = Sources(round_ / "samples", labels, rows)
    return {part.path: part for part in gather(sources, "someone/rolls", "cc0-1.0")}


def words(round_: Path, *more: str) -> list[str]:
    return ["--hub", "someone/rolls", "--set", f"{round_}/samples", "--labels", f"{round_}/labels/judge", *more]


def error_of(*options: str) -> str:
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return result.output


def exported(*options: object) -> str:
    """What the command prints when it succeeds."""
    result = CliRunner().invoke(main, list(map(str, options)))
    assert result.exit_code == 0, result.output
    return result.output


# The dataset


@pytest.fixture(scope="module")
def out(round_, tmp_path_factory) -> Path:
    """An export of the round by the defaults. Do not write into it."""
    out = tmp_path_factory.mktemp("exports") / "rolls"
    exported("--out", out, "--set", round_ / "samples")
    return out


def load(out: Path, name: str | None, cache: Path):
    """A configuration, with the addresses of its clips in place of their frames, whose decoding needs torchcodec."""
    from datasets import Video, load_dataset

    loaded = load_dataset(str(out), name, cache_dir=str(cache))
    for column in ("video", "chosen", "rejected"):
        if column in next(iter(loaded.values())).features:
            loaded = loaded.cast_column(column, Video(decode=False))
    return loaded


def test_clips_load_with_their_labels_beside_them_by_the_split_of_their_prompts(out, tmp_path):
    found = load(out, None, tmp_path)
    train = found["train"]

    assert {split: rows["sample_id"][:] for split, rows in found.items()} == {
        "train": ["roll0", "roll1", "roll2"],
        "test": ["drop0", "drop1", "drop2"],
    }
    assert train["label_judge"][:] == [True, False, None]
    assert train["p_accept_judge"][:] == [0.9, 0.2, None]
    assert train[1]["reason_judge"] == "It shows: <roll1>"
    assert train[1]["video"]["path"].endswith("train/p-roll/roll1.mp4")


def test_pairs_load_as_prompt_chosen_and_rejected_clips(out, round_, tmp_path):
    found = load(out, "pairs", tmp_path)
    (train,), (test,) = found["train"], found["test"]

    assert list(train)[:1] == ["prompt"]
    assert (train["prompt"], train["prompt_id"], train["margin"]) == ("a ball rolls", "p-roll", 0.7)
    assert (train["chosen_sample_id"], train["rejected_sample_id"]) == ("roll0", "roll1")
    for side, clip in {"chosen": "drop1", "rejected": "drop2"}.items():
        assert Path(test[side]["path"]).read_bytes() == (round_ / f"samples/videos/{clip}.mp4").read_bytes()
    assert pq.read_table(out / "train/pairs.parquet")["chosen_file_name"].to_pylist() == ["p-roll/roll0.mp4"]


def test_weighted_rows_load_with_their_clips(out, tmp_path):
    found = load(out, "weighted", tmp_path)
    (row,) = found["train"]

    assert list(found) == ["train"]  # no row of a test prompt
    assert (row["prompt"], row["reward"], row["weight"]) == ("a ball rolls", 1.0, 1.0)
    assert row["video"]["path"].endswith("train/p-roll/roll0.mp4")


def test_the_folder_is_what_is_pushed_and_its_clips_use_no_disk(out, round_):
    manifest = read_manifest(out, "export", verify=True)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}

    assert files == {"manifest.json", *(listed["path"] for listed in manifest["files"])}
    assert {"README.md", "train/metadata.parquet", "train/weighted.parquet", "test/pairs.parquet"} < files
    assert manifest["facts"]["labels"] == ["judge"]
    assert (out / "train/p-roll/roll0.mp4").samefile(round_ / "samples/videos/roll0.mp4")


def test_without_hard_links_clips_are_copied_and_that_is_said(round_, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    text = exported("--out", tmp_path / "e", "--set", round_ / "samples")

    assert "6 clips were copied, for it is not on the file system of" in text
    assert read_manifest(tmp_path / "e", "export", verify=True)


def test_labels_and_rows_are_those_beside_the_clips_or_those_named(round_, tmp_path):
    exported("--out", tmp_path / "gpt", "--set", round_ / "samples", "--labels", round_ / "compare/gpt/labels")
    assert read_manifest(tmp_path / "gpt", "export")["facts"]["labels"] == ["gpt"]
    assert read_manifest(tmp_path / "gpt", "export")["facts"]["tables"] == ["weighted", "pairs"]

    own = make_round(tmp_path / "r1")
    second = own / "compare/gpt/datasets/dpo"
    write_rows(second / "paired.parquet", [Pair("p-roll", "roll2", "roll1", 0.05)], Pair)
    write_manifest(second, "dataset", round="r1", source="gpt", reward="p_accept")
    rows = ["--rows", second, "--rows", own / "datasets/dpo"]
    text = exported("--out", tmp_path / "two", "--set", own / "samples", *rows)
    assert "train/pairs_gpt.parquet" in text and "train/pairs_judge.parquet" in text
    assert load(tmp_path / "two", "pairs_gpt", tmp_path / "cache")["train"]["chosen_sample_id"][:] == ["roll2"]


def test_the_only_round_is_exported_and_one_of_several_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "name the clips with --set: there is no runs/<round>/samples here" in error_of("--out", "e")
    make_round(Path("runs/r1"))
    assert "written: e; its 6 clips are hard links to those of runs/r1/samples" in exported("--out", "e")
    make_round(Path("runs/r2"))
    assert "--set: there are runs/r1/samples, runs/r2/samples" in error_of("--out", "e")


# An earlier export


def test_an_earlier_export_of_the_set_is_replaced_and_nothing_else(round_, tmp_path):
    out, words = tmp_path / "e", ["--set", round_ / "samples"]
    out.mkdir()
    exported("--out", out, *words)  # an empty folder is written into
    exported("--out", out, *words, "--labels", round_ / "compare/gpt/labels")
    assert read_manifest(out, "export", verify=True)["facts"]["labels"] == ["gpt"]
    assert not (out / "verdicts/judge.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["e"]

    options = ["--out", str(out), *map(str, words)]
    (out / "train/notes.md").write_text("mine")
    assert "train/notes.md is not of the earlier export, which would be replaced; move it away" in error_of(*options)
    other = make_round(tmp_path / "r2") / "samples/manifest.json"
    other.write_text(other.read_text().replace('"set": "r1"', '"set": "r2"'))
    message = "holds an export of set r1 of the policy base, and this is set r2"
    assert message in error_of("--out", str(out), "--set", str(other.parent))
    assert "not empty and no earlier export" in error_of("--out", str(round_), *options[2:])
    assert "not empty and no earlier export" in error_of("--out", str(out / "README.md"), *options[2:])
    assert (out / "train/notes.md").read_text() == "mine"


def test_an_interrupted_export_leaves_the_earlier_one_or_nothing(round_, tmp_path, monkeypatch):
    def interrupted(source: Path, copy: Path) -> None:
        if copy.name == "roll1.mp4":
            raise KeyboardInterrupt
        os.link(source, copy)

    out = tmp_path / "e"
    options = ["--out", str(out), "--set", str(round_ / "samples")]
    with monkeypatch.context() as patch:
        patch.setattr(export_folder, "link", interrupted)
        assert CliRunner().invoke(main, options).exit_code == INTERRUPTED
        assert list(tmp_path.iterdir()) == []
    exported(*options)
    with monkeypatch.context() as patch:
        patch.setattr(export_folder, "link", interrupted)
        assert CliRunner().invoke(main, options).exit_code == INTERRUPTED
    assert read_manifest(out, "export", verify=True)
    (tmp_path / ".e.partial").mkdir()  # of a run that was killed
    exported(*options)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


# The card


def test_first_frames_are_exported_with_the_clips(round_, tmp_path):
    clips = with_first_frames(ClipSet.open(round_ / "samples"), tmp_path / "r1/samples").folder
    parts = {part.path: part for part in gather(find_sources(clips, [], []), "title")}
    assert parts["first/p-roll.png"].content == clips / "first/p-roll.png" and "first/p-drop.png" in parts
    assert "first/**/*.png" in listing(list(parts.values()))


def test_the_card_is_written_from_the_manifests(parts):
    _, header, text = parts["README.md"].content.decode().split("---\n", 2)

    assert yaml.safe_load(header)["license"] == "cc0-1.0"
    clips, _, pairs = yaml.safe_load(header)["configs"]
    assert clips == {
        "config_name": "default",
        "data_files": [
            {"split": split, "path": [f"{split}/metadata.parquet", f"{split}/**/*.mp4"]} for split in ("test", "train")
        ],
    }
    assert (pairs["config_name"], pairs["metadata_filenames"]) == ("pairs", ["pairs.parquet"])
    assert "- Configuration `pairs`: 2 pairs (prompt, chosen, rejected, margin) by judge, reward p_accept" in text
    assert 'pairs = load_dataset("someone/rolls", "pairs", split="test")' in text
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
    parts = gather(Sources(own / "samples", [own / "labels/judge"], []), "a/b")
    (verdicts,) = (part for part in parts if part.path == "verdicts/judge.parquet")
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
    rest = {"README.md", "manifest.json", "train/metadata.parquet", "test/metadata.parquet", "verdicts/judge.parquet"}
    rows = {"train/weighted.parquet", "train/pairs.parquet", "test/pairs.parquet"}
    assert hub.files.keys() == {*clips, *rest, *rows, "notes.md", ".gitattributes"}
    assert hub.files["test/p-drop/drop1.mp4"] == (round_ / "samples/videos/drop1.mp4").read_bytes()
    assert (hub.commits, hub.created[0]["visibility"], hub.created[0]["type"]) == (1, "private", "dataset")
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr


def test_a_folder_and_the_hub_get_the_same_files(hub, round_, tmp_path):
    out = tmp_path / "rolls"
    done = pushed(hub, *words(round_), "--out", str(out))

    assert done.returncode == 0, done.stderr
    assert f"written: {out}; its 6 clips are hard links" in done.stdout
    assert f"pushed: {hub.url}/datasets/someone/rolls" in done.stdout
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()} == hub.files


def test_a_folder_beside_the_hub_is_written_without_push_too(round_, tmp_path):
    text = exported(*words(round_), "--out", tmp_path / "rolls")
    assert "written:" in text and "Nothing was pushed; --push does it." in text
    assert read_manifest(tmp_path / "rolls", "export")


def test_more_files_than_the_hub_takes_are_refused_with_another_way(parts):
    with pytest.raises(ValueError, match="25001 files, .*--out, and push the folder with `hf upload-large-folder`"):
        check_count("a/b", [parts["README.md"]] * (MOST_FILES + 1))


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
        gather(Sources(other / "samples", [], []), "a/b")

    make_labels(tmp_path / "few", "judge", dict(list(JUDGE.items())[:2]), round_ / "samples")
    with pytest.raises(ValueError, match="its 2 labels are not of the 6 clips"):
        gather(Sources(round_ / "samples", [tmp_path / "few"], []), "a/b")
    write_rows(tmp_path / "foreign/weighted.parquet", [Weighted("roll9", "p-roll", 1.0, 1.0)], Weighted)
    write_manifest(tmp_path / "foreign", "dataset", round="r1")
    with pytest.raises(ValueError, match="foreign: 1 clips, such as roll9, are not in"):
        gather(Sources(round_ / "samples", [], [tmp_path / "foreign"]), "a/b")
    assert "holds a 'datasets', but a 'dataset' is wanted" in error_of(
        *words(round_, "--rows", str(round_ / "datasets"))
    )


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


def test_options_that_do_not_go_together_are_refused(round_):
    for options, message in {
        (): "name --out FOLDER, --hub USER/NAME, or both",
        ("--push", "--out", "x"): "--push and --public are for --hub USER/NAME",
        ("--public", "--out", "x"): "--push and --public are for --hub USER/NAME",
        ("--for", "vbench"): "name --out FOLDER",
        ("--for", "vbench", "--hub", "a/b"): "--for vbench takes --set and --out, and nothing else",
        ("--for", "vbench", "--out", "x", "--hub", "a/b"): "--for vbench takes --set and --out, and nothing else",
        ("--for", "vbench", "--out", "x", "--labels", "y"): "--for vbench takes --set and --out, and nothing else",
    }.items():
        result = CliRunner().invoke(main, ["--set", f"{round_}/samples", *options])

        assert result.exit_code == 2, options
        assert message in result.output, options
