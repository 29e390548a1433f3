import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, ColorTrc

from data.prompts import Prompt
from data.video import contact_sheet, encode_video, read_fps, read_video, sample_frames, seen_at, write_video
from tabletop.references import real_clips


def noise(num_frames=9, height=64, width=64, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def largest_error(found: np.ndarray, wanted: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - wanted.astype(int)).max())


def test_small_clips_come_back_within_one_level(tmp_path):
    for size in ((64, 64), (32, 48), (17, 31)):
        frames = noise(5, *size)
        write_video(tmp_path / "clip.mp4", frames, fps=8)
        assert largest_error(read_video(tmp_path / "clip.mp4"), frames) <= 1, size


def test_flat_colours_come_back_within_one_level(tmp_path):
    # All 729 colours with channels from 0, 1, 2, 63, 127, 128, 200, 254, 255: a frame each of 27 x 27 pixels.
    levels = np.array([0, 1, 2, 63, 127, 128, 200, 254, 255], dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, 27, 27, 3)
    write_video(tmp_path / "clip.mp4", colours, fps=8)
    assert largest_error(read_video(tmp_path / "clip.mp4"), colours) <= 1


def test_black_and_white_come_back_exactly(tmp_path):
    frames = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    frames[1] = 255
    write_video(tmp_path / "clip.mp4", frames, fps=8)
    assert largest_error(read_video(tmp_path / "clip.mp4"), frames) == 0


def test_a_second_round_trip_still_stays_within_one_level(tmp_path):
    frames = noise()
    for _ in range(3):
        write_video(tmp_path / "clip.mp4", frames, fps=8)
        again = read_video(tmp_path / "clip.mp4")
        assert largest_error(again, frames) <= 1
        frames = again


def test_equal_frames_give_equal_bytes(tmp_path):
    for name, lossless in (("a", True), ("b", True), ("c", False), ("d", False)):
        write_video(tmp_path / name, noise(), fps=8, lossless=lossless)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


@pytest.mark.parametrize("times", [2, 9])
def test_bytes_do_not_hang_on_what_lay_in_memory_before(times):
    """A rendered clip so many times as large, with noise; between encodings memory is filled and freed."""
    prompt = Prompt("fall", "pushing red ball so that it falls off the table", "c", "train", None, None)
    random, found = np.random.default_rng(0), set()
    clip = real_clips([prompt], 9, 8.0)["fall"].frames.repeat(times, 1).repeat(times, 2).astype(int)
    frames = np.clip(clip + random.integers(-3, 4, clip.shape), 0, 255).astype(np.uint8)
    for _ in range(12):
        torch.randn(int(random.integers(1, 10**6)))
        junk = [random.random(int(random.integers(10, 10**5))) for _ in range(20)]
        found.add(encode_video(frames, fps=8, lossless=False))
        del junk
    assert len(found) == 1


def test_large_clips_are_lossy_and_keep_their_colours(tmp_path):
    frames = np.empty((3, 272, 320, 3), dtype=np.uint8)
    frames[:, :, :160], frames[:, :, 160:] = (200, 30, 60), (20, 180, 220)
    write_video(tmp_path / "clip.mp4", frames, fps=8)
    write_video(tmp_path / "lossless.mp4", frames, fps=8, lossless=True)
    away_from_the_edge = np.r_[0:150, 170:320]
    found = read_video(tmp_path / "clip.mp4")
    assert largest_error(found[:, :, away_from_the_edge], frames[:, :, away_from_the_edge]) <= 3
    assert largest_error(found, frames) > 3
    assert largest_error(read_video(tmp_path / "lossless.mp4"), frames) <= 1


def test_the_frame_rate_is_kept(tmp_path):
    for fps in (8, 16.0, 29.97):
        write_video(tmp_path / "clip.mp4", noise(3, 16, 16), fps=fps)
        with av.open(str(tmp_path / "clip.mp4")) as container:
            assert float(container.streams.video[0].average_rate) == pytest.approx(fps, abs=1e-3)


