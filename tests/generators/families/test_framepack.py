"""FramePack: clips of one to five sections against the stock pipeline, and a section's history in training."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from generators.core.decoding import Decoding, decode_frames
from generators.core.generator import Generator
from generators.core.load import load_generator
from generators.core.size import VideoSize
from generators.families.framepack import WINDOW
from generators.tiny.variants import VARIANTS, Variant
from tests.support.stock import GUIDANCE, PROMPT, STEPS, asked, first_frame, load_stock, stock_decode, stock_latents

NAMES = ("framepack-i2v", "framepack-f1")
EXACT = Decoding("exact", window=2, overlap=1, tile=None, tile_overlap=0, offload=False, straight_through=False)


@pytest.fixture(scope="module", autouse=True)
def _the_posteriors_mode() -> Iterator[None]:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        yield


def variant_of(name: str, sections: int) -> Variant:
    return replace(VARIANTS[name], num_frames=36 * sections + 1)


def load(folder, variant: Variant) -> Generator:
    size = VideoSize(variant.num_frames, variant.height, variant.width, 8)
    return load_generator(variant.family, str(folder), size, max_prompt_tokens=variant.max_prompt_tokens)


def conditions_of(generator: Generator):
    """The conditions of a prompt, and those of the empty one."""
    height, width = generator.size.height, generator.size.width
    pixels = bytearray(first_frame(0, height, width).tobytes())
    image = torch.frombuffer(pixels, dtype=torch.uint8).view(1, height, width, 3)
    text = generator.encode_text([PROMPT, ""])
    conditions = {key: tensor[:1] for key, tensor in text.items()} | generator.encode_image(image)
    return conditions, {key: tensor[1] for key, tensor in text.items()}


def sampled(generator: Generator, noise):
    return generator.sample(*conditions_of(generator), noise, STEPS, GUIDANCE, "euler")


@pytest.mark.parametrize("sections", [1, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_clips_of_any_number_of_sections_equal_the_stock_pipelines(name, sections, tiny_model):
    """From five sections on, those sampled from the end are said to be nearer to the first frame than they are."""
    variant = variant_of(name, sections)
    generator = load(tiny_model(name), variant)
    noise = generator.draw_noise([3], generator.latent_shape)

    clip = sampled(generator, noise)

    assert generator.num_parts == sections and clip.shape[2] == 9 * sections + 1
    expected = stock_latents(load_stock(tiny_model(name)), variant, noise, first_frame())
    torch.testing.assert_close(clip, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_of_25_frames_is_one_section_of_6_latent_frames_and_equals_the_stock_pipelines(name, tiny_model):
    variant = replace(VARIANTS[name], num_frames=25, height=16, width=16)
    generator = load(tiny_model(name), variant)
    noise = generator.draw_noise([3], generator.latent_shape)

    clip = sampled(generator, noise)

    assert generator.num_parts == 1 and clip.shape[2] == 7
    stock = load_stock(tiny_model(name))
    expected = stock_latents(stock, variant, noise, first_frame(0, 16, 16))
    torch.testing.assert_close(clip, expected, atol=2e-4, rtol=1e-4)
    frames = decode_frames(generator, clip, range(25), EXACT)
    decoded = stock_decode(stock, variant, clip)[0].clamp(0, 1)
    torch.testing.assert_close(frames, decoded, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("base_shift", "shift"), [(0.5, math.exp(0.5 + 0.65 * (36 - 256) / 3840)), (3.0, 7.0)])
def test_a_shift_by_resolution_is_that_of_a_section_of_36_tokens_and_at_most_seven(
    base_shift, shift, tiny_model, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("framepack-i2v"), folder)
    file = folder / "scheduler/scheduler_config.json"
    changes = {"use_dynamic_shifting": True, "base_shift": base_shift, "max_shift": 1.15}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    variant = variant_of("framepack-i2v", 2)
    generator = load(folder, variant)
    noise = generator.draw_noise([3], generator.latent_shape)

    assert generator.process.shift == pytest.approx(shift)
    expected = stock_latents(load_stock(folder), variant, noise, first_frame())
    torch.testing.assert_close(sampled(generator, noise), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_in_training_a_section_has_the_conditions_that_it_was_sampled_under(name, tiny_model):
    generator = load(tiny_model(name), variant_of(name, 3))
    conditions, empty = conditions_of(generator)
    noise = generator.draw_noise([3], generator.latent_shape)
    with asked(generator.component("transformer")) as while_sampled:
        clip = generator.sample(conditions, empty, noise, 1, 1.0, "euler")
    order = [2, 1, 0] if name == "framepack-i2v" else [0, 1, 2]
    with asked(generator.component("transformer")) as in_training:
        for part in order:
            section, own = generator.view(clip, conditions, torch.tensor([part]))
            start, _ = generator.view(noise, conditions, torch.tensor([part]))
            assert torch.equal(section, clip[:, :, 1 + WINDOW * part :][:, :, :WINDOW])
            generator.predict(start, torch.ones(1), own)

    for ours, theirs in zip(in_training, while_sampled, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, theirs[key], msg=key)


def test_a_section_depends_on_its_history_alone(tiny_model):
    """Of FramePack, sections after it alone change its prediction; of F1, those before it alone."""
    for name, blind in (("framepack-i2v", 0), ("framepack-f1", 2)):
        generator = load(tiny_model(name), variant_of(name, 3))
        conditions, _ = conditions_of(generator)
        clip, noise = generator.draw_noise([1, 2], generator.latent_shape).split(1)
        middle = torch.tensor([1])

        def predicted(clip, generator=generator, conditions=conditions, noise=noise, middle=middle):
            _, own = generator.view(clip, conditions, middle)
            with torch.no_grad():
                return generator.predict(generator.view(noise, conditions, middle)[0], torch.ones(1), own)

        for part in (0, 2):
            changed = generator.with_part(clip, torch.ones(1, 4, WINDOW, 4, 4), part)
            assert torch.equal(predicted(changed), predicted(clip)) == (part == blind), (name, part)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.ci
def test_three_sections_decode_as_the_stock_pipeline_blends_them(name, tiny_model):
    variant = replace(variant_of(name, 3), height=16, width=16)
    generator = load(tiny_model(name), variant)
    ours, theirs = (generator.draw_noise([3], generator.latent_shape).requires_grad_() for _ in range(2))
    wanted = [0, 3, 4, 37, 40, 72, 75, 108]  # in front of, within and behind both overlaps

    frames = decode_frames(generator, ours, wanted, EXACT)
    expected = stock_decode(load_stock(tiny_model(name)), variant, theirs)[0][wanted]
    cotangent = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    frames.backward(cotangent)
    expected.backward(cotangent)

    torch.testing.assert_close(frames, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-4)
    with torch.no_grad():
        whole = generator.component("vae").decode(generator.vae_latents(ours)).sample[0].permute(1, 2, 3, 0) / 2 + 0.5
    assert (whole[wanted].clamp(0, 1) - frames).abs().max() > 0.05  # the blending matters


def test_windows_and_hunyuan_videos_own_transformer_are_refused(tiny_model):
    generator = load(tiny_model("framepack-f1"), variant_of("framepack-f1", 1))
    with pytest.raises(ValueError, match="^mode is windowed, but the VAE of a framepack_f1 clip decodes in no windows"):
        decode_frames(generator, torch.zeros(1, *generator.latent_shape), [0], replace(EXACT, mode="windowed"))
    with pytest.raises(ValueError, match="^latents: found 19 latent frames, expected the 10 of the clip"):
        generator.frame_decoder().groups(19)
    wanted = "^path: .* is a HunyuanVideoPipeline whose transformer is HunyuanVideoTransformer3DModel, expected "
    with pytest.raises(ValueError, match=wanted + ".*generator.components as preset"):
        load(tiny_model("hunyuan-video-t2v"), variant_of("framepack-i2v", 1))
