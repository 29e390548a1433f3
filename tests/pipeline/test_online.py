"""Claims about what stage `online` composes."""

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster import devices
from data.counts import Counts, collected_counts
from data.first_frames import read_png
from data.prompts import Prompt
from data.store import PromptConditions
from feedback.differentiable.asks import Ask
from feedback.questions.references import RealClip
from generators.core.encoding import Encoded, encode
from generators.core.rollout import Sampling
from generators.core.size import VideoSize
from pipeline.asked import RunJudge
from pipeline.configs import CheckConfig
from pipeline.judges import open_judges
from pipeline.online import HeldOutCheck, Job, draw_checked
from pipeline.recipes import load_recipe
from pipeline.trained_clip import TrainedClipCheck
from rl.online.judging import WeightedJudge
from tabletop.captions import parse
from tabletop.render import render
from tabletop.scenes import make_scene
from tests.feedback.judges.test_panel import steady
from tests.support.defaults import default_params
from tests.support.online import Answers
from tests.support.tiny import load_wan


def test_over_shards_a_process_with_fewer_batches_samples_as_many_as_the_others(tmp_path, monkeypatch):
    """Two clips of each of three prompts, on two processes, in batches of two: 2 batches and 1."""
    prompts: Any = ["p0", "p1", "p2"]
    told = PromptConditions(
        {name: {"text": torch.zeros(6, 16)} for name in prompts}, {"text": torch.zeros(6, 16)}, None
    )
    nothing: Any = None
    sampled: list[int] = []
    generator: Any = SimpleNamespace(
        latent_shape=(4, 3, 4, 4),
        draw_noise=lambda seeds, shape: torch.zeros(len(seeds), *shape),
        sample=lambda conditions, unwanted, noise, *how: sampled.append(len(noise)),
    )
    sampling: Any = SimpleNamespace(samples_per_prompt=2, batch_size=2, steps=3, guidance=1.0, solver="unipc")
    monkeypatch.setattr(devices, "world_size", lambda: 2)
    monkeypatch.setattr(devices, "gather_over_ranks", lambda value: [["p0", "p2"], ["p1"]])
    for rank, idle in ((0, 0), (1, 1)):
        monkeypatch.setattr(devices, "rank", lambda rank=rank: rank)
        (tmp_path / f"rank-{rank}-of-2/step-000002").mkdir(parents=True)  # what a killed run left
        check = HeldOutCheck(generator, [], nothing, prompts, Encoded(told, {}, {}), sampling, tmp_path, shards=True)
        assert not (tmp_path / f"rank-{rank}-of-2").exists()
        check._keep_pace()
        assert sampled == [1] * idle


def test_real_clips_choose_the_prompts_of_a_recipe_that_compares_with_none(monkeypatch):
    """`second` affirms a rendered clip of the one prompt, and not a grey one of the other."""
    texts = {"good": "lifting red ball up", "bad": "lifting blue cube up"}
    prompts = [Prompt(name, text, "c", "train", None, None) for name, text in texts.items()]
    good = render(make_scene(parse(texts["good"]), np.random.default_rng(0), None))[[0, 1, 2, 3, 5, 6, 7, 8]]
    found = {"good": RealClip(good, 8.0), "bad": RealClip(np.full_like(good, 128), 8.0)}
    changes = {"judge": {"frames": 8, "reference_frames": 8}, "questions": {"rubric": "tabletop/rubric.yaml"}}
    recipe, size = load_recipe("vanilla-drf", changes), VideoSize(num_frames=9, height=32, width=32, fps=8.0)
    check = CheckConfig(prompts=1, samples_per_prompt=1, batch_size=1, seed=1)
    sources = {"second": default_params()["feedback"]["sources"]["second"]}
    job = Job(recipe, prompts, None, "tabletop", None, "second", "second", sources, check, size)
    monkeypatch.setattr("pipeline.judges.real_clips", lambda *_: found)

    assert [prompt.prompt_id for prompt in open_judges(job, "cpu").prompts] == ["good"]
    assert len(open_judges(job._replace(references=None), "cpu").prompts) == 2


class Brightness:
    """A judge of two questions, in this process."""

    name = "light"

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        return [0]

    def __call__(self, frames: torch.Tensor, prompt_id: str, seed: int) -> Answers:
        return Answers(("one", "two"), frames.mean().expand(2), torch.tensor([0.5, 0.5]))


def test_a_check_counts_its_clips_and_its_judges_also_where_a_killed_run_had_sampled_them(
    tiny_wan, tmp_path, monkeypatch
):
    """4 clips of 3 solver steps, two questions of the training judge and one of the held-out one."""
    generator = load_wan(tiny_wan, max_prompt_tokens=8)
    prompts = [Prompt(f"p{one}", "the red ball rolls off the table", "c", "train", None, None) for one in range(2)]
    sampling = Sampling(3, 1.0, "unipc", samples_per_prompt=2, batch_size=2, split="all", seed=1)
    encoded = encode(generator, prompts, None)
    held_out = RunJudge(False, steady("held", 0.9))
    check = HeldOutCheck(generator, [WeightedJudge(Brightness(), 1.0)], held_out, prompts, encoded, sampling, tmp_path)
    expected = Counts(clips=4, judge_calls=4 * 2 + 4, forwards=4 * 3, decodes=4)
    with collected_counts() as counts, torch.no_grad():
        check(2)
    assert counts == expected

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunJudge, "scores_of", stop)
        with pytest.raises(KeyboardInterrupt):
            check(4)
    with collected_counts() as counts, torch.no_grad():
        check(4)  # whose clips are there
    assert counts == expected


