"""The generator over a tiny WanPipeline: equal to stock diffusers, and strict about what cannot be represented."""

import copy
import json
import shutil
import socket
from dataclasses import replace

import diffusers
import pytest
import torch

from generators.core.conditions import chosen
from generators.core.generator import Generator, denoise_steps, projected
from generators.core.load import load_generator
from generators.core.process import process_of
from generators.core.size import VideoSize
from generators.core.solvers import solver_scheduler
from tests.support.tiny import SIZE, load_wan

DDPM = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROMPTS = ["a hand pushes the red cup off the table", "ball drops into the box"]


@pytest.fixture(scope="module")
def wan(tiny_wan):
    return load_wan(tiny_wan)


@pytest.fixture(scope="module")
def stock(tiny_wan):
    pipe = diffusers.WanPipeline.from_pretrained(tiny_wan)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def inputs(wan):
    """Conditions of two prompts, those of the empty caption, and noise."""
    text = wan.encode_text([*PROMPTS, ""])["text"]
    return {"text": text[:2]}, {"text": text[2]}, wan.draw_noise([1, 2], wan.latent_shape)


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


def test_all_bits_of_a_seed_count():
    assert not torch.equal(Generator.draw_noise([5], (4,)), Generator.draw_noise([5 + 2**32], (4,)))


def test_no_two_of_many_clips_have_equal_noise():
    """Of 200,000 seeds with 32 bits 5 pairs would be equal: n² / 2 / 2³²."""
    seen = set()
    for first in range(0, 200_000, 1000):
        noise = Generator.draw_noise([Generator.sample_seed(1, "p1", first + i) for i in range(1000)], (4,))
        seen.update(map(bytes, noise.numpy()))
    assert len(seen) == 200_000


def test_noise_is_standard_normal():
    noise = Generator.draw_noise(range(2000), (4, 3, 4, 4))
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.01  # neighbouring seeds are unrelated


def test_text_is_encoded_and_padded_as_the_pipeline_does(wan, stock):
    prompts = ["a  cup &amp; the\tball ", PROMPTS[0], ""]
    with torch.no_grad():
        expected, _ = stock.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=12)
    embeddings = wan.encode_text(prompts)["text"]
    torch.testing.assert_close(embeddings, expected)
    assert embeddings.shape == (3, 12, 16)
    assert not embeddings[2, 1:].any() and embeddings[2, 0].any()  # "" is </s> alone, then zeros


def test_text_embeddings_do_not_hinge_on_the_batch(wan):
    many = wan.encode_text(PROMPTS * 10)["text"]
    torch.testing.assert_close(many[-2:], wan.encode_text(PROMPTS)["text"])


def test_a_prompt_too_long_is_an_error_that_names_it(wan):
    long = " ".join(["cup"] * 12)  # and </s>
    with pytest.raises(ValueError, match=f"prompt of 13 tokens, max_prompt_tokens is 12: '{long}'"):
        wan.encode_text([PROMPTS[0], long])


def test_latents_have_the_pipelines_shape(tiny_wan):
    for size, shape in (((5, 16, 24), (4, 3, 4, 6)), ((1, 16, 16), (4, 1, 4, 4))):
        assert load_wan(tiny_wan, VideoSize(*size, fps=8.0), parts=()).latent_shape == shape


def test_a_size_that_latents_cannot_represent_is_an_error(tiny_wan):
    for size, message in (
        ((6, 16, 16), "num_frames: 6 .* nearest is 5 or 7"),
        ((5, 20, 16), "height: 20 .* nearest is 16 or 24"),
        ((5, 16, 4), "width: 4 .* nearest is 8"),
        ((2, 16, 16), "num_frames: 2 .* nearest is 1 or 3"),
    ):
        with pytest.raises(ValueError, match=message):
            load_wan(tiny_wan, VideoSize(*size, fps=8.0), parts=())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_sampling_equals_the_stock_pipeline(wan, stock, inputs, solver, guidance):
    conditions, empty, noise = inputs
    embeddings = conditions["text"]
    schedulers = {"unipc": stock.scheduler, "euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    pipe = diffusers.WanPipeline(**{**stock.components, "scheduler": schedulers[solver]})
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=embeddings,
        negative_prompt_embeds=empty["text"].expand_as(embeddings),
        latents=noise,
        num_frames=5,
        height=16,
        width=16,
        num_inference_steps=6,
        guidance_scale=guidance,
        output_type="latent",
    ).frames
    latents = wan.sample(conditions, empty, noise, steps=6, guidance=guidance, solver=solver)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    assert (latents - noise).abs().mean() > 0.1