def test_frames_that_are_not_uint8_rgb_are_refused(tmp_path):
    for frames in (noise().astype(np.float32), noise()[0], noise()[..., :2], noise()[:0]):
        with pytest.raises(ValueError, match=r"clip.mp4: frames are .* wanted uint8 \(F, H, W, 3\)"):
            write_video(tmp_path / "clip.mp4", frames, fps=8)
        assert not (tmp_path / "clip.mp4").exists(), frames.shape


def test_odd_sides_are_refused_where_colour_is_halved(tmp_path):
    with pytest.raises(ValueError, match="17x31 frames; without lossless, height and width must be even"):
        write_video(tmp_path / "clip.mp4", noise(2, 17, 31), fps=8, lossless=False)


def test_a_truncated_video_is_named(tmp_path):
    for kept in (0, 10, 200, 0.5, 0.99):
        path = tmp_path / "clip.mp4"
        write_video(path, noise(), fps=8)
        whole = path.read_bytes()
        path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
        with pytest.raises(ValueError, match="clip.mp4: "):
            read_video(path)


def test_a_video_truncated_behind_its_index_is_named(tmp_path):
    path = tmp_path / "index_first.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        for frame in noise():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert len(read_video(path)) == 9
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ValueError, match="index_first.mp4: (truncated|frame . is corrupt|not a readable video)"):
        read_video(path)


def test_a_video_with_a_hole_in_it_is_named(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, noise(), fps=8)
    damaged = bytearray(path.read_bytes())
    damaged[5000:6000] = bytes(1000)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"clip.mp4: (frame \d is corrupt|not a readable video)"):
        read_video(path)


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="page.mp4: not a readable video"):
        read_video(tmp_path / "page.mp4")
    with pytest.raises(ValueError, match=r"absent.mp4: not a readable video .*No such file"):
        read_video(tmp_path / "absent.mp4")


def test_sampled_frames_by_hand():
    for num_frames, wanted, indices in (
        (9, 3, [0, 4, 8]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),  # 8 i / 7 = 0, 1.1, 2.3, 3.4, 4.6, 5.7, 6.9, 8
        (81, 2, [0, 80]),
        (4, 3, [0, 2, 3]),  # 1.5 goes up
        (5, 8, [0, 1, 2, 3, 4]),
        (9, 1, [4]),
        (1, 1, [0]),
    ):
        assert sample_frames(num_frames, wanted) == indices, (num_frames, wanted, indices)


def test_sampled_frames_are_distinct_ordered_and_span_the_clip():
    for num_frames in range(1, 60):
        for wanted in range(2, 60):
            indices = sample_frames(num_frames, wanted)
            assert len(indices) == min(wanted, num_frames)
            assert indices == sorted(set(indices))
            assert (indices[0], indices[-1]) == (0, num_frames - 1)


def test_no_frames_cannot_be_sampled():
    for num_frames, wanted in ((0, 8), (9, 0)):
        with pytest.raises(ValueError, match="both must be at least 1"):
            sample_frames(num_frames, wanted)


def test_a_contact_sheet_shows_every_frame_enlarged_below_its_caption():
    red = np.zeros((3, 10, 10, 3), dtype=np.uint8)
    red[..., 0] = 255
    sheet = np.asarray(contact_sheet([("red", red), ("green", red[..., [1, 0, 2]])], columns=2, scale=3))
    is_red, is_green = ((sheet == colour).all(axis=-1) for colour in ((255, 0, 0), (0, 255, 0)))
    assert is_red.sum() == is_green.sum() == 3 * 30 * 30
    assert np.argwhere(is_red)[:, 1].max() < np.argwhere(is_green)[:, 1].min()
    above = sheet[: np.argwhere(is_red)[:, 0].min()]
    assert (above < 128).any(), "the caption"


def test_a_long_caption_is_wrapped_not_cut():
    frames = noise(4, 16, 16)
    one_line, more = (contact_sheet([(text, frames)], scale=2) for text in ("short", "a long caption " * 10))
    assert more.width == one_line.width
    assert more.height > one_line.height


