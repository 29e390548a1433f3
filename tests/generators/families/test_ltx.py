"""What LTX-Video alone has: noise levels, positions in seconds, and a VAE that takes a time and noise."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from generators.core.decoding import Decoding, decode_frames
from generators.core.load import examine_generator, load_generator
from generators.core.size import VideoSize
from tests.support.stock import load_stock

SIZE = VideoSize(9, 32, 32, 8)  # 3 x 8 x 8 latents
EXACT = Decoding("exact", window=2, overlap=1, tile=None, tile_overlap=0, offload=False, straight_through=False)
close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


@pytest.fixture
def ltx(tiny_model):
    """Loads a release, by default with its VAE alone."""

    def load(release="0.9.1", size=SIZE, parts=("vae",)):
        folder = str(tiny_model(f"ltx{release}-ti2v"))
        return load_generator("ltx", folder, size, max_prompt_tokens=16, parts=parts)

    return load


def test_the_shift_follows_the_number_of_tokens_where_the_scheduler_says_so(ltx):
    """mu = .95 + 1.1 (tokens - 1024) / 3072, shift = e^mu: 192 tokens .6521, 768 tokens .8583."""
    assert ltx("0.9").process.shift == pytest.approx(1.9195, abs=1e-3)
    assert ltx("0.9", replace(SIZE, height=64, width=64)).process.shift == pytest.approx(2.3592, abs=1e-3)
    assert ltx("0.9.7").process.shift == 1


def test_the_last_noise_level_is_shift_terminal(ltx):
    """1, .75, .5, .25 under shift 1.9195 are 1, .8520, .6575, .3902; then 1 - σ is divided by (1 - .3902) / .9."""
    close(ltx("0.9").solver("euler", 4).sigmas, torch.tensor([1, 0.7816, 0.4945, 0.1, 0]))


def test_an_ltx_condition_pipelines_noise_levels_fall_evenly_and_then_as_a_parabola(ltx):
    """4 steps: two by .0125; then (1 - 4 * .0125) / 2² = .2375 makes the third 1 - 3 * .0125 - .2375."""
    close(ltx("0.9.7").solver("euler", 4).sigmas, torch.tensor([1, 0.9875, 0.975, 0.725, 0]))
    close(ltx("0.9.7").solver("euler", 1).sigmas, torch.tensor([1.0, 0]))


def test_one_step_is_refused_where_the_noise_levels_end_above_zero(ltx):
    for solver in ("euler", "unipc"):
        with pytest.raises(ValueError, match="^steps: 1, but .* end at 0.1"):
            ltx("0.9").solver(solver, 1)


def test_time_is_in_seconds_and_the_first_latent_frame_of_a_condition_pipeline_is_one_frame(ltx):
    seconds, rows, columns = ltx("0.9.7")._positions(torch.zeros(1, 8, 3, 8, 8))[0].unflatten(1, (3, 8, 8))
    close(seconds[:, 0, 0], torch.tensor([0, 1 / 8, 5 / 8]))
    close(rows[0, :, 0], 4.0 * torch.arange(8))
    close(columns[0, 0], 4.0 * torch.arange(8))


@pytest.mark.parametrize("release", ["0.9", "0.9.7"])
def test_the_frame_rate_changes_the_prediction(ltx, release):
    parts = ("denoiser", "text")
    slow, fast = (ltx(release, replace(SIZE, fps=fps), parts) for fps in (8, 24))
    text = slow.encode_text(["red ball"])
    latents = slow.draw_noise([0], slow.latent_shape)
    with torch.no_grad():
        predictions = [one.predict(latents, torch.tensor([0.5]), text) for one in (slow, fast)]
    assert (predictions[0] - predictions[1]).abs().max() > 0.01


@pytest.mark.parametrize("release", ["0.9.1", "0.9.7"])
def test_a_clip_decodes_to_the_same_pixels_in_any_batch_and_leaves_random_numbers_alone(ltx, release):
    generator = ltx(release)
    latents = generator.draw_noise([1, 2], generator.latent_shape)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    together = generator.decode_float(latents)

    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(generator.decode_float(latents), together)
    for row in (0, 1):
        close(generator.decode_float(latents[[row]])[0], together[row])


def test_the_layers_of_091_add_noise_and_a_vae_that_takes_a_time_decodes_noisy_latents(ltx):
    from generators.decoders import ltx as decoder

    for release, in_layers, in_latents in (("0.9", False, False), ("0.9.1", True, True), ("0.9.7", False, True)):
        generator = ltx(release)
        vae = generator.component("vae")
        latents = generator.draw_noise([1], generator.latent_shape)
        noisy = decoder.with_noise(vae, latents)
        pixels = decoder.decode(vae, latents)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder, "SEED", 1)
            assert torch.equal(decoder.decode(vae, latents), pixels) != in_layers, release
            assert torch.equal(decoder.with_noise(vae, latents), noisy) != in_latents, release
        assert torch.equal(noisy, latents) != in_latents, release


def test_the_gradient_belongs_to_the_noise_of_the_forward_pass_also_where_blocks_are_computed_again(ltx):
    generator = ltx("0.9.1")
    latents = generator.draw_noise([1], generator.latent_shape)
    gradients = []
    for mode in ("plain", "exact"):
        leaf = latents.clone().requires_grad_()
        frames = decode_frames(generator, leaf, [0, 8], replace(EXACT, mode=mode))
        torch.rand(7)
        frames.square().sum().backward()
        gradients.append(leaf.grad)
    whole = latents.clone().requires_grad_()
    generator.decode_float(whole)[:, [0, 8]].square().sum().backward()

    close(gradients[0], whole.grad)
    close(gradients[1], whole.grad)


def test_a_frame_needs_the_whole_clip_so_windows_are_refused(ltx):
    generator = ltx("0.9")
    latents = generator.draw_noise([1], generator.latent_shape).requires_grad_()
    decode_frames(generator, latents, [0], EXACT).sum().backward()
    assert latents.grad[:, :, -1].any()
    with pytest.raises(ValueError, match="^mode is windowed, but the VAE of a ltx clip"):
        decode_frames(generator, latents, [0], replace(EXACT, mode="windowed"))


def test_the_vaes_own_decoding_by_frames_is_late_by_one_and_is_refused(ltx):
    """It drops a later tile's last frame, where the tile's first is the one that it already has: from frame 9 on."""
    generator = ltx("0.9", replace(SIZE, num_frames=33))
    vae = generator.component("vae")
    latents = generator.draw_noise([1], generator.latent_shape)
    whole = generator._pixels(latents)
    vae.use_framewise_decoding = True
    with torch.no_grad():
        tiled = vae.decode(generator.vae_latents(latents)).sample.permute(0, 2, 3, 4, 1) / 2 + 0.5

    late, in_place = ((tiled[:, 17:] - one).abs().mean() for one in (whole[:, 16:-1], whole[:, 17:]))
    assert late < 0.5 * in_place
    with pytest.raises(RuntimeError, match="use_framewise_decoding is true"):
        generator.decode_float(latents)


@pytest.mark.parametrize("release", ["0.9", "0.9.7"])
def test_encoding_a_clip_equals_the_stock_vae_and_normalisation(ltx, tiny_model, release):
    frames = torch.randint(0, 256, (1, 9, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pipeline = load_stock(tiny_model(f"ltx{release}-ti2v"))
    vae = pipeline.vae
    with torch.no_grad():
        mode = vae.encode(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()

    close(ltx(release).encode(frames), pipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std))


def test_a_folder_of_the_image_pipeline_is_read_as_that_of_the_text_pipeline(tiny_model, tmp_path):
    folder = changed(tiny_model("ltx0.9-ti2v"), tmp_path, "model_index.json", _class_name="LTXImageToVideoPipeline")
    generator = examine_generator("ltx", folder, SIZE, max_prompt_tokens=16)
    assert (generator.image, generator.latent_shape) == ("optional", (8, 3, 8, 8))


WRONG = (
    ("model_index.json", {"vae": ["diffusers", "AutoencoderKLWan"]}, "vae is AutoencoderKLWan, expected"),
    ("transformer/config.json", {"patch_size": 2}, "transformer has patch_size 2, expected 1"),
    ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "scheduler has stochastic_sampling true"),
)


def test_what_the_family_does_not_read_is_refused(tiny_model, tmp_path):
    for number, (file, change, message) in enumerate(WRONG):
        folder = changed(tiny_model("ltx0.9-ti2v"), tmp_path / str(number), file, **change)
        with pytest.raises(ValueError, match=f"^path: .* is a LTXPipeline whose {message}"):
            examine_generator("ltx", folder, SIZE, max_prompt_tokens=16)


def changed(model, out, file, **changes):
    """A copy of a model's folder with these entries of one of its JSON files."""
    shutil.copytree(model, out / "model")
    path = out / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(out / "model")
