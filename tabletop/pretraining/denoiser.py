"""The tabletop's generator: a small WanTransformer3DModel and the UMT5 encoder that it reads, trained together.

Flow matching on latents of rendered clips, a stated part of which is botched, so that RL has defects to remove. Text
is dropped in a tenth of the cases, for classifier-free guidance. first_frame.py trains the second generator in the same
loop, `fit`.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from data.config import STRICT, Count, Positive, Probability, WholeNotNegative
from generators.core.process import FlowMatching, shift_time
from tabletop.captions import Claim, all_claims, caption
from tabletop.pretraining.optimizer import Ema, MuonAdamW
from tabletop.pretraining.tokenizers import caption_tokenizer
from tabletop.pretraining.vae import to_unit
from tabletop.render import random_clip

logger = logging.getLogger(__name__)


KEEP_EVERY = 200  # steps after which the state of a training is written

DrawClip = Callable[[Claim, np.random.Generator, float], tuple[np.ndarray, str | None]]
# of clean latents (B, C, F, h, w), token ids (B, L) and their mask (B, L), which is 0 on the padding
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@pydantic_dataclass(frozen=True, config=STRICT)
class Training:
    """Sizes and schedule that a generator's pretraining has, whatever its family."""

    clips: Count  # rendered clips
    botched: Probability  # part of them that fails its caption
    steps: Count
    batch: Count
    heads: Count  # of 32 dimensions each
    layers: Count
    text_dim: Count
    tokens: Count  # length of a padded prompt
    caption_dropout: Probability
    muon_lr: Positive
    adam_lr: Positive
    ema: Probability
    seed: WholeNotNegative


