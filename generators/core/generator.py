"""A video generator: one interface over diffusers pipelines, for sampling and for training alike.

A family is a module, generators/families/<name>.py or a user's own under a dotted path in `generator.family`. It has

    load(path, revision, dtype, device, max_prompt_tokens, parts) -> Generator

    path               str, a local folder or a hub id; revision: str or None, of a hub id
    dtype              torch.dtype of transformer and text encoder; the VAE is float32
    device             torch.device
    max_prompt_tokens  L of every embedding; a longer prompt is a ValueError
    parts              those of PARTS to load; asking a missing one is an error (`Generator.part`)

and returns a subclass of `Generator` that sets `family` and `lora_targets` and fills in encode_text, latent_shape,
vae_latents, frame_decoder and encode. Its modules are frozen and in eval mode; weights come from safetensors only.
ValueErrors begin with the argument that is wrong, as `path: …`. A family may also have

    examine(checkpoint, num_frames, height, width, max_prompt_tokens) -> None

which raises such a ValueError where the model cannot make these clips. It gets a `Checkpoint` of
generators.core.checkpoint, so it reads configs and no weights; `vfrl check`, `vfrl doctor` and stage `base` call it.
The module imports diffusers and transformers in its functions, not at its top: params.yaml is checked without them.
One seed gives one clip, whatever the batch, order or process.

Letters: B batch, L text tokens, D text width; C, F, h, w the latents' channels, frames, height, width;
F, H, W the clip's frames, height, width. Latents are always normalised, as the transformer sees them.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from generators.core.process import FlowMatching, NoiseProcess, VariancePreserving, process_of, shift_key
from generators.decoders.decoder import FrameDecoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARTS = ("transformer", "text_encoder", "vae")  # what may be loaded; training needs the first alone
Solver = Literal["euler", "unipc"]
SOLVERS = get_args(Solver)

Predict = Callable[[Tensor, Tensor], Tensor]  # (latents, scheduler timestep) -> prediction


class DenoiseStep(NamedTuple):
    """What one solver step used and made."""

    timestep: Tensor  # scalar, in the transformer's unit
    prediction: Tensor  # (B, C, F, h, w), guided
    latents: Tensor  # (B, C, F, h, w), after the step


class Generator:
    """A diffusers pipeline's parts, sampled and trained; a family fills in text and pixels.

    modules: the loaded parts, by the names in PARTS; using a missing one is an error.
    conditioning_channels: channels that the transformer takes beside the latents (image-to-video), else 0.
    dtype: of the transformer's and text encoder's activations; predictions come back as float32.
    """

    family: str
    lora_targets: tuple[str, ...]  # suffixes of the modules that LoRA adapts by default

    def __init__(
        self,
        modules: dict[str, nn.Module],
        scheduler_config: Mapping[str, Any],
        conditioning_channels: int,
        max_prompt_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.modules = modules
        self.scheduler_config = scheduler_config
        self.process = process_of(scheduler_config)
        self.conditioning_channels = conditioning_channels
        self.max_prompt_tokens = max_prompt_tokens
        self.dtype = dtype
        self.device = device

    def with_shift(self, shift: float) -> Self:
        """The same modules under another shift of the flow's time. Raises ValueError where the model is no flow."""
        if not isinstance(self.process, FlowMatching):
            raise ValueError(f"shift: {shift} is of flow matching, and this {self.family} generator is no flow model")
        changed = copy.copy(self)
        changed.scheduler_config = {**self.scheduler_config, shift_key(self.scheduler_config): shift}
        changed.process = process_of(changed.scheduler_config)
        return changed

    # What a family fills in

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) float32 on the CPU, L = max_prompt_tokens, padded as the pipeline pads.

        "" gives the empty embedding of guidance. Raises ValueError naming a prompt of more tokens.
        """
        raise NotImplementedError

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of a clip's latents. Raises ValueError naming the size that has none, and the nearest."""
        raise NotImplementedError

    def vae_latents(self, latents: Tensor) -> Tensor:
        """(B, C, F', h, w) float32: the latents that the VAE decodes to the clip, with gradient.

        They are scaled as the VAE's; latent frames in front that only fill a patch are left out.
        """
        raise NotImplementedError

    def frame_decoder(self) -> FrameDecoder:
        """The VAE's decoder one group of latent frames at a time: `generators.decoders.decoder.frame_decoder`."""
        raise NotImplementedError

    def encode(self, frames: Tensor) -> Tensor:
        """Latents of clips given as uint8 (B, F, H, W, 3): the mode of the VAE's posterior, no sampling."""
        raise NotImplementedError

    # Noise: a clip's own, whatever batch it is sampled in

    @staticmethod
    def sample_seed(set_seed: int | str, prompt_id: str, index: int) -> int:
        """Noise seed of a prompt's index-th clip in a set, in [0, 2**63)."""
        digest = hashlib.sha256("\n".join([str(set_seed), prompt_id, str(index)]).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @staticmethod
    def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32 standard normal, each clip from its own seed.

        Drawn on the CPU, so it is bit-identical whatever the batch, order, device or number of processes.
        """
        return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    # Predictions

    @property
    def transformer(self) -> Any:
        """The module that is trained."""
        return self.part("transformer")

    def part(self, name: str) -> Any:
        """The loaded module of that name in PARTS. Raises RuntimeError where it was left out."""
        if name not in self.modules:
            raise RuntimeError(f"{name} was not loaded: load_generator got parts={tuple(self.modules)}")
        return self.modules[name]

    def predict(self, latents: Tensor, t: Tensor, embeddings: Tensor, conditioning: Tensor | None = None) -> Tensor:
        """(B, C, F, h, w) float32 prediction at process time t, with gradient: the training path.

        t: (B,) in [0, 1], 1 is pure noise. embeddings: (B, L, D).
        conditioning: (B, conditioning_channels, F, h, w), e.g. first-frame latents with their mask.
        """
        return self._transformer_output(latents, self.process.model_timestep(t), embeddings, conditioning)

    def guided(
        self, embeddings: Tensor, empty_embedding: Tensor, guidance: float, conditioning: Tensor | None = None
    ) -> Predict:
        """The prediction under classifier-free guidance, as a function of latents and scheduler timestep.

        uncond + guidance (cond - uncond), both from one batch; guidance 1 never computes uncond.
        embeddings: (B, L, D); empty_embedding: (L, D). Raises ValueError for guidance below 1.
        """
        if guidance < 1:
            raise ValueError(f"guidance: found {guidance}; 1 is off, more follows the prompt harder")
        if guidance > 1:
            embeddings = torch.cat([embeddings, empty_embedding.expand_as(embeddings)])
            conditioning = None if conditioning is None else torch.cat([conditioning, conditioning])

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            if guidance > 1:
                latents = torch.cat([latents, latents])
            prediction = self._transformer_output(latents, timestep.expand(len(latents)), embeddings, conditioning)
            if guidance == 1:
                return prediction
            conditional, unconditional = prediction.chunk(2)
            return unconditional + guidance * (conditional - unconditional)

        return predict

    def _transformer_output(
        self, latents: Tensor, timestep: Tensor, embeddings: Tensor, conditioning: Tensor | None
    ) -> Tensor:
        self._check_conditioning(conditioning)
        inputs = latents if conditioning is None else torch.cat([latents, conditioning.to(latents.device)], dim=1)
        output: Tensor = self.transformer(
            hidden_states=inputs.to(self.device, self.dtype),
            timestep=timestep.to(self.device),
            encoder_hidden_states=embeddings.to(self.device, self.dtype),
            return_dict=False,
        )[0]
        return output.float()

    def _check_conditioning(self, conditioning: Tensor | None) -> None:
        channels = 0 if conditioning is None else conditioning.shape[1]
        if channels != self.conditioning_channels:
            raise ValueError(
                f"conditioning: found {channels} channels; this {self.family} transformer takes "
                f"{self.conditioning_channels} beside the latents"
            )

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        embeddings: Tensor,
        empty_embedding: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float,
        solver: str,
        conditioning: Tensor | None = None,
    ) -> Tensor:
        """(B, C, F, h, w) float32 clean latents, on the generator's device.

        embeddings: (B, L, D); empty_embedding: (L, D); noise: (B, C, F, h, w).
        solver: euler or unipc (Zhao et al.). Equal to the stock pipeline's latents in float32; in bfloat16
        guidance and the solver still run in float32, where the pipeline would round.
        """
        scheduler = solver_scheduler(self.scheduler_config, solver)
        scheduler.set_timesteps(steps, device=self.device)
        latents = noise.to(self.device, torch.float32)
        for step in denoise_steps(self.guided(embeddings, empty_embedding, guidance, conditioning), scheduler, latents):
            latents = step.latents
        return latents

    def decode_float(self, latents: Tensor) -> Tensor:
        """(B, F, H, W, 3) float32 in [0, 1]; keeps the graph, but a clamp passes no gradient where it bites."""
        scaled = self.vae_latents(latents.to(self.device, torch.float32))
        pixels: Tensor = self.part("vae").decode(scaled, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 (B, F, H, W, 3) clips on the CPU."""
        return (self.decode_float(latents) * 255).round().to(torch.uint8).cpu()


def denoise_steps(predict: Predict, scheduler: Any, latents: Tensor) -> Iterator[DenoiseStep]:
    """The solver's steps from noise to clean latents, one at a time.

    predict: (latents, timestep) -> prediction, from `Generator.guided`; wrap it to detach its input or to
        checkpoint it. scheduler: with its timesteps set.
    Grad mode is not touched: the caller of next() decides whether a step is recorded, so a rollout may take its first
    steps under no_grad and its last with gradient.
    """
    if hasattr(scheduler, "set_begin_index"):  # else a first timestep that rounding repeats is looked up as the second
        scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        prediction = predict(latents, timestep)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        yield DenoiseStep(timestep, prediction, latents)


def solver_scheduler(scheduler_config: Mapping[str, Any], solver: str) -> Any:
    """A fresh diffusers scheduler of that solver, with the noise process and schedule of the pipeline's own.

    euler on an epsilon or v model is DDIM without noise (Song et al., Eq. 13: Euler in x / alpha over sigma / alpha).
    Raises ValueError for an unknown solver, or one that cannot hold the pipeline's noise table.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if solver not in SOLVERS:
        raise ValueError(f"solver: found {solver!r}; known are {', '.join(SOLVERS)}")
    process = process_of(scheduler_config)
    unipc = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": process.shift}
    schedulers: dict[tuple[str, bool], tuple[Any, dict[str, Any]]] = {
        ("euler", True): (FlowMatchEulerDiscreteScheduler, {"shift": process.shift}),
        ("unipc", True): (UniPCMultistepScheduler, unipc),
        ("euler", False): (DDIMScheduler, {"clip_sample": False}),
        ("unipc", False): (UniPCMultistepScheduler, {}),
    }
    cls, changes = schedulers[solver, isinstance(process, FlowMatching)]
    scheduler = cls.from_config(_taken_by(cls, scheduler_config) | changes)
    if isinstance(process, FlowMatching):
        return scheduler
    if not torch.allclose(scheduler.alphas_cumprod.float(), process.alphas_cumprod, atol=1e-6):
        raise ValueError(f"solver: {solver} cannot hold the noise table of {scheduler_config.get('_class_name')}")
    return scheduler


def solver_times(scheduler: Any, process: NoiseProcess) -> Tensor:
    """(K,) process time, in [0, 1], of each of the solver's timesteps, which are set.

    A flow model's is the solver's own sigma: UniPC rounds the timestep that it passes to the transformer.
    """
    if isinstance(process, VariancePreserving):
        timesteps: Tensor = scheduler.timesteps
        return timesteps / (len(process.alphas_cumprod) - 1)
    sigmas: Tensor = scheduler.sigmas
    return sigmas[:-1]


def _taken_by(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a scheduler's config that another scheduler class takes too."""
    names = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: value for name, value in config.items() if name in names}


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float32 or bfloat16. Raises ValueError for another."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype: found {name!r}; known are {', '.join(DTYPES)}")
    return DTYPES[name]


def check_parts(parts: Collection[str]) -> None:
    """Raises ValueError for a part that no generator has."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"parts: found {', '.join(unknown)}; known are {', '.join(PARTS)}")
