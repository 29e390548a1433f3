"""A reward model that is trained here: its scores, their gradients, its folder, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.manifest import StoreError, write_manifest
from feedback.core.kinds import make_source, read_block
from feedback.differentiable.augment import Augmentation
from feedback.differentiable.metric import MetricJudge, load_metric
from feedback.judges.vlm import load_model
from feedback.metrics.reward_models.trained_model import (
    HEAD,
    KIND,
    RewardModelFacts,
    TrainedReward,
    load_trained,
)
from tests.support.judges import FAMILIES
from tests.support.refusals import assert_refused

SHORT, LONG = "red ball", "pushing the red ball off the table"
TEXT = "judge the video {prompt}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: build(tmp_path_factory.mktemp(family)) for family, build in FAMILIES.items()}


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    return request.param


def facts_of(folder: Path, **changes: object) -> RewardModelFacts:
    loaded = load_model("bt", str(folder), None, "float32", None, "cpu")
    facts = RewardModelFacts(
        path=str(folder), revision=None, version=loaded.version, dtype="float32", pixels=None, text=TEXT, frames=8,
        clip_frames=9, clip_fps=8.0, lora_rank=2, lora_alpha=4.0, lora_targets=("q_proj", "down_proj"),
    )  # fmt: skip
    return replace(facts, **changes)


def untrained(folder: Path, **changes: object) -> TrainedReward:
    loaded = load_model("bt", str(folder), None, "float32", None, "cpu")
    return TrainedReward(loaded, facts_of(folder, **changes), "untrained", seed=3)


def with_random_weights(model: TrainedReward) -> TrainedReward:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def clips(count: int, frames: int = 9) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, frames, 64, 64, 3), np.uint8))


def saved(model: TrainedReward, folder: Path) -> Path:
    folder.mkdir()
    model.save(folder, {"round": "r1"})
    write_manifest(folder, KIND)
    return folder


def test_before_any_training_all_scores_are_0_and_the_head_alone_has_a_gradient(folders, family):
    model = untrained(folders[family])
    scores = model.scores([model.shown(clip) for clip in clips(2)], [SHORT, LONG])

    assert scores.tolist() == [0, 0] and scores.dtype == torch.float32
    scores.sum().backward()
    moved = {name for name, one in model.parameters.items() if one.grad is not None and one.grad.any()}
    assert moved == {HEAD}


def test_the_lora_is_in_the_language_model_alone_and_changes_the_score(folders, family):
    model = with_random_weights(untrained(folders[family]))
    lora = [name for name in model.parameters if name != HEAD]
    assert lora and all("language_model" in name for name in lora)
    assert {name.split(".")[-4] for name in lora} == {"q_proj", "down_proj"}
    (before,) = model.score(clips(1), [SHORT])
    with torch.no_grad():
        for name in lora:
            model.parameters[name].zero_()

    assert model.score(clips(1), [SHORT])[0] != pytest.approx(before, abs=1e-4)


def test_a_clips_score_does_not_depend_on_those_beside_it(folders, family):
    """Messages of other lengths are padded, and the padding is not looked at."""
    model = with_random_weights(untrained(folders[family]))
    one, other = clips(2)

    together = model.score([one, other], [SHORT, LONG])

    assert together == pytest.approx([*model.score([one], [SHORT]), *model.score([other], [LONG])], abs=1e-5)
    assert model.score([one], [LONG]) != pytest.approx(together[:1], abs=1e-4)  # it reads the prompt


def test_it_sees_the_order_of_the_frames(folders):
    """As a judge of single frames, such as CLIP, does not."""
    model = with_random_weights(untrained(folders["qwen2.5"]))
    (clip,) = clips(1)
    assert model.score([clip[::-1].copy()], [SHORT]) != pytest.approx(model.score([clip], [SHORT]), abs=1e-4)


def test_the_gradient_of_the_frames_is_that_of_finite_differences(folders):
    model = with_random_weights(untrained(folders["qwen2.5"]))
    frames = model.shown(clips(1)[0]).requires_grad_()
    (gradient,) = torch.autograd.grad(model.scores([frames], [SHORT]).sum(), frames)
    direction, step = gradient / gradient.norm(), 2.0
    with torch.no_grad():  # a rounded resize is constant between 8-bit levels; at their own size nothing is resized
        ahead, behind = (model.scores([frames + sign * step * direction], [SHORT]) for sign in (0.01, -0.01))

    assert float((ahead - behind) / (0.02 * step)) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_what_is_loaded_scores_as_what_was_saved_and_is_frozen(folders, family, tmp_path):
    model = with_random_weights(untrained(folders[family]))
    folder = saved(model, tmp_path / "bt")

    loaded = load_trained("bt", folder, "cpu")

    assert loaded.score(clips(2), [SHORT, LONG]) == pytest.approx(model.score(clips(2), [SHORT, LONG]), abs=1e-6)
    assert not any(one.requires_grad for one in loaded.parameters.values())
    assert (
        saved(model, tmp_path / "again").joinpath("weights.safetensors").read_bytes()
        == (folder / "weights.safetensors").read_bytes()
    )


def test_as_a_judge_its_loss_is_minus_the_score_with_the_gradient_of_the_frames(folders, tmp_path):
    folder = saved(with_random_weights(untrained(folders["qwen3"])), tmp_path / "bt")
    block = {"kind": "reward_model", "path": str(folder)}
    judge = MetricJudge("bt", load_metric("bt", block, "cpu"), {"p1": LONG}, Augmentation(), 8.0)
    (clip,) = clips(1)
    frames = (torch.from_numpy(clip[judge.frame_indices(9, 0)]).float() / 255).requires_grad_()

    answers = judge(frames, "p1", seed=0)
    answers.loss.sum().backward()

    assert answers.loss.tolist() == pytest.approx(
        [-load_trained("bt", folder, "cpu").score([clip], [LONG])[0]], abs=1e-4
    )
    assert frames.grad.abs().sum() > 0
    source = make_source("bt", block)
    assert source.rubric.questions[0].name == "reward" and "Bradley-Terry" in source.rubric.questions[0].ask


def test_a_clip_that_is_too_short_and_a_prompt_that_is_not_read_have_no_score(folders):
    model = with_random_weights(untrained(folders["qwen2.5"]))
    scores = model.score([*clips(1, frames=7), *clips(2)], [SHORT, "a zebra", SHORT])

    assert np.isnan(scores).tolist() == [True, True, False]


def test_what_does_not_fit_is_refused(folders, tmp_path):
    folder = folders["qwen2.5"]
    with pytest.raises(ValueError, match="lora_targets to_q: .* has no such layers; it has down_proj, gate_proj, "):
        untrained(folder, lora_targets=("to_q",))
    trained = saved(untrained(folder, version="0123456789ab"), tmp_path / "other")
    with pytest.raises(ValueError, match=r"feedback.sources.bt.path: .* was trained on .* of version 0123456789ab"):
        load_trained("bt", trained, "cpu")
    with pytest.raises(StoreError):
        load_trained("bt", folder, "cpu")
    assert_refused(
        lambda path: read_block("bt", {"kind": "reward_model", "path": path}),
        [(str(folder), "path: .* is no folder of a trained reward model; expected runs/rewards/<name>")],
    )
    read_block("bt", {"kind": "reward_model", "path": "runs/rewards/bt"})  # which stage reward has not written yet
