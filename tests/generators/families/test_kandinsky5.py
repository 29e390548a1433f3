"""Kandinsky 5 beside what every family is tested for: its negative prompt, texts of unequal length, fitted frames."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers.models import attention_dispatch

from data.prompts import Prompt
from generators.core import lora
from generators.core.conditions import chosen
from generators.core.encoding import encode
from generators.core.load import examine_generator, load_generator
from generators.core.size import VideoSize
from generators.families.kandinsky5 import Kandinsky5Generator
from generators.tiny.kandinsky5 import kandinsky5
from generators.tiny.variants import VARIANTS
from tests.support.stock import PROMPT, STEPS, first_frame, load_stock, run_stock, stock_latents

BOTH = ["kandinsky5-t2v", "kandinsky5-i2v"]
LONGER = "moving green ball and blue cube closer to each other"


def load(folder, name="kandinsky5-t2v", size=None, **options):
    variant = VARIANTS[name]
    size = size or VideoSize(variant.num_frames, variant.height, variant.width, 8)
    return load_generator("kandinsky5", str(folder), size, **{"max_prompt_tokens": variant.max_prompt_tokens} | options)


@pytest.fixture
def text_to_video(tiny_model):
    return load(tiny_model("kandinsky5-t2v"))


@pytest.fixture(scope="module")
def vae_of_first_frames(tiny_model):
    """The generator from a first frame without what it does not decode with."""
    return load(tiny_model("kandinsky5-i2v"), "kandinsky5-i2v", parts=("vae",))


@pytest.fixture(autouse=True)
def _the_posteriors_mode(monkeypatch):
    """The pipeline draws the first frame's latents from the VAE's posterior; here it takes the mode."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


# The negative prompt, and the clip as it is shown


@pytest.mark.parametrize("name", BOTH)
def test_the_negative_prompt_is_the_pipelines_own(name, tiny_model, monkeypatch):
    pipeline, texts = load_stock(tiny_model(name)), []
    encode_prompt = pipeline.encode_prompt
    monkeypatch.setattr(
        pipeline, "encode_prompt", lambda prompt, **told: texts.append(prompt) or encode_prompt(prompt, **told)
    )
    image = first_frame() if name == "kandinsky5-i2v" else None
    run_stock(pipeline, VARIANTS[name], image, negative_prompt=None, num_inference_steps=1)

    assert texts == [[PROMPT], [Kandinsky5Generator.negative_prompt]]


@pytest.mark.parametrize("name", BOTH)
def test_a_clip_with_the_familys_defaults_is_shown_as_the_pipeline_shows_it(name, tiny_model, tmp_path):
    """From prompt and image file to uint8 pixels, so with the negative prompt and with the fitted first frames."""
    variant, image = VARIANTS[name], first_frame() if name == "kandinsky5-i2v" else None
    first_frame().save(tmp_path / "first.png")
    prompt = Prompt("p", PROMPT, "c", "train", str(tmp_path / "first.png") if image else None, None)
    generator = load(tiny_model(name), name)
    told = encode(generator, [prompt]).conditions
    noise = generator.draw_noise([7], generator.latent_shape)

    latents = generator.sample(
        {key: tensor[None] for key, tensor in told.prompts["p"].items()}, told.unwanted, noise, STEPS, 2.0, "euler"
    )
    frames = generator.decode(latents)[0].numpy()

    stock = load_stock(tiny_model(name))
    shown = {}
    postprocess = stock.video_processor.postprocess_video
    stock.video_processor.postprocess_video = lambda video, output_type: shown.update(
        frames=postprocess(video, output_type)
    )
    expected_latents = stock_latents(stock, variant, noise, image, negative_prompt=None, output_type="np")
    torch.testing.assert_close(latents, expected_latents, atol=2e-4, rtol=1e-4)
    expected = shown["frames"][0] * 255
    assert np.abs(frames - expected).max() < 0.6  # half a step of uint8, and float tolerance
    assert frames.std() > 1


# Text


def test_a_text_is_as_long_as_its_prompt_and_its_padding_is_never_seen(text_to_video):
    generator = text_to_video
    conditions = generator.encode_text([PROMPT, LONGER])
    latents = generator.draw_noise([1, 2], generator.latent_shape)
    t = torch.tensor([0.7, 0.4])
    assert conditions["length"].tolist() == [5, 11]  # a token a word, and the end of the template
    assert conditions["text"].shape[1] == 40
    assert not conditions["text"][0, 5:].any() and conditions["text"][0, :5].any(-1).all()

    with torch.no_grad():
        prediction = generator.predict(latents, t, conditions)
        other = {**conditions, "text": conditions["text"].clone()}
        other["text"][0, 5:] = 3.0
        assert torch.equal(generator.predict(latents, t, other), prediction)
        longer = {**conditions, "length": torch.tensor([11, 11])}
        seen = generator.predict(latents, t, longer)
    assert (seen[0] - prediction[0]).abs().max() > 1e-2  # the denoiser itself has no mask
    torch.testing.assert_close(seen[1], prediction[1], atol=1e-4, rtol=1e-4)


