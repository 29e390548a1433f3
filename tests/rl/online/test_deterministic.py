"""An online step on an accelerator uses no operation that torch refuses in its deterministic mode.

Here on a CPU, which refuses nothing: the operations that run are compared with torch's list.
"""

from functools import partial

import pytest
import torch
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from feedback.differentiable.asks import Ask
from feedback.differentiable.augment import Augmentation
from feedback.differentiable.metric import MetricJudge, load_metric
from feedback.differentiable.overlay import Overlay, parse_mark
from feedback.differentiable.overlay import render as drawn
from feedback.differentiable.vlm import ClipShape, VlmJudge, load_judge
from generators.core.decoding import MODES, Decoding, decode_frames
from rl.online.judging import WeightedJudge, judge_clip
from tests.feedback.metrics.test_hpsv2 import checkpoint, theirs, tokenizer  # noqa: F401
from tests.feedback.metrics.test_metric import build_clip
from tests.feedback.metrics.test_reward_models import built  # noqa: F401
from tests.support.decoders import WAN22, cogvideox, deep
from tests.support.judges import FAMILIES
from tests.support.online import LAST_STEPS, ColourJudge, load, run, run_by_rewards, run_on_best
from tests.support.training import write_base

# What torch 2.15 refuses on CUDA by the documentation of torch.use_deterministic_algorithms ("will throw a
# RuntimeError"), under its operators' names. The antialiased resizes stand there as interpolate's modes bilinear and
# bicubic. NLLLoss is refused for pictures alone: ATen/native/cuda/NLLLoss2d.cu has the alert, Loss.cu has none.
# Resizing to nearest is not in the list, and UpSampleNearest*.cu has no alert: VAEs enlarge frames so.
REFUSED = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_ctc_loss_backward",
    "_embedding_bag_dense_backward", "_upsample_bicubic2d_aa_backward", "_upsample_bilinear2d_aa_backward",
    "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "avg_pool3d_backward", "bincount",
    "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "grid_sampler_2d_backward",
    "grid_sampler_3d_backward", "histc", "max_unpool2d", "max_unpool3d", "median", "nll_loss2d_forward", "put", "put_",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward", "scatter_reduce",
    "scatter_reduce_", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}  # fmt: skip
AUGMENT = Augmentation(crop=0.1, scale=0.2, noise=0.01)
FRAMES, HEIGHT, WIDTH = 5, 32, 48
PIXELS = torch.rand(1, 3, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


class Operations(TorchDispatchMode):
    """Within it, the names of the operators that torch runs, of the backward too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def of_judging(judge, latents: torch.Tensor, decode) -> set[str]:
    """The operations of one clip's judging and backward to its latents, which `decode` makes frames of."""
    with Operations() as found:
        judge_clip(latents, "p", [WeightedJudge(judge, 1.0)], [1], decode, FRAMES, scale=1.0)
    assert any(name.endswith("_backward") for name in found.names)
    return found.names


def as_frames(latents: torch.Tensor, indices) -> torch.Tensor:
    """A decoder that decodes nothing: latents (1, 3, F, H, W) are pixels."""
    return latents[0].permute(1, 2, 3, 0)[list(indices)]


def vlm(family: str, folder) -> VlmJudge:
    block = {"kind": "qwen", "path": str(FAMILIES[family](folder)), "revision": None, "batch_size": 4}
    model = load_judge("judge", block | {"rubric": "tabletop/rubric.yaml", "dtype": "float32"}, "cpu")
    asks = [Ask(name, "own", "judge the video", "Accept", "Reject", None, False, "me") for name in ("one", "two")]
    overlay = drawn(Overlay((parse_mark("box", "8,8,20,20@0"),)), FRAMES, HEIGHT, WIDTH)
    clip = ClipShape(FRAMES, 8.0)
    return VlmJudge("judge", *model[:2], {"p": asks}, "logprob", 4, clip, overlay=overlay, augment=AUGMENT)


def test_what_is_refused_is_seen():
    frames = torch.rand(1, 3, 8, 8, requires_grad=True)
    with Operations() as found:
        interpolate(frames, (4, 4), mode="bicubic", antialias=True).sum().backward()
    assert found.names & REFUSED == {"_upsample_bicubic2d_aa_backward"}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_vlm_uses_one(family, tmp_path):
    assert not of_judging(vlm(family, tmp_path), PIXELS, as_frames) & REFUSED


@pytest.mark.parametrize("kind", ["clip", "hpsv2", "videoreward"])
def test_no_metric_uses_one(kind, tmp_path, request):
    if kind == "clip":
        block = {"kind": "clip", "path": str(build_clip(tmp_path))}
    elif kind == "hpsv2":
        path, words = (str(request.getfixturevalue(name)) for name in ("checkpoint", "tokenizer"))
        block = {"kind": "hpsv2", "path": path, "processor": words, "cache": str(tmp_path)}
    else:
        block = request.getfixturevalue("built").videoreward()
    judge = MetricJudge("m", load_metric("m", block, "cpu"), {"p": "red ball"}, AUGMENT, 8.0)
    assert not of_judging(judge, PIXELS, as_frames) & REFUSED


@pytest.mark.parametrize("make", [deep, lambda: deep(**WAN22), cogvideox], ids=["wan2.1", "wan2.2", "cogvideox"])
def test_no_decoder_uses_one(make):
    generator = make()
    latents = torch.randn(1, generator.channels, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    for mode in MODES:
        decoding = Decoding(mode, 2, 1, tile=2, tile_overlap=1, offload=False, straight_through=True)
        decode = partial(decode_frames, generator, decoding=decoding)
        assert not of_judging(ColourJudge(), latents, decode) & REFUSED, mode


@pytest.mark.parametrize(
    "train",
    [run, partial(run, **LAST_STEPS), run_by_rewards, run_on_best],
    ids=["random_step", "last_steps", "sde", "best"],
)
def test_no_rollout_uses_one(train, tiny_wan, tmp_path):
    start = write_base(tmp_path / "base")
    with Operations() as found:
        train(load(tiny_wan), start, tmp_path, updates=1, guidance=2.0)
    assert "_foreach_addcdiv_" in found.names or "_fused_adam_" in found.names  # the optimizer's step
    assert not found.names & REFUSED
