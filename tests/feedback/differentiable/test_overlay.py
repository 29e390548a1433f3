from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from feedback.differentiable.overlay import (
    Overlay,
    RenderedOverlay,
    apply,
    load_overlay,
    parse_mark,
    render,
    save_picture,
    unseen,
)
from tests.support.refusals import assert_refused

RED, BLUE = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]


def overlay_of(folder: Path, *marks: dict) -> Overlay:
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump({"marks": list(marks)}))
    return load_overlay(path)


def alpha_of(mark: str, text: str, size: int = 8) -> list[list[float]]:
    """Of the first frame, in tenths."""
    alpha = render(Overlay((parse_mark(mark, text),)), 1, size, size).alpha
    return (10 * alpha[0, :, :, 0]).round().int().tolist()


def test_a_box_is_a_line_of_one_pixel_inside_its_sides():
    assert alpha_of("box", "1,2,6,6@0") == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 10, 10, 10, 10, 10, 0, 0],
        [0, 10, 0, 0, 0, 10, 0, 0],
        [0, 10, 0, 0, 0, 10, 0, 0],
        [0, 10, 10, 10, 10, 10, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_a_side_between_two_pixels_covers_half_of_each():
    assert alpha_of("box", "0,0,8,2.5@0")[:4] == [
        [10, 10, 10, 10, 10, 10, 10, 10],
        [10, 5, 5, 5, 5, 5, 5, 10],  # from 1.5 to 2.5
        [5, 5, 5, 5, 5, 5, 5, 5],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_a_thick_box_is_a_filled_one(tmp_path):
    overlay = overlay_of(tmp_path, {"box": [2, 2, 6, 6], "frames": "all", "thickness": 4, "opacity": 0.5})
    alpha = render(overlay, 2, 8, 8).alpha
    assert alpha[:, 2:6, 2:6].unique().tolist() == [0.5] and alpha.sum().item() == 2 * 16 * 0.5


def test_a_point_is_a_disc_of_three_pixels():
    """Its radius is 1.5: centres 1.41 off, at the corners, are covered by 0.5 - (1.41 - 1.5) = 0.59."""
    assert alpha_of("point", "3.5,2.5@0", 6) == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 6, 10, 6, 0],
        [0, 0, 10, 10, 10, 0],
        [0, 0, 6, 10, 6, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_an_arrow_is_a_line_that_ends_in_a_head_at_its_second_point():
    """To the right along y = 4: the line covers the halves of two rows; at x = 9.5, half a pixel after the head's
    base at 9, the head reaches 3.5 / 2 = 1.75 to either side."""
    rows = render(Overlay((parse_mark("arrow", "1,4,13,4@0"),)), 1, 8, 16).alpha[0, :, :, 0]
    assert rows[3, :8].tolist() == pytest.approx([0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert torch.equal(rows, rows.flip(0))
    assert rows[:, 13:].sum() == 0
    column = rows[:, 9].tolist()  # d = (2 * aside - 3.5) / 5**0.5 at aside 0.5, 1.5, 2.5: -1.12, -0.22, 0.67, but the
    assert column == pytest.approx([0, 0, 0.7236, 1, 1, 0.7236, 0, 0], abs=1e-4)  # base is -0.5 away: 1, 0.72, 0
    sums = rows.sum(0)
    assert sums[9] > sums[10] > sums[11] > sums[12] > 0


def test_an_arrow_may_point_anywhere():
    right = render(Overlay((parse_mark("arrow", "2,8,14,8@0"),)), 1, 16, 16).alpha[0, :, :, 0]
    down = render(Overlay((parse_mark("arrow", "8,2,8,14@0"),)), 1, 16, 16).alpha[0, :, :, 0]
    left = render(Overlay((parse_mark("arrow", "14,8,2,8@0"),)), 1, 16, 16).alpha[0, :, :, 0]
    assert torch.equal(down, right.T) and torch.equal(left, right.flip(1))


def test_marks_are_for_their_frames_alone():
    def covered(frames: str) -> list[bool]:
        rendered = render(Overlay((parse_mark("point", f"2,2@{frames}"),)), 6, 4, 4)
        return [bool(one.any()) for one in rendered.alpha]

    assert covered("1-3") == [False, True, True, True, False, False]
    assert covered("0, 4-5") == [True, False, False, False, True, True]
    assert covered("all") == [True] * 6


def test_the_frames_of_a_yaml_are_a_number_a_range_a_list_or_all(tmp_path):
    marks = [{"point": [1, 1], "frames": frames} for frames in (3, "0-2", [0, "4-5", 4], "all")]
    assert [mark.frames for mark in overlay_of(tmp_path, *marks).marks] == [(3,), (0, 1, 2), (0, 4, 5), None]


def test_a_later_mark_lies_over_an_earlier_one(tmp_path):
    overlay = overlay_of(
        tmp_path,
        {"box": [0, 0, 4, 4], "frames": "all", "thickness": 4, "opacity": 0.5, "color": "red"},
        {"box": [2, 0, 4, 4], "frames": 0, "thickness": 4, "opacity": 0.5, "color": "#0000ff"},
    )
    marked = apply(torch.zeros(2, 4, 4, 3), [0, 1], render(overlay, 2, 4, 4))
    assert marked[0, 0, 0].tolist() == [0.5, 0, 0]
    assert marked[0, 0, 3].tolist() == pytest.approx([0.25, 0, 0.5])  # half of (0.5, 0, 0), and half blue
    assert marked[1, 0, 3].tolist() == [0.5, 0, 0]


def test_all_marks_at_once_are_the_marks_one_after_the_other(tmp_path):
    marks = [
        {"box": [1, 1, 9, 9], "frames": "0-1", "opacity": 0.7, "thickness": 2.5},
        {"arrow": [0, 8, 11, 3], "frames": "all", "opacity": 0.4, "color": "yellow"},
        {"point": [5, 5], "frames": "1-2", "opacity": 0.9, "color": "blue"},
    ]
    frames = torch.rand(3, 10, 12, 3, generator=torch.Generator().manual_seed(0))
    at_once = apply(frames, range(3), render(overlay_of(tmp_path, *marks), 3, 10, 12))
    for mark in marks:
        frames = apply(frames, range(3), render(overlay_of(tmp_path, mark), 3, 10, 12))
    torch.testing.assert_close(at_once, frames)


def test_a_mark_on_no_frame_that_the_judge_sees_is_found():
    marks = [parse_mark("point", f"2,2@{frames}") for frames in ("0-3", "1-3", "all", "40,80")]
    found = unseen(Overlay(tuple(marks)), (0, 27, 53, 80))
    assert found == [marks[1]]


def test_shown_frames_have_the_overlay_of_their_index_and_a_gradient_of_one_less_alpha():
    rendered = RenderedOverlay(
        torch.tensor([0.0, 0.2, 0.4]).view(3, 1, 1, 1).expand(3, 1, 1, 3),
        torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1),
    )
    frames = torch.full((3, 1, 1, 3), 0.8, requires_grad=True)
    marked = apply(frames, [2, 0, 1], rendered)
    # 0.4; 0.8; 0.75 * 0.8 + 0.25 * 0.2
    assert marked[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.8, 0.65])
    marked.sum().backward()
    assert frames.grad[:, 0, 0, 0].tolist() == [0.0, 1.0, 0.75]


def test_a_frame_without_marks_is_untouched_to_the_bit():
    frames = torch.rand(2, 6, 6, 3)
    rendered = render(Overlay((parse_mark("point", "3,3@1"),)), 2, 6, 6)
    assert torch.equal(apply(frames, [0, 1], rendered)[0], frames[0])


def test_a_mask_is_a_colour_where_it_is_white(tmp_path):
    Image.fromarray(np.array([[0, 255], [51, 0]], np.uint8)).save(tmp_path / "region.png")
    overlay = overlay_of(tmp_path, {"mask": "region.png", "frames": "all", "color": "blue", "opacity": 0.5})
    images, alpha = render(overlay, 1, 2, 2)
    assert alpha[0, :, :, 0].tolist() == [[0, 0.5], [pytest.approx(0.1), 0]]
    assert images[0, 0, 1].tolist() == BLUE


def test_an_image_is_laid_over_by_its_alpha_and_a_mask_beside_it(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, [[255, 102], [0, 255]]
    Image.fromarray(pixels).save(tmp_path / "goal.png")
    Image.fromarray(np.array([[255, 255], [255, 51]], np.uint8)).save(tmp_path / "soft.png")
    overlay = overlay_of(tmp_path, {"image": "goal.png", "mask": "soft.png", "frames": [0]})
    images, alpha = render(overlay, 2, 2, 2)
    assert alpha[0, :, :, 0].flatten().tolist() == pytest.approx([1, 0.4, 0, 0.2])
    assert images[0, 0, 0].tolist() == RED and not alpha[1].any()
    Image.fromarray(pixels[..., :3]).save(tmp_path / "opaque.png")
    assert render(overlay_of(tmp_path, {"image": "opaque.png", "frames": 0}), 1, 2, 2).alpha.min() == 1


def test_lines_grow_with_the_picture_by_default(tmp_path):
    def thickness(**given) -> int:
        overlay = overlay_of(tmp_path, {"box": [0, 0, 100, 100], "frames": "all"} | given)
        return int(render(overlay, 1, 256, 320).alpha[0, 50, :50].sum().item())

    assert thickness() == 4  # 256 / 64
    assert thickness(thickness=7) == 7


def test_a_saved_picture_has_one_frame_of_each_stretch(tmp_path):
    rendered = render(Overlay((parse_mark("box", "8,8,24,24@2-4"),)), 8, 32, 32)
    save_picture(rendered, None, tmp_path / "runs" / "overlay.png")
    with Image.open(tmp_path / "runs" / "overlay.png") as picture:
        pixels = np.asarray(picture)[-8 - 128 :]  # without the captions
    magenta, grey = (pixels == [255, 0, 255]).all(-1), (pixels == [128, 128, 128]).all(-1)
    # A ring of 16 x 16 - 14 x 14 = 60 pixels, and three frames of 32 x 32 less it, each 4 x 4 as large.
    assert magenta.sum() == 60 * 16 and grey.sum() == (3 * 32 * 32 - 60) * 16
    save_picture(rendered, torch.zeros(8, 32, 32, 3), tmp_path / "over.png")
    with Image.open(tmp_path / "over.png") as picture:
        assert (np.asarray(picture) == [128, 128, 128]).all(-1).sum() < 50  # of the letters


def test_texts_that_are_no_marks_are_named():
    cases = (
        ("8,8,20,20", "box 8,8,20,20: no frames"),
        ("8,8,20,20@", "frames are ''"),
        ("8,8,20@0", "box 8,8,20@0.box"),
        ("8,8,x,20@0", "could not convert string to float: 'x'"),
        ("8,8,nan,20@0", "finite"),
        ("8,8,20,20@4-0", "frames 4-0 end before they start"),
        ("8,8,20,20@-1", "frames are '-1'"),
        ("8,8,20,20@some", "frames are 'some', expected one such as 3, a range such as 0-4"),
    )
    assert_refused(lambda text: parse_mark("box", text), cases)


def test_marks_that_do_not_fit_the_clip_are_named():
    cases = (
        (("box", "8,8,33,20@0"), r"Box\(left=8.*: 33,20 lies outside the picture, which is 32 wide and 16 high"),
        (("box", "-1,8,9,10@0"), "-1,8 lies outside"),
        (("box", "9,8,3,10@0"), "expected left < right and top < bottom"),
        (("box", "2,8,9,8@0"), "expected left < right and top < bottom"),
        (("point", "3,17@0"), "3,17 lies outside"),
        (("arrow", "1,1,40,1@0"), "40,1 lies outside"),
        (("arrow", "1,1,1,1@0"), "it ends where it starts"),
        (("point", "3,3@4-6"), r"Disc\(x=3.*: frames \[5, 6\] of a clip of 5 frames; the last is 4"),
    )
    assert_refused(lambda given: render(Overlay((parse_mark(*given),)), 5, 16, 32), cases)


def test_what_is_wrong_in_a_yaml_is_named(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "m.png")
    cases = (
        ({"box": [1, 1, 2, 2]}, "overlay.yaml, mark 2.frames is missing"),
        ({"box": [1, 1, 2, 2], "frames": []}, "mark 2: no frames"),
        ({"box": [1, 1, 2, 2], "frames": True}, "mark 2.frames"),
        ({"box": [1, 1, 2, 2], "frames": 0, "colour": "red"}, "mark 2.colour .* is unknown; known keys are .*color"),
        ({"mask": "m.png", "frames": 0, "thickness": 2}, "mark 2.thickness .* is unknown"),
        ({"frames": 0}, "mark 2: .*expected one of image, box, point, arrow, mask"),
        ({"box": [1, 1, 2, 2], "point": [1, 1], "frames": 0}, "mark 2: .*expected one of image, box"),
        ({"box": "1,1,2,2", "frames": 0}, "mark 2.box is '1,1,2,2'"),
        ({"point": [1, 1], "frames": 0, "color": "rouge"}, "mark 2.color: unknown color specifier: 'rouge'"),
        ({"point": [1, 1], "frames": 0, "color": "#ff000080"}, "mark 2.color: .* has an alpha of its own"),
        ({"point": [1, 1], "frames": 0, "opacity": 0}, "mark 2.opacity is 0, expected greater than 0"),
        ({"point": [1, 1], "frames": 0, "thickness": -1}, "mark 2.thickness is -1, expected greater than 0"),
        ({"mask": "gone.png", "frames": 0}, "mark 2: .*gone.png is not a file"),
        ({"image": "gone.png", "frames": 0}, "mark 2: .*gone.png is not a file"),
        ("box", "mark 2: 'box', expected one of"),
    )
    assert_refused(lambda mark: overlay_of(tmp_path, {"point": [1, 1], "frames": 0}, mark), cases)


def test_a_file_that_is_no_overlay_is_named(tmp_path):
    def load(text: str | None) -> Overlay:
        path = tmp_path / ("gone.yaml" if text is None else "o.yaml")
        if text is not None:
            path.write_text(text)
        return load_overlay(path)

    cases = (
        ("marks: []", "o.yaml: no marks"),
        ("boxes: []", "o.yaml: expected the one key `marks`"),
        ("[1, 2]", "o.yaml: expected the one key `marks`"),
        ("marks: [", "o.yaml: not a readable YAML file"),
        (None, "gone.yaml: not read: No such file"),
    )
    assert_refused(load, cases)


def test_a_picture_of_another_size_or_mode_is_named(tmp_path):
    def load(key: str, picture: Image.Image | None) -> None:
        (tmp_path / "m.png").write_bytes(b"no picture")
        if picture:
            picture.save(tmp_path / "m.png")
        render(overlay_of(tmp_path, {key: "m.png", "frames": 0}), 1, 4, 4)

    cases = (
        (("mask", Image.new("L", (4, 8))), "m.png is 8x4, and the clip 4x4, height x width; resize it"),
        (("mask", Image.new("RGB", (4, 4))), "m.png is a picture of mode RGB, expected 8-bit grayscale"),
        (("image", Image.new("L", (4, 4))), "m.png is a picture of mode L, expected 8-bit RGB or RGBA"),
        (("mask", None), "m.png: not a picture that can be read"),
    )
    assert_refused(lambda given: load(*given), cases)


def test_frames_of_another_size_are_an_error():
    rendered = render(Overlay((parse_mark("point", "3,3@0"),)), 2, 6, 8)
    with pytest.raises(ValueError, match="frames of 8x6 under an overlay of 6x8, height x width"):
        apply(torch.zeros(2, 8, 6, 3), [0, 1], rendered)
