"""The generator over a tiny WanPipeline: equal to stock diffusers, and strict about what cannot be represented."""

import json
import shutil
import socket

import diffusers
import pytest
import torch

from generators.core.generator import Generator, denoise_steps, solver_scheduler
from generators.core.load import load_generator
from generators.core.process import process_of

DDPM = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROMPTS = ["a hand pushes the red cup off the table", "ball drops into the box"]


@pytest.fixture(scope="module")
def wan(tiny_wan):
    return load_generator("wan", str(tiny_wan), max_prompt_tokens=12)


@pytest.fixture(scope="module")
def stock(tiny_wan):
    pipe = diffusers.WanPipeline.from_pretrained(tiny_wan)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def inputs(wan):
    """Embeddings of two prompts, the empty embedding, and noise for 5 frames of 16 x 16."""
    embeddings = wan.encode_text([*PROMPTS, ""])
    return embeddings[:2], embeddings[2], wan.draw_noise([1, 2], wan.latent_shape(5, 16, 16))


def test_a_seed_is_the_clips_own():
    seeds = {Generator.sample_seed(s, p, i) for s in (1, "1:r1") for p in ("p1", "p2") for i in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert Generator.sample_seed(1, "p1", 0) == 1608263720307371247  # pinned: old clip sets stay reproducible


def test_noise_is_the_same_whatever_the_batch_and_order():
    together = Generator.draw_noise([7, 8, 9], (4, 3, 4, 4))
    assert together.dtype == torch.float32
    assert torch.equal(together.flip(0), Generator.draw_noise([9, 8, 7], (4, 3, 4, 4)))
    assert torch.equal(together[1:2], Generator.draw_noise([8], (4, 3, 4, 4)))


def test_text_is_encoded_and_padded_as_the_pipeline_does(wan, stock):
    prompts = ["a  cup &amp; the\tball ", PROMPTS[0], ""]
    with torch.no_grad():
        expected, _ = stock.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=12)
    embeddings = wan.encode_text(prompts)
    torch.testing.assert_close(embeddings, expected)
    assert embeddings.shape == (3, 12, 16)
    assert not embeddings[2, 1:].any() and embeddings[2, 0].any()  # "" is </s> alone, then zeros


def test_text_embeddings_do_not_hinge_on_the_batch(wan):
    many = wan.encode_text(PROMPTS * 10)
    torch.testing.assert_close(many[-2:], wan.encode_text(PROMPTS))


def test_a_prompt_too_long_is_an_error_that_names_it(wan):
    long = " ".join(["cup"] * 12)  # and </s>
    with pytest.raises(ValueError, match=f"prompt of 13 tokens, max_prompt_tokens is 12: '{long}'"):
        wan.encode_text([PROMPTS[0], long])


def test_latents_have_the_pipelines_shape(wan):
    assert wan.latent_shape(5, 16, 24) == (4, 3, 4, 6)
    assert wan.latent_shape(1, 16, 16) == (4, 1, 4, 4)