def test_sampling_twice_is_the_same_and_the_batch_does_not_matter(wan, inputs):
    conditions, empty, noise = inputs
    settings = {"steps": 4, "guidance": 2.0, "solver": "unipc"}
    together = wan.sample(conditions, empty, noise, **settings)
    assert torch.equal(together, wan.sample(conditions, empty, noise, **settings))
    torch.testing.assert_close(together[1:], wan.sample(chosen(conditions, [1]), empty, noise[1:], **settings))


@pytest.mark.parametrize(
    ("prediction_type", "solver"),
    [
        *(("flow_prediction", solver) for solver in ("euler", "unipc")),
        *((kind, solver) for kind in ("epsilon", "v_prediction") for solver in ("ddim", "unipc")),
    ],
)
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
    config = json.loads(scheduler.to_json_string())
    with pytest.raises(ValueError, match="unipc cannot hold the noise table of CogVideoXDDIMScheduler"):
        solver_scheduler(config, "unipc")
    torch.testing.assert_close(solver_scheduler(config, "ddim").alphas_cumprod, scheduler.alphas_cumprod)


def test_a_solver_of_another_noise_process_is_an_error_that_names_the_right_ones():
    for kind, solver, message in (
        ("epsilon", "euler", "euler does not fit this generator, which predicts epsilon; wanted is ddim or unipc"),
        ("v_prediction", "euler", "euler does not fit this generator, which predicts v; wanted is ddim or unipc"),
        (
            "flow_prediction",
            "ddim",
            "ddim does not fit .* a velocity of flow matching; wanted is euler or unipc",
        ),
    ):
        with pytest.raises(ValueError, match=f"solver: {message}"):
            solver_scheduler({**DDPM, "prediction_type": kind}, solver)


def test_a_rollout_may_record_only_its_last_steps(wan, inputs):
    conditions, empty, noise = inputs
    scale = torch.ones((), requires_grad=True)
    guided = wan.guided(conditions, empty, guidance=2.0)
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


def test_the_projection_of_one_prediction_on_the_other_by_hand():
    """u = (1, 2), c = (3, 4): s = (3 + 8) / (1 + 4) = 2.2; of the second clip s = 1. The first frame is given."""
    conditional, unconditional = (
        torch.tensor(values).view(2, 1, 3, 1, 1) for values in ([[9.0, 3, 4], [9.0, 1, 2]], [[5.0, 1, 2], [-5.0, 1, 2]])
    )
    found = projected(conditional, unconditional, given=1).flatten(1)[:, 1:]
    torch.testing.assert_close(found, torch.tensor([[2.2, 4.4], [1.0, 2.0]]))


