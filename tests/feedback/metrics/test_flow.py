import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.models.optical_flow import raft_small

from feedback.core.kinds import make_source, read_block
from feedback.metrics.flow import Motion, fastest, motion
from feedback.metrics.raft import Raft
from tabletop.captions import all_claims
from tabletop.render import render
from tabletop.scenes import make_scene

DIS = {"kind": "optical_flow_dis"}


def moving(pixels: int, frames: int = 4, side: int = 64) -> np.ndarray:
    """A smooth random pattern that moves right by `pixels` per frame, uint8 (F, side, side, 3)."""
    pattern = gaussian_filter(np.random.default_rng(0).uniform(size=(300, 300)), 2)
    pattern = (255 * (pattern - pattern.min()) / np.ptp(pattern)).astype(np.uint8)
    clip = [pattern[50 : 50 + side, 100 - pixels * frame : 100 - pixels * frame + side] for frame in range(frames)]
    return np.repeat(np.stack(clip)[..., None], 3, axis=-1)


def test_the_flow_of_the_fastest_pixels_by_hand():
    flow = np.zeros((10, 10, 2))
    flow[0, :4] = 3.0, 4.0  # four pixels of norm 5
    flow[1, 0] = 0.0, 10.0
    flow[2, 0] = 1.0, 0.0  # the sixth fastest, not counted: 5 % of 100 pixels are five
    assert fastest(flow) == pytest.approx((10 + 4 * 5) / 5)
    assert fastest(np.full((3, 3, 2), [0.0, 2.0])) == 2.0  # 5 % of nine pixels are less than one; one counts


def test_motion_is_the_sum_or_mean_over_pairs_and_nan_without_pairs():
    flows = [np.full((3, 3, 2), [0.0, float(norm)]) for norm in (1, 2, 6)]
    assert motion(flows, "sum") == 9.0
    assert motion(flows, "mean") == 3.0
    assert np.isnan(motion([], "sum"))


def test_dis_measures_a_known_shift():
    (mean,) = make_source("flow", DIS | {"reduce": "mean"}).metrics.values()
    (total,) = make_source("flow", DIS).metrics.values()
    for pixels in (0, 1, 3):
        (found,) = mean.score([moving(pixels)], [""])
        assert found == pytest.approx(pixels, rel=0.08, abs=0.05), pixels
        assert total.score([moving(pixels)], [""]) == [pytest.approx(3 * found)], pixels


def test_dis_does_not_depend_on_earlier_pairs():
    (metric,) = make_source("flow", DIS).metrics.values()
    clip = moving(2, frames=6)
    assert np.array_equal(list(metric.flow.flows(clip))[3], next(iter(metric.flow.flows(clip[3:]))))


def test_dis_separates_moving_from_still_tabletop_clips():
    (metric,) = make_source("flow", DIS).metrics.values()
    claim = next(claim for claim in all_claims() if claim.kind == "push_left")
    moves = [render(make_scene(claim, np.random.default_rng(seed))) for seed in range(8)]
    rests = [np.repeat(clip[:1], len(clip), axis=0) for clip in moves]
    assert min(metric.score(moves, [""] * 8)) > 1.0
    assert max(metric.score(rests, [""] * 8)) < 0.1


# RAFT: its weights are not available here, so the surrounding code is tested with random weights


class Shifts(torch.nn.Module):
    """Replaces RAFT: a uniform flow for each pair, two pixels to the right, and down by the pair's brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, before: torch.Tensor, after: torch.Tensor, num_flow_updates: int) -> list[torch.Tensor]:
        self.seen.append(before)
        flow = torch.zeros(len(before), 2, *before.shape[-2:])
        flow[:, 0] = 2.0
        flow[:, 1] = (before.mean((1, 2, 3)) + 1)[:, None, None]
        return [torch.full_like(flow, 99.0), flow]


def raft(model: torch.nn.Module, reduce: str = "sum") -> Motion:
    return Motion(Raft(model, "small", 20, "1"), reduce)


def test_small_clips_are_enlarged_for_raft_and_their_flow_is_in_pixels_of_the_clip():
    for side, factor in ((32, 4), (100, 2), (128, 1), (131, 1)):
        model = Shifts()
        clip = np.zeros((11, side, side, 3), np.uint8)
        flows = list(raft(model).flow.flows(clip))
        assert len(flows) == 10 and flows[0].shape == (side, side, 2), side
        assert [len(seen) for seen in model.seen] == [8, 2], side
        enlarged = factor * side
        assert model.seen[0].shape[-1] == enlarged + -enlarged % 8 >= 128, side
        assert flows[0][0, 0, 0] == pytest.approx(2 / factor), side


def test_raft_sums_the_fastest_pixels_of_all_pairs():
    clip = np.zeros((3, 128, 128, 3), np.uint8)
    clip[1] = 255  # so that the second pair's flow is (2, 2), the first one's (2, 0)
    assert raft(Shifts()).score([clip], [""]) == [pytest.approx(2.0 + 8**0.5, rel=1e-5)]
    assert raft(Shifts(), reduce="mean").score([clip], [""]) == [pytest.approx((2.0 + 8**0.5) / 2, rel=1e-5)]
    assert np.isnan(raft(Shifts()).score([clip[:1]], [""])[0])


def test_the_flow_equals_that_of_the_real_raft(tmp_path):
    torch.manual_seed(0)
    model = raft_small(weights=None)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    block = {"kind": "optical_flow", "weights": "small", "file": str(tmp_path / "small.pth"), "updates": 2}
    (metric,) = make_source("flow", block).metrics.values()
    clip = moving(2, frames=3)
    with torch.no_grad():
        frames = torch.nn.functional.interpolate(
            torch.from_numpy(clip).permute(0, 3, 1, 2) / 127.5 - 1, scale_factor=2.0, mode="bilinear"
        )
        expected = model.eval()(frames[:2], frames[1:], num_flow_updates=2)[-1]
    expected = torch.nn.functional.avg_pool2d(expected, 2) / 2
    assert np.allclose(np.stack(list(metric.flow.flows(clip))), expected.permute(0, 2, 3, 1), atol=1e-4)
    with pytest.raises(ValueError, match=r"feedback.sources.flow.file: .* does not hold RAFT large's weights"):
        make_source("flow", block | {"weights": "large"})


def test_the_error_of_unavailable_weights_names_the_metric_without_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"flow.weights: RAFT large could not be .* use kind optical_flow_dis"):
        make_source("flow", {"kind": "optical_flow"})


def test_wrong_options_are_named():
    raft_block = {"kind": "optical_flow"}
    wrong = [
        (raft_block | {"weights": "huge"}, "weights is 'huge', expected 'large' or 'small'"),
        (raft_block | {"file": "nowhere.pth"}, "file: nowhere.pth does not exist"),
        (raft_block | {"updates": 0}, "updates is 0"),
        (DIS | {"preset": "slow"}, "preset is 'slow'"),
        (DIS | {"reduce": "max"}, "reduce is 'max'"),
    ]
    for block, problem in wrong:
        with pytest.raises(ValueError, match=f"feedback.sources.flow.{problem}"):
            read_block("flow", block)
