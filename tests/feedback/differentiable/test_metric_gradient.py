"""CLIP, PickScore and HPSv2 with gradient, in the place of a judge."""

import numpy as np
import pytest
import torch

from feedback.differentiable.augment import Augmentation
from feedback.differentiable.metric import MetricJudge, load_metric
from tests.feedback.metrics.test_hpsv2 import checkpoint, theirs, tokenizer  # noqa: F401
from tests.feedback.metrics.test_metric import build_clip
from tests.support.refusals import assert_refused

PROMPTS = {"p1": "pushing red ball", "p2": "lifting blue ball"}
NONE = Augmentation()


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(params=["clip", "pickscore", "hpsv2"])
def block(request, tiny_clip, tmp_path_factory) -> dict:
    folder = str(tiny_clip)
    if request.param == "hpsv2":
        published, words = (str(request.getfixturevalue(name)) for name in ("checkpoint", "tokenizer"))
        return {
            "kind": "hpsv2",
            "path": published,
            "processor": words,
            "cache": str(tmp_path_factory.getbasetemp() / "converted"),
        }
    return {"kind": request.param, "path": folder, "processor": folder}


def judge_of(block: dict, augment: Augmentation = NONE) -> MetricJudge:
    return MetricJudge("m", load_metric("m", block, "cpu"), PROMPTS, augment, 8.0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def in_unit_range(frames: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(frames).float() / 255).requires_grad_()


def test_the_loss_is_minus_the_score_of_the_same_8_bit_frames(block):
    metric = load_metric("m", block, "cpu")
    judge = MetricJudge("m", metric, PROMPTS, NONE, 8.0)
    for size in ((32, 32), (97, 41), (24, 30)):
        frames = noise(3, *size)
        for prompt_id, prompt in PROMPTS.items():
            (score,) = metric.score([frames], [prompt])
            answers = judge(in_unit_range(frames), prompt_id, seed=0)
            assert answers.loss.tolist() == pytest.approx([-score], abs=1e-4 * max(1, abs(score))), size
            assert answers.questions == ("score",) and answers.loss.dtype == torch.float32
            assert answers.p_wanted.isnan().tolist() == [True] and not answers.p_wanted.requires_grad


def test_the_gradient_is_that_of_a_finite_difference(block):
    """Along the gradient, in steps that 8 bits resolve: frames of the metric's own size, which are not resized."""
    judge = judge_of(block | {"reduce": "mean"})
    side = 28 if block["kind"] == "hpsv2" else 32
    frames = torch.rand(2, side, side, 3, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    (loss,) = judge(frames.requires_grad_(), "p1", 0).loss
    loss.backward()
    step = 0.01 * frames.grad / frames.grad.abs().max()
    with torch.no_grad():
        up, down = (judge(frames + sign * step, "p1", 0).loss.item() for sign in (1, -1))
    assert (up - down) / 2 == pytest.approx((frames.grad * step).sum().item(), rel=0.05)
    assert up > loss.item() > down


def test_following_the_gradient_raises_the_score_through_a_resize(block):
    judge = judge_of(block)
    frames = torch.rand(2, 48, 40, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    first = judge(frames, "p1", 0).loss
    for _ in range(5):
        (gradient,) = torch.autograd.grad(judge(frames, "p1", 0).loss.sum(), frames)
        assert (gradient.abs().sum((1, 2, 3)) > 0).all()
        frames = (frames - 0.02 * gradient / gradient.abs().max()).detach().requires_grad_()
    assert judge(frames, "p1", 0).loss < first


def test_the_model_is_frozen(block):
    judge = judge_of(block)
    judge(in_unit_range(noise(2, 32, 32)), "p1", 0).loss.sum().backward()
    weights = list(judge._metric._model.parameters())
    assert weights and all(not weight.requires_grad and weight.grad is None for weight in weights)


def test_it_sees_as_many_frames_as_its_block_says_and_all_without(tiny_clip):
    block = {"kind": "clip", "path": str(tiny_clip)}
    assert judge_of(block | {"frames": 3}).frame_indices(9, seed=0) == [0, 4, 8]
    assert judge_of(block, Augmentation(jitter=2)).frame_indices(9, seed=0) == list(range(9))


def test_fewer_frames_score_as_the_metric_scores_them(tiny_clip):
    block = {"kind": "clip", "path": str(tiny_clip), "frames": 3}
    frames, judge = noise(9, 32, 32), judge_of(block)
    (score,) = load_metric("m", block, "cpu").score([frames], [PROMPTS["p1"]])
    loss = judge(in_unit_range(frames[judge.frame_indices(9, 0)]), "p1", 0).loss
    assert loss.tolist() == pytest.approx([-score], abs=1e-5)


def test_it_is_augmented_by_the_seed(tiny_clip):
    judge = judge_of({"kind": "clip", "path": str(tiny_clip)}, Augmentation(crop=0.2, noise=0.1))
    frames = in_unit_range(noise(2, 32, 32))
    losses = [judge(frames, "p1", seed).loss.item() for seed in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_a_kind_without_gradient_is_an_error_that_names_those_with_one():
    known = "clip, pickscore, hpsv2, videoreward, videoscore, reward_model have one"
    cases = [
        ({"kind": kind}, f"feedback.sources.m.kind is '{kind}': no gradient; {known}")
        for kind in ("optical_flow_dis", "temporal_flickering", "qwen", "nothing")
    ]
    assert_refused(judge_of, cases)


def test_an_unknown_prompt_is_named(tiny_clip):
    with pytest.raises(ValueError, match="m: no prompt 'p9' among its 2"):
        judge_of({"kind": "clip", "path": str(tiny_clip)})(in_unit_range(noise(1, 32, 32)), "p9", 0)