def test_guidance_may_start_from_the_projection_whose_rest_is_orthogonal_to_it(wan, inputs):
    conditions, empty, noise = inputs
    changed = copy.copy(wan)
    changed.projects = True
    timestep = torch.tensor(500.0)
    with torch.no_grad():
        plain, found = (one.guided(conditions, empty, 3.0)(noise, timestep) for one in (wan, changed))
        conditional = wan.guided(conditions, {}, 1.0)(noise, timestep)
    start = (3 * conditional - found) / 2  # found = 3 c - 2 s u
    apart = ((conditional - start) * start).flatten(1).sum(1) / start.flatten(1).square().sum(1)
    torch.testing.assert_close(apart, torch.zeros(2), atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 1e-3


def test_unknown_solver_and_guidance_below_one_are_errors(wan, inputs):
    with pytest.raises(ValueError, match="solver: found 'heun'; known are euler, unipc, ddim"):
        wan.sample(*inputs, steps=2, guidance=1.0, solver="heun")
    with pytest.raises(ValueError, match="guidance: found 0.5"):
        wan.sample(*inputs, steps=2, guidance=0.5, solver="euler")


def test_a_prediction_is_the_transformers_own_with_gradient(wan, inputs):
    conditions, _, noise = inputs
    latents = noise.clone().requires_grad_()
    prediction = wan.predict(latents, torch.tensor([0.25, 0.5]), conditions)
    transformer = wan.component("transformer")
    expected = transformer(latents, torch.tensor([250.0, 500.0]), conditions["text"]).sample
    assert torch.equal(prediction, expected)
    prediction.sum().backward()
    assert latents.grad.abs().sum() > 0


def test_decoding_equals_the_stock_pipeline(wan, stock, inputs):
    conditions, empty, noise = inputs
    sizes = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 1.0}
    expected = stock(prompt_embeds=conditions["text"], latents=noise, output_type="np", **sizes).frames
    clips = wan.decode(wan.sample(conditions, empty, noise, steps=2, guidance=1.0, solver="unipc"))
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
    assert latents.shape == (2, *wan.latent_shape)
    with torch.no_grad():
        mode = stock.vae.encode(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
    # latents_mean and latents_std of the tiny VAE's first channel are 0.1 and 1.5
    torch.testing.assert_close(latents[:, 0], (mode[:, 0] - 0.1) / 1.5)


def test_encoding_frames_that_the_vae_would_drop_is_an_error(wan):
    with pytest.raises(ValueError, match="num_frames: 7 .* nearest is 5 or 9"):
        wan.encode(torch.zeros(1, 7, 16, 16, 3, dtype=torch.uint8))


def test_a_patch_over_time_fixes_the_frame_count(tiny_wan_with, inputs):
    folder = tiny_wan_with(patch_size=(3, 2, 2))
    wan = load_wan(folder)
    assert wan.latent_shape == (4, 3, 4, 4)
    with pytest.raises(ValueError, match="num_frames: 7 .* nearest is 5 or 11"):
        load_wan(folder, replace(SIZE, num_frames=7), parts=())
    latents = wan.sample(*inputs, steps=2, guidance=2.0, solver="euler")
    assert wan.decode(latents).shape == (2, 5, 16, 16, 3)


def test_the_first_frame_enters_where_the_transformer_takes_it(tiny_wan_with, inputs):
    """4 latent channels, and beside them a mask for each of 2 frames of a latent one and 4 of the image."""
    conditions, empty, noise = inputs
    wan = load_wan(tiny_wan_with(in_channels=4 + 2 + 4))
    assert wan.image == "needed"
    settings = {"steps": 2, "guidance": 2.0, "solver": "unipc"}
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    told, other = (conditions | wan.encode_image(shown) for shown in (images, 255 - images))
    assert told["image"].shape == (2, 6, 3, 4, 4)
    mask = told["image"][:, :2]
    assert mask[:, :, 0].eq(1).all() and not mask[:, :, 1:].any()  # the first latent frame alone is the image's
    latents = wan.sample(told, empty, noise, **settings)
    assert latents.shape == noise.shape
    assert not torch.equal(latents, wan.sample(other, empty, noise, **settings))


def test_a_transformer_whose_channels_fit_no_image_is_an_error(tiny_wan_with):
    with pytest.raises(ValueError, match="path: .* whose transformer takes 5 channels beside the latents; family wan"):
        load_wan(tiny_wan_with(in_channels=9), parts=())


def test_training_loads_the_denoiser_alone(tiny_wan, inputs):
    conditions, _, noise = inputs
    wan = load_wan(tiny_wan, parts=("denoiser",))
    assert wan.latent_shape == (4, 3, 4, 4)
    assert list(wan.denoisers) == ["transformer"] == list(wan.components)
    assert wan.predict(noise, torch.tensor([0.5, 0.5]), conditions).shape == noise.shape
    with pytest.raises(RuntimeError, match="vae was not loaded: load_generator got the parts of transformer"):
        wan.decode(noise)
    with pytest.raises(RuntimeError, match="text_encoder was not loaded"):
        wan.encode_text(PROMPTS)


def test_the_vae_stays_float32_under_bfloat16(tiny_wan, wan, inputs):
    conditions, empty, noise = inputs
    half = load_wan(tiny_wan, dtype="bfloat16")
    assert half.component("transformer").blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.component("text_encoder").dtype == torch.bfloat16
    assert half.component("vae").dtype == torch.float32
    settings = {"steps": 4, "guidance": 2.0, "solver": "unipc"}
    latents = half.sample(half.encode_text(PROMPTS), empty, noise, **settings)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, wan.sample(conditions, empty, noise, **settings), atol=0.05, rtol=0.05)


