"""AutoencoderKLHunyuanVideo's decoder by tiles against the stock decode, whose clips are longer than one tile."""

import copy
import math

import pytest
import torch

from generators.core.decoding import MODES, Decoding, decode_frames
from generators.decoders.decoder import frame_decoder
from tests.support.decoders import OnlyVae


@pytest.fixture(scope="module")
def vae():
    """Of random weights, tiles of 16 frames at every 12, as the published one."""
    from diffusers import AutoencoderKLHunyuanVideo

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2
        ).eval()


def latents_of(count: int, size: int = 2) -> torch.Tensor:
    return torch.randn(1, 4, count, size, size, generator=torch.Generator().manual_seed(0))


def stock(vae, latents):
    """Frames (F, H, W, 3) of the stock decode and the latents' gradient for `cotangent`."""
    leaf = latents.clone().requires_grad_()
    pixels = (vae.decode(leaf / 0.5).sample / 2 + 0.5)[0].permute(1, 2, 3, 0)
    pixels.backward(cotangent(pixels))
    return pixels.detach(), leaf.grad


def ours(vae, latents, indices, mode="exact", window=2):
    leaf = latents.clone().requires_grad_()
    decoding = Decoding(mode, window, 1, tile=None, tile_overlap=0, offload=False, straight_through=True)
    frames = decode_frames(OnlyVae(copy.deepcopy(vae), scale=0.5), leaf, indices, decoding)
    frames.backward(cotangent(frames))
    return frames.detach(), leaf.grad


def cotangent(frames):
    return torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["plain", "exact"])
@pytest.mark.parametrize("count", [1, 4, 5, 6, 7, 8, 11])
def test_tiles_give_the_stock_decode_in_value_and_gradient(vae, count, mode):
    latents = latents_of(count)
    expected, expected_gradient = stock(vae, latents)

    frames, gradient = ours(vae, latents, range(len(expected)), mode)

    assert len(expected) == 4 * count - 3
    torch.testing.assert_close(frames, expected.clamp(0, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)
    assert expected_gradient.abs().max() > 1e-3


def test_other_tiles_of_the_vae_are_taken_over(vae):
    vae = copy.deepcopy(vae)
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = 16, 8
    for count in (4, 5, 6, 7, 9):
        expected, expected_gradient = stock(vae, latents_of(count))
        frames, gradient = ours(vae, latents_of(count), range(len(expected)))
        torch.testing.assert_close(frames, expected.clamp(0, 1), atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


def test_spatial_tiles_of_the_vae_are_decoded_as_the_vae_does(vae):
    vae = copy.deepcopy(vae)
    vae.enable_tiling(32, 32, None, 24, 24, None)  # pixels: 4 latent ones, every 3
    latents = latents_of(6, size=6)
    expected, expected_gradient = stock(vae, latents)

    frames, gradient = ours(vae, latents, range(21))

    torch.testing.assert_close(frames, expected.clamp(0, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)
    vae.disable_tiling()
    assert (stock(vae, latents)[0] - expected).abs().max() > 1e-3


def test_tiles_and_their_frames_by_hand(vae):
    # a tile begins every 3 latent frames and has 5; its frames end where those of the next begin
    decoder = frame_decoder(copy.deepcopy(vae))
    for count, groups, frames in (
        (4, [range(4)], [range(13)]),
        (5, [range(5), range(3, 5)], [range(13), range(13, 17)]),
        (7, [range(5), range(3, 7)], [range(13), range(13, 25)]),
        (8, [range(5), range(3, 8), range(6, 8)], [range(13), range(13, 25), range(25, 29)]),
    ):
        assert decoder.groups(count) == groups
        assert [decoder.frames_of(group) for group in groups] == frames


@pytest.mark.parametrize("mode", MODES)
def test_no_tile_after_that_of_the_last_wanted_frame_is_decoded(vae, mode):
    # frame 14 is of the second tile, of latent frames 3 to 7
    latents = latents_of(11)
    latents[:, :, 8:] = math.nan

    frames, gradient = ours(vae, latents, [0, 14], mode)

    assert frames.isfinite().all()
    assert gradient[:, :, :8].isfinite().all() and gradient[:, :, 7].any() and not gradient[:, :, 8:].any()


def test_windows_of_tiles_show_the_frames_of_their_own_time(vae):
    """A window begins with a tile that is not blended with the one before, whose own frames it leaves out."""
    latents = latents_of(14)
    expected, expected_gradient = ours(vae, latents, range(53), "exact")

    for window in (2, 9):
        frames, gradient = ours(vae, latents, range(53), "windowed", window)
        torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-3)