def test_a_check_draws_where_the_judge_looks_on_its_first_clip_and_counts_nothing_for_it(tiny_wan, tmp_path):
    generator = load_wan(tiny_wan, max_prompt_tokens=8)
    prompts = [Prompt("p0", "the red ball rolls off the table", "c", "train", None, None)]
    sampling = Sampling(2, 1.0, "unipc", samples_per_prompt=2, batch_size=2, split="all", seed=1)
    judges = [WeightedJudge(Brightness(), 1.0)]
    asks = {"p0": tuple(Ask(n, "own", "Is it light?", "Yes", "No", None, False, "own") for n in ("one", "two"))}
    check = HeldOutCheck(
        generator, judges, RunJudge(False, steady("held", 0.9)), prompts, encode(generator, prompts, None), sampling,
        tmp_path, draw=partial(draw_checked, judges, asks, tmp_path / "sheets"),
    )  # fmt: skip
    with collected_counts() as counts, torch.no_grad():
        check(0), check(20)
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["step-000000.png", "step-000020.png"]
    assert counts.judge_calls == 2 * 2 * (2 + 1)
    first, again = ((tmp_path / "sheets" / f"step-0000{step}.png").read_bytes() for step in ("00", "20"))
    assert first == again  # of the same clip


def test_a_source_that_is_trained_on_by_rewards_scores_the_checks_clips_too(tiny_wan, tmp_path):
    """By p of acceptance, where it gives one; both sources answer once about each of 2 clips."""
    generator = load_wan(tiny_wan, max_prompt_tokens=8)
    prompts = [Prompt("p0", "the red ball rolls off the table", "c", "train", None, None)]
    sampling = Sampling(3, 1.0, "euler", samples_per_prompt=2, batch_size=2, split="all", seed=1)
    encoded, sources = encode(generator, prompts, None), [steady("judge", 0.75), steady("held", 0.25)]
    check = HeldOutCheck(
        generator, RunJudge(False, sources[0]), RunJudge(False, sources[1]), prompts, encoded, sampling, tmp_path
    )
    with collected_counts() as counts, torch.no_grad():
        point = check(0)
    assert (point.training, point.held_out) == (0.75, 0.25)
    assert [len(source.judged) for source in sources] == [2, 2] and counts.judge_calls == 4


def test_the_check_of_one_clip_has_no_point_where_a_source_cannot_judge_it(tiny_wan, tmp_path, caplog):
    generator = load_wan(tiny_wan, max_prompt_tokens=8)
    prompt = Prompt("p0", "the red ball rolls off the table", "c", "train", None, None)
    changes = {"steps": 2, "guidance": 1.0}
    recipe = load_recipe("raft", {"engine": changes, "sampling": {"inference_steps": 2}})
    encoded = encode(generator, [prompt], None)
    for training, held_out, expected in ((0.75, 0.25, (0.75, 0.25)), (None, 0.25, None), (0.75, None, None)):
        judge, held = RunJudge(False, steady("judge", training)), RunJudge(False, steady("held", held_out))
        with torch.no_grad():
            point = TrainedClipCheck(generator, judge, held, prompt, encoded, recipe, tmp_path)(20)
        assert (point and (point.training, point.held_out)) == expected
    assert "judge could not judge the clip of a check" in caplog.text
    assert "held could not judge the clip of a check" in caplog.text


def test_the_held_out_judge_of_a_check_is_given_the_first_frames_that_the_generator_was(tiny_wan_with, tmp_path):
    """On the layout of Wan2.2-TI2V-5B, whose clips begin with the image."""
    folder = tiny_wan_with()
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"expand_timesteps": True}))
    generator = load_wan(folder, max_prompt_tokens=8)
    prompts = []
    for place, colour in enumerate(("red", "blue")):
        Image.new("RGB", (32, 16), colour).save(tmp_path / f"{colour}.png")  # of which the middle 16 x 16 are taken
        image = str(tmp_path / f"{colour}.png")
        prompts.append(Prompt(f"p{place}", "the red ball rolls off the table", "c", "train", image, None))
    held_out: Any = steady("held", 0.9)
    seen, judge = {}, held_out.judge

    def looking(requests):
        asked = list(requests)
        seen.update({one.sample.prompt_id: read_png(one.first_frame.path)[8, 8].tolist() for one in asked})
        return judge(iter(asked))

    held_out.judge = looking
    sampling = Sampling(3, 1.0, "unipc", samples_per_prompt=1, batch_size=2, split="all", seed=1)
    judges = [WeightedJudge(Brightness(), 1.0)]
    encoded = encode(generator, prompts, None)
    check = HeldOutCheck(generator, judges, RunJudge(False, held_out), prompts, encoded, sampling, tmp_path / "work")
    with torch.no_grad():
        check(1)
    assert seen == {"p0": [255, 0, 0], "p1": [0, 0, 255]}
