"""What judges say of a prompt's clips, and who was fooled."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from commands.online.outcome import Opinion, fooled, in_words, opinions_of, write_outcome
from data.prompts import Prompt
from generators.core.size import VideoSize
from pipeline.judges import Judges, OpenJudges
from pipeline.recipes import load_recipe
from rl.online.judging import WeightedJudge
from tests.support.online import Answers

SURE = Opinion("trained on", 0.9, True, "", {"second/left": 0.95, "second/jumps": 0.85})
DOUBTING = Opinion("trained on", 0.7, False, "", {"second/left": 0.95, "second/jumps": 0.45})


def wrong(reason: str = "") -> Opinion:
    return Opinion("also asked", 0.0, False, reason)


def test_a_judge_is_fooled_where_it_finds_right_what_another_finds_wrong():
    agreeing, silent = Opinion("held out", 0.8, True), Opinion("also asked", None, None)
    for others, expected in (
        ({"second": SURE, "judge": agreeing, "physics": wrong()}, ["physics"]),
        ({"second": SURE, "judge": agreeing, "physics": silent}, []),
        ({"second": DOUBTING, "physics": wrong()}, []),
    ):
        assert fooled(others) == expected


def test_the_outcome_has_a_line_for_each_judge_and_names_who_was_fooled():
    found = {
        "before.mp4": {"second": DOUBTING, "physics": wrong()},
        "after.mp4": {"second": SURE, "physics": wrong("the ball vanished")},
    }
    assert in_words(found, "before.mp4", "after.mp4") == [
        "second (trained on): 0.70 -> 0.90, right (left 0.95, jumps 0.85)",
        "physics (also asked): 0.00 -> 0.00, wrong (the ball vanished)",
        "second was fooled: it finds after.mp4 right, and physics does not; look at the clip",
    ]


class Brightness:
    """A judge of two questions: p is the mean brightness and half of it."""

    name = "light"

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        return [0]

    def __call__(self, frames: torch.Tensor, prompt_id: str, seed: int) -> Answers:
        mean = frames.mean()
        return Answers(("whole", "half"), torch.zeros(2), torch.stack([mean, mean / 2]))


def job(prompt: str) -> Any:
    """Of a run without a check."""
    recipe = load_recipe("vlm-as-teacher", {})
    prompts = [Prompt("prompt", prompt, "prompt", "train", None, None)]
    return SimpleNamespace(
        recipe=recipe, prompts=prompts, judge="light", held_out="judge", sources={"physics": {"kind": "physics"}},
        size=VideoSize(num_frames=9, height=32, width=32, fps=8.0),
    )  # fmt: skip


def test_a_source_is_asked_about_the_prompts_that_it_knows_and_the_held_out_judge_of_a_check_alone(tmp_path):
    clips = {"after.mp4": np.full((9, 32, 32, 3), 204, np.uint8)}  # 204 / 255 = 0.8
    opened = OpenJudges(Judges([], [WeightedJudge(Brightness(), 1.0)], {}), {}, [], None)
    for prompt, asked in (("lifting red ball up", {"light", "physics"}), ("a cat sleeps", {"light"})):
        found = opinions_of(job(prompt), ["physics"], opened, clips, "cpu")
        assert set(found["after.mp4"]) == asked
        light = found["after.mp4"]["light"]
        assert (round(light.score or 0, 6), light.right) == (0.6, False)  # 0.8 and 0.4
        assert light.answers.keys() == {"light/whole", "light/half"}
    physics = opinions_of(job("lifting red ball up"), ["physics"], opened, clips, "cpu")["after.mp4"]["physics"]
    assert physics.right is False and physics.score == 0.0 and physics.reason

    rewarded = job("lifting red ball up")
    rewarded.judge = "physics"  # of a run on rewards, which differentiates no judge
    said = opinions_of(rewarded, ["physics"], None, clips, "cpu")["after.mp4"]
    assert {name: (one.role, one.right) for name, one in said.items()} == {"physics": ("trained on", False)}

    report: Any = SimpleNamespace(last={"step": 7}, kept=5, stopped=None)
    write_outcome(tmp_path / "outcome.json", {"after.mp4": {"second": SURE, "physics": physics}}, "after.mp4", report)
    written = json.loads((tmp_path / "outcome.json").read_text())
    assert (written["updates"], written["kept"], written["fooled"]) == (7, 5, ["physics"])
    assert written["clips"]["after.mp4"]["second"]["answers"]["second/jumps"] == 0.85
