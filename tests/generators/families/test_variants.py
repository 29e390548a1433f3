"""Every variant of every family over a tiny model: equal to its stock pipeline, trainable, and strict about sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from generators.core import lora
from generators.core.conditions import Conditions, given_frames
from generators.core.decoding import Decoding, decode_frames
from generators.core.generator import PARTS, Generator
from generators.core.load import examine_generator, load_generator
from generators.core.size import VideoSize
from generators.tiny.variants import VARIANTS, Variant
from tests.support.stock import (
    GUIDANCE,
    PROMPT,
    STEPS,
    asked,
    channels_first,
    first_frame,
    load_stock,
    stock_decode,
    stock_latents,
    unpacked,
)

CASES = {
    f"{name} {condition}": (name, condition == "image")
    for name, variant in VARIANTS.items()
    for condition in {"none": ["text"], "optional": ["text", "image"], "needed": ["image"]}[variant.image]
}
SQUARE = ("cogvideox-5b-i2v",)  # has positions of one size; the others make clips that are not square
LATE_AND_EARLY = torch.tensor([0.97, 0.3])  # process times on both sides of every boundary between denoisers


class Case(NamedTuple):
    """A variant, its stock pipeline, and a generator with all that it is told of one prompt."""

    variant: Variant  # of the size that is sampled
    folder: Path
    image: bool
    generator: Generator
    conditions: Conditions  # (1, …) each
    empty: dict[str, Tensor]
    noise: Tensor  # (1, C, F, h, w)

    def load(self, parts: Sequence[str] = PARTS) -> Generator:
        return generator_of(self.variant, self.folder, parts)

    def stock(self):
        return load_stock(self.folder, self.image)

    @property
    def frame(self):
        """The prompt's first frame, None for text to video."""
        return first_frame(0, self.variant.height, self.variant.width) if self.image else None

    def sampled_by_stock(self, pipeline, **changes) -> Tensor:
        return stock_latents(pipeline, self.variant, self.noise, self.frame, **changes)

    def sampled(self, generator: Generator) -> Tensor:
        return generator.sample(self.conditions, self.empty, self.noise, STEPS, GUIDANCE, self.variant.solver)


def generator_of(variant: Variant, folder: Path, parts: Sequence[str] = PARTS) -> Generator:
    size = VideoSize(variant.num_frames, variant.height, variant.width, 8)
    tokens = variant.max_prompt_tokens
    return load_generator(variant.family, str(folder), size, max_prompt_tokens=tokens, parts=parts)


@pytest.fixture(scope="module", autouse=True)
def _the_posteriors_mode() -> Iterator[None]:
    """CogVideoX's pipeline draws the first frame's latents from the VAE's posterior; here it takes the mode."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request, tiny_model) -> Case:
    name, image = CASES[request.param]
    width = 16 if name.startswith("framepack") else 64  # FramePack's clips have many frames
    variant = VARIANTS[name] if name in SQUARE else replace(VARIANTS[name], width=width)
    generator = generator_of(variant, tiny_model(name))
    seen = torch.from_numpy(np.array(first_frame(0, variant.height, variant.width)))
    text = texts_of(generator, [PROMPT, ""], torch.stack([seen, torch.zeros_like(seen)]))
    told = generator.encode_image(seen[None]) if image else {}
    noise = generator.draw_noise([7], generator.latent_shape)
    conditions = {key: tensor[:1] for key, tensor in text.items()} | told
    empty = {key: tensor[1] for key, tensor in text.items()}
    return Case(variant, tiny_model(name), image, generator, conditions, empty, noise)


def texts_of(generator: Generator, prompts: Sequence[str], images: Tensor) -> Conditions:
    """The prompts' text, with their images where it depends on these."""
    return generator.encode_text(prompts, images if generator.text_sees_image else None)


close = partial(torch.testing.assert_close, atol=2e-4, rtol=1e-4)


def test_sampling_equals_the_stock_pipeline(case):
    sampled = case.sampled(case.generator)

    close(sampled, case.sampled_by_stock(case.stock()))
    assert (sampled - case.noise).abs().mean() > 0.1


def test_the_denoiser_is_told_of_prompt_and_image_what_the_stock_pipeline_tells_it(case):
    """encode_image and encode_text against the arguments of the stock pipeline's first forward."""
    pipeline = case.stock()
    twice = {"num_inference_steps": 2, "guidance_scale": 1.0}  # LTX makes no clip in one step
    (denoiser, *_) = case.generator.denoiser_names
    with asked(getattr(pipeline, denoiser)) as stock_calls:
        case.sampled_by_stock(pipeline, **twice)
    with asked(case.generator.component(denoiser)) as calls:
        case.generator.sample(case.conditions, case.empty, case.noise, 2, 1.0, case.variant.solver)
    for told, expected in zip(calls[::2], stock_calls[::2], strict=True):  # the first step of each part
        compare_forwards(
            case, pipeline, *({key: one[key] for key in one if one[key] is not None} for one in (told, expected))
        )


