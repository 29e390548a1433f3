import pytest
import torch

from data.config import read_config
from data.video import sample_frames
from feedback.differentiable.augment import Augmentation
from tests.support.refusals import assert_refused

NONE = Augmentation()
ALL = Augmentation(crop=0.2, scale=0.5, jitter=2, noise=0.1)


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_none_of_it_is_the_identity_to_the_bit():
    frames = picture(3, 20, 28)
    assert torch.equal(NONE(frames, 5), frames)
    assert NONE.frame_indices(17, 4, 5) == sample_frames(17, 4)


def test_the_seed_alone_decides():
    frames = picture(3, 20, 28)
    first = ALL(frames, 7), ALL.frame_indices(17, 4, 7)
    ALL(frames, 8)
    torch.rand(3)
    assert torch.equal(ALL(frames, 7), first[0]) and ALL.frame_indices(17, 4, 7) == first[1]
    assert not torch.equal(ALL(frames, 8), first[0])
    assert len({tuple(ALL.frame_indices(17, 4, seed)) for seed in range(20)}) > 5


def test_each_changes_the_pixels_keeps_the_shape_and_passes_a_gradient_to_every_frame():
    for only in ({"crop": 0.2}, {"scale": 0.5}, {"noise": 0.1}):
        frames = picture(3, 20, 28)
        changed = Augmentation(**only)(frames, 1)
        assert changed.shape == frames.shape and not torch.equal(changed, frames), only
        assert changed.min() >= 0 and changed.max() <= 1, only
        changed.sum().backward()
        assert (frames.grad.abs().sum((1, 2, 3)) > 0).all(), only


def test_a_crop_is_a_whole_window_of_whole_pixels_no_smaller_than_said():
    """On a slope of 1/100 a pixel, the enlarged window's slope is its width over the whole one, from its left side."""
    ramp = ((torch.arange(40) + 0.5) / 100).view(1, 1, 40, 1).expand(2, 40, 40, 3)
    lefts = set()
    for seed in range(20):
        cropped = Augmentation(crop=0.2)(ramp, seed)
        assert torch.allclose(
            cropped, cropped[:1, :1, :, :1].expand_as(cropped), atol=1e-6
        )  # all rows and frames alike
        row = cropped[0, 0, :, 0] * 100
        step = (row[25] - row[15]).item() / 10
        left = row[20].item() - 20.5 * step  # what lies at 0
        width = 40 * step
        assert left == pytest.approx(round(left), abs=1e-3) and width == pytest.approx(round(width), abs=1e-2)
        assert 0 <= round(left) <= 8 and round(left + width) >= 32
        lefts.add(round(left))
    assert len(lefts) > 3


def test_scaling_loses_detail_and_keeps_the_mean():
    checks = (
        (torch.arange(32).view(-1, 1) + torch.arange(32)).remainder(2).float().view(1, 32, 32, 1).expand(1, 32, 32, 3)
    )
    scaled = [Augmentation(scale=0.5)(checks, seed) for seed in range(8)]
    assert all(one.mean().item() == pytest.approx(0.5, abs=0.01) for one in scaled)
    assert min(one.std().item() for one in scaled) < 0.15 < checks.std().item()


def test_noise_has_its_deviation_differs_by_frame_and_is_cut_off_for_the_values_alone():
    frames = torch.full((2, 64, 64, 3), 0.5, requires_grad=True)
    noise = Augmentation(noise=0.05)(frames, 3) - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.03) and abs(noise.mean().item()) < 0.002
    assert not torch.equal(noise[0], noise[1])
    black = torch.zeros(1, 16, 16, 3, requires_grad=True)
    noisy = Augmentation(noise=0.05)(black, 3)
    assert noisy.min() == 0 and (noisy == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    noisy.sum().backward()
    assert torch.equal(black.grad, torch.ones_like(black))


def test_jittered_frames_increase_stay_in_the_clip_and_near_their_place():
    for num_frames, count, jitter in ((17, 4, 2), (17, 16, 3), (9, 9, 4), (5, 8, 1), (1, 1, 3), (81, 10, 200)):
        even = sample_frames(num_frames, count)
        for seed in range(30):
            indices = Augmentation(jitter=jitter).frame_indices(num_frames, count, seed)
            assert len(indices) == len(even) and indices == sorted(set(indices))
            assert indices[0] >= 0 and indices[-1] < num_frames
            assert max(abs(one - other) for one, other in zip(indices, even, strict=True)) <= jitter


def test_wrong_values_are_named():
    cases = (
        ({"crop": 0.5}, "augment.crop is 0.5, expected less than 0.5"),
        ({"crop": -0.1}, "augment.crop is -0.1"),
        ({"scale": 1.0}, "augment.scale is 1.0"),
        ({"noise": float("nan")}, "augment.noise"),
        ({"noise": float("inf")}, "augment.noise"),
        ({"jitter": -1}, "augment.jitter is -1"),
        ({"jitter": 0.5}, "augment.jitter is 0.5"),
        ({"jitter": True}, "augment.jitter is True"),
    )
    assert_refused(lambda given: read_config(Augmentation, given, "augment"), cases)
