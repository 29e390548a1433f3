"""Claims about where a judge looks, by judges whose answers depend on known pixels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rl.online.heatmap import DIMMED, REACH, caption, heatmaps, overlaid, smoothed, write_sheet
from tests.support.online import Answers

FRAMES, SIZE = 5, 16
FRAME_WIDTH, GAP, MARGIN = 96, 2, 8  # of data.video's sheets


class PatchJudge:
    """Sees frames 1 and 3, and its answers depend on four pixels of the second of them alone."""

    name = "patch"

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        return [1, 3]

    def __call__(self, frames: Tensor, prompt_id: str, seed: int) -> Answers:
        patch = frames[1, 4:6, 8:10]
        weighted = 2 * patch[0, 0, 0] - patch[0, 0, 1] + 1.5 * patch[1, 1, 2]
        loss = self.scale * torch.stack([weighted, (patch**2).sum()])
        return Answers(("weighted", "square"), loss, torch.tensor([0.25, math.nan]))


def clip() -> Tensor:
    return torch.full((FRAMES, SIZE, SIZE, 3), 0.5)


def test_heat_is_the_size_of_the_gradient_over_channels_and_1_at_its_largest():
    """Of 2 red - green of one pixel and 1.5 blue of another: |2| + |-1| = 3, and 1.5, which is half of it."""
    found = heatmaps(PatchJudge(), clip(), "p0", smoothing=0)
    assert (found.judge, found.indices, found.frames.shape) == ("patch", (1, 3), (2, SIZE, SIZE, 3))
    weighted = found.heats[0]
    expected = torch.zeros(2, SIZE, SIZE)
    expected[1, 4, 8], expected[1, 5, 9] = 1.0, 0.5
    assert torch.equal(weighted.heat, expected)
    assert (weighted.question, weighted.largest, weighted.p_wanted) == ("weighted", 3.0, 0.25)
    assert weighted.loss == 2 * 0.5 - 0.5 + 1.5 * 0.5


def test_a_judge_that_sees_one_patch_lights_up_that_patch_and_nothing_else():
    deviation = 1 / 16 * SIZE
    reach = math.ceil(REACH * deviation)
    for heat in heatmaps(PatchJudge(), clip(), "p0", smoothing=1 / 16).heats:
        lit = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        lit[1, 4 - reach : 6 + reach, 8 - reach : 10 + reach] = True
        assert (heat.heat[~lit] == 0).all(), heat.question
        assert (heat.heat[1, 4:6, 8:10] > 0.1).all() and heat.heat.max() == 1, heat.question


def test_a_louder_loss_has_the_same_heat_also_without_gradient_around_it():
    with torch.no_grad():
        quiet, loud = (heatmaps(PatchJudge(scale), clip(), "p0") for scale in (1.0, 8.0))
    for one, other in zip(quiet.heats, loud.heats, strict=True):
        assert torch.allclose(one.heat, other.heat)
        assert other.largest == pytest.approx(8 * one.largest)


def test_an_answer_that_no_pixel_changes_is_cold():
    found = heatmaps(PatchJudge(0.0), clip(), "p0")
    assert all((one.heat == 0).all() and one.largest == 0 for one in found.heats)


def test_a_gradient_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="judge patch, question weighted, prompt p0"):
        heatmaps(PatchJudge(math.inf), clip(), "p0")


def test_smoothing_keeps_the_sum_within_a_frame_and_reaches_no_other():
    heat = torch.zeros(2, SIZE, SIZE)
    heat[0, 8, 8] = 1.0
    found = smoothed(heat, 1 / 16)
    assert found[0].sum().item() == pytest.approx(1.0) and (found[1] == 0).all()
    assert torch.equal(smoothed(heat, 0), heat)


def test_frames_without_heat_are_grey_and_the_hottest_pixel_is_yellow():
    frames, heat = torch.rand(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE)
    heat[0, 2, 3] = 1.0
    drawn = overlaid(frames, heat)
    assert drawn[0, 2, 3].tolist() == [255, 255, 0]
    cold = drawn[0][heat[0].numpy() == 0]
    assert (cold == cold[:, :1]).all() and cold.max() <= round(255 * DIMMED)


def stretches(line: np.ndarray) -> int:
    """How many stretches of FRAME_WIDTH pixels or more a line of pixels has that are not white."""
    inked = "".join("#" if pixel else " " for pixel in (line < 255).any(-1))
    return sum(len(part) >= FRAME_WIDTH for part in inked.split(" "))


def test_a_sheet_has_a_row_of_frames_and_one_for_each_question(tmp_path):
    """The two frames that the judge sees, and below them two questions: three rows of two cells."""
    seen = heatmaps(PatchJudge(), clip(), "p0")
    write_sheet(tmp_path / "one.png", "a ball rolls", [seen], {"weighted": "is it red (Yes)"})
    sheet = np.asarray(Image.open(tmp_path / "one.png"))
    assert sheet.shape[1] == 2 * FRAME_WIDTH + GAP + 2 * MARGIN
    assert stretches(sheet[:, MARGIN + FRAME_WIDTH - 1]) == 3
    bottom = sheet[-MARGIN - FRAME_WIDTH // 2 - MARGIN]
    assert stretches(bottom) == 2
    write_sheet(tmp_path / "two.png", "a ball rolls", [seen, seen], {})  # of two judges
    assert stretches(np.asarray(Image.open(tmp_path / "two.png"))[:, MARGIN + FRAME_WIDTH - 1]) == 6


def test_a_caption_has_the_answer_and_the_question_and_of_a_metric_the_score():
    weighted, square = heatmaps(PatchJudge(), clip(), "p0", smoothing=0).heats
    assert caption("patch", weighted, {"weighted": "is it\nred (Yes)"}) == (
        "patch/weighted · p of the wanted answer 0.25 · gradient up to 3 · is it red (Yes)"
    )
    assert caption("patch", square, {}) == "patch/square · score -3 · gradient up to 3"