def test_a_size_that_latents_cannot_represent_is_an_error(wan):
    for size, message in (
        ((6, 16, 16), "num_frames: 6 .* nearest is 5 or 7"),
        ((5, 20, 16), "height: 20 .* nearest is 16 or 24"),
        ((5, 16, 4), "width: 4 .* nearest is 8"),
        ((0, 16, 16), "num_frames: 0 .* nearest is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wan.latent_shape(*size)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_sampling_equals_the_stock_pipeline(wan, stock, inputs, solver, guidance):
    embeddings, empty, noise = inputs
    schedulers = {"unipc": stock.scheduler, "euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    pipe = diffusers.WanPipeline(**{**stock.components, "scheduler": schedulers[solver]})
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=embeddings,
        negative_prompt_embeds=empty.expand_as(embeddings),
        latents=noise,
        num_frames=5,
        height=16,
        width=16,
        num_inference_steps=6,
        guidance_scale=guidance,
        output_type="latent",
    ).frames
    latents = wan.sample(embeddings, empty, noise, steps=6, guidance=guidance, solver=solver)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    assert (latents - noise).abs().mean() > 0.1


def test_sampling_twice_is_the_same_and_the_batch_does_not_matter(wan, inputs):
    embeddings, empty, noise = inputs
    settings = {"steps": 4, "guidance": 2.0, "solver": "unipc"}
    together = wan.sample(embeddings, empty, noise, **settings)
    assert torch.equal(together, wan.sample(embeddings, empty, noise, **settings))
    torch.testing.assert_close(together[1:], wan.sample(embeddings[1:], empty, noise[1:], **settings))


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("prediction_type", ["flow_prediction", "epsilon", "v_prediction"])
def test_a_solver_fed_the_true_target_ends_at_the_clean_latents(solver, prediction_type):
    config = {**DDPM, "prediction_type": prediction_type, "flow_shift": 3.0}
    process, scheduler = process_of(config), solver_scheduler(config, solver)
    scheduler.set_timesteps(5)
    clean, noise = torch.randn(2, 3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def true_target(latents, timestep):
        return process.target(clean, noise, (timestep / 999).clamp(max=1).float().expand(len(latents)))

    start = scheduler.sigmas[0] if prediction_type == "flow_prediction" else scheduler.timesteps[0] / 999
    *_, last = denoise_steps(true_target, scheduler, process.noised(clean, noise, start.expand(3)))
    torch.testing.assert_close(last.latents, clean, atol=1e-3, rtol=0)


def test_a_solver_that_would_sample_another_noise_table_is_an_error():
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", snr_shift_scale=3.0)
    with pytest.raises(ValueError, match="euler cannot hold the noise table of CogVideoXDDIMScheduler"):
        solver_scheduler(json.loads(scheduler.to_json_string()), "euler")


def test_a_rollout_may_record_only_its_last_steps(wan, inputs):
    embeddings, empty, noise = inputs
    scale = torch.ones((), requires_grad=True)
    guided = wan.guided(embeddings, empty, guidance=2.0)
    scheduler = solver_scheduler(wan.scheduler_config, "euler")
    scheduler.set_timesteps(4)
    steps = denoise_steps(lambda latents, timestep: scale * guided(latents, timestep), scheduler, noise)
    with torch.no_grad():
        unrecorded = [next(steps).latents for _ in range(3)]
    last = next(steps)
    assert not any(latents.requires_grad for latents in unrecorded)
    # The last Euler step is x + dt · prediction; its gradient is dt · prediction summed, and dt = -sigma.
    (gradient,) = torch.autograd.grad(last.latents.sum(), scale)
    torch.testing.assert_close(gradient, -scheduler.sigmas[3] * last.prediction.detach().sum())


def test_unknown_solver_and_guidance_below_one_are_errors(wan, inputs):
    with pytest.raises(ValueError, match="solver: found 'heun'; known are euler, unipc"):
        wan.sample(*inputs, steps=2, guidance=1.0, solver="heun")
    with pytest.raises(ValueError, match="guidance: found 0.5"):
        wan.sample(*inputs, steps=2, guidance=0.5, solver="euler")


def test_a_prediction_is_the_transformers_own_with_gradient(wan, inputs):
    embeddings, _, noise = inputs
    latents = noise.clone().requires_grad_()
    prediction = wan.predict(latents, torch.tensor([0.25, 0.5]), embeddings)
    expected = wan.transformer(latents, torch.tensor([250.0, 500.0]), embeddings).sample
    assert torch.equal(prediction, expected)
    prediction.sum().backward()
    assert latents.grad.abs().sum() > 0


def test_decoding_equals_the_stock_pipeline(wan, stock, inputs):
    embeddings, empty, noise = inputs
    sizes = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 1.0}
    expected = stock(prompt_embeds=embeddings, latents=noise, output_type="np", **sizes).frames
    clips = wan.decode(wan.sample(embeddings, empty, noise, steps=2, guidance=1.0, solver="unipc"))
    assert clips.dtype == torch.uint8 and clips.shape == (2, 5, 16, 16, 3)
    assert (clips.float() / 255 - torch.from_numpy(expected)).abs().max() <= 0.5 / 255 + 1e-5


def test_decoding_keeps_the_gradient(wan, inputs):
    latents = inputs[2].clone().requires_grad_()
    clips = wan.decode_float(latents)
    assert clips.shape == (2, 5, 16, 16, 3) and clips.min() >= 0 and clips.max() <= 1
    clips.sum().backward()
    assert latents.grad.abs().sum() > 0


def test_encoding_is_the_posterior_mode_normalised(wan, stock):
    frames = torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = wan.encode(frames)
    assert latents.shape == (2, *wan.latent_shape(5, 16, 16))
    with torch.no_grad():
        mode = stock.vae.encode(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
    # latents_mean and latents_std of the tiny VAE's first channel are 0.1 and 1.5
    torch.testing.assert_close(latents[:, 0], (mode[:, 0] - 0.1) / 1.5)


def test_encoding_frames_that_the_vae_would_drop_is_an_error(wan):
    with pytest.raises(ValueError, match="num_frames: 7 .* nearest is 5 or 9"):
        wan.encode(torch.zeros(1, 7, 16, 16, 3, dtype=torch.uint8))


def test_a_patch_over_time_fixes_the_frame_count(tiny_wan_with):
    wan = load_generator("wan", str(tiny_wan_with(patch_size=(3, 2, 2))), max_prompt_tokens=12)
    assert wan.latent_shape(5, 16, 16) == (4, 3, 4, 4)
    with pytest.raises(ValueError, match="num_frames: 7 .* nearest is 5 or 11"):
        wan.latent_shape(7, 16, 16)
    embeddings, noise = wan.encode_text(["", *PROMPTS]), wan.draw_noise([1, 2], (4, 3, 4, 4))
    latents = wan.sample(embeddings[1:], embeddings[0], noise, steps=2, guidance=2.0, solver="euler")
    assert wan.decode(latents).shape == (2, 5, 16, 16, 3)


def test_conditioning_enters_where_the_transformer_takes_it(tiny_wan_with, inputs):
    embeddings, empty, noise = inputs
    image_to_video = load_generator("wan", str(tiny_wan_with(in_channels=9)), max_prompt_tokens=12)
    settings = {"steps": 2, "guidance": 2.0, "solver": "unipc"}
    first = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    latents = image_to_video.sample(embeddings, empty, noise, **settings, conditioning=first)
    assert latents.shape == noise.shape
    assert not torch.equal(latents, image_to_video.sample(embeddings, empty, noise, **settings, conditioning=-first))
    with pytest.raises(ValueError, match="conditioning: found 0 channels; .* takes 5"):
        image_to_video.sample(embeddings, empty, noise, **settings)


def test_conditioning_is_an_error_where_the_transformer_takes_none(wan, inputs):
    embeddings, _, noise = inputs
    with pytest.raises(ValueError, match="conditioning: found 4 channels; this wan transformer takes 0"):
        wan.predict(noise, torch.tensor([0.5, 0.5]), embeddings, conditioning=noise)


def test_training_loads_the_transformer_alone(tiny_wan, inputs):
    embeddings, _, noise = inputs
    wan = load_generator("wan", str(tiny_wan), max_prompt_tokens=12, parts=("transformer",))
    assert wan.latent_shape(5, 16, 16) == (4, 3, 4, 4)
    assert wan.predict(noise, torch.tensor([0.5, 0.5]), embeddings).shape == noise.shape
    with pytest.raises(RuntimeError, match="vae was not loaded: load_generator got parts=.'transformer',."):
        wan.decode(noise)
    with pytest.raises(RuntimeError, match="text_encoder was not loaded"):
        wan.encode_text(PROMPTS)


def test_bfloat16_is_the_transformers_alone(tiny_wan, wan, inputs):
    embeddings, empty, noise = inputs
    half = load_generator("wan", str(tiny_wan), dtype="bfloat16", max_prompt_tokens=12)
    assert half.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.part("vae").dtype == torch.float32
    settings = {"steps": 4, "guidance": 2.0, "solver": "unipc"}
    latents = half.sample(half.encode_text(PROMPTS), empty, noise, **settings)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, wan.sample(embeddings, empty, noise, **settings), atol=0.05, rtol=0.05)


def test_loading_and_encoding_touch_no_network(tiny_wan, monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_generator("wan", str(tiny_wan), max_prompt_tokens=12).encode_text(PROMPTS)


def test_a_pickle_is_never_read(tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan, tmp_path / "generator") / "transformer"
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_generator("wan", str(folder.parent))


def test_a_wrong_argument_is_named(tiny_wan):
    for arguments, message in (
        ({"family": "sora"}, "generator.family is 'sora'; known are wan, and dotted paths"),
        ({"dtype": "float16"}, "dtype: found 'float16'; known are float32, bfloat16"),
        ({"parts": ("transformer", "unet")}, "parts: found unet"),
        ({"path": "models/tabletop/absent"}, "path: 'models/tabletop/absent' is no folder, and no hub id of the form"),
        ({"path": "tests"}, "path: tests has no model_index.json; wanted is a diffusers pipeline folder"),
        ({"path": "nobody/nothing"}, "path: nobody/nothing is no local folder, and could not be looked up as a hub id"),
    ):
        with pytest.raises(ValueError, match=message):
            load_generator(**{"family": "wan", "path": str(tiny_wan), **arguments})


def test_a_users_own_family_is_loaded_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/family.py").write_text("def load(*arguments):\n    return arguments\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = load_generator("my_lab.family", "a/path", "main", "bfloat16", "cpu", 77, ("transformer",))
    assert found == ("a/path", "main", torch.bfloat16, torch.device("cpu"), 77, ("transformer",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FluxPipeline"}, "a FluxPipeline; family wan reads a WanPipeline"),
        ({"boundary_ratio": 0.875}, "a WanPipeline of Wan2.2"),
    ],
)
def test_a_pipeline_that_wan_cannot_be_is_an_error(tiny_wan, tmp_path, changes, message):
    index = shutil.copytree(tiny_wan, tmp_path / "generator") / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_generator("wan", str(index.parent))