def compare_forwards(case: Case, pipeline, told: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """What the denoiser is given, ours and the stock pipeline's, and which condition it was."""
    expected["timestep"] = expected["timestep"].expand_as(told["timestep"])  # U-Nets' is one for all rows
    if "encoder_attention_mask" in expected:  # rows are padded to one length
        length = expected["encoder_attention_mask"].shape[1]
        assert not told["encoder_attention_mask"][:, length:].any()
        for key in ("encoder_hidden_states", "encoder_attention_mask"):
            told[key] = told[key][:, :length]
    for key in expected.keys() - {"attention_kwargs", "return_dict"}:
        close(told[key], expected[key])
    hidden = unpacked(channels_first(pipeline, expected["hidden_states"]), case.noise)
    beside = hidden[:, case.noise.shape[1] :]
    where = {  # of a condition in that forward
        "text": lambda: expected["encoder_hidden_states"][:1],  # AnimateDiff repeats it for every frame
        "text_mask": lambda: expected["encoder_attention_mask"],
        "pooled": lambda: expected["pooled_projections"],
        "image": lambda: beside,
        "first": lambda: beside[:, -case.noise.shape[1] :, :1],  # in front of PIA's is a mask
        "vision": lambda: expected.get("image_embeds", expected.get("encoder_hidden_states_image")),
        "given": lambda: expected.get("latents_clean", hidden)[:, : case.noise.shape[1], :1],
        "length": lambda: torch.tensor([expected["encoder_hidden_states"].shape[1]]),
    }
    assert bool(case.conditions.keys() - case.empty.keys()) == case.image
    for key, tensor in case.conditions.items():
        given = where[key]()
        close(tensor[:, : given.shape[1]] if tensor.ndim > 1 else tensor, given)


def rows_of(case: Case) -> tuple[Tensor, Conditions]:
    """Latents of two rows and their conditions, which differ in the text."""
    generator = case.generator
    latents = generator.draw_noise([1, 2], generator.latent_shape)
    seen = torch.from_numpy(np.array(first_frame(0, case.variant.height, case.variant.width)))
    prompts = ["moving green ball and blue cube closer to each other", PROMPT]
    texts = texts_of(generator, prompts, seen.expand(2, -1, -1, -1))
    images = {name: torch.cat([tensor, tensor]) for name, tensor in case.conditions.items() if name not in texts}
    return latents, images | texts


def parts_of(generator: Generator) -> Tensor:
    """Of two rows' clips, parts that differ where there are several."""
    return torch.arange(2) % generator.num_parts


def test_a_rows_prediction_does_not_depend_on_its_batch(case):
    """Also where the rows of a batch lie on both sides of the boundary between two denoisers."""
    latents, conditions = case.generator.view(*rows_of(case), parts_of(case.generator))
    with torch.no_grad():
        together = case.generator.predict(latents, LATE_AND_EARLY, conditions)
        alone = [
            case.generator.predict(latents[[row]], LATE_AND_EARLY[[row]], {k: v[[row]] for k, v in conditions.items()})
            for row in (0, 1)
        ]

    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_the_error_trains_every_denoiser_and_is_blind_to_given_frames(case):
    """With the denoisers alone loaded, as in training."""
    latents, conditions = rows_of(case)
    generator = case.load(parts=("denoiser",))
    assert generator.components.keys() == set(generator.denoiser_names)
    for module in generator.denoisers.values():
        module.requires_grad_(True)
    clean = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    part, whole = parts_of(generator), given_frames(conditions)
    predicted, told = generator.view(clean, conditions, part)
    noise, _ = generator.view(latents, conditions, part)
    noised = generator.process.noised(predicted, noise, LATE_AND_EARLY)
    target = generator.process.target(predicted, noise, LATE_AND_EARLY)
    given = given_frames(told)

    prediction = generator.predict(noised, LATE_AND_EARLY, told)
    (prediction - target)[:, :, given:].square().mean().backward()

    assert whole == ("given" in case.conditions)
    assert not clean.grad[:, :, :whole].any()
    assert generator.view(clean.grad, conditions, part)[0][:, :, given:].all()
    for name, module in generator.denoisers.items():
        reached = [key for key, weight in module.named_parameters() if weight.grad is not None and weight.grad.any()]
        assert len(reached) > 0.9 * len(list(module.parameters())), name
    with torch.no_grad():
        torch.testing.assert_close(prediction, case.generator.predict(noised, LATE_AND_EARLY, told))


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")  # diffusers adds layers of the image's tokens
def test_a_lora_loads_in_a_fresh_stock_pipeline_and_changes_its_clip(case, tmp_path):
    """Of each denoiser alone, and of all: an adapter that is not loaded would leave the clip as it was."""
    if not case.generator.takes_lora:
        pytest.skip("all its weights are trained")
    names = case.generator.denoiser_names
    base = case.sampled(case.generator)
    for adapted in {(*names[:1],), (*names[1:],), (*names,)} - {()}:
        generator, folder = case.load(parts=("denoiser",)), tmp_path / "-".join(adapted)
        for name in adapted:
            module = generator.denoisers[name]
            lora.attach(module, 4, 8.0, generator.lora_targets, seed=0)
            for weight in lora.trainable_parameters(module):
                weight.data += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            lora.save(module, lora.lora_folder(folder, name), name)
        pipeline = case.stock()
        if {"transformer", "unet"} & {*adapted}:
            pipeline.load_lora_weights(folder)
        if "transformer_2" in adapted:
            pipeline.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)
        changed = case.sampled(generator)

        close(changed, case.sampled_by_stock(pipeline))
        assert (changed - base).abs().max() > 0.01, adapted


