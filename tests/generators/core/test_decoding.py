"""Decoding in bounded memory: equal to the VAE's own decode where it claims to be, and near it where it does not."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from generators.core.decoding import MODES, Decoding, compare, decode_frames, ramps, spans
from generators.core.load import load_generator
from generators.core.size import VideoSize
from generators.decoders.wan import WanFrameDecoder
from tabletop.captions import Claim, Thing
from tabletop.render import render
from tabletop.scenes import make_scene
from tests.support.decoders import WAN22, OnlyVae, cogvideox, deep

SIZE = VideoSize(num_frames=29, height=32, width=32, fps=8)
PLAIN = Decoding("plain", window=4, overlap=1, tile=None, tile_overlap=0, offload=False, straight_through=False)
EXACT = dataclasses.replace(PLAIN, mode="exact")
WINDOWED = dataclasses.replace(PLAIN, mode="windowed")


def windowed(**changes) -> Decoding:
    return dataclasses.replace(WINDOWED, **changes)


@pytest.fixture(scope="module")
def tabletop():
    """The shipped generator: a VAE with patches, one temporal upsampling."""
    return load_generator("wan", "models/tabletop/generator", SIZE, parts=("vae",))


@pytest.fixture(scope="module")
def clip(tabletop):
    """Latents (1, 12, 15, 8, 8) of 29 frames: a cube is pushed to the right, back, again, and half the way back."""
    there = render(make_scene(Claim("push_right", (Thing("red", "cube"),)), np.random.default_rng(0)))
    frames = np.concatenate([there, there[-2::-1], there[1:], there[-2:-6:-1]])
    return tabletop.encode(torch.from_numpy(frames)[None])


CASES = {  # by name, a generator and the channels of its latents
    "tabletop": (lambda: load_generator("wan", "models/tabletop/generator", SIZE, parts=("vae",)), 12),
    "wan2.1": (deep, 16),
    "wan2.2": (lambda: deep(**WAN22), 16),
    "cogvideox": (cogvideox, 4),
}


@pytest.fixture(scope="module", params=[pytest.param(c, marks=pytest.mark.ci) if c == "wan2.2" else c for c in CASES])
def case(request):
    """A generator and latents of it: 7 latent frames."""
    make, channels = CASES[request.param]
    return make(), torch.randn(1, channels, 7, 4, 4, generator=torch.Generator().manual_seed(0))


def decoded(generator, latents, indices, decoding):
    """Frames, and the latents' gradient for a cotangent that grows from frame to frame and pixel to pixel."""
    leaf = latents.clone().requires_grad_()
    frames = decode_frames(generator, leaf, indices, decoding)
    (frames * torch.linspace(-1, 1, frames.numel()).view_as(frames)).sum().backward()
    return frames.detach(), leaf.grad


# Equal where it must be