@pydantic_dataclass(frozen=True, config=STRICT)
class DenoiserConfig(Training):
    """Sizes and schedule of the generator's pretraining."""

    ffn: Count
    shift: Positive  # of the flow's time, in training and sampling


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
def latent_pool(
    vae: AutoencoderKLWan, clips: int, botched: float, seed: int, draw: DrawClip = random_clip
) -> LatentPool:
    """Every kind of event equally often, its claims at random. draw: a clip of a claim, botched with a probability."""
    rng, claims = np.random.default_rng(seed), all_claims()
    kinds = sorted({claim.kind for claim in claims})
    of_kind = {kind: [i for i, claim in enumerate(claims) if claim.kind == kind] for kind in kinds}
    picks = [int(rng.choice(of_kind[kinds[i % len(kinds)]])) for i in range(clips)]
    mean, std = (torch.tensor(vae.config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    latents = []
    start = time.monotonic()
    for first in range(0, clips, 64):
        frames = np.stack([draw(claims[i], rng, botched)[0] for i in picks[first : first + 64]])
        latents.append(((vae.encode(to_unit(frames)).latent_dist.mode() - mean) / std).half())
    logger.info("rendered and encoded %d clips in %.0f s", clips, time.monotonic() - start)
    return LatentPool(torch.cat(latents), torch.tensor(picks), [caption(claim) for claim in claims])


def train_denoiser(vae: AutoencoderKLWan, config: DenoiserConfig, pool: LatentPool) -> WanPipeline:
    """A trained pipeline, its weights averaged over the last steps."""
    torch.manual_seed(config.seed)
    pipeline = tiny_pipeline(vae, config)
    fit(pipeline, _flow_loss(pipeline, config.shift), _MATRICES, config, pool, config.steps)
    return pipeline


def train_on(
    pipeline: WanPipeline, config: DenoiserConfig, pool: LatentPool, steps: int, rate: float, seed: int
) -> None:
    """Train a pipeline on in place, on another pool, at `rate` times its learning rates, falling to nothing."""
    torch.manual_seed(seed)
    fit(pipeline, _flow_loss(pipeline, config.shift), _MATRICES, config, pool, steps, rate, average=False)


_MATRICES = ("blocks", "block.", "patch_embedding")  # parts of names: of the layers whose matrices Muon trains


def _flow_loss(pipeline: WanPipeline, shift: float) -> Loss:
    process = FlowMatching(shift)

    def loss(clean: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        embeddings = pipeline.text_encoder(ids, mask).last_hidden_state.masked_fill(mask[..., None] == 0, 0)
        noise, t = torch.randn_like(clean), shift_time(torch.rand(len(clean)), shift)
        noised = process.noised(clean, noise, t)
        prediction = pipeline.transformer(noised, process.model_timestep(t), embeddings, return_dict=False)[0]
        return mse_loss(prediction, process.target(clean, noise, t))

    return loss


def fit(
    pipeline: DiffusionPipeline,
    loss_of: Loss,
    matrices: tuple[str, ...],
    config: Training,
    pool: LatentPool,
    steps: int,
    rate: float = 1.0,
    average: bool = True,
    state: Path | None = None,
) -> None:
    """Train a pipeline's transformer and text encoder in place.

    matrices: parts of names, of the layers whose matrices Muon trains. rate: of the config's learning rates, which fall
    to nothing. average: whether the weights become their average over the last steps.
    state: a file that keeps a training that was killed, which continues from it. It is removed at the end.
    """
    transformer, text_encoder = pipeline.transformer.train(), pipeline.text_encoder.train()
    both = nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})
    optimizer = MuonAdamW(both, steps, rate * config.muon_lr, rate * config.adam_lr, matrices)
    ema = Ema(both.parameters(), config.ema)
    tokens = pipeline.tokenizer(
        [*pool.captions, ""], padding="max_length", max_length=config.tokens, return_tensors="pt"
    )
    first, smooth = (0, 0.0) if state is None or not state.exists() else _load(state, both, optimizer, ema)
    start = time.monotonic()
    for step in range(first, steps):
        pick = torch.randint(len(pool.latents), (config.batch,))
        empty = torch.rand(config.batch) < config.caption_dropout
        index = torch.where(empty, len(pool.captions), pool.caption[pick])
        loss = loss_of(pool.latents[pick].float(), tokens.input_ids[index], tokens.attention_mask[index])
        optimizer.step(loss)
        ema.update()
        smooth = float(loss.detach()) if step == 0 else 0.98 * smooth + 0.02 * float(loss.detach())
        if step % 100 == 0:
            logger.info("denoiser step %d/%d loss %.4f %.0f s", step, steps, smooth, time.monotonic() - start)
        if state is not None and (step + 1) % KEEP_EVERY == 0:
            _save(state, step + 1, smooth, both, optimizer, ema)
    if average:
        ema.swap()
    transformer.eval()
    text_encoder.eval()
    if state is not None:
        state.unlink(missing_ok=True)


def _save(state: Path, step: int, loss: float, both: nn.Module, optimizer: MuonAdamW, ema: Ema) -> None:
    """Write everything that the next step depends on, whole or not at all."""
    whole = {
        "step": step, "loss": loss, "both": both.state_dict(), "optimizer": optimizer.state_dict(),
        "ema": (ema.average, ema.steps), "rng": torch.get_rng_state(),
    }  # fmt: skip
    beside = state.with_name(state.name + ".new")
    torch.save(whole, beside)
    beside.replace(state)


def _load(state: Path, both: nn.Module, optimizer: MuonAdamW, ema: Ema) -> tuple[int, float]:
    """Continue from what `_save` wrote: the number of steps taken, and the loss."""
    whole = torch.load(state, weights_only=True)
    both.load_state_dict(whole["both"])
    optimizer.load_state_dict(whole["optimizer"])
    ema.average, ema.steps = whole["ema"]
    torch.set_rng_state(whole["rng"])
    logger.info("continues from step %d", whole["step"])
    return whole["step"], whole["loss"]


def save_half(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline with float16 weights, half the size; loaded in float32 they are what was saved."""
    for module in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        module.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for module in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        module.float()