def test_loading_and_encoding_touch_no_network(tiny_wan, monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_wan(tiny_wan).encode_text(PROMPTS)


def test_a_pickle_is_never_read(tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan, tmp_path / "generator") / "transformer"
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_wan(folder.parent)


def test_a_wrong_argument_is_named(tiny_wan):
    for arguments, message in (
        (
            {"family": "sora"},
            "generator.family is 'sora'; known are wan, cogvideox, animatediff, .*, and dotted paths",
        ),
        ({"dtype": "float16"}, "dtype: found 'float16'; known are float32, bfloat16"),
        ({"parts": ("denoiser", "unet")}, "parts: found unet; known are denoiser, text, image, vae"),
        ({"path": "models/tabletop/absent"}, "path: 'models/tabletop/absent' is no folder, and no hub id of the form"),
        ({"path": "tests"}, "path: tests has no model_index.json; wanted is a diffusers pipeline folder"),
        ({"path": "nobody/nothing"}, "path: nobody/nothing is no local folder, and could not be looked up as a hub id"),
    ):
        with pytest.raises(ValueError, match=message):
            load_generator(**{"family": "wan", "path": str(tiny_wan), "size": SIZE, **arguments})


def test_a_users_own_family_is_loaded_by_its_dotted_path(tiny_wan, tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/family.py").write_text(
        "from generators.families.wan import WanGenerator\nclass Family(WanGenerator):\n    family = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load_generator("my_lab.family", str(tiny_wan), SIZE, dtype="bfloat16", max_prompt_tokens=77, parts=("vae",))
    assert (found.family, found.dtype, found.max_prompt_tokens) == ("mine", torch.bfloat16, 77)
    assert list(found.components) == ["vae"] and found.size == SIZE


def test_a_pipeline_that_wan_cannot_be_is_an_error(tiny_wan, tmp_path):
    second = ["diffusers", "WanTransformer3DModel"]
    for number, (changes, message) in enumerate(
        (
            (
                {"_class_name": "FluxPipeline"},
                "is a FluxPipeline, and family wan does not read it",
            ),
            ({"boundary_ratio": 0.875}, "a WanPipeline with boundary_ratio and no transformer_2"),
            ({"transformer_2": second}, "a WanPipeline with transformer_2 and no boundary_ratio"),
        )
    ):
        index = shutil.copytree(tiny_wan, tmp_path / str(number)) / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | changes))
        with pytest.raises(ValueError, match=message):
            load_wan(index.parent)


def test_a_tokenizer_in_sentencepiece_s_own_form_is_read(tmp_path):
    """As CogVideoX's folders hold it: spiece.model, and no tokenizer.json."""
    import sentencepiece
    from transformers import AutoTokenizer

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(PROMPTS * 20))
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=24, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    ids = AutoTokenizer.from_pretrained(tmp_path, subfolder="tokenizer")(PROMPTS[0]).input_ids
    assert ids[-1] == 1 and len(ids) > 5 and 2 not in ids
