"""The tabletop's video autoencoder: a small AutoencoderKLWan, trained on rendered clips."""

import logging
import math
import time

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from tabletop.captions import all_claims
from tabletop.pretraining.optimizer import Ema, MuonAdamW
from tabletop.render import random_clip

logger = logging.getLogger(__name__)

LATENT_NOISE = 0.03  # added to the latents in training, in place of posterior sampling
WINDOWED = 0.7  # part of the steps that see five of the nine frames, at half the cost


def tiny_vae(base_dim: int, z_dim: int, patch_size: int) -> AutoencoderKLWan:
    """Untrained AutoencoderKLWan: time x2, space x(2 patch_size); its channels are pixels of a patch."""
    vae = AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=base_dim,
        z_dim=z_dim,
        dim_mult=[1, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True],
        in_channels=3 * patch_size**2,
        out_channels=3 * patch_size**2,
        patch_size=patch_size,
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
        scale_factor_temporal=2,
        scale_factor_spatial=2 * patch_size,
    )
    for name, parameter in vae.named_parameters():
        if name.endswith("conv2.weight"):  # residual branches start at zero
            torch.nn.init.zeros_(parameter)
    return vae


def to_unit(frames: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) -> float (B, 3, F, H, W) in [-1, 1]."""
    return torch.as_tensor(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def render_pool(count: int, seed: int, botched: float) -> np.ndarray:
    """`count` rendered clips of random claims, uint8 (N, F, H, W, 3)."""
    rng, claims = np.random.default_rng(seed), all_claims()
    return np.stack([random_clip(claims[rng.integers(len(claims))], rng, botched)[0] for _ in range(count)])


def train_vae(
    base_dim: int, z_dim: int, patch_size: int, steps: int, batch: int, pool: int, seed: int
) -> AutoencoderKLWan:
    """A trained autoencoder whose config carries its latents' mean and standard deviation per channel."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = tiny_vae(base_dim, z_dim, patch_size)
    clips = render_pool(pool, seed, botched=0.5)
    optimizer = MuonAdamW(vae, steps, 0.02, 3e-3, ("conv", "block", "to_"))
    ema = Ema(vae.parameters(), 0.995)
    start = time.monotonic()
    for step in range(steps):
        pick = clips[rng.integers(0, len(clips), batch)]
        first = rng.integers(0, 5)
        x = to_unit(pick[:, first : first + 5] if step < steps * WINDOWED else pick)
        latents = vae.encode(x).latent_dist.mode()
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        error = decoded - x
        weight = 1 + 6 * (x.amax(1, keepdim=True) - x.amin(1, keepdim=True))  # colour is what matters
        loss = (weight * (error.abs() + 2 * error.square())).mean() + 1e-4 * latents.square().mean()
        optimizer.step(loss)
        ema.update()
        if step % 100 == 0 or step == steps - 1:
            logger.info(
                "vae step %d/%d loss %.4f psnr %.1f dB %.0f s",
                step,
                steps,
                float(loss.detach()),
                psnr(error),
                time.monotonic() - start,
            )
    ema.swap()
    vae.eval()
    set_latent_statistics(vae, clips[: min(512, pool)])
    return vae


def psnr(error: Tensor) -> float:
    """dB, of an error on the [-1, 1] scale."""
    return 10 * math.log10(4 / float(error.detach().square().mean()))


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLWan, clips: np.ndarray) -> None:
    """Set latents_mean and latents_std of the VAE's config, by channel, to those of these clips' latents."""
    latents = torch.cat([vae.encode(to_unit(clips[i : i + 32])).latent_dist.mode() for i in range(0, len(clips), 32)])
    vae.register_to_config(
        latents_mean=[round(v, 4) for v in latents.mean((0, 2, 3, 4)).tolist()],
        latents_std=[round(v, 4) for v in latents.std((0, 2, 3, 4)).tolist()],
    )
