"""Lighter decoders of a generator's latents: each equals what it says it is, and one that does not fit is named."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from generators.core.decoding import Decoding, decode_frames, open_lighter, psnr, squared_error
from generators.core.load import load_generator
from generators.core.size import VideoSize
from generators.decoders.lighter import DecoderPlace, check_fit, load_lighter
from tests.support.lighter import save_taehv, save_vae

VAE = "models/tabletop/generator/vae"
SIZE = VideoSize(num_frames=9, height=32, width=32, fps=8)
PLAIN = Decoding("plain", window=2, overlap=1, tile=None, tile_overlap=0, offload=False, straight_through=False)
EXACT, WINDOWED = replace(PLAIN, mode="exact"), replace(PLAIN, mode="windowed")


def given(path, kind: str = "diffusers", mode: Decoding = EXACT) -> Decoding:
    return replace(mode, decoder=DecoderPlace(kind, str(path)))


@pytest.fixture(scope="module")
def tabletop():
    return load_generator("wan", "models/tabletop/generator", SIZE, parts=("vae",))


@pytest.fixture(scope="module")
def clip():
    return torch.randn(1, 12, 5, 8, 8, generator=torch.Generator().manual_seed(0))


def decoded(generator, latents, decoding):
    """Frames of a clip, and its latents' gradient."""
    leaf = latents.clone().requires_grad_()
    frames = decode_frames(generator, leaf, range(9), decoding, open_lighter(generator, decoding, "cpu"))
    (frames * torch.linspace(-1, 1, frames.numel()).view_as(frames)).sum().backward()
    return frames.detach(), leaf.grad


def test_the_generators_own_vae_as_a_lighter_decoder_changes_nothing(tabletop, clip):
    for mode in (PLAIN, EXACT, WINDOWED):
        frames, gradient = decoded(tabletop, clip, given(VAE, mode=mode))
        expected, expected_gradient = decoded(tabletop, clip, mode)
        assert torch.equal(frames, expected) and torch.equal(gradient, expected_gradient)


def test_psnr_is_by_hand_that_of_the_mean_squared_difference(tabletop, clip, tmp_path):
    """0.1 off everywhere is 0.01 squared: 20 dB. Of two decoders it is that of all pixels of their frames."""
    assert psnr(0.01) == pytest.approx(20) and psnr(0.0) == math.inf
    decoding = given(save_vae(tmp_path / "vae"))
    lighter = open_lighter(tabletop, decoding, "cpu")
    difference = decoded(tabletop, clip, decoding)[0] - tabletop.decode_float(clip)[0]
    assert squared_error(tabletop, clip, decoding, lighter) == pytest.approx(difference.square().mean().item())
    own = given(VAE)
    assert squared_error(tabletop, clip, own, open_lighter(tabletop, own, "cpu")) < 1e-10


def test_the_clips_that_people_see_do_not_change_with_the_lighter_decoder(tabletop, clip, tmp_path):
    decoding = given(save_vae(tmp_path / "vae"))
    before = tabletop.decode(clip)
    frames, _ = decoded(tabletop, clip, decoding)
    assert torch.equal(tabletop.decode(clip), before)
    assert (frames - before[0] / 255).abs().mean() > 0.05


def test_a_tiny_image_decoder_equals_its_own_decode_of_each_frame(tmp_path):
    from diffusers import AutoencoderTiny

    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    vae = AutoencoderTiny(latent_channels=4, **widths, **blocks).eval()
    vae.save_pretrained(tmp_path / "taesd")
    decoder = load_lighter(DecoderPlace("diffusers", str(tmp_path / "taesd")), "cpu")
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    frames = torch.cat([decoder.frames.step(latents[:, :, place : place + 1], ())[0] for place in range(3)])

    with torch.no_grad():
        expected = (vae.decode(latents[0].transpose(0, 1)).sample / 2 + 0.5).permute(0, 2, 3, 1)
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
    assert (decoder.channels, decoder.frames.spatial, decoder.normalised) == (4, 4, True)


# TAEHV


@pytest.fixture
def taehv(tmp_path):
    return load_lighter(DecoderPlace("taehv", str(save_taehv(tmp_path / "tae.safetensors", 4, patch=2))), "cpu")


def one_by_one(decoder, latents):
    state, parts = (), []
    for group in decoder.frames.groups(latents.shape[2]):
        frames, state = decoder.frames.step(latents[:, :, group.start : group.stop], state)
        assert len(frames) == len(decoder.frames.frames_of(group))
        parts.append(frames)
    return torch.cat(parts)


