"""Wan 2.1: text to video, and image to video where the first frame enters as extra channels.

Text, padding and the scaling of latents are those of diffusers' WanPipeline.
"""

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from generators.core.checkpoint import INDEX, Checkpoint, open_checkpoint
from generators.core.generator import PARTS, Generator
from generators.core.process import process_of
from generators.decoders.decoder import FrameDecoder, frame_decoder

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
READS = "family wan reads a WanPipeline of Wan2.1, text to video"
CLASSES = {"transformer": "WanTransformer3DModel", "text_encoder": "UMT5EncoderModel", "vae": "AutoencoderKLWan"}
TRANSFORMER_KEYS = ("patch_size", "in_channels", "image_dim", "rope_max_seq_len")
VAE_KEYS = ("z_dim", "scale_factor_temporal", "scale_factor_spatial", "latents_mean", "latents_std")
TEXT_BATCH = 16  # prompts per forward of the text encoder: UMT5-xxl's attention logits at 512 tokens take 1 GiB
ENCODER_CHUNK = 4  # frames that AutoencoderKLWan encodes at a time after the first, whatever its temporal scale


class WanGenerator(Generator):
    """Generator over the parts of a WanPipeline.

    vae_config: read even where the VAE is not loaded, for the latents' shape and scaling.
    """

    family = "wan"
    lora_targets = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
        "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
        "ffn.net.0.proj", "ffn.net.2",
    )  # fmt: skip

    def __init__(
        self,
        modules: dict[str, nn.Module],
        tokenizer: Any,
        transformer_config: Mapping[str, Any],
        vae_config: Mapping[str, Any],
        **shared: Any,
    ) -> None:
        super().__init__(modules, **shared)
        self.tokenizer = tokenizer
        self.transformer_config = transformer_config
        self.vae_config = vae_config

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean  # imports transformers; training needs neither

        encoder = self.part("text_encoder")
        texts = [prompt_clean(prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, self.tokenizer(texts).input_ids if texts else [], strict=True):
            if len(ids) > self.max_prompt_tokens:
                raise ValueError(
                    f"prompt of {len(ids)} tokens, max_prompt_tokens is {self.max_prompt_tokens}: {prompt!r}"
                )
        embeddings = []
        for start in range(0, len(texts), TEXT_BATCH):
            tokens = self.tokenizer(
                texts[start : start + TEXT_BATCH],
                padding="max_length",
                max_length=self.max_prompt_tokens,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self.device)
            hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
            embeddings.append(hidden.masked_fill(tokens.attention_mask[..., None] == 0, 0).float().cpu())
        return torch.cat(embeddings)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return _latent_shape(self.transformer_config, self.vae_config, num_frames, height, width)

    def vae_latents(self, latents: Tensor) -> Tensor:
        mean, std = self._latents_mean_std()
        return latents * std + mean

    def frame_decoder(self) -> FrameDecoder:
        return frame_decoder(self.part("vae"))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents of clips given as uint8 (B, F, H, W, 3): the mode of the VAE's posterior, no sampling.

        Raises ValueError unless F is 4 k + 1: AutoencoderKLWan silently drops frames beyond, at any temporal scale.
        """
        self.latent_shape(*frames.shape[1:4])
        _check_size("num_frames", frames.shape[1], every=ENCODER_CHUNK, offset=1 - ENCODER_CHUNK, most=frames.shape[1])
        pixels = frames.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        mean, std = self._latents_mean_std()
        mode: Tensor = self.part("vae").encode(pixels).latent_dist.mode()
        return (mode - mean) / std

    def _latents_mean_std(self) -> tuple[Tensor, Tensor]:
        """Of the VAE's latents, (1, C, 1, 1, 1) each: what normalises them for the transformer."""
        mean, std = (
            torch.tensor(self.vae_config[name], device=self.device).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return mean, std


def load(
    path: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
    max_prompt_tokens: int,
    parts: Collection[str],
) -> WanGenerator:
    """A WanGenerator from a local folder or hub id; generators.core.generator says what the arguments are."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    checkpoint = open_checkpoint(path, revision)
    transformer_config, vae_config = _supported(checkpoint)
    where = {"pretrained_model_name_or_path": path, "revision": revision}

    modules: dict[str, nn.Module] = {}
    weights = {**where, "use_safetensors": True}
    if "transformer" in parts:
        modules["transformer"] = WanTransformer3DModel.from_pretrained(**weights, subfolder="transformer", dtype=dtype)
    if "vae" in parts:  # bfloat16 decoding flickers; Wan's authors recommend float32
        modules["vae"] = AutoencoderKLWan.from_pretrained(**weights, subfolder="vae", dtype=torch.float32)
    tokenizer = None
    if "text_encoder" in parts:
        from transformers import AutoTokenizer, UMT5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, subfolder="tokenizer")
        modules["text_encoder"] = UMT5EncoderModel.from_pretrained(
            path, revision=revision, subfolder="text_encoder", dtype=dtype, use_safetensors=True
        )
    return WanGenerator(
        modules={name: module.to(device).eval().requires_grad_(False) for name, module in modules.items()},
        tokenizer=tokenizer,
        transformer_config=transformer_config,
        vae_config=vae_config,
        scheduler_config=UniPCMultistepScheduler.load_config(**where, subfolder="scheduler"),  # of whichever class
        conditioning_channels=transformer_config["in_channels"] - vae_config["z_dim"],
        max_prompt_tokens=max_prompt_tokens,
        dtype=dtype,
        device=device,
    )


def examine(checkpoint: Checkpoint, num_frames: int, height: int, width: int, max_prompt_tokens: int) -> None:
    """Raises ValueError where no generator of this checkpoint makes such clips from prompts alone; reads configs."""
    transformer_config, vae_config = _supported(checkpoint)
    checkpoint.check_folders(weights=PARTS, files=("tokenizer", "scheduler"))
    if beside := transformer_config["in_channels"] - vae_config["z_dim"]:
        raise ValueError(
            f"path: {checkpoint.path} makes video from an image: its transformer takes {beside} channels beside the "
            f"latents, and no stage gives them; {READS}"
        )
    try:
        process_of(checkpoint.config("scheduler/scheduler_config.json"))
    except ValueError as error:
        raise ValueError(f"path: {checkpoint.path}: {error}") from error
    _latent_shape(transformer_config, vae_config, num_frames, height, width)
    most = checkpoint.config("tokenizer/tokenizer_config.json").get("model_max_length")
    if most is not None and max_prompt_tokens > most:
        raise ValueError(
            f"max_prompt_tokens: {max_prompt_tokens}, but the tokenizer of {checkpoint.path} ends at {most}"
        )


def _supported(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of transformer and VAE, with their defaults. Raises ValueError for a pipeline that is none of ours.

    Ours are those of one transformer, without extra channels for an image's embeddings.
    """
    index, found = checkpoint.config(INDEX), f"path: {checkpoint.path} is a"
    name = index.get("_class_name") or f"pipeline without _class_name in {INDEX}"
    if name not in PIPELINES:
        raise ValueError(f"{found} {name}; {READS}")
    newer = {key: index[key] for key in ("boundary_ratio", "expand_timesteps") if index.get(key)}
    if (index.get("transformer_2") or [None])[0]:
        newer["transformer_2"] = index["transformer_2"][1]
    if newer:
        marks = ", ".join(f"{key}: {json.dumps(value)}" for key, value in newer.items())
        raise ValueError(f"{found} {name} of Wan2.2 ({marks}); {READS}")
    for part, wanted in CLASSES.items():
        if (given := (index.get(part) or [None, None])[1]) != wanted:
            raise ValueError(f"{found} {name} whose {part} is {given}, expected {wanted}; {READS}")
    transformer = _with_defaults(CLASSES["transformer"], checkpoint.config("transformer/config.json"), TRANSFORMER_KEYS)
    if transformer["image_dim"] is not None:
        raise ValueError(f"{found} {name} whose transformer wants CLIP embeddings of an image (image_dim); {READS}")
    return transformer, _with_defaults(CLASSES["vae"], checkpoint.config("vae/config.json"), VAE_KEYS)


def _latent_shape(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], num_frames: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """(C, F, h, w) of a clip's latents, by the configs. Raises ValueError naming the size that has none.

    The first latent frame holds one frame, each later one `temporal`; whole patches only, and no more of them along
    an axis than there are rotary positions.
    """
    temporal, spatial = vae["scale_factor_temporal"], vae["scale_factor_spatial"]
    frames, rows, columns = transformer["patch_size"]
    most = transformer.get("rope_max_seq_len", 1024)  # diffusers' default
    _check_size("num_frames", num_frames, every=temporal * frames, offset=1 - temporal, most=most)
    _check_size("height", height, every=spatial * rows, most=most)
    _check_size("width", width, every=spatial * columns, most=most)
    return (vae["z_dim"], (num_frames - 1) // temporal + 1, height // spatial, width // spatial)


def _with_defaults(name: str, config: Mapping[str, Any], needed: Collection[str]) -> dict[str, Any]:
    """A saved config and its class's defaults for what it leaves out: Wan2.1's VAE was saved before it had factors.

    needed: keys that are read here; where the config has them all, diffusers is not imported, which takes seconds.
    """
    if all(key in config for key in needed):
        return dict(config)
    import diffusers

    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return defaults | dict(config)


def _check_size(name: str, value: int, every: int, most: int, offset: int = 0) -> None:
    """Raises ValueError naming the nearest sizes unless value is every * k + offset for some k from 1 to `most`."""
    below = min(max((value - offset) // every, 1), most) * every + offset
    if value == below:
        return
    rule = f"{every} k {offset:+d}" if offset else f"a multiple of {every}"
    nearest = f"{below}" if value < below or below == most * every + offset else f"{below} or {below + every}"
    limit = f", at most {most * every + offset}" if value > most * every + offset else ""
    raise ValueError(f"{name}: {value} cannot be represented; it must be {rule}{limit}, nearest is {nearest}")
