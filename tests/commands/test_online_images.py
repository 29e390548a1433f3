"""`vfrl online --image`: one prompt with its first frame, and the generators that take none or need one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from commands.online import main as online_command
from data.first_frames import read_png
from data.video import read_video
from generators.tiny.variants import VARIANTS, params_of
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[2]
LIFT, FRAME = "lifting red ball up", "configs/prompt_sets/first-frames/dm-train-03.png"
QUICK = (
    "engine.updates=2", "engine.batch_size=1", "engine.steps=2", "engine.gradient_steps=1", "engine.guidance=1.0",
    "engine.solver=ddim", "engine.stop_right=null", "engine.held_out_every=null", "sampling.inference_steps=10",
)  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Makes tmp_path the working folder, with our files and a generator."""

    def made(**generator: Any) -> None:
        for name in ("configs", "feedback", "models", "tabletop"):
            (tmp_path / name).symlink_to(ROOT / name)
        params = default_params()
        params["generator"] |= generator
        params["online"]["prompt"] |= {"recipe": "vlm-as-teacher", "judge": "second", "held_out": "judge"}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        monkeypatch.chdir(tmp_path)

    return made


def run(*options: str):
    changes = [part for change in QUICK for part in ("--set", change)]
    return CliRunner().invoke(online_command, ["--prompt", LIFT, *changes, "--out", "out", *options])


def test_a_clip_starts_from_the_image_before_and_after_training(project):
    """The image is given four times as large, with margins to its left and right that the crop takes off."""
    project(family="cogvideox", path="models/tabletop/first_frame_generator")
    frame = read_png(Path(FRAME))
    large = np.full((128, 192, 3), 255, np.uint8)
    large[:, 32:160] = frame.repeat(4, 0).repeat(4, 1)
    Image.fromarray(large).save("first.bmp")

    done = run("--image", "first.bmp", "--ask", "is there a red ball=yes")

    assert done.exit_code == 0, done.output
    clips = {name: read_video(Path(f"out/{name}.mp4"))[:, ::2, ::2].astype(int) for name in ("before", "after")}
    other = read_png(Path(FRAME.replace("dm-train-03", "dm-train-04"))).astype(int)
    for name, clip in clips.items():  # 1.3 of 255 off on average (docs/tabletop.md), and the mp4's own loss
        assert np.abs(clip[0] - frame).mean() < 4, name
        assert np.abs(clip[0] - other).mean() > 8, name
    assert (clips["before"] != clips["after"]).any()
    assert [json.loads(line)["step"] for line in Path("out/log.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.ci  # 10 s
def test_ask_a_video_from_a_first_frame_makes_its_25_frames_on_framepacks_layout(project, tiny_model):
    """FramePack-F1's classes with random weights, at the recipe's own steps of UniPC but for their number."""
    variant = VARIANTS["framepack-f1"]
    given = params_of(replace(variant, num_frames=25), str(tiny_model("framepack-f1")))
    project(**given["generator"])
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["video"] = given["video"]
    params["online"]["prompt"] |= {
        "recipe": "ask-a-video-i2v",
        "changes": {"ask-a-video-i2v": {"judge": {"ask_template": "{question}"}}},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    frame = np.zeros((variant.height, variant.width, 3), np.uint8)
    frame[:, : variant.width // 2] = (200, 30, 30)
    Image.fromarray(frame).save("first.png")
    few = ("engine.updates=2", "engine.steps=3", "sampling.inference_steps=3", "engine.precision=fp32")
    changes = [part for change in few for part in ("--set", change)]
    asked = ("--image", "first.png", "--ask", "is there a red ball=yes", "--out", "out")

    done = CliRunner().invoke(online_command, ["--prompt", LIFT, *changes, *asked])

    assert done.exit_code == 0, done.output
    policy = json.loads(Path("out/policy.json").read_text())
    assert policy["recipe"]["engine"]["solver"] == "unipc" and policy["latent_shape"][1] == 7
    before, after = (read_video(Path(f"out/{name}.mp4")) for name in ("before", "after"))
    assert len(before) == len(after) == 25 and (before != after).any()


def test_an_image_that_is_not_taken_or_is_missing_is_an_error_before_anything_is_written(project, tmp_path):
    project(family="cogvideox", path="models/tabletop/first_frame_generator")
    (tmp_path / "notes.txt").write_text("no image")
    for options, message in (
        (
            (),
            "models/tabletop/first_frame_generator makes a clip from a prompt and its first frame: give it by --image",
        ),
        (("--image", "notes.txt"), "notes.txt: not a readable image"),
    ):
        done = run(*options)
        assert done.exit_code == 1 and message in done.output, options
    assert not Path("out").exists()


def test_an_image_for_a_generator_from_text_alone_is_an_error(project):
    project()
    done = run("--image", str(ROOT / FRAME))
    assert done.exit_code == 1 and "--image: models/tabletop/generator makes clips from text alone" in done.output
