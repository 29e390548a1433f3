"""What a family may say of itself, as the shared code takes it."""

from dataclasses import replace

import pytest
import torch

from data.prompts import Prompt
from generators.core import lora
from generators.core.decoding import Decoding, decode_frames
from generators.core.encoding import encode
from generators.families.wan import WanGenerator
from rl.training.policies import check_trainable
from tests.support.tiny import load_wan
from tests.support.training import config

PROMPT = Prompt("p", "ball drops into the box", "c", "train", None, None)


@pytest.fixture
def told(monkeypatch):
    """Wan, as a denoiser distilled from guidance would be."""
    monkeypatch.setattr(WanGenerator, "default_embedded_guidance", 6.0)


def test_embedded_guidance_is_the_familys_unless_another_is_asked_for(tiny_wan, told):
    assert load_wan(tiny_wan).embedded_guidance == 6.0
    assert load_wan(tiny_wan, embedded_guidance=9.0).embedded_guidance == 9.0
    assert encode(load_wan(tiny_wan), [PROMPT]).facts["embedded_guidance"] == 6.0


def test_embedded_guidance_of_a_family_that_is_told_none_is_refused(tiny_wan):
    with pytest.raises(ValueError, match="^embedded_guidance: 6.0, but .* has no such input"):
        load_wan(tiny_wan, embedded_guidance=6.0)
    assert "embedded_guidance" not in encode(load_wan(tiny_wan), [PROMPT]).facts


@pytest.mark.parametrize(("asked", "wanted"), [(None, "blue ball"), ("the cup", "the cup"), ("", "")])
def test_guidance_leads_away_from_the_pipelines_own_negative_prompt_unless_another_is_asked_for(
    tiny_wan, monkeypatch, asked, wanted
):
    monkeypatch.setattr(WanGenerator, "negative_prompt", "blue ball")
    wan = load_wan(tiny_wan)
    encoded = encode(wan, [PROMPT], asked)
    assert encoded.facts["negative_prompt"] == wanted
    if wanted:
        assert torch.equal(encoded.conditions.unwanted["text"], wan.encode_text([wanted])["text"][0])
    else:
        assert torch.equal(encoded.conditions.unwanted["text"], encoded.conditions.empty["text"])


def test_windowed_decoding_is_refused_where_every_frame_needs_the_whole_clip(tiny_wan, monkeypatch):
    wan = load_wan(tiny_wan)
    monkeypatch.setattr(WanGenerator, "windows", False)
    decoding = Decoding("windowed", 4, 1, tile=None, tile_overlap=0, offload=False, straight_through=False)
    with pytest.raises(ValueError, match="^mode is windowed, but the VAE of a wan clip decodes in no windows"):
        decode_frames(wan, torch.zeros(1, *wan.latent_shape), [0], decoding)


def test_a_text_that_depends_on_the_image_is_encoded_with_it_and_captions_of_guidance_with_black(
    tiny_wan, monkeypatch, tmp_path
):
    from tests.support.stock import first_frame

    first_frame(0, 16, 16).save(tmp_path / "first.png")
    seen = {}
    monkeypatch.setattr(WanGenerator, "text_sees_image", True)
    monkeypatch.setattr(WanGenerator, "image", "optional")
    monkeypatch.setattr(WanGenerator, "encode_image", lambda self, images: {})
    text = WanGenerator.encode_text

    def encode_text(self, prompts, images=None):
        seen.update(zip(prompts, images, strict=True))
        return text(self, prompts)

    monkeypatch.setattr(WanGenerator, "encode_text", encode_text)
    encode(load_wan(tiny_wan), [replace(PROMPT, image=str(tmp_path / "first.png"))], "blue ball")

    assert seen.keys() == {PROMPT.prompt, "", "blue ball"}
    assert seen[PROMPT.prompt].any() and not seen[""].any() and not seen["blue ball"].any()


def test_sampling_starts_where_the_family_says_and_at_its_noise_levels(tiny_wan, monkeypatch):
    wan = load_wan(tiny_wan)
    text = wan.encode_text([PROMPT.prompt, ""])["text"]
    noise = wan.draw_noise([1], wan.latent_shape)
    arguments = {"steps": 3, "guidance": 1.0, "solver": "euler"}
    plain = wan.sample({"text": text[:1]}, {"text": text[1]}, noise, **arguments)
    halved = wan.sample({"text": text[:1]}, {"text": text[1]}, noise / 2, **arguments)

    monkeypatch.setattr(WanGenerator, "start", lambda self, noise, conditions: noise / 2)
    assert torch.equal(wan.sample({"text": text[:1]}, {"text": text[1]}, noise, **arguments), halved)
    assert not torch.equal(plain, halved)
    monkeypatch.setattr(WanGenerator, "_sigmas", lambda self, steps: [1.0, 0.5, 0.25])
    shift = wan.process.shift
    shifted = [shift * s / (1 + (shift - 1) * s) for s in (1.0, 0.5, 0.25)] + [0.0]
    assert torch.allclose(wan.solver("euler", 3).sigmas, torch.tensor(shifted))


def test_what_the_denoisers_cannot_do_is_refused_by_the_key(tiny_wan, monkeypatch):
    wan = load_wan(tiny_wan, parts=("denoiser",))
    for attribute, changes, message in (
        ("takes_lora", {"full": False}, "^full: false, but .* takes no LoRA"),
        ("checkpoints", {"gradient_checkpointing": True}, "^gradient_checkpointing: true, but"),
    ):
        monkeypatch.setattr(WanGenerator, attribute, False)
        with pytest.raises(ValueError, match=message):
            check_trainable(wan, config("sft", **changes))
        monkeypatch.undo()


def test_a_lora_target_that_also_matches_another_module_is_refused(tiny_wan):
    transformer = load_wan(tiny_wan).component("transformer")
    with pytest.raises(lora.LoraError, match="target to_out also matches .*to_out, which is no linear layer"):
        transformer.proj_out.to_out = torch.nn.Linear(2, 2)
        lora.attach(transformer, rank=2, alpha=2, targets=["to_out"], seed=0)


def test_a_unets_lora_has_the_prefix_that_stock_pipelines_read(tiny_wan, tmp_path):
    from safetensors import safe_open

    transformer = load_wan(tiny_wan).component("transformer")
    lora.attach(transformer, rank=2, alpha=2, targets=["attn1.to_q"], seed=0)
    lora.save(transformer, tmp_path, "unet")
    with safe_open(tmp_path / lora.LORA_FILE, "pt") as file:
        assert all(key.startswith("unet.") for key in file.keys())  # noqa: SIM118
    again = load_wan(tiny_wan).component("transformer")
    lora.load_adapter(again, tmp_path)
    assert torch.equal(
        lora.trainable_parameters(transformer)[0], next(p for n, p in again.named_parameters() if "lora_A" in n)
    )
