"""The tabletop's second generator: a first frame and a text become a clip, in the classes of CogVideoX image-to-video.

v-prediction on the latents of the tabletop's own autoencoder, whose mean and standard deviation are folded into its
weights, because the stock pipeline knows a factor alone. Text embeddings are neither masked nor zeroed on the padding,
as in the stock pipeline. Clips are botched in ways that their first frame does not tell.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import T5Config, T5EncoderModel

from data.config import STRICT, Count
from generators.core.process import Velocity
from tabletop.captions import Claim
from tabletop.pretraining.denoiser import LatentPool, Loss, Training, fit, latent_pool, text_tokenizer
from tabletop.render import render
from tabletop.scenes import BOTCHES, FRAMES, SIZE, make_scene

LOG_VARIANCE = -30.0  # of the folded VAE's posterior: its width was never trained, and the stock pipeline draws from it
_MATRICES = ("transformer_blocks", "block.", "patch_embed.proj")  # parts of names: layers whose matrices Muon trains


@pydantic_dataclass(frozen=True, config=STRICT)
class FirstFrameConfig(Training):
    """Sizes and schedule of the second generator's pretraining."""

    time_dim: Count  # width of the time embedding


@torch.no_grad()
def folded_vae(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """A copy whose latents are normalised: mean 0, standard deviation 1, and no spread around the mode.

    The 1x1x1 convolutions after the encoder and before the decoder take up the mean and the standard deviation of the
    config. Further entries of the config are what the CogVideoX pipeline asks of an autoencoder.
    """
    folded = copy.deepcopy(vae)
    mean, std = (torch.tensor(vae.config[key]) for key in ("latents_mean", "latents_std"))
    z, encoded, decoded = len(mean), folded.quant_conv, folded.post_quant_conv
    encoded.weight[:z] /= std.view(-1, 1, 1, 1, 1)
    encoded.bias[:z] = (encoded.bias[:z] - mean) / std
    encoded.weight[z:] = 0
    encoded.bias[z:] = LOG_VARIANCE
    decoded.bias += decoded.weight[:, :, 0, 0, 0] @ mean
    decoded.weight *= std.view(1, -1, 1, 1, 1)
    halvings = vae.config.scale_factor_spatial.bit_length() - 1
    folded.register_to_config(
        latents_mean=[0.0] * z,
        latents_std=[1.0] * z,
        scaling_factor=1.0,
        invert_scale_latents=False,
        temporal_compression_ratio=vae.config.scale_factor_temporal,
        block_out_channels=[1] * (halvings + 1),  # only their number counts: the spatial factor is 2 to the number - 1
        latent_channels=z,
    )
    return folded


def tiny_first_frame_pipeline(vae: AutoencoderKLWan, config: FirstFrameConfig) -> CogVideoXImageToVideoPipeline:
    """Untrained pipeline of the real classes around a folded VAE; a token is 2 x 2 latents through all frames."""
    tokenizer = text_tokenizer()
    text_encoder = T5EncoderModel(
        T5Config(
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
    z, side = vae.config.z_dim, SIZE // vae.config.scale_factor_spatial
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=config.heads, attention_head_dim=32, in_channels=2 * z, out_channels=z,
        time_embed_dim=config.time_dim, text_embed_dim=config.text_dim, num_layers=config.layers, sample_width=side,
        sample_height=side, sample_frames=FRAMES, patch_size=2,
        patch_size_t=(FRAMES - 1) // vae.config.scale_factor_temporal + 1, max_text_seq_length=config.tokens,
        temporal_compression_ratio=vae.config.scale_factor_temporal, use_rotary_positional_embeddings=True,
        patch_bias=False,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=1.0, clip_sample=False, set_alpha_to_one=True,
        timestep_spacing="trailing",
    )  # fmt: skip
    return CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
    )


def unforeseen_clip(claim: Claim, rng: np.random.Generator, botched: float) -> tuple[np.ndarray, str | None]:
    """A rendered clip of the claim and its botch, None where there is none. botched: the probability of one.

    The first frame is that of a scene that succeeds, whether the clip does or not: it does not tell. A generator would
    otherwise learn to botch where the first frame is that of a botched clip, and those that it is given are none.
    """
    seed = int(rng.integers(2**32))
    honest = render(make_scene(claim, np.random.default_rng(seed)))
    if rng.random() >= botched:
        return honest, None
    for botch in rng.permutation(BOTCHES[claim.kind]).tolist():
        clip = render(make_scene(claim, np.random.default_rng(seed), botch, botch_rng=rng))
        if np.array_equal(clip[0], honest[0]):
            return clip, botch
    raise AssertionError(f"no botch of {claim.kind} leaves the first frame alone; `vanish` does in every kind of event")


def first_frame_pool(vae: AutoencoderKLWan, config: FirstFrameConfig) -> LatentPool:
    """The clips that the second generator learns from. vae: folded."""
    return latent_pool(vae, config.clips, config.botched, config.seed + 1, unforeseen_clip)


def train_first_frame(
    vae: AutoencoderKLWan, config: FirstFrameConfig, pool: LatentPool, state: Path | None = None
) -> CogVideoXImageToVideoPipeline:
    """A trained pipeline, its weights averaged over the last steps.

    vae: folded. state: a file that keeps a training that was killed, which continues from it.
    """
    torch.manual_seed(config.seed)
    pipeline = tiny_first_frame_pipeline(vae, config)
    fit(pipeline, velocity_loss(pipeline), _MATRICES, config, pool, config.steps, state=state)
    return pipeline


def velocity_loss(pipeline: CogVideoXImageToVideoPipeline) -> Loss:
    """What the transformer is trained on: the mean squared error of v, given the text and the first latent frame."""
    process = Velocity(pipeline.scheduler.alphas_cumprod.float())
    latent_frames = pipeline.transformer.config.patch_size_t
    rotary = pipeline._prepare_rotary_positional_embeddings(SIZE, SIZE, latent_frames, torch.device("cpu"))

    def loss(clean: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        embeddings = pipeline.text_encoder(ids).last_hidden_state
        noise, t = torch.randn_like(clean), torch.rand(len(clean))
        image = torch.zeros_like(clean)
        image[:, :, :1] = clean[:, :, :1]
        prediction = pipeline.transformer(
            hidden_states=torch.cat([process.noised(clean, noise, t), image], 1).transpose(1, 2),
            encoder_hidden_states=embeddings,
            timestep=process.model_timestep(t),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return mse_loss(prediction.transpose(1, 2), process.target(clean, noise, t))

    return loss