def test_taehv_one_latent_frame_at_a_time_equals_the_whole_clip_at_once(taehv):
    """At once, each block sees every frame beside the one before it, and zeros beside the first."""
    latents = torch.randn(1, 4, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    hidden = latents[0].transpose(0, 1)
    for layer in taehv.frames.decoder:
        several = hasattr(layer, "conv") and isinstance(layer.conv, torch.nn.Sequential)
        hidden = layer(hidden, functional.pad(hidden, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]) if several else layer(hidden)
    expected = functional.pixel_shuffle(hidden, 2).permute(0, 2, 3, 1)[3:]

    frames = one_by_one(taehv, latents)

    assert frames.shape == (13, 48, 32, 3)  # 4 n - 3 frames; 8 times 2 pixels to a latent pixel
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)


def test_in_taehv_a_latent_frame_changes_its_own_frames_and_later_ones_alone(taehv):
    latents = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    other = latents.clone()
    other[:, :, 1] += 1
    change = (one_by_one(taehv, other) - one_by_one(taehv, latents)).abs().amax((1, 2, 3))
    assert not change[:1].any() and (change[1:5] > 0).all()


def test_of_a_growth_that_was_trained_with_more_frames_the_last_is_taken(tmp_path):
    """taew2_1's first level was trained to double the frames and is used with one."""
    once, twice = (
        load_lighter(DecoderPlace("taehv", str(save_taehv(tmp_path / f"{n}.safetensors", 4, first_grows=n))), "cpu")
        for n in (1, 2)
    )
    latents = torch.randn(1, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one_by_one(once, latents), one_by_one(twice, latents))


def test_taehv_decodes_in_every_mode_with_gradient(tmp_path, tiny_model):
    """On Wan2.1's layout: 16 channels in the published files, 4 here; windows are near the whole, not equal."""
    from generators.tiny.variants import VARIANTS

    variant = VARIANTS["wan2.1-t2v"]
    size = VideoSize(variant.num_frames, variant.height, variant.width, 8)
    generator = load_generator("wan", str(tiny_model("wan2.1-t2v")), size, max_prompt_tokens=12, parts=("vae",))
    decoding = given(save_taehv(tmp_path / "tae.safetensors", generator.latent_shape[0]), "taehv")
    latents = generator.draw_noise([1], generator.latent_shape)
    lighter = open_lighter(generator, decoding, "cpu")
    leaf = latents.clone().requires_grad_()
    frames = decode_frames(generator, leaf, range(size.num_frames), decoding, lighter)
    frames.sum().backward()
    assert leaf.grad.abs().sum() > 0
    windows = decode_frames(generator, latents, range(size.num_frames), replace(decoding, mode="windowed"), lighter)
    assert windows.shape == frames.shape


# What does not fit


def test_what_does_not_fit_is_named_without_reading_weights(tabletop, tmp_path):
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        save_taehv(tmp_path / f"two/{name}.safetensors", 12)
    save_vae(tmp_path / "narrow", z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    save_vae(tmp_path / "slow", temperal_downsample=[False], scale_factor_temporal=1)
    taehv = save_taehv(tmp_path / "tae.safetensors", 12)
    for path, kind, message in (
        (tmp_path / "narrow", "diffusers", "decoder: it takes latents of 4 channels, the generator's have 12"),
        (
            tmp_path / "slow",
            "diffusers",
            "decoder: 5 latent frames of height 8 become 5 frames of height 32, and a clip",
        ),
        (taehv, "taehv", "decoder: 5 latent frames of height 8 become 17 frames of height 64, and a clip has 9 of"),
        (tmp_path / "gone", "diffusers", "decoder: .*gone: "),
        (tmp_path / "two", "taehv", "decoder: .*two: 2 safetensors files, expected one"),
        (VAE + "/diffusion_pytorch_model.safetensors", "taehv", "has no layers of TAEHV's base form"),
        (VAE, "tiny", "decoder.kind is 'tiny'; known are diffusers, taehv, and dotted paths"),
    ):
        with pytest.raises(ValueError, match=message):
            open_lighter(tabletop, given(path, kind), "meta")


def test_a_decoder_on_the_meta_device_has_no_weights(tmp_path):
    for place in (
        DecoderPlace("diffusers", VAE),
        DecoderPlace("taehv", str(save_taehv(tmp_path / "t.safetensors", 12))),
    ):
        frames = load_lighter(place, "meta").frames
        module = frames.vae if hasattr(frames, "vae") else frames.decoder
        assert all(one.is_meta for one in module.parameters())


def test_a_decoder_that_fits_passes(tabletop):
    check_fit(load_lighter(DecoderPlace("diffusers", VAE), "meta"), (12, 5, 8), (9, 32))
