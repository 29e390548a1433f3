"""Differentiable preprocessing, held against each model's own processor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as images
from transformers import AutoProcessor, LlavaOnevisionVideoProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from feedback.differentiable.pixels import make_pixels
from feedback.judges.vlm import build_inputs
from feedback.metrics.image_text import rounding
from tests.support.judges import FAMILIES
from tests.support.refusals import assert_refused

SHAPES = [  # frames, height, width
    (8, 64, 64),  # as it is
    (5, 64, 64),  # an odd number of frames
    (1, 64, 64),
    (4, 120, 200),  # made smaller by some families
    (3, 33, 41),  # enlarged, and both sides off the grid of patches
    (2, 96, 48),
]
VALUES = {"qwen2.5": "pixel_values_videos", "qwen3": "pixel_values_videos", "internvl": "pixel_values"}
TEXT = {"input_ids", "attention_mask", "mm_token_type_ids", "second_per_grid_ts"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: build(tmp_path_factory.mktemp(family)) for family, build in FAMILIES.items()}


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    return request.param


@pytest.fixture
def processor(folders, family):
    return AutoProcessor.from_pretrained(folders[family])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def smooth(num_frames: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    shades = [np.stack([60 + x % 90, 80 + y % 70, 100 + 9 * f + (x + y) // 4], -1) for f in range(num_frames)]
    return np.stack(shades).clip(0, 255).astype(np.uint8)


def in_unit_range(frames: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(frames).float() / 255).requires_grad_()


def of_processor(processor, frames: np.ndarray, pixels: int | None = None) -> dict:
    return build_inputs(processor, [frames], ["judge the video"], [7.0], pixels)


def test_8_bit_frames_become_what_the_models_own_processor_makes_of_them(processor, family):
    prepare = make_pixels(processor)
    for shape in SHAPES:
        for frames in (noise(*shape), smooth(*shape)):
            theirs = of_processor(processor, frames)
            ours = prepare(in_unit_range(frames))
            assert set(ours) == set(theirs) - TEXT
            assert ours[VALUES[family]].requires_grad
            for key, values in ours.items():
                torch.testing.assert_close(
                    values, theirs[key], atol=1e-4, rtol=0, msg=lambda text, shape=shape: f"{shape}: {text}"
                )


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_a_size_in_pixels_is_the_processors(folders, family):
    processor, key = AutoProcessor.from_pretrained(folders[family]), "pixel_values_videos"
    for shape in ((4, 120, 200), (3, 33, 41), (1, 64, 64)):
        frames = noise(*shape)
        theirs, ours = of_processor(processor, frames, 48 * 48), make_pixels(processor, 48 * 48)(in_unit_range(frames))
        assert ours["video_grid_thw"].tolist() == theirs["video_grid_thw"].tolist(), shape
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "published"), [
    ("qwen2.5", Qwen2VLVideoProcessor()), ("qwen3", Qwen3VLVideoProcessor()), ("internvl", InternVLVideoProcessor()),
], ids=["qwen2.5", "qwen3", "internvl"])  # fmt: skip
def test_so_do_they_at_the_sizes_and_patches_that_these_classes_ship_with(folders, family, published):
    processor = AutoProcessor.from_pretrained(folders[family])
    processor.video_processor = published
    frames = smooth(3, 240, 416)
    theirs, ours = of_processor(processor, frames), make_pixels(processor)(in_unit_range(frames))
    for key, values in ours.items():
        torch.testing.assert_close(values, theirs[key], atol=1e-4, rtol=0)


def test_two_videos_are_their_dictionaries_end_to_end(processor, family):
    one, other = noise(4, 64, 64), smooth(4, 64, 64)
    theirs = build_inputs(processor, [one, other], ["judge the video"] * 2, [7.0] * 2)
    parts = [make_pixels(processor)(in_unit_range(frames)) for frames in (one, other)]
    for key in parts[0]:
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), theirs[key], atol=1e-4, rtol=0)


def test_without_a_resize_a_value_is_the_pixels_less_the_mean_over_the_deviation(processor, family):
    frames = torch.full((2, 64, 64, 3), 0.3, requires_grad=True)  # 76.5 of 255: between two levels, and not rounded
    values = make_pixels(processor)(frames)[VALUES[family]]
    mean, std = (torch.tensor(getattr(processor.video_processor, key)) for key in ("image_mean", "image_std"))
    seen = values.unique()
    assert (seen[:, None] - (0.3 - mean) / std).abs().min(1).values.max() < 1e-5 and len(seen) >= len(
        set(mean.tolist())
    )
    values.sum().backward()  # every pixel goes into one value
    torch.testing.assert_close(frames.grad, (1 / std).expand(2, 64, 64, 3))


def test_the_gradient_of_a_resize_is_that_of_the_unrounded_one(processor, family):
    """A pixel turned up by 1/10 moves what is measured by 1/10 of its gradient, as in a resize of floats by torch."""
    prepare, key = make_pixels(processor), VALUES[family]
    for shape in ((2, 120, 200), (2, 33, 41)):
        frames = torch.full((*shape, 3), 0.5, requires_grad=True)
        weights = torch.randn(prepare(frames)[key].shape, generator=torch.Generator().manual_seed(0))
        (weights * prepare(frames)[key]).sum().backward()
        rng = np.random.default_rng(1)
        for _ in range(3):
            place = (0, *(int(rng.integers(side)) for side in shape[1:]), int(rng.integers(3)))
            up, down = frames.detach().clone(), frames.detach().clone()
            up[place] += 0.05
            down[place] -= 0.05
            # The processor on floats, which rounds nothing; on bytes half a level is most of what one pixel moves.
            moved = [of_floats(processor, one, weights) for one in (up, down)]
            expected = (moved[0] - moved[1]) / 0.1
            assert frames.grad[place].item() == pytest.approx(expected, rel=1e-2, abs=1e-3), (shape, place)


def of_floats(processor, frames: torch.Tensor, weights: torch.Tensor) -> float:
    video = (frames * 255).permute(0, 3, 1, 2)
    made = processor.video_processor(videos=[video], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    return (weights.double() * made.view_as(weights).double()).sum().item()


def test_turning_up_a_whole_patch_moves_the_real_values_as_its_gradient_says(processor, family):
    """Through the rounding: a change of 16 levels over many pixels, against which half a level a value is little."""
    frames = torch.from_numpy(smooth(2, 120, 200)).float() / 255
    prepare, key = make_pixels(processor), VALUES[family]
    before = prepare(frames.requires_grad_())[key]
    before.square().sum().backward()
    change = torch.zeros_like(frames)
    change[:, 30:70, 40:90] = 16 / 255
    after = prepare((frames + change).detach())[key]
    moved = (after.square().sum() - before.square().sum() - (after - before).square().sum()).item()  # the linear part
    assert moved == pytest.approx((frames.grad * change).sum().item(), rel=0.01)


@pytest.mark.parametrize(("frames_of", "shape", "least", "most"), [
    (smooth, (2, 120, 200), 0.007, 0.012),  # half a level of 255 over the deviation, and a little
    (noise, (3, 33, 41), 0.3, 0.5),  # beyond black and white, and cut off there
    (noise, (2, 64, 64), 0.0, 0.0),  # not resized
])  # fmt: skip
def test_what_rounding_changes_is_as_documented(folders, frames_of, shape, least, most):
    processor = AutoProcessor.from_pretrained(folders["internvl"])
    frames = in_unit_range(frames_of(*shape))
    video_processor = processor.video_processor

    def prepare(clip):
        return video_processor(videos=[clip.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt")[
            "pixel_values_videos"
        ]

    assert least <= rounding(prepare, frames).abs().max().item() <= most


def test_rounding_by_hand():
    """Two pixels, 10 and 13, made one of 11.5: to bytes that is 12, half a level more, whatever lies between levels."""

    def halved(clip: torch.Tensor) -> torch.Tensor:
        return images.resize(clip.permute(0, 3, 1, 2), [1, 1], images.InterpolationMode.BILINEAR).float()

    frames = torch.tensor([10.2, 12.9]).view(1, 1, 2, 1) / 255
    assert rounding(halved, frames).flatten().tolist() == [0.5]


def test_another_video_processor_is_an_error_that_names_those_that_work(folders):
    processor = AutoProcessor.from_pretrained(folders["qwen2.5"])
    processor.video_processor = LlavaOnevisionVideoProcessor()
    message = "no gradient passes LlavaOnevisionVideoProcessor; .* Qwen2VL.*, Qwen3VL.*, InternVLVideoProcessor"
    with pytest.raises(ValueError, match=message):
        make_pixels(processor)


def test_frames_of_another_shape_or_type_are_an_error(folders):
    prepare = make_pixels(AutoProcessor.from_pretrained(folders["qwen2.5"]))
    wrong = (
        torch.zeros(0, 8, 8, 3), torch.zeros(8, 8, 3), torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    )  # fmt: skip
    assert_refused(
        prepare, [(one, r"frames are torch\..*, expected float \(F, H, W, 3\) with F >= 1") for one in wrong]
    )