def test_decoding_in_bounded_memory_equals_the_stock_decode_in_value_and_gradient(case):
    exact = Decoding("exact", window=2, overlap=1, tile=None, tile_overlap=0, offload=False, straight_through=False)
    ours, theirs = (case.noise.clone().requires_grad_() for _ in range(2))
    num_frames = case.variant.num_frames

    frames = decode_frames(case.generator, ours, range(num_frames), exact)
    expected = stock_decode(case.stock(), case.variant, theirs).clamp(0, 1)[0]
    cotangent = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    frames.backward(cotangent)
    expected.backward(cotangent)

    close(frames, expected)
    close(case.generator.decode_float(case.noise)[0], expected)
    close(ours.grad, theirs.grad)
    assert ours.grad.abs().max() > 1e-3


WRONG = (
    ("wan2.1-t2v", {"num_frames": 10}, "num_frames: 10 .* nearest is 9 or 13"),
    ("wan2.1-t2v", {"height": 24}, "height: 24 .* nearest is 16 or 32"),
    ("wan2.1-i2v", {"max_prompt_tokens": 16}, "max_prompt_tokens: 16, .* 512"),
    ("wan2.2-i2v", {"width": 40}, "width: 40 .* nearest is 32 or 48"),
    ("wan2.2-ti2v", {"width": 48}, "width: 48 .* nearest is 32 or 64"),
    ("cogvideox-2b", {"num_frames": 13}, "num_frames: 13 .* nearest is 9 or 17"),  # the pipeline would make 16
    ("cogvideox-2b", {"num_frames": 5}, "num_frames: 5 .* nearest is 9"),  # and here 8
    ("cogvideox-2b", {"height": 24}, "height: 24 .* nearest is 16 or 32"),
    ("cogvideox-2b", {"max_prompt_tokens": 12}, "max_prompt_tokens: 12, .* 16"),
    ("cogvideox-5b-i2v", {"num_frames": 17}, "num_frames: 17, .* 9 alone"),
    ("cogvideox-5b-i2v", {"width": 64}, "width: 64, .* 32 alone"),
    ("animatediff", {"num_frames": 33}, "num_frames: 33, .* positions for 32"),
    ("animatediff", {"max_prompt_tokens": 12}, "max_prompt_tokens: 12, .* 16"),
    ("unet3d", {"max_prompt_tokens": 12}, "max_prompt_tokens: 12, .* 16"),
    ("unet3d-pixels", {"height": 20}, "height: 20 .* nearest is 16 or 24"),
    ("pia", {"width": 44}, "width: 44 .* nearest is 40 or 48"),
    ("cogvideox1.5-5b", {"num_frames": 13}, "num_frames: 13 .* nearest is 9 or 17"),
    ("ltx0.9-ti2v", {"num_frames": 10}, "num_frames: 10 .* nearest is 9 or 13"),
    ("ltx0.9.7-ti2v", {"height": 34}, "height: 34 .* nearest is 32 or 36"),
    ("hunyuan-video-t2v", {"num_frames": 11}, "num_frames: 11 .* nearest is 9 or 13"),
    ("hunyuan-video-i2v-33ch", {"height": 24}, "height: 24 .* nearest is 16 or 32"),
    ("kandinsky5-t2v", {"num_frames": 11}, "num_frames: 11 .* nearest is 9 or 13"),
    ("kandinsky5-t2v", {"width": 2064}, "width: 2064 .* at most 2048"),
    ("kandinsky5-i2v", {"num_frames": 13}, "num_frames: 13, .* 17 frames or more"),
    ("kandinsky5-i2v", {"max_prompt_tokens": 1025}, "max_prompt_tokens: 1025, .* at most 1024"),
    ("framepack-i2v", {"num_frames": 66}, "num_frames: 66 .* nearest is 37 or 73"),  # the pipeline would make 73
    ("framepack-f1", {"num_frames": 34}, "num_frames: 34 .* nearest is 33 or 37"),  # one shorter section
)


def test_what_the_stock_pipeline_would_round_or_fail_at_is_refused_by_the_small_files_alone(tiny_model):
    for name, change, message in WRONG:
        variant = replace(VARIANTS[name], **change)
        size = VideoSize(variant.num_frames, variant.height, variant.width, 8)
        with pytest.raises(ValueError, match=f"^{message}"):
            examine_generator(variant.family, str(tiny_model(name)), size, max_prompt_tokens=variant.max_prompt_tokens)