def test_rows_of_one_length_share_a_forward_and_rows_come_back_in_their_order(text_to_video):
    generator = text_to_video
    conditions = generator.encode_text([PROMPT, LONGER, "lifting blue cube up", ""])
    latents = generator.draw_noise([1, 2, 3, 4], generator.latent_shape)
    t = torch.tensor([0.9, 0.7, 0.5, 0.3])
    calls = []
    hook = generator.component("transformer").register_forward_pre_hook(
        lambda module, arguments, told: calls.append(tuple(told["encoder_hidden_states"].shape[:2])), with_kwargs=True
    )
    with torch.no_grad():
        together = generator.predict(latents, t, conditions)
        hook.remove()
        alone = [
            generator.predict(latents[[row]], t[[row]], chosen(conditions, [row]))[0] for row in range(len(latents))
        ]

    assert calls == [(2, 5), (1, 11), (1, 1)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_a_prompt_that_the_pipeline_would_cut_is_refused(tiny_model):
    generator = load(tiny_model("kandinsky5-t2v"), max_prompt_tokens=5)
    assert generator.encode_text([PROMPT])["text"].shape[1] == 5
    with pytest.raises(ValueError, match="^prompt of 6 tokens .* max_prompt_tokens is 5: 'lifting red ball up slowly'"):
        generator.encode_text([f"{PROMPT} slowly"])


def test_qwens_tokenizer_alone_gives_the_text_that_its_processor_gives(text_to_video, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("kandinsky5-t2v"), tmp_path / "model")
    (folder / "tokenizer/processor_config.json").unlink()
    change(folder, "model_index.json", tokenizer=["transformers", "Qwen2Tokenizer"])
    text = load(folder, parts=("text",)).encode_text([PROMPT, ""])
    for key, tensor in text_to_video.encode_text([PROMPT, ""]).items():
        assert torch.equal(tensor, text[key])


def test_the_tokenizers_limit_is_read_of_a_processor_too(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("kandinsky5-t2v"), tmp_path / "model")
    change(folder, "tokenizer/tokenizer_config.json", model_max_length=30)
    with pytest.raises(ValueError, match="^max_prompt_tokens: 40, but the tokenizer of .* ends at 30"):
        examine(folder, "kandinsky5-t2v")


# The first latent frames


@pytest.mark.parametrize("num_latents", [5, 6, 9, 12])
def test_the_first_latent_frames_are_fitted_as_by_the_pipeline_each_clip_to_itself(
    vae_of_first_frames, tiny_model, num_latents
):
    generator, pipeline = vae_of_first_frames, load_stock(tiny_model("kandinsky5-i2v"))
    clips = torch.randn(2, 4, num_latents, 4, 4, generator=torch.Generator().manual_seed(0))
    clips[:, :, :4] = clips[:, :, :4] * 1.5 + 0.2
    clips[1] = clips[1] * 3 + 1  # so another clip's frames would move the first's
    fitted = generator.vae_latents(clips) * pipeline.vae.config.scaling_factor

    expected = [
        pipeline.normalize_first_frame(clip.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3) for clip in clips.split(1)
    ]
    torch.testing.assert_close(fitted, torch.cat(expected))
    assert (fitted[:, :, :4] - clips[:, :, :4]).abs().amax((1, 2, 3, 4)).min() > 0.1


@pytest.mark.filterwarnings("ignore:std")
def test_the_pipeline_makes_nan_of_clips_that_are_refused(tiny_model):
    """Where this fails, diffusers fits short clips: allow them."""
    pipeline = load_stock(tiny_model("kandinsky5-i2v"))
    assert pipeline.normalize_first_frame(torch.randn(1, 4, 4, 4, 4)).isnan().all()
    assert pipeline.normalize_first_frame(torch.randn(1, 5, 4, 4, 4)).isfinite().all()


def test_text_to_video_is_not_fitted(text_to_video):
    latents = text_to_video.draw_noise([1], text_to_video.latent_shape)
    torch.testing.assert_close(text_to_video.vae_latents(latents), latents / 0.476986)


def test_encode_gives_the_posteriors_mode_of_a_whole_clip(text_to_video):
    frames = torch.randint(0, 256, (2, 9, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = text_to_video.encode(frames)
    pixels = frames.permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        expected = text_to_video.component("vae").encode(pixels).latent_dist.mode() * 0.476986
    assert latents.shape == (2, *text_to_video.latent_shape)
    torch.testing.assert_close(latents, expected)


# The denoiser


def test_a_denoiser_without_channels_beside_the_latents_samples_as_the_pipeline(tmp_path):
    kandinsky5(image=True, visual_cond=False).save_pretrained(tmp_path / "model")
    variant = VARIANTS["kandinsky5-i2v"]
    generator = load(tmp_path / "model", "kandinsky5-i2v")
    text = generator.encode_text([PROMPT, ""])
    conditions = {key: tensor[:1] for key, tensor in text.items()}
    conditions |= generator.encode_image(torch.from_numpy(np.array(first_frame()))[None])
    noise = generator.draw_noise([7], generator.latent_shape)

    latents = generator.sample(conditions, {key: one[1] for key, one in text.items()}, noise, STEPS, 2.0, "euler")

    expected = stock_latents(load_stock(tmp_path / "model"), variant, noise, first_frame())
    torch.testing.assert_close(latents, expected, atol=2e-4, rtol=1e-4)


SIZES = ((512, 768), (480, 848), (464, 848), (512, 864), (768, 1024), (32, 32))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_positions_are_scaled_by_the_clips_size_as_in_the_pipeline(tiny_model, height, width):
    pipeline = load_stock(tiny_model("kandinsky5-t2v"))
    generator = examine(tiny_model("kandinsky5-t2v"), "kandinsky5-t2v", VideoSize(9, height, width, 8))
    assert generator._scale_factor() == pipeline._get_scale_factor(height, width)


def test_lora_adapts_the_layers_of_attention_and_feed_forward_alone(text_to_video):
    transformer = text_to_video.component("transformer")
    lora.attach(transformer, 2, 4.0, text_to_video.lora_targets, seed=0)
    adapted = {name.partition(".lora_A")[0] for name, _ in transformer.named_parameters() if ".lora_A." in name}
    expected = {
        name.removesuffix(".base_layer")
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ("attention." in name or "feed_forward." in name)
        if ".lora_" not in name
    }
    assert adapted == expected
    assert len(adapted) == 6 + 2 * 10  # of a block of text, and of two of the clip


def test_a_lora_target_that_also_matches_the_last_layers_is_an_error(text_to_video):
    message = "^LoRA target out_layer also matches out_layer, which is no linear layer; name more of its path"
    with pytest.raises(lora.LoraError, match=message):
        lora.attach(text_to_video.component("transformer"), 2, 4.0, ("to_query", "out_layer"), seed=0)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of diffusers' query_norm
def test_bfloat16_keeps_the_modulation_in_float32_and_predicts_nearly_the_same(text_to_video, tiny_model):
    half = load(tiny_model("kandinsky5-t2v"), dtype="bfloat16")
    weights = dict(half.component("transformer").named_parameters())
    assert {name for name, weight in weights.items() if weight.dtype == torch.float32} == {
        name for name in weights if "modulation" in name or "time_embeddings" in name.split(".")
    }
    conditions = text_to_video.encode_text([PROMPT])
    latents = text_to_video.draw_noise([1], text_to_video.latent_shape)
    with torch.no_grad():
        predictions = [one.predict(latents, torch.tensor([0.7]), conditions) for one in (half, text_to_video)]
    error = (predictions[0] - predictions[1]).abs().mean() / predictions[1].abs().mean()
    assert predictions[0].dtype == torch.float32 and error < 0.03


def test_the_attention_takes_a_backend_of_diffusers(text_to_video, tiny_model, monkeypatch):
    registry = attention_dispatch._AttentionBackendRegistry  # whose active one diffusers sets for the whole process
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)
    other = load(tiny_model("kandinsky5-t2v"), attention="_native_math")
    backends = {one._attention_backend for one in other.component("transformer").attn_processors.values()}
    assert [backend.value for backend in backends] == ["_native_math"]
    conditions = text_to_video.encode_text([PROMPT])
    latents = text_to_video.draw_noise([1], text_to_video.latent_shape)
    with torch.no_grad():
        predictions = [one.predict(latents, torch.tensor([0.7]), conditions) for one in (other, text_to_video)]
    torch.testing.assert_close(*predictions, atol=1e-4, rtol=1e-4)


REFUSED = (
    ("transformer/config.json", {"attention_type": "nabla"}, "whose attention_type is nabla, expected regular"),
    ("transformer/config.json", {"patch_size": [2, 2, 2]}, r"whose patch_size is \[2, 2, 2\], expected \[1, 2, 2\]"),
    ("transformer/config.json", {"in_visual_dim": 16}, "whose in_visual_dim is 16, expected 4 of its vae"),
    ("vae/config.json", {"latent_channels": 16}, "whose in_visual_dim is 4, expected 16 of its vae"),
    ("model_index.json", {"vae": ["diffusers", "AutoencoderKLWan"]}, "whose vae is AutoencoderKLWan, expected Auto"),
)


@pytest.mark.parametrize(("file", "changes", "message"), REFUSED)
def test_a_checkpoint_of_another_layout_is_refused(file, changes, message, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("kandinsky5-i2v"), tmp_path / "model")
    change(folder, file, **changes)
    with pytest.raises(ValueError, match=f"^path: .* {message}"):
        examine(folder, "kandinsky5-i2v")


def examine(folder, name, size=None):
    variant = VARIANTS[name]
    size = size or VideoSize(variant.num_frames, variant.height, variant.width, 8)
    return examine_generator("kandinsky5", str(folder), size, max_prompt_tokens=variant.max_prompt_tokens)


def change(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