@pytest.mark.parametrize("latent_frames", [2, 7])
def test_the_plain_decode_is_the_vaes(case, latent_frames):
    generator, latents = case
    leaf = latents[:, :, :latent_frames].clone().requires_grad_()
    expected = generator.decode_float(leaf)[0]
    frames, gradient = decoded(generator, leaf.detach(), range(len(expected)), PLAIN)
    torch.testing.assert_close(frames, expected.detach(), atol=1e-6, rtol=0)
    (expected * torch.linspace(-1, 1, expected.numel()).view_as(expected)).sum().backward()
    torch.testing.assert_close(gradient, leaf.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("latent_frames", [1, 2, 3, 7])
def test_exact_equals_plain_in_pixels_and_gradients(case, latent_frames):
    generator, latents = case
    latents = latents[:, :, :latent_frames]
    indices = range(generator.decode_float(latents).shape[1])
    frames, gradient = decoded(generator, latents, indices, EXACT)
    expected, expected_gradient = decoded(generator, latents, indices, PLAIN)
    assert expected_gradient.abs().sum() > 0
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


def test_one_window_over_everything_equals_plain(case):
    generator, latents = case
    indices = range(generator.decode_float(latents).shape[1])
    frames, gradient = decoded(generator, latents, indices, windowed(window=7, overlap=2, tile=4))
    expected, expected_gradient = decoded(generator, latents, indices, PLAIN)
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("decoding", [PLAIN, EXACT, windowed(tile=5, tile_overlap=2)], ids=lambda d: d.mode)
def test_frames_come_in_the_order_of_the_indices_and_as_often(tabletop, clip, decoding):
    everything = decode_frames(tabletop, clip, range(29), decoding)
    assert everything.shape == (29, 32, 32, 3) and everything.dtype == torch.float32
    assert everything.min() >= 0 and everything.max() <= 1
    torch.testing.assert_close(decode_frames(tabletop, clip, [9, 2, 9], decoding), everything[[9, 2, 9]])


def test_cogvideox_decodes_two_latent_frames_at_a_time_and_an_odd_one_more_with_the_first():
    # 1, 4, 4 … frames of an odd number of latent frames, 4, 4 … of an even number
    decoder = cogvideox().frame_decoder()
    for latent_frames, groups, frames in (
        (1, [range(1)], [range(1)]),
        (4, [range(2), range(2, 4)], [range(8), range(8, 16)]),
        (7, [range(3), range(3, 5), range(5, 7)], [range(9), range(9, 17), range(17, 25)]),
    ):
        assert decoder.groups(latent_frames) == groups
        assert [decoder.frames_of(group) for group in groups] == frames


@pytest.mark.parametrize("decoding", [PLAIN, EXACT, windowed(window=2, overlap=1)], ids=lambda d: d.mode)
def test_latent_frames_that_only_fill_a_patch_are_neither_shown_nor_changed(decoding):
    latents = torch.randn(1, 4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    frames, gradient = decoded(cogvideox(padding=1), latents, [0, 16], decoding)
    expected, expected_gradient = decoded(cogvideox(), latents[:, :, 1:], [0, 16], decoding)
    assert torch.equal(frames, expected)
    assert torch.equal(gradient[:, :, 1:], expected_gradient) and not gradient[:, :, :1].any()


def test_decoding_equals_cogvideox_1_5_whose_latents_are_padded_to_whole_patches():
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    generator = cogvideox(padding=1)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=1, sample_width=4, sample_height=4, sample_frames=9, patch_size=2, patch_size_t=2,
        max_text_seq_length=4, use_rotary_positional_embeddings=True, patch_bias=False,
    )  # fmt: skip
    generator.vae.register_to_config(scaling_factor=generator.scale)
    stock = CogVideoXPipeline(None, None, generator.vae, transformer, CogVideoXDDIMScheduler())
    stock.set_progress_bar_config(disable=True)
    common = {
        "prompt_embeds": torch.zeros(1, 4, 16), "guidance_scale": 1.0, "num_inference_steps": 2, "num_frames": 9,
        "height": 32, "width": 32,
    }  # fmt: skip
    latents, frames = (
        stock(**common, output_type=kind, generator=torch.Generator().manual_seed(0)).frames
        for kind in ("latent", "np")
    )
    latents = latents.transpose(1, 2)
    assert latents.shape[2] == 4 and frames.shape[1] == 9
    expected = torch.from_numpy(frames[0])
    torch.testing.assert_close(decode_frames(generator, latents, range(9), EXACT), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(generator.decode_float(latents)[0], expected, atol=1e-5, rtol=0)


# Nothing more than needed


@pytest.mark.parametrize("mode", MODES)
def test_nothing_after_the_last_wanted_frame_is_decoded(tabletop, clip, mode):
    # frames 1 and 2 are latent frame 1, so frame 4 is the second of latent frame 2
    beyond = clip.clone()
    beyond[:, :, 3:] = math.nan
    frames, gradient = decoded(tabletop, beyond, [0, 4], windowed(mode=mode))
    assert frames.isfinite().all()
    assert gradient[:, :, :3].isfinite().all() and gradient[:, :, 2].any() and not gradient[:, :, 3:].any()


@pytest.mark.parametrize("mode", MODES)
def test_no_group_after_that_of_the_last_wanted_frame_is_decoded(mode):
    # frame 10 is the second of latent frames 3 and 4
    latents = torch.randn(1, 4, 7, 4, 4, generator=torch.Generator().manual_seed(0))
    latents[:, :, 5:] = math.nan
    frames, gradient = decoded(cogvideox(), latents, [0, 10], windowed(mode=mode, window=2))
    assert frames.isfinite().all()
    assert gradient[:, :, :5].isfinite().all() and gradient[:, :, 4].any() and not gradient[:, :, 5:].any()


def test_only_windows_with_a_wanted_frame_are_decoded(tabletop, clip, monkeypatch):
    # windows over latent frames 0-3, 4-7, 8-11 and 11-14; frame 17 is the first of latent frame 9, in the third window,
    # which begins two latent frames before its own: 6, 7, 8, 9
    calls = []
    upsample = WanFrameDecoder.upsample
    monkeypatch.setattr(WanFrameDecoder, "upsample", lambda *args: calls.append(1) or upsample(*args))
    with torch.no_grad():
        decode_frames(tabletop, clip, [17], windowed(overlap=0))
    assert len(calls) == 4


def held(generator, latents, indices, decoding) -> int:
    """Bytes that wait for the backward pass between it and the forward, the VAE's weights left out."""
    sizes = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in generator.component("vae").parameters()}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaf = latents.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        frames = decode_frames(generator, leaf, indices, decoding)
    assert frames.requires_grad
    return sum(size for pointer, size in sizes.items() if pointer not in weights) - leaf.untyped_storage().nbytes()


def test_what_waits_for_the_backward_does_not_grow_with_the_clip(case):
    generator, latents = case
    longer = torch.cat([latents] * 3, dim=2)
    decoder = generator.frame_decoder()
    last, later = (decoder.frames_of(decoder.groups(count)[-1]).start for count in (7, 21))
    short, long = [0, last // 2, last], [0, last // 2, later]
    plain, exact, windows = (
        (held(generator, latents, short, way), held(generator, longer, long, way)) for way in (PLAIN, EXACT, WINDOWED)
    )
    grown = plain[1] - plain[0]
    assert grown > 1.4 * plain[0]  # 7 latent frames against 21
    assert exact[1] - exact[0] < 0.05 * grown and exact[1] < 0.1 * plain[1]
    assert windows[1] - windows[0] < 0.01 * grown and windows[1] < 0.02 * plain[1]


def test_exact_computes_a_step_three_or_four_times(tabletop, clip, monkeypatch):
    # Halves of 15 are 7, 4, 2, 1, 1. With T(n) the steps computed in all, T(2) = 2 + 1 + 1, T(3) = 6, T(4) = 4 + T(2) +
    # 1 + 1 = 10, T(7) = 7 + T(3) + T(2) + 1 + 1 = 19, T(15) = 15 + T(7) + T(4) + T(2) + 1 + 1 = 50; torch leaves out
    # the end of a part where nothing more of it is needed.
    calls = []
    step = WanFrameDecoder.step
    monkeypatch.setattr(WanFrameDecoder, "step", lambda *args: calls.append(1) or step(*args))
    decoded(tabletop, clip, [0, 28], EXACT)
    assert 15 + 15 <= len(calls) <= 50


# Windows


def test_windows_share_the_overlap_and_the_last_ends_with_the_axis():
    assert spans(10, 4, 1) == [range(4), range(3, 7), range(6, 10)]
    assert spans(9, 4, 1) == [range(4), range(3, 7), range(5, 9)]  # moved back by one
    assert spans(8, 4, 0) == [range(4), range(4, 8)]
    assert spans(3, 4, 1) == spans(3, 3, 2) == [range(3)]


def test_ramps_by_hand():
    first, second = ramps([range(4), range(2, 6)])
    assert first.tolist() == [1, 1, 0.75, 0.25]  # the overlap is 2 and 3: the second rises 0.5 / 2, 1.5 / 2
    assert second.tolist() == [0.25, 0.75, 1, 1]
    assert [ramp.tolist() for ramp in ramps([range(2), range(2, 4)])] == [[1, 1], [1, 1]]
    # one shared place halves: 0.5 / 1
    assert [ramp.tolist() for ramp in ramps([range(2), range(1, 3)])] == [[1, 0.5], [0.5, 1]]


def test_weights_sum_to_one_at_every_place():
    for length, size, overlap in ((10, 4, 1), (9, 4, 3), (7, 4, 2), (23, 6, 5), (5, 5, 4), (6, 1, 0)):
        windows = spans(length, size, overlap)
        total = torch.zeros(length)
        for window, ramp in zip(windows, ramps(windows), strict=True):
            assert len(ramp) == len(window) and (ramp > 0).all(), (length, size, overlap)
            total[window.start : window.stop] += ramp
        torch.testing.assert_close(total, torch.ones(length))


def test_a_window_in_the_middle_shows_the_frames_of_its_own_time(tabletop, clip):
    plain = decode_frames(tabletop, clip, range(29), PLAIN)
    frames = decode_frames(tabletop, clip, range(29), WINDOWED)
    for index in range(1, 28):  # where the cube turns round, the frames before and after are alike
        errors = [(frames[index] - plain[near]).square().mean() for near in (index - 1, index, index + 1)]
        assert min(errors) == errors[1]


def jumps(clip: torch.Tensor, dim: int) -> torch.Tensor:
    """Root mean square of the change from each place to the next along an axis of (F, H, W, 3)."""
    return clip.diff(dim=dim).square().mean([axis for axis in range(4) if axis != dim]).sqrt()


def test_no_seam_between_windows(tabletop, clip):
    # The clip moves by 0.025 to 0.075 from frame to frame. Without overlap the error jumps by a fifth of that where a
    # window begins beside a frame that hardly moves.
    plain = decode_frames(tabletop, clip, range(29), PLAIN)
    limit = 0.1 * jumps(plain, 0)
    blended = decode_frames(tabletop, clip, range(29), windowed(overlap=1)) - plain
    assert (jumps(blended, 0) < limit).all()
    cut = decode_frames(tabletop, clip, range(29), windowed(overlap=0)) - plain
    assert not (jumps(cut, 0) < limit).all()


@pytest.mark.parametrize("axis", [1, 2])
def test_no_seam_between_tiles(tabletop, clip, axis):
    wanted = [0, 5, 14]
    plain = decode_frames(tabletop, clip, wanted, PLAIN)
    sharpest = jumps(plain, axis).max()  # an edge of the cube or the table
    blended = decode_frames(tabletop, clip, wanted, windowed(window=15, tile=6, tile_overlap=4)) - plain
    assert jumps(blended, axis).max() < 0.1 * sharpest
    cut = decode_frames(tabletop, clip, wanted, windowed(window=15, tile=4, tile_overlap=0)) - plain
    assert jumps(cut, axis).max() > 0.8 * sharpest
    assert jumps(cut, axis).argmax() in (15, 16)  # between the tiles, pixels 0 to 15 and 16 to 31


@pytest.mark.ci
def test_the_error_shrinks_as_windows_overlap_more(tabletop, clip):
    wanted = range(11, 29, 2)
    cut, blended = (compare(tabletop, clip, wanted, windowed(overlap=overlap)) for overlap in (0, 3))
    assert 48 < cut.psnr < 53 and blended.psnr > 57
    assert 0.99 < cut.gradient_cosine < 0.998 < blended.gradient_cosine


@pytest.mark.ci
def test_the_error_shrinks_as_tiles_grow_and_overlap(tabletop, clip):
    latents, tiles = clip[:, :, :5], ((4, 0), (4, 1), (7, 6))
    found = [
        compare(tabletop, latents, [8], windowed(window=5, tile=tile, tile_overlap=overlap)) for tile, overlap in tiles
    ]
    assert [one.psnr > least for one, least in zip(found, (20, 38, 50), strict=True)] == [True] * 3
    cosines = [one.gradient_cosine for one in found]
    assert sorted(found) == found and sorted(cosines) == cosines
    assert cosines[0] < 0.9 and cosines[1] > 0.95 and cosines[2] > 0.998


@pytest.mark.ci
def test_windows_and_tiles_of_cogvideox_come_nearer_as_they_grow():
    generator, draws = cogvideox(), torch.Generator().manual_seed(0)
    long, wide = torch.randn(1, 4, 9, 2, 2, generator=draws), torch.randn(1, 4, 2, 6, 6, generator=draws)
    windows = [compare(generator, long, [20, 32], windowed(window=size, overlap=size // 2)) for size in (1, 2, 3)]
    tiles = [
        compare(generator, wide, [4], windowed(tile=tile, tile_overlap=overlap)) for tile, overlap in ((3, 0), (5, 4))
    ]
    assert sorted(windows) == windows and sorted(tiles) == tiles
    # windows of 1 and 2 of the 4 groups, and of 3, which begins with the clip: a lead of 2 latent frames is one group
    assert 25 < windows[0].psnr < 35 < windows[1].psnr < 45 and windows[2].psnr > 100
    assert 20 < tiles[0].psnr < 30 < tiles[1].psnr < 40
    assert 0.7 < tiles[0].gradient_cosine < windows[0].gradient_cosine < 0.9
    assert 0.9 < tiles[1].gradient_cosine < windows[1].gradient_cosine < windows[2].gradient_cosine


@pytest.mark.ci
def test_windows_of_a_deep_decoder_come_nearer_as_they_grow():
    # Random weights look back over all latent frames alike, where trained ones look at the last most; so do these.
    generator, latents = deep(), torch.randn(1, 16, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    for module in generator.component("vae").decoder.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
            module.weight[:, :, :2] *= 0.2
    ways = [windowed(window=window, overlap=0) for window in (2, 4, 6)]  # the last window of 6 begins with the clip
    short, longer, whole = (compare(generator, latents, [28], way) for way in ways)
    assert 30 < short.psnr < 40 and 45 < longer.psnr < 60
    assert short.gradient_cosine < 0.9 < longer.gradient_cosine
    assert whole.psnr > 100 and whole.gradient_cosine == pytest.approx(1, abs=1e-5)


def test_the_plain_decode_agrees_with_itself(tabletop, clip):
    fidelity = compare(tabletop, clip, [3, 9], PLAIN)
    assert fidelity.psnr > 100 and fidelity.gradient_cosine == pytest.approx(1, abs=1e-5)


# Pixels beyond black and white


def bright(generator, latents):
    """The latents' gradient of the sum of all frames as they leave the decoder, and those frames."""
    leaf = latents.clone().requires_grad_()
    decoder, state, frames = generator.frame_decoder(), (), []
    for latent in generator.vae_latents(leaf).split(1, dim=2):
        decoded, state = decoder.step(latent, state)
        frames.append(decoded)
    torch.cat(frames).sum().backward()
    return torch.cat(frames).detach(), leaf.grad


@pytest.mark.parametrize("decoding", [PLAIN, EXACT, windowed(window=7)], ids=lambda d: d.mode)
def test_straight_through_clamps_the_value_and_not_the_gradient(tabletop, clip, decoding):
    latents = 6 * clip[:, :, :7]
    unclamped, expected = bright(tabletop, latents)
    assert (unclamped < 0).any() and (unclamped > 1).any()
    leaf = latents.clone().requires_grad_()
    frames = decode_frames(tabletop, leaf, range(13), dataclasses.replace(decoding, straight_through=True))
    torch.testing.assert_close(frames, unclamped.clamp(0, 1), atol=1e-6, rtol=0)
    frames.sum().backward()
    torch.testing.assert_close(leaf.grad, expected, atol=1e-5, rtol=1e-4)


def test_without_it_clamped_pixels_pass_no_gradient(tabletop, clip):
    latents = (6 * clip[:, :, :7]).requires_grad_()
    frames = decode_frames(tabletop, latents, range(13), EXACT)
    clamped = (frames <= 0) | (frames >= 1)
    assert clamped.any()
    frames[clamped].sum().backward()
    assert not latents.grad.any()


@pytest.mark.gpu
def test_state_on_the_host_changes_nothing(tabletop, clip):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    on_gpu = load_generator("wan", "models/tabletop/generator", SIZE, device="cuda", parts=("vae",))
    frames, gradient = decoded(on_gpu, clip.cuda(), range(29), dataclasses.replace(EXACT, offload=True))
    expected, expected_gradient = decoded(on_gpu, clip.cuda(), range(29), PLAIN)
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-3)


# Bad input


def test_an_overlap_as_long_as_what_it_overlaps_is_an_error():
    for size, overlap in (("window", "overlap"), ("tile", "tile_overlap")):
        with pytest.raises(ValueError, match=f"{overlap} is 3, expected less than {size}, which is 3"):
            windowed(**{size: 3, overlap: 3})


def test_a_frame_that_the_clip_lacks_is_an_error(tabletop, clip):
    for indices, message in (
        ([0, 29], "frame 29 is beyond the clip, whose 29 frames are 0 to 28"),
        ([-1], "frame -1 is beyond the clip"),
        ([], "indices: empty, at least one frame is decoded"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_frames(tabletop, clip, indices, WINDOWED)


def test_a_vae_without_such_a_decoder_is_an_error():
    from diffusers import AutoencoderKLMochi

    with torch.device("meta"):
        vae = AutoencoderKLMochi()
    known = "known are AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo, "
    known += "AutoencoderKLLTXVideo, AutoencoderKLWan"
    with pytest.raises(ValueError, match=f"vae: no decoder .* for class AutoencoderKLMochi; {known}"):
        decode_frames(OnlyVae(vae, 1.0), torch.zeros(1, 128, 1, 2, 2), [0], PLAIN)


def test_two_clips_at_once_are_an_error(tabletop, clip):
    with pytest.raises(ValueError, match="latents: found 2 clips"):
        decode_frames(tabletop, clip.expand(2, -1, -1, -1, -1), [0], WINDOWED)
