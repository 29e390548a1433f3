"""`vfrl heatmap`: where a judge looks on the clips of a policy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from commands.heatmap import main
from data.prompts import Prompt
from data.records import Sample
from data.store import ClipSetWriter, encode_clips
from tabletop.references import real_clips
from tests.support.conditions import blank_conditions
from tests.support.defaults import DEFAULTS

ROOT = Path(__file__).parents[2]
PROMPTS = {"fall": "pushing red ball so that it falls off the table", "lift": "lifting red ball up"}
ENTRY = {"start": "base", "recipe": "ask-a-video", "judge": "second", "held_out": "judge", "changes": {
    "judge": {"frames": 4, "loss": "logit_difference"}, "questions": {"rubric": "tabletop/rubric.yaml"},
}}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """The working folder: the default params with an online policy, and rendered clips as its evaluation."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "feedback", "models", "tabletop"):
        (folder / name).symlink_to(ROOT / name)
    params = YAML(typ="safe", pure=True).load(DEFAULTS)
    params["online"]["policies"] = {"ask1": ENTRY}
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_clips(Path("runs/eval/ask1/samples"))
        yield


def write_clips(folder: Path) -> None:
    """Two clips of each prompt."""
    clips = real_clips([Prompt(name, text, "c", "test", None, None) for name, text in PROMPTS.items()], 9, 8.0)
    samples = [
        Sample(f"{name}{seed}", name, text, "c", "test", "ask1", seed, 9, 8.0, 32, 32, f"videos/{name}{seed}.mp4")
        for name, text in PROMPTS.items()
        for seed in range(2)
    ]
    frames = np.stack([clips[one.prompt_id].frames for one in samples])
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(len(samples), 4, 3, 4, 4))
    writer.finish(blank_conditions(PROMPTS), {"set": "eval", "policy": "ask1"})


def heatmap(*arguments: str):
    return CliRunner().invoke(main, arguments)


def size_of(path: Path) -> tuple[int, int]:
    return Image.open(path).size


def width(frames: int) -> int:
    """Of a sheet with cells of 96 pixels, 2 between them, 8 at its edges."""
    return frames * 98 - 2 + 16


def test_a_policy_is_drawn_by_its_own_judge_frames_and_questions_a_clip_a_prompt(tmp_path):
    done = heatmap("ask1", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fall0.png", "lift0.png"]
    assert size_of(tmp_path / "fall0.png")[0] == width(4)
    assert [Path(line).name for line in done.output.splitlines() if line.endswith(".png")] == ["fall0.png", "lift0.png"]


def test_questions_of_ones_own_are_asked_of_the_prompts_with_these_words(tmp_path):
    """Of ask1-selected, which the entry of ask1 was trained by: 4 frames, where section online.prompt has 8."""
    asks = ("--ask", "is there a red ball=yes", "--ask", "does anything jump=no")
    changes = ("--set", 'judge.ask_template="{question}"')
    clips = ("--clips", "runs/eval/ask1/samples", "--prompt", "FALLS")
    done = heatmap("ask1-selected", *clips, *asks, *changes, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    (sheet,) = tmp_path.iterdir()
    assert sheet.name == "fall0.png" and size_of(sheet)[0] == width(4)
    assert 3 * 96 < size_of(sheet)[1] < 4 * 96 + 96  # the frames and two questions, with captions


def test_a_policy_without_an_entry_is_drawn_as_one_prompt_is_trained_on_the_questions_of_its_folder(tmp_path):
    """Section online.prompt: judge second, 8 frames. One question is in the policy's folder, about one prompt."""
    ask = {"name": "mine", "kind": "own", "text": "is there a red ball", "wanted": "Yes", "other": "No",
           "explanation": None, "with_reference": False, "author": "own"}  # fmt: skip
    folder = Path("runs/policies/other")
    folder.mkdir(parents=True)
    (folder / "asks.jsonl").write_text(json.dumps({"prompt_id": "lift", **ask}) + "\n")
    clips = ("--clips", "runs/eval/ask1/samples")
    teacher = ("--recipe", "vlm-as-teacher", "--judge", "second")
    for options, name, rows in (
        (("--prompt", "lift", *teacher), "lift0.png", 2),
        (("--prompt", "fall", *teacher), "fall0.png", 8),
        (("--prompt", "fall"), "fall0.png", 2),  # recipe raft: the one question of the judge's rubric
    ):
        done = heatmap("other", *clips, *options, "--out", str(tmp_path))
        assert done.exit_code == 0, done.output
        height = size_of(tmp_path / name)[1]
        assert size_of(tmp_path / name)[0] == width(8) and rows * 96 < height < (rows + 1) * 96 + rows * 50, name


def test_what_cannot_be_drawn_is_an_error_that_says_what_can(tmp_path):
    for *options, message in (
        ("nobody", "name a clip set with --clips, or evaluate nobody"),
        ("ask1", "--prompt", "cup", "no clip has the prompt id, or 'cup' in its prompt"),
        ("ask1", "--judge", "gpt", "weights are in this process"),
        ("ask1", "--judge", "nobody", "judge 'nobody' is unknown"),
        ("ask1", "--set", "judge.frames=10", "frames is 10, expected 1 to 9"),
        ("ask1", "--recipe", "reward-gradient", "--judge", "clip", "--ask", "is it red=yes", "has no questions"),
        (
            "ask1",
            "--recipe",
            "flow-grpo",
            "--judge",
            "clip",
            "--set",
            "engine.solver=euler",
            "judge clip has no rubric",
        ),
    ):
        done = heatmap(*options, "--out", str(tmp_path / "out"))
        assert done.exit_code == 1, options
        assert message in done.output, options
        assert not (tmp_path / "out").exists(), options
