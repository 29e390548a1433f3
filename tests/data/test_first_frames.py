"""Images as a person sees them, at the clip's size."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from data.first_frames import first_frames, load_first_frame, png_bytes, read_png
from data.prompts import Prompt
from tests.support.refusals import assert_refused

# Quarters of one colour each: top left, top right, bottom left, bottom right
COLOURS = [[(220, 30, 40), (30, 200, 60)], [(40, 60, 210), (240, 240, 240)]]


def quarters(height: int = 16, width: int = 16) -> Image.Image:
    small = np.array(COLOURS, np.uint8)
    return Image.fromarray(small.repeat(height // 2, 0).repeat(width // 2, 1))


def seen(frame: np.ndarray) -> list[list[tuple[int, ...]]]:
    """The colours in the middle of each quarter."""
    height, width = frame.shape[:2]
    ys, xs = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
    return [[tuple(int(value) for value in frame[y, x]) for x in xs] for y in ys]


def differ(found: list[list[tuple[int, ...]]]) -> int:
    return int(np.abs(np.array(found, int) - np.array(COLOURS, int)).max())


def prompt(prompt_id: str, image: Path | None) -> Prompt:
    return Prompt(prompt_id, "pushing a cup", "push", "train", str(image) if image else None, None)


# As a person sees it


def test_an_image_of_the_clips_size_is_taken_pixel_by_pixel(tmp_path, caplog):
    picture = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")

    assert np.array_equal(load_first_frame(tmp_path / "a.png", 10, 12), picture)
    assert not caplog.records


def test_an_image_is_turned_as_its_exif_tag_says(tmp_path):
    upright = quarters(16, 24)
    # By the tag's definition: what was done to the picture before it was stored, undone here by the reader.
    stored = {
        1: upright,
        3: upright.rotate(180),
        6: upright.rotate(90, expand=True),
        8: upright.rotate(-90, expand=True),
    }
    for tag, picture in stored.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        for ending in ("jpg", "png", "webp"):
            path = tmp_path / f"{tag}.{ending}"
            picture.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if ending != "png" else {}))
            assert differ(seen(load_first_frame(path, 16, 24))) <= 12, path.name


def test_every_form_of_colour_is_seen_as_the_same_picture(tmp_path):
    picture = quarters()
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    picture.save(tmp_path / "palette.gif")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    picture.save(tmp_path / "jpeg.jpg", quality=100, subsampling=0)
    picture.convert("CMYK").save(tmp_path / "cmyk.tiff")
    picture.save(tmp_path / "lossless.webp", lossless=True)
    picture.convert("RGBA").save(tmp_path / "opaque.png")
    for path in sorted(tmp_path.iterdir()):
        frame = load_first_frame(path, 16, 16)
        assert frame.dtype == np.uint8 and frame.shape == (16, 16, 3), path.name
        assert differ(seen(frame)) <= 3, path.name


def test_greyscale_of_any_depth_keeps_its_brightness(tmp_path):
    grey = np.array([[0, 64], [128, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")  # 255 * 257 is 65535, white
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tiff")
    Image.fromarray(grey == 255).save(tmp_path / "1.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "alpha.png")
    for name in ("8.png", "16.png", "16.tiff", "alpha.png"):
        frame = load_first_frame(tmp_path / name, 16, 16)
        assert np.array_equal(frame, np.repeat(grey[..., None], 3, 2)), name
    assert sorted(np.unique(load_first_frame(tmp_path / "1.png", 16, 16))) == [0, 255]


def test_what_is_transparent_is_white_and_a_warning(tmp_path, caplog):
    half = np.zeros((8, 8, 4), np.uint8)  # black: clear on the left, half clear in the middle, opaque on the right
    half[:, 3:5, 3], half[:, 5:, 3] = 128, 255
    Image.fromarray(half).save(tmp_path / "rgba.png")
    cut = Image.fromarray(np.zeros((8, 8), np.uint8))
    cut.save(tmp_path / "key.png", transparency=0)

    frame = load_first_frame(tmp_path / "rgba.png", 8, 8)
    assert [int(frame[0, x, 0]) for x in (0, 3, 7)] == [255, 127, 0]
    assert load_first_frame(tmp_path / "key.png", 8, 8).min() == 255
    assert caplog.messages == [
        f"first frames that are transparent in places, shown on white: {tmp_path / name}"
        for name in ("rgba.png", "key.png")
    ]


def test_colours_of_an_embedded_profile_become_srgb(tmp_path, caplog):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    picture = quarters()
    there = ImageCms.profileToProfile(picture, srgb, ImageCms.createProfile("LAB"), outputMode="LAB")
    assert there is not None
    there.save(tmp_path / "lab.tiff", icc_profile=lab)
    picture.save(tmp_path / "same.png", icc_profile=srgb.tobytes())
    picture.save(tmp_path / "swapped.png", icc_profile=swapped(srgb.tobytes()))

    assert differ(seen(load_first_frame(tmp_path / "lab.tiff", 16, 16))) <= 6
    assert differ(seen(load_first_frame(tmp_path / "same.png", 16, 16))) <= 1
    (red, _), _ = seen(load_first_frame(tmp_path / "swapped.png", 16, 16))
    assert red[2] > 200 > 60 > red[0]  # by the profile its first channel is blue
    assert not caplog.records


def swapped(profile: bytes) -> bytes:
    """An RGB profile with the colours of its red and blue channels swapped."""
    at = {profile[i : i + 4]: i for i in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12)}
    red, blue = (profile[at[tag] + 4 : at[tag] + 12] for tag in (b"rXYZ", b"bXYZ"))
    changed = bytearray(profile)
    changed[at[b"rXYZ"] + 4 : at[b"rXYZ"] + 12], changed[at[b"bXYZ"] + 4 : at[b"bXYZ"] + 12] = blue, red
    return bytes(changed)


def test_a_profile_that_cannot_be_read_is_a_warning(tmp_path, caplog):
    quarters().save(tmp_path / "a.png", icc_profile=b"no profile")

    assert differ(seen(load_first_frame(tmp_path / "a.png", 16, 16))) == 0
    assert "a.png" in caplog.text and "taken for sRGB" in caplog.text


def test_of_several_pictures_the_first_is_taken_with_a_warning(tmp_path, caplog):
    pictures = [quarters(), Image.new("RGB", (16, 16))]
    for name, options in {"a.gif": {}, "a.png": {}, "a.webp": {"lossless": True}, "a.tiff": {}}.items():
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], **options)
        assert differ(seen(load_first_frame(tmp_path / name, 16, 16))) <= 3, name
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "first frames that hold several pictures, of which the first is taken"
    ] * 4
    caplog.clear()

    pictures[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=pictures[1:], quality=100)
    assert differ(seen(load_first_frame(tmp_path / "phone.jpg", 16, 16))) <= 60  # its colours are subsampled
    assert not caplog.records


# At the clip's size


def test_another_ratio_is_cropped_around_the_centre_with_a_warning(tmp_path, caplog):
    stripes = np.zeros((8, 16, 3), np.uint8)
    stripes[:, 4:12] = (np.arange(8) * 30)[None, :, None]
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    Image.fromarray(stripes.transpose(1, 0, 2)).save(tmp_path / "high.png")

    assert np.array_equal(load_first_frame(tmp_path / "wide.png", 8, 8), stripes[:, 4:12])
    assert np.array_equal(load_first_frame(tmp_path / "high.png", 8, 8), stripes[:, 4:12].transpose(1, 0, 2))
    said = "first frames that are cropped to the clip's ratio of sides"
    assert caplog.messages == [
        f"{said}: {tmp_path / 'wide.png'} (16x8 loses 50% of its width)",
        f"{said}: {tmp_path / 'high.png'} (8x16 loses 50% of its height)",
    ]


def test_a_ratio_that_differs_by_rounding_alone_is_no_warning(tmp_path, caplog):
    Image.new("RGB", (1366, 768)).save(tmp_path / "a.png")  # 16:9 would be 1365.33

    assert load_first_frame(tmp_path / "a.png", 90, 160).shape == (90, 160, 3)
    assert not caplog.records


def test_a_larger_image_is_resized_by_lanczos(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")

    assert np.array_equal(load_first_frame(tmp_path / "a.png", 16, 24), np.array(picture.resize((24, 16), 1)))


def test_a_smaller_image_is_enlarged_with_a_warning(tmp_path, caplog):
    quarters(8, 8).save(tmp_path / "a.png")

    assert differ(seen(load_first_frame(tmp_path / "a.png", 16, 16))) <= 12
    assert caplog.messages == [
        f"first frames that are smaller than the clip and are enlarged: {tmp_path / 'a.png'} (8x8 for 16x16)"
    ]


# What cannot be read


def test_what_is_no_image_is_refused_by_its_name(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    Image.new("F", (8, 8)).save(tmp_path / "floats.tiff")
    for name, content in {
        "empty.png": b"",
        "text.png": b"a picture",
        "cut.png": whole.getvalue()[:4000],
        "drawn.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",  # Pillow would call Ghostscript
    }.items():
        (tmp_path / name).write_bytes(content)
    cases = {
        "empty.png": "empty.png: not a readable image; read are PNG, JPEG",
        "text.png": "text.png: not a readable image; read are PNG, JPEG",
        "cut.png": "cut.png: not a readable image: ",
        "drawn.eps": "drawn.eps: not a readable image; read are PNG, JPEG",
        "floats.tiff": "floats.tiff: .*32 bits",
        "absent.png": "absent.png: not a readable image: .*No such file",
        "": "not a readable image: .*directory",
    }
    assert_refused(lambda name: load_first_frame(tmp_path / name, 8, 8), cases.items())


# Of a prompt set


def test_each_prompt_has_the_first_frame_of_its_image(tmp_path, caplog):
    quarters(8, 16).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    prompts = [prompt("p1", tmp_path / "a.png"), prompt("p2", tmp_path / "b.png"), prompt("p3", tmp_path / "a.png")]

    frames = first_frames(prompts, 8, 8)

    assert list(frames) == ["p1", "p2", "p3"]
    assert np.array_equal(frames["p3"], load_first_frame(tmp_path / "a.png", 8, 8)) and not frames["p2"].any()
    assert caplog.messages[0].endswith(f"ratio of sides: {tmp_path / 'a.png'} (16x8 loses 50% of its width)")  # once
    assert first_frames([prompt("p1", None)], 8, 8) == {}


def test_images_for_some_prompts_alone_are_refused_by_the_names_of_the_others(tmp_path):
    quarters().save(tmp_path / "a.png")
    prompts = [prompt("p1", tmp_path / "a.png"), *(prompt(f"p{number}", None) for number in range(2, 7))]
    with pytest.raises(
        ValueError, match="5 of 6 prompts have no image and the others have one: p2, p3, p4, and 2 more"
    ):
        first_frames(prompts, 8, 8)


def test_a_prompt_whose_image_is_damaged_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(np.zeros((64, 64, 3), np.uint8))[:-30])
    with pytest.raises(ValueError, match="prompt p1: .*a.png: not a readable image"):
        first_frames([prompt("p1", tmp_path / "a.png")], 8, 8)


def test_a_stored_first_frame_is_read_as_it_was_written_in_the_same_bytes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png_bytes(pixels))

    assert np.array_equal(read_png(tmp_path / "a.png"), pixels)
    assert png_bytes(pixels) == png_bytes(pixels.copy())
