"""Resizing with a gradient in a fixed order: torch's own pixels, and torch's own gradient up to the order of sums."""

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as images

from feedback.differentiable.resize import DifferentiableResizing

SIZES = (  # before, after
    ((480, 832), (448, 784)),  # Wan's frames for Qwen2.5-VL
    ((480, 832), (224, 388)),
    ((60, 104), (112, 196)),  # enlarged
    ((37, 53), (37, 90)),  # one side as it is
)


def resized(frames: torch.Tensor, size: tuple[int, int], mode: str, antialias: bool) -> tuple[torch.Tensor, ...]:
    """What torchvision makes of the frames, and their gradient for a cotangent of noise."""
    leaf = frames.clone().requires_grad_()
    made = images.resize(leaf, list(size), images.InterpolationMode(mode), antialias=antialias)
    cotangent = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    return made.detach(), torch.autograd.grad(made, leaf, cotangent)[0]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_pixels_are_torchvisions_to_the_bit_and_gradients_to_rounding(mode, antialias):
    for before, after in SIZES:
        frames = torch.rand(2, 3, *before, generator=torch.Generator().manual_seed(0))
        expected, expected_gradient = resized(frames, after, mode, antialias)
        with DifferentiableResizing():
            found, gradient = resized(frames, after, mode, antialias)
        assert torch.equal(found, expected), (before, after)
        # Without antialiasing torch's own backward rounds the places of pixels otherwise than its forward.
        near = 2e-5 if antialias else 5e-4
        torch.testing.assert_close(gradient, expected_gradient, atol=near, rtol=1e-4, msg=f"{before} to {after}")


def test_two_pixels_of_four_by_hand():
    # bilinear and antialiased, half as large: each pixel reaches two places far, with weights 1, 3, 3, 1 that are cut
    # off at the border: 3/7, 3/7, 1/7 of the first three, and the reverse
    frames = torch.zeros(1, 1, 4, 4, requires_grad=True)
    with DifferentiableResizing():
        made = interpolate(frames, (2, 4), mode="bilinear", antialias=True)
    made[0, 0, 0, 0].backward()
    torch.testing.assert_close(frames.grad[0, 0, :, 0], torch.tensor([3.0, 3, 1, 0]) / 7)
    assert not frames.grad[..., 1:].any()


def test_bytes_and_other_modes_are_torchs():
    frames = torch.randint(0, 256, (2, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    leaf = torch.rand(1, 3, 4, 4, requires_grad=True)
    with DifferentiableResizing():
        bytes_, nearest = images.resize(frames, [16, 16]), interpolate(leaf, scale_factor=2)
        scaled = interpolate(leaf, scale_factor=0.5, mode="bilinear", antialias=True)
    assert torch.equal(bytes_, images.resize(frames, [16, 16])) and torch.equal(nearest, interpolate(leaf, (8, 8)))
    assert torch.equal(scaled, interpolate(leaf, (2, 2), mode="bilinear", antialias=True))
