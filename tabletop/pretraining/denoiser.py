"""The tabletop's generator: a small WanTransformer3DModel and the UMT5 encoder that it reads, trained together.

Flow matching on latents of rendered clips, a stated part of which is botched, so that RL has defects to remove. Text
is dropped in a tenth of the cases, for classifier-free guidance.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from data.config import STRICT, Count, Positive, Probability, WholeNotNegative
from generators.core.process import FlowMatching, shift_time
from tabletop.captions import all_claims, caption
from tabletop.pretraining.optimizer import Ema, MuonAdamW
from tabletop.pretraining.tokenizers import caption_tokenizer
from tabletop.pretraining.vae import to_unit
from tabletop.render import random_clip

logger = logging.getLogger(__name__)


@pydantic_dataclass(frozen=True, config=STRICT)
class DenoiserConfig:
    """Sizes and schedule of the generator's pretraining."""

    clips: Count  # rendered clips
    botched: Probability  # part of them that fails its caption
    steps: Count
    batch: Count
    heads: Count  # of 32 dimensions each
    layers: Count
    ffn: Count
    text_dim: Count
    tokens: Count  # length of a padded prompt
    caption_dropout: Probability
    shift: Positive  # of the flow's time, in training and sampling
    muon_lr: Positive
    adam_lr: Positive
    ema: Probability
    seed: WholeNotNegative


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the tabletop's captions, ending prompts with </s> as T5 does."""
    return caption_tokenizer(("<pad>", "</s>", "<unk>"), "$A </s>", "<pad>", "<unk>", "</s>", None, max_length=64)


def tiny_pipeline(vae: AutoencoderKLWan, config: DenoiserConfig) -> WanPipeline:
    """Untrained pipeline of the real classes around a trained VAE; a token is 2 x 2 latents through all frames."""
    tokenizer = text_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=config.text_dim,
            d_kv=config.text_dim // 4,
            num_heads=4,
            num_layers=2,
            d_ff=2 * config.text_dim,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )  # fmt: skip
    )
    z = vae.config.z_dim
    transformer = WanTransformer3DModel(
        patch_size=(5, 2, 2), num_attention_heads=config.heads, attention_head_dim=32, in_channels=z, out_channels=z,
        text_dim=config.text_dim, freq_dim=128, ffn_dim=config.ffn, num_layers=config.layers, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config.shift, num_train_timesteps=1000
    )
    return WanPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
    )


@dataclass(frozen=True)
class LatentPool:
    """Rendered clips, encoded and normalised for the transformer.

    latents: (N, C, F, h, w) float16. caption: (N,) indices into captions.
    """

    latents: Tensor
    caption: Tensor
    captions: list[str]


@torch.no_grad()
def latent_pool(vae: AutoencoderKLWan, clips: int, botched: float, seed: int) -> LatentPool:
    """Every kind of event equally often, its claims at random."""
    rng, claims = np.random.default_rng(seed), all_claims()
    kinds = sorted({claim.kind for claim in claims})
    of_kind = {kind: [i for i, claim in enumerate(claims) if claim.kind == kind] for kind in kinds}
    picks = [int(rng.choice(of_kind[kinds[i % len(kinds)]])) for i in range(clips)]
    mean, std = (torch.tensor(vae.config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    latents = []
    start = time.monotonic()
    for first in range(0, clips, 64):
        frames = np.stack([random_clip(claims[i], rng, botched)[0] for i in picks[first : first + 64]])
        latents.append(((vae.encode(to_unit(frames)).latent_dist.mode() - mean) / std).half())
    logger.info("rendered and encoded %d clips in %.0f s", clips, time.monotonic() - start)
    return LatentPool(torch.cat(latents), torch.tensor(picks), [caption(claim) for claim in claims])


def train_denoiser(vae: AutoencoderKLWan, config: DenoiserConfig, pool: LatentPool) -> WanPipeline:
    """A trained pipeline, its weights averaged over the last steps."""
    torch.manual_seed(config.seed)
    pipeline = tiny_pipeline(vae, config)
    _fit(pipeline, config, pool, config.steps, rate=1.0, average=True)
    return pipeline


def train_on(
    pipeline: WanPipeline, config: DenoiserConfig, pool: LatentPool, steps: int, rate: float, seed: int
) -> None:
    """Train a pipeline on in place, on another pool, at `rate` times its learning rates, falling to nothing."""
    torch.manual_seed(seed)
    _fit(pipeline, config, pool, steps, rate, average=False)


def _fit(
    pipeline: WanPipeline, config: DenoiserConfig, pool: LatentPool, steps: int, rate: float, average: bool
) -> None:
    transformer, text_encoder = pipeline.transformer.train(), pipeline.text_encoder.train()
    both = nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})
    optimizer = MuonAdamW(
        both, steps, rate * config.muon_lr, rate * config.adam_lr, ("blocks", "block.", "patch_embedding")
    )
    ema = Ema(both.parameters(), config.ema)
    process = FlowMatching(config.shift)
    tokens = pipeline.tokenizer(
        [*pool.captions, ""], padding="max_length", max_length=config.tokens, return_tensors="pt"
    )
    start, smooth = time.monotonic(), 0.0
    for step in range(steps):
        pick = torch.randint(len(pool.latents), (config.batch,))
        clean = pool.latents[pick].float()
        empty = torch.rand(config.batch) < config.caption_dropout
        index = torch.where(empty, len(pool.captions), pool.caption[pick])
        ids, mask = tokens.input_ids[index], tokens.attention_mask[index]
        embeddings = text_encoder(ids, mask).last_hidden_state.masked_fill(mask[..., None] == 0, 0)
        noise, t = torch.randn_like(clean), shift_time(torch.rand(config.batch), config.shift)
        prediction = transformer(
            process.noised(clean, noise, t), process.model_timestep(t), embeddings, return_dict=False
        )[0]
        loss = (prediction - process.target(clean, noise, t)).square().mean()
        optimizer.step(loss)
        ema.update()
        smooth = float(loss.detach()) if step == 0 else 0.98 * smooth + 0.02 * float(loss.detach())
        if step % 100 == 0:
            logger.info("denoiser step %d/%d loss %.4f %.0f s", step, steps, smooth, time.monotonic() - start)
    if average:
        ema.swap()
    transformer.eval()
    text_encoder.eval()


def save_half(pipeline: WanPipeline, folder: Path) -> None:
    """Save a pipeline with float16 weights, half the size; loaded in float32 they are what was saved."""
    for module in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        module.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for module in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        module.float()
