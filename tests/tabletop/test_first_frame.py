"""The second generator: its first frames, its folded autoencoder, its training, and the shipped weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, CogVideoXImageToVideoPipeline
from PIL import Image

from data.prompts import load_prompts
from tabletop.captions import Claim, all_claims, caption
from tabletop.first_frames import write_first_frames
from tabletop.physics import check
from tabletop.pretraining import denoiser
from tabletop.pretraining.first_frame import (
    FirstFrameConfig,
    first_frame_pool,
    folded_vae,
    tiny_first_frame_pipeline,
    train_first_frame,
    unforeseen_clip,
    velocity_loss,
)
from tabletop.pretraining.vae import render_pool, to_unit
from tabletop.scenes import FRAMES, SIZE

PROMPTS = Path("configs/prompt_sets/tabletop.csv")
WITH_FRAMES = Path("configs/prompt_sets/tabletop-first-frame.csv")
SHIPPED = Path("models/tabletop/first_frame_generator")
TINY = FirstFrameConfig(
    clips=24, botched=0.3, steps=12, batch=4, heads=1, layers=1, text_dim=16, time_dim=16, tokens=16,
    caption_dropout=0.1, muon_lr=0.02, adam_lr=0.002, ema=0.9, seed=0,
)  # fmt: skip


def claims_by_kind() -> list[Claim]:
    """One claim of each kind of event."""
    return list({claim.kind: claim for claim in all_claims()}.values())


def wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained("models/tabletop/generator/vae", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return folded_vae(wan_vae())


def pixels(path: str | None) -> np.ndarray:
    assert path is not None
    return np.asarray(Image.open(path))


def test_the_shipped_first_frames_are_those_that_are_rendered(tmp_path):
    write_first_frames(PROMPTS, tmp_path / "set.csv")
    shipped, rendered = load_prompts(WITH_FRAMES), load_prompts(tmp_path / "set.csv")
    assert [replace(prompt, image=None) for prompt in shipped] == load_prompts(PROMPTS)
    for one, other in zip(shipped, rendered, strict=True):
        assert pixels(one.image).shape == (SIZE, SIZE, 3)
        assert np.array_equal(pixels(one.image), pixels(other.image)), one.prompt_id


def test_a_first_frame_does_not_tell_whether_its_clip_is_botched():
    for claim in claims_by_kind():
        for seed in range(3):
            honest, none = unforeseen_clip(claim, np.random.default_rng(seed), botched=0.0)
            clip, botch = unforeseen_clip(claim, np.random.default_rng(seed), botched=1.0)
            assert none is None and botch is not None
            assert np.array_equal(clip[0], honest[0])
            assert not check(clip, caption(claim)).ok, (claim, botch)


@torch.no_grad()
def test_a_folded_autoencoder_has_normalised_latents_and_decodes_them_to_the_same_pixels(vae):
    wan, clips = wan_vae(), to_unit(render_pool(3, seed=5, botched=0.0))
    mean, std = (torch.tensor(wan.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    latents = wan.encode(clips).latent_dist.mode()
    posterior = vae.encode(clips).latent_dist
    torch.testing.assert_close(posterior.mode(), (latents - mean) / std, atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.sample(torch.Generator().manual_seed(0)), posterior.mode(), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(posterior.mode()).sample, wan.decode(latents).sample, atol=1e-4, rtol=0)


def test_the_training_lowers_its_loss(vae):
    config = replace(TINY, clips=8, steps=40)
    pool = first_frame_pool(vae, config)
    tokens = denoiser.text_tokenizer()(pool.captions, padding="max_length", max_length=16, return_tensors="pt")
    of_pool = tokens.input_ids[pool.caption], tokens.attention_mask[pool.caption]

    @torch.no_grad()
    def loss(pipeline: CogVideoXImageToVideoPipeline) -> float:
        torch.manual_seed(1)
        return float(velocity_loss(pipeline)(pool.latents.float(), *of_pool))

    assert loss(train_first_frame(vae, config, pool)) < 0.92 * loss(tiny_first_frame_pipeline(vae, config))


def test_a_training_that_was_killed_ends_with_the_same_weights(vae, tmp_path, monkeypatch):
    pool, state = first_frame_pool(vae, TINY), tmp_path / "state"
    whole = train_first_frame(vae, TINY, pool)

    class Killed(Exception):
        pass

    monkeypatch.setattr(denoiser, "KEEP_EVERY", 5)
    step = denoiser.MuonAdamW.step
    losses = []

    def dies_in_step_8(self, loss, max_norm=1.0):
        if len(losses) == 8:
            raise Killed
        losses.append(loss)
        return step(self, loss, max_norm)

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(denoiser.MuonAdamW, "step", dies_in_step_8)
        train_first_frame(vae, TINY, pool, state)
    assert state.exists()
    resumed = train_first_frame(vae, TINY, pool, state)
    assert not state.exists()
    for part in ("transformer", "text_encoder"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(resumed, part).state_dict()[name]), name


@pytest.fixture(scope="module")
def shipped() -> CogVideoXImageToVideoPipeline:
    return CogVideoXImageToVideoPipeline.from_pretrained(SHIPPED, dtype=torch.float32)


def test_the_shipped_autoencoder_is_the_folded_one_of_the_first_generator(shipped, vae):
    for name, value in vae.state_dict().items():
        assert torch.equal(shipped.vae.state_dict()[name], value.half().float()), name


def test_the_stock_pipeline_makes_clips_that_begin_with_the_given_frame_and_show_the_prompt(shipped):
    prompts = [p for p in load_prompts(WITH_FRAMES) if p.prompt.startswith(("squeezing", "unfolding"))] * 2
    given = [Image.open(p.image) for p in prompts]
    clips = shipped(
        prompt=[p.prompt for p in prompts], image=given, height=SIZE, width=SIZE, num_frames=FRAMES,
        num_inference_steps=10, guidance_scale=1.0, max_sequence_length=TINY.tokens,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).frames  # fmt: skip
    frames = (clips * 255).round().astype(np.uint8)
    errors = np.abs(frames[:, 0].astype(float) - np.stack([np.asarray(one) for one in given]))
    assert errors.mean((1, 2, 3)).max() < 4  # of 255
    accepted = [check(clip, prompt.prompt).ok for clip, prompt in zip(frames, prompts, strict=True)]
    assert sum(accepted) > len(accepted) / 2