def test_clips_of_different_lengths_and_sizes_share_a_sheet():
    sheet = contact_sheet([("nine", noise(9, 16, 16)), ("one", noise(1, 32, 24)), ("", noise(2, 8, 8))], columns=2)
    assert sheet.mode == "RGB"


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no clips"):
        contact_sheet([])


# Clips of others, as a player shows them

RED = (200, 40, 60)


def write_other(path, frames: np.ndarray, format: str = "yuv420p", codec: str = "libx264", **given) -> None:
    """A clip as other programs write it. given: colorspace, color_range, color_trc, sample_aspect_ratio of its codec;
    `matrix` and `range_`, in which its pixels are if the codec does not say; `times`, of its frames in ms."""
    matrix, range_, times = (given.pop(key, None) for key in ("matrix", "range_", "times"))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], format
        for key, value in given.items():
            setattr(stream.codec_context, key, value)
        if times:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for place, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgba" if frames.shape[-1] == 4 else "rgb24").reformat(
                format=format,
                src_color_range=ColorRange.JPEG,
                dst_color_range=given.get("color_range") or range_ or ColorRange.MPEG,
                dst_colorspace=given.get("colorspace") or matrix or Colorspace.ITU601,
            )
            image.color_range = given.get("color_range", 0)
            if times:
                image.pts, image.time_base = times[place], Fraction(1, 1000)
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def flat(height=64, width=96, colour=RED, frames=2) -> np.ndarray:
    return np.full((frames, height, width, len(colour)), colour, np.uint8)


def test_colours_are_those_of_the_stated_matrix_and_range(tmp_path):
    cases = {
        "601": {"colorspace": Colorspace.ITU601, "color_range": ColorRange.MPEG},
        "709": {"colorspace": Colorspace.ITU709, "color_range": ColorRange.MPEG},
        "2020": {"colorspace": Colorspace.BT2020, "color_range": ColorRange.MPEG},
        "full range": {"colorspace": Colorspace.ITU709, "color_range": ColorRange.JPEG},
        "10 bit": {"colorspace": Colorspace.ITU709, "color_range": ColorRange.MPEG, "format": "yuv420p10le"},
    }
    for name, given in cases.items():
        write_other(tmp_path / "clip.mp4", flat(), **given)
        assert largest_error(read_video(tmp_path / "clip.mp4"), flat()) <= 3, name


def test_an_unstated_matrix_is_bt709_for_large_frames_and_bt601_for_small_ones(tmp_path):
    for frames, matrix in ((flat(), Colorspace.ITU601), (flat(720, 1280), Colorspace.ITU709)):
        write_other(tmp_path / "clip.mp4", frames, matrix=matrix)
        assert largest_error(read_video(tmp_path / "clip.mp4"), frames) <= 3, frames.shape


def test_hdr_is_refused_with_the_command_that_makes_it_sdr(tmp_path):
    for transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        given = {"colorspace": Colorspace.BT2020, "color_range": ColorRange.MPEG, "color_trc": transfer}
        write_other(tmp_path / "clip.mp4", flat(), "yuv420p10le", **given)
        with pytest.raises(ValueError, match=r"clip.mp4: HDR.*ffmpeg -vf zscale"):
            read_video(tmp_path / "clip.mp4")


def test_a_clip_is_turned_as_its_flag_says(tmp_path):
    """The left upper quarter is red; a phone held upright writes (0 1 0 / -1 0 0): turned to the right, the
    quarter is above on the right."""
    frames = flat(32, 48, (0, 0, 0))
    frames[:, :16, :24] = RED
    write_other(tmp_path / "clip.mp4", frames, "yuv444p")
    whole = (tmp_path / "clip.mp4").read_bytes()
    one, corner = 1 << 16, 1 << 30
    place = whole.index(struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, corner), whole.index(b"tkhd"))
    for (a, b, c, d), quarters in {(0, one, -one, 0): -1, (-one, 0, 0, -one): 2, (0, -one, one, 0): 1}.items():
        matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, corner)
        (tmp_path / "turned.mp4").write_bytes(whole[:place] + matrix + whole[place + 36 :])
        found = read_video(tmp_path / "turned.mp4")
        assert found.shape == (2, 32, 48, 3) if quarters == 2 else (2, 48, 32, 3)
        assert largest_error(found, np.rot90(frames, quarters, axes=(1, 2))) <= 12, quarters
        if quarters == -1:
            assert found[0, 2, -3, 0] > 190 and found[0, 2, 2, 0] < 10


