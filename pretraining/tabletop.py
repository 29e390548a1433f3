"""The whole pretraining of the embedded default: autoencoder, generator, judge. Algorithm 1, line 1.

Each part is kept in `work` when it is done, so that a killed run goes on with the next.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from data.prompts import load_prompts
from data.tabletop.captions import all_claims, caption
from data.tabletop.scenes import FRAMES, SIZE
from data.video import sample_frames
from generators import load_generator
from pretraining.denoiser import DenoiserConfig, latent_pool, save_half, train_denoiser
from pretraining.judge import (
    FRAMES_SEEN,
    JudgeConfig,
    Lessons,
    allowed_claims,
    generated_lessons,
    rendered_lessons,
    train_judge,
)
from pretraining.vae import to_unit, train_vae

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VaeConfig:
    """Sizes and schedule of the autoencoder's pretraining."""

    base_dim: int
    z_dim: int
    patch_size: int  # pixels
    steps: int
    batch: int
    clips: int
    seed: int


@dataclass(frozen=True)
class CheckpointClips:
    """Clips of unfinished generator checkpoints, which the judge learns from."""

    per_checkpoint: int  # at each guidance
    first: float  # checkpoints from this part of the training on, the final one excluded
    steps: int  # solver steps
    guidance: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class PretrainConfig:
    """Section `pretrain` of params.yaml."""

    threads: int
    prompts: str  # the RL prompt set, which the judge is kept from
    vae: VaeConfig
    denoiser: DenoiserConfig
    checkpoint_clips: CheckpointClips
    judge: JudgeConfig


def pretrain(config: PretrainConfig, work: Path, out: Path) -> None:
    """Write out/generator, a WanPipeline folder, and out/judge, a Qwen2.5-VL folder."""
    torch.set_num_threads(config.threads)
    checkpoints, generator, judge = work / "checkpoints", work / "generator", work / "judge"
    _once(work / "vae", lambda folder: _vae(config.vae, folder))
    _once(generator, lambda folder: _generator(config, work / "vae", checkpoints, folder))
    _once(work / "clips", lambda folder: _checkpoint_clips(config, checkpoints, folder))
    _once(judge, lambda folder: _judge(config, work / "vae", work / "clips", folder))
    for part in (generator, judge):
        shutil.rmtree(out / part.name, ignore_errors=True)
        shutil.copytree(part, out / part.name)


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder under another name and rename it when it is whole; one that is there is kept."""
    if folder.exists():
        logger.info("%s is there from an earlier run", folder)
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    partial.rename(folder)


def _vae(config: VaeConfig, folder: Path) -> None:
    vae = train_vae(
        config.base_dim, config.z_dim, config.patch_size, config.steps, config.batch, config.clips, config.seed
    )
    vae.save_pretrained(folder)


def _generator(config: PretrainConfig, vae_folder: Path, checkpoints: Path, folder: Path) -> None:
    vae = AutoencoderKLWan.from_pretrained(vae_folder).eval()
    vae.register_to_config(_name_or_path="")  # where it lay is nobody's business
    denoiser = config.denoiser
    pool = latent_pool(vae, denoiser.clips, denoiser.botched, denoiser.seed + 1)

    def snapshot(pipeline: WanPipeline, step: int) -> None:
        if config.checkpoint_clips.first * denoiser.steps <= step < denoiser.steps:
            save_half(pipeline, checkpoints / f"step-{step:06d}")

    save_half(train_denoiser(vae, denoiser, pool, snapshot), folder)


def _checkpoint_clips(config: PretrainConfig, checkpoints: Path, folder: Path) -> None:
    """Sample every checkpoint on captions that the judge may see. Writes frames.npy and captions.txt."""
    claims = allowed_claims(_rl_prompts(config))
    kinds = sorted({claim.kind for claim in claims})
    rng = np.random.default_rng(config.checkpoint_clips.seed)
    frames, captions = [], []
    for checkpoint, guidance in product(sorted(checkpoints.iterdir()), config.checkpoint_clips.guidance):
        texts = []
        for i in range(config.checkpoint_clips.per_checkpoint):
            of_kind = [claim for claim in claims if claim.kind == kinds[i % len(kinds)]]
            texts.append(caption(of_kind[int(rng.integers(len(of_kind)))]))
        frames.append(sample_clips(checkpoint, texts, config, guidance, int(rng.integers(2**31))))
        captions += texts
        logger.info("sampled %d clips of %s at guidance %s", len(texts), checkpoint.name, guidance)
    folder.mkdir()
    np.save(folder / "frames.npy", np.concatenate(frames))
    (folder / "captions.txt").write_text("\n".join(captions), encoding="utf-8")


def sample_clips(folder: Path, texts: list[str], config: PretrainConfig, guidance: float, seed: int) -> np.ndarray:
    """A clip for each text from a pipeline folder, uint8 (N, F, H, W, 3)."""
    generator = load_generator("wan", str(folder), max_prompt_tokens=config.denoiser.tokens)
    embeddings, empty = generator.encode_text(texts), generator.encode_text([""])[0]
    shape = generator.latent_shape(FRAMES, SIZE, SIZE)
    clips = []
    for first in range(0, len(texts), 64):
        part = slice(first, first + 64)
        seeds = [generator.sample_seed(seed, text, first + i) for i, text in enumerate(texts[part])]
        latents = generator.sample(
            embeddings[part], empty, generator.draw_noise(seeds, shape), config.checkpoint_clips.steps,
            guidance, "euler",
        )  # fmt: skip
        clips.append(generator.decode(latents).numpy())
    return np.concatenate(clips)


def _judge(config: PretrainConfig, vae_folder: Path, clips_folder: Path, folder: Path) -> None:
    allowed = allowed_claims(_rl_prompts(config))
    frames, rendered = rendered_lessons(config.judge.rendered, all_claims(), config.judge.seed)
    half = len(frames) // 2  # half of the rendered clips as the generator would draw them
    decoded = round_trip(AutoencoderKLWan.from_pretrained(vae_folder).eval(), frames[:half])
    seen = np.concatenate([decoded[:, sample_frames(FRAMES, FRAMES_SEEN)], rendered.frames[half:]])
    generated = generated_lessons(
        np.load(clips_folder / "frames.npy"),
        (clips_folder / "captions.txt").read_text(encoding="utf-8").split("\n"),
        allowed,
        config.judge.seed,
    )
    train_judge(config.judge, Lessons(seen, rendered.questions), generated, folder)


@torch.no_grad()
def round_trip(vae: AutoencoderKLWan, frames: np.ndarray) -> np.ndarray:
    """Clips encoded and decoded, uint8 (N, F, H, W, 3)."""
    clips = []
    for first in range(0, len(frames), 64):
        pixels = vae.decode(vae.encode(to_unit(frames[first : first + 64])).latent_dist.mode()).sample
        clips.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy())
    return np.concatenate(clips)


def _rl_prompts(config: PretrainConfig) -> list[str]:
    return [prompt.prompt for prompt in load_prompts(Path(config.prompts))]
