import pytest
import torch

from data.video import sample_frames
from feedback.differentiable.augment import Augmentation

NONE = Augmentation()
ALL = Augmentation(crop=0.2, scale=0.5, jitter=2, noise=0.1)


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_none_of_it_is_the_identity_to_the_bit():
    frames = picture(3, 20, 28)
    assert torch.equal(NONE(frames, 5), frames)
    assert NONE.shown(17, 4, 5) == sample_frames(17, 4)


def test_the_seed_alone_decides():
    frames = picture(3, 20, 28)
    first = ALL(frames, 7), ALL.shown(17, 4, 7)
    ALL(frames, 8)
    torch.rand(3)
    assert torch.equal(ALL(frames, 7), first[0]) and ALL.shown(17, 4, 7) == first[1]
    assert not torch.equal(ALL(frames, 8), first[0])
    assert len({tuple(ALL.shown(17, 4, seed)) for seed in range(20)}) > 5


@pytest.mark.parametrize("only", [{"crop": 0.2}, {"scale": 0.5}, {"noise": 0.1}])
def test_each_changes_the_pixels_keeps_the_shape_and_passes_a_gradient_to_every_frame(only):
    frames = picture(3, 20, 28)
    changed = Augmentation(**only)(frames, 1)
    assert changed.shape == frames.shape and not torch.equal(changed, frames)
    assert changed.min() >= 0 and changed.max() <= 1
    changed.sum().backward()
    assert (frames.grad.abs().sum((1, 2, 3)) > 0).all()


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


@pytest.mark.parametrize(
    ("num_frames", "count", "jitter"), [(17, 4, 2), (17, 16, 3), (9, 9, 4), (5, 8, 1), (1, 1, 3), (81, 10, 200)]
)
def test_jittered_frames_increase_stay_in_the_clip_and_near_their_place(num_frames, count, jitter):
    even = sample_frames(num_frames, count)
    for seed in range(30):
        shown = Augmentation(jitter=jitter).shown(num_frames, count, seed)
        assert len(shown) == len(even) and shown == sorted(set(shown))
        assert shown[0] >= 0 and shown[-1] < num_frames
        assert max(abs(one - other) for one, other in zip(shown, even, strict=True)) <= jitter


@pytest.mark.parametrize(("given", "told"), [
    ({"crop": 0.5}, "crop is 0.5, expected at least 0 and below 0.5"),
    ({"crop": -0.1}, "crop is -0.1"),
    ({"scale": 1.0}, "scale is 1.0, expected at least 0 and below 1"),
    ({"noise": float("nan")}, "noise is nan, expected at least 0 and finite"),
    ({"noise": float("inf")}, "noise is inf"),
    ({"jitter": -1}, "jitter is -1, expected a whole number of frames"),
    ({"jitter": 0.5}, "jitter is 0.5"),
    ({"jitter": True}, "jitter is True"),
])  # fmt: skip
def test_wrong_values_are_named(given, told):
    with pytest.raises(ValueError, match=told):
        Augmentation(**given)