def test_pixels_that_are_not_square_are_made_square_by_the_width(tmp_path):
    frames = flat(32, 48, (0, 0, 0))
    frames[:, :, :24] = RED
    for pixel, width in ((Fraction(4, 3), 64), (Fraction(1, 2), 24)):
        write_other(tmp_path / "clip.mp4", frames, "yuv444p", sample_aspect_ratio=pixel)
        found = read_video(tmp_path / "clip.mp4")
        assert found.shape == (2, 32, width, 3)
        assert found[0, 5, width // 2 - 4, 0] > 190 and found[0, 5, width // 2 + 4, 0] < 10


def test_what_is_transparent_is_black(tmp_path):
    frames = flat(64, 64, (*RED, 255))
    frames[:, :32, :, 3] = 0
    frames[:, 32:48, :, 3] = 51  # a fifth
    write_other(tmp_path / "clip.mov", frames, "rgba", "png")
    found = read_video(tmp_path / "clip.mov")
    assert [found[0, row, 5].tolist() for row in (5, 40, 60)] == [[0, 0, 0], [40, 8, 12], list(RED)]


def test_frames_of_a_variable_rate_are_those_seen_at_each_time(tmp_path):
    """Frames begin at 0, 0.1, 0.2, 0.3, 1.3, 1.4 s: 5 in 1.4 s, so one is asked for each 0.28 s. At 0 the first is
    seen, at 0.28 the third, at 0.56, 0.84 and 1.12 the fourth, which is seen for a second, at 1.4 the last."""
    frames = np.stack([np.full((32, 32, 3), 40 * place, np.uint8) for place in range(6)])
    write_other(tmp_path / "clip.mp4", frames, times=[0, 100, 200, 300, 1300, 1400])
    assert read_fps(tmp_path / "clip.mp4") == pytest.approx(5 / 1.4)
    seen = [round(float(one.mean()) / 40) for one in read_video(tmp_path / "clip.mp4")]
    assert seen == [0, 2, 3, 3, 3, 5]


def test_rounded_times_and_unknown_ones_leave_every_frame_once():
    assert seen_at([0.0, 0.033, 0.067, 0.1], 30.0) == [0, 1, 2, 3]
    assert seen_at([5.0, 5.125, 5.25], 8.0) == [0, 1, 2]
    assert seen_at([0.0, float("nan"), 9.0], 8.0) == [0, 1, 2]
    assert seen_at([0.0, 3.0], 0.0) == [0, 1]


def test_a_cut_that_was_not_encoded_again_shows_what_its_edit_list_shows(tmp_path):
    """40 frames a keyframe, of which 28 are hidden: a player shows 12."""
    frames = np.stack([np.full((32, 32, 3), 6 * place, np.uint8) for place in range(40)])
    with av.open(str(tmp_path / "whole.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"g": "40", "bf": "0", "crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    hiding = {"avoid_negative_ts": "disabled"}
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "cut.mp4"), "w", options=hiding) as cut,
    ):
        stream = whole.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                hidden = 28 * int(1 / (packet.time_base * 8))
                packet.pts, packet.dts, packet.stream = packet.pts - hidden, packet.dts - hidden, copy
                cut.mux(packet)
    found = read_video(tmp_path / "cut.mp4")
    assert len(found) == 12 and found[0].mean() == pytest.approx(168, abs=4)
    assert read_fps(tmp_path / "cut.mp4") == 8
