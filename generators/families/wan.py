"""Wan 2.1: text to video, and image to video where the first frame enters as extra channels.

Text, padding and the scaling of latents are those of diffusers' WanPipeline.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from generators.core.generator import FrameDecoder, Generator, read_model_index

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
TEXT_BATCH = 16  # prompts per forward of the text encoder: UMT5-xxl's attention logits at 512 tokens take 1 GiB
ENCODER_CHUNK = 4  # frames that AutoencoderKLWan encodes at a time after the first, whatever its temporal scale


class WanGenerator(Generator):
    """Generator over the parts of a WanPipeline.

    text_dim, patch: D, and the latents' patch (frames, height, width), from the transformer's config.
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
        self.patch = transformer_config["patch_size"]
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
        temporal, spatial = self.vae_config["scale_factor_temporal"], self.vae_config["scale_factor_spatial"]
        # The first latent frame holds one frame, each later one `temporal`; whole patches only.
        _check_size("num_frames", num_frames, every=temporal * self.patch[0], offset=1 - temporal)
        _check_size("height", height, every=spatial * self.patch[1])
        _check_size("width", width, every=spatial * self.patch[2])
        return (self.vae_config["z_dim"], (num_frames - 1) // temporal + 1, height // spatial, width // spatial)

    def decode_float(self, latents: Tensor) -> Tensor:
        mean, std = self._latents_mean_std()
        scaled = latents.to(self.device, torch.float32) * std + mean
        pixels: Tensor = self.part("vae").decode(scaled, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)

    def frame_decoder(self) -> FrameDecoder:
        from generators.decoders.wan import WanFrameDecoder  # imports diffusers

        temporal, spatial = self.vae_config["scale_factor_temporal"], self.vae_config["scale_factor_spatial"]
        return WanFrameDecoder(self.part("vae"), *self._latents_mean_std(), temporal, spatial)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents of clips given as uint8 (B, F, H, W, 3): the mode of the VAE's posterior, no sampling.

        Raises ValueError unless F is 4 k + 1: AutoencoderKLWan silently drops frames beyond, at any temporal scale.
        """
        self.latent_shape(*frames.shape[1:4])
        _check_size("num_frames", frames.shape[1], every=ENCODER_CHUNK, offset=1 - ENCODER_CHUNK)
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

    index = read_model_index(path, revision)
    where = {"pretrained_model_name_or_path": path, "revision": revision}
    transformer_config = WanTransformer3DModel.load_config(**where, subfolder="transformer")
    vae_config = _with_defaults(AutoencoderKLWan, AutoencoderKLWan.load_config(**where, subfolder="vae"))
    _check_supported(path, index, transformer_config)

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


def _with_defaults(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config and the defaults of what it leaves out: Wan2.1's VAE was saved before it knew its own factors."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return defaults | dict(config)


def _check_supported(path: str, index: Mapping[str, Any], transformer_config: Mapping[str, Any]) -> None:
    """Raises ValueError for a Wan pipeline that needs more than one transformer and extra channels."""
    if index["_class_name"] not in PIPELINES:
        raise ValueError(f"{path}: a {index['_class_name']}; family wan reads {' and '.join(PIPELINES)}")
    if index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
        raise ValueError(f"{path}: a Wan2.2 pipeline (boundary_ratio or expand_timesteps); family wan is Wan2.1")
    if transformer_config.get("image_dim") is not None:
        raise ValueError(f"{path}: its transformer wants CLIP image embeddings (image_dim), which family wan lacks")


def _check_size(name: str, value: int, every: int, offset: int = 0) -> None:
    """Raises ValueError naming the nearest sizes unless value is every * k + offset for some k >= 1."""
    below = max((value - offset) // every, 1) * every + offset
    if value != below:
        rule = f"{every} k {offset:+d}" if offset else f"a multiple of {every}"
        nearest = f"{below} or {below + every}" if value > below else f"{below}"
        raise ValueError(f"{name}: {value} cannot be represented; it must be {rule}, nearest is {nearest}")
