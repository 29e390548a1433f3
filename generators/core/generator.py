"""A video generator: one interface over diffusers pipelines, for sampling and for training alike.

A family is a module, generators/families/<name>.py or a user's own under a dotted path in `generator.family`, with

    Family    its subclass of `Generator`

A generator is made of a checkpoint's small files, the size of its clips and those of the pipeline's components that
were asked for (`PARTS`); what reads configs alone, such as whether it can make such clips, needs no component. So
`vfrl check` makes one without any. Components are frozen and in eval mode; weights come from safetensors only.
ValueErrors of the constructor begin with the argument that is wrong, as `path: …` or `height: …`. The module imports
diffusers and transformers in its functions, not at its top: params.yaml is checked without them.
One seed gives one clip, whatever the batch, order or process.

Letters: B batch, P prompts, L text tokens, D text width; C, F, h, w the latents' channels, frames, height, width;
F, H, W the clip's frames, height, width; n given latent frames (generators.core.conditions). Latents are always
normalised, as the denoiser sees them.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from cluster.devices import sent
from data.counts import Counts, count, current_counts
from generators.core.checkpoint import Checkpoint
from generators.core.conditions import Conditions, chosen, given_frames, joined, replaced, with_given
from generators.core.process import FlowMatching, process_of, shift_key, standard_normal, with_fixed_shift
from generators.core.size import VideoSize
from generators.core.solvers import solver_scheduler, solver_times
from generators.decoders.decoder import FrameDecoder, frame_decoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARTS = ("denoiser", "text", "image", "vae")  # what may be loaded; training needs the first alone
ImageUse = Literal["none", "optional", "needed"]

SAMPLING = ("denoiser", "vae")  # the PARTS that sample clips of encoded prompts

Predict = Callable[[Tensor, Tensor], Tensor]  # (latents, scheduler timestep) -> prediction


class DenoiseStep(NamedTuple):
    """What one solver step used and made."""

    timestep: Tensor  # scalar, in the denoiser's unit
    prediction: Tensor  # (B, C, F, h, w), guided
    latents: Tensor  # (B, C, F, h, w), after the step


class NonFiniteClipError(ValueError):
    """Latents or pixels that are infinite or NaN, which would be shown as black.

    what: latents or pixels. clips: those that are so, by row of the batch or by sample_id.
    """

    def __init__(self, what: str, clips: Sequence[int | str]) -> None:
        super().__init__(
            f"{what} of clips {', '.join(map(str, clips))} are infinite or NaN. Look at the policy (a learning "
            "rate that is too high), at generator.dtype, and at guidance"
        )
        self.what, self.clips = what, clips

    def __reduce__(self) -> tuple[Any, ...]:  # it may come from another process
        return type(self), (self.what, self.clips)


class Generator:
    """A diffusers pipeline's parts, sampled and trained; a family fills in what is its own.

    checkpoint: the pipeline's small files. size: of the clips that it makes.
    max_prompt_tokens: L of every text embedding; a longer prompt is a ValueError.
    components: the loaded ones, by the pipeline's names for them; using a missing one is an error.
    dtype: of the activations of denoisers and encoders; predictions come back as float32. The VAE is float32.
    embedded_guidance: the guidance scale that is an input of a denoiser distilled from guidance; None: the family's.
    """

    family: str
    pipelines: tuple[str, ...]  # the classes of pipelines that it reads
    components_of: Mapping[str, tuple[str, ...]]  # the pipeline's components by PARTS
    class_names: Mapping[str, str] = MappingProxyType({})  # of diffusers, by those that published configs have
    lora_targets: tuple[str, ...]  # suffixes of the modules that LoRA adapts by default
    tiles: bool = True  # whether the VAE's own spatial tiles are right
    attention_backends: bool = True  # whether the denoisers' attention takes a backend of diffusers
    windows: bool = True  # whether some of a clip's frames can be decoded without the others
    takes_lora: bool = True  # whether stock diffusers loads a LoRA of it; else all weights are trained
    restarts: bool = True  # whether sampling may begin with a partly noised clip, at one of the solver's later steps
    checkpoints: bool = True  # whether the denoisers can compute their blocks again in the backward pass
    num_parts: int = 1  # of a clip, one of which a forward predicts
    padding: int = 0  # latent frames in front that only fill a patch and are not decoded
    largest_shift: float = math.inf  # of a shift of time by resolution
    text_sees_image: bool = False  # whether a prompt's text embedding depends on its first frame
    negative_prompt: str = ""  # the pipeline's own, taken where params.yaml has null
    default_embedded_guidance: float | None = None  # guidance scale that is an input of a distilled denoiser
    always_asked: tuple[str, ...] = ()  # denoisers that run in every `predict`, as processes that share shards must
    # Within it guidance predicts without the prompt, and without gradient; None: as with the prompt, in one batch
    unconditional: Callable[[], AbstractContextManager[None]] | None = None
    projects: bool = False  # whether guidance scales that prediction to the projection of the other one on it

    def __init__(
        self,
        checkpoint: Checkpoint,
        size: VideoSize,
        max_prompt_tokens: int,
        components: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        embedded_guidance: float | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.size = size
        self.max_prompt_tokens = max_prompt_tokens
        self.components = dict(components or {})
        self.dtype = dtype
        self.device = torch.device(device)
        self._check_pipeline()
        if embedded_guidance is not None and self.default_embedded_guidance is None:
            raise ValueError(f"embedded_guidance: {embedded_guidance}, but {checkpoint.path} has no such input; null")
        self.embedded_guidance = self.default_embedded_guidance if embedded_guidance is None else embedded_guidance
        self.latent_shape = self._latent_shape()
        scheduler_config = checkpoint.component("scheduler")
        try:
            self.scheduler_config = with_fixed_shift(scheduler_config, self._tokens(), self.largest_shift)
            self.process = process_of(self.scheduler_config)
        except ValueError as error:
            raise ValueError(f"path: {checkpoint.path}: {error}") from error

    def with_shift(self, shift: float) -> Self:
        """The same modules under another shift of the flow's time. Raises ValueError where the model is no flow."""
        if not isinstance(self.process, FlowMatching):
            raise ValueError(f"shift: {shift} is of flow matching, and this {self.family} generator is no flow model")
        changed = copy.copy(self)
        changed.scheduler_config = {**self.scheduler_config, shift_key(self.scheduler_config): shift}
        changed.process = process_of(changed.scheduler_config)
        return changed

    # What a family fills in

    @property
    def image(self) -> ImageUse:
        """Whether it makes clips from a first frame."""
        raise NotImplementedError

    def encode_text(self, prompts: Sequence[str], images: Tensor | None = None) -> Conditions:
        """The prompts' text, (P, …) each on the CPU, in the encoder's dtype, padded as the pipeline pads.

        images: uint8 (P, H, W, 3), for families with `text_sees_image`; black ones for the captions of guidance.
        "" gives the text of guidance. Raises ValueError naming a prompt of more than max_prompt_tokens.
        """
        raise NotImplementedError

    def encode_image(self, images: Tensor) -> Conditions:
        """The conditions that first frames add, (P, …) each on the CPU. images: uint8 (P, H, W, 3)."""
        raise NotImplementedError

    def vae_latents(self, latents: Tensor) -> Tensor:
        """(B, C, F', h, w) float32: the latents that the VAE decodes to the clip, with gradient.

        They are scaled as the VAE's; latent frames in front that only fill a patch are left out.
        """
        raise NotImplementedError

    def encode(self, frames: Tensor) -> Tensor:
        """Latents of clips given as uint8 (B, F, H, W, 3): the mode of the VAE's posterior, no sampling."""
        raise NotImplementedError

    def start(self, noise: Tensor, conditions: Conditions) -> Tensor:
        """(B, C, F, h, w) where sampling starts from that noise."""
        return noise

    def view(self, clean: Tensor, conditions: Conditions, part: Tensor) -> tuple[Tensor, Conditions]:
        """A part of each clip, and the conditions to predict it under; here the clip and its own conditions.

        clean: (B, C, F, h, w) clips, or their noise, of which the part alone is of use. conditions: the clips'.
        part: (B,) which of `num_parts`, 0 the first in time. A family that predicts a clip part by part takes
        conditions from the other parts of `clean`. Training and sampling both call it.
        """
        return clean, conditions

    def with_part(self, clean: Tensor, predicted: Tensor, part: int) -> Tensor:
        """(B, C, F, h, w) the clips with `predicted` in place of that part, with its gradient."""
        return predicted

    def _sigmas(self, steps: int) -> Sequence[float] | None:
        """The noise levels of Euler's steps before the shift, where the pipeline has its own; None: the scheduler's."""
        return None

    def denoiser_at(self, timestep: float) -> str:
        """The denoiser whose turn it is at a scheduler timestep; the only one, unless the family has several."""
        return self.denoiser_names[0]

    def _check_pipeline(self) -> None:
        """Raises ValueError where the pipeline, or one of its components, is none that the family reads."""
        raise NotImplementedError

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """(C, F, h, w) of the clips' latents. Raises ValueError naming the size that has none, and the nearest."""
        raise NotImplementedError

    def _tokens(self) -> int:
        """Tokens of the latents in the denoiser, which a shift by resolution depends on."""
        raise NotImplementedError

    def _ask(self, denoiser: Any, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """(B, C, F, h, w) one forward of that module.

        latents: with the given frames in their place. timestep: (B,), in the scheduler's unit.
        """
        raise NotImplementedError

    # Parts

    @property
    def denoiser_names(self) -> list[str]:
        """The checkpoint's denoisers, by the pipeline's names, in the order of falling time; loaded or not."""
        return [name for name in self.components_of["denoiser"] if self.checkpoint.class_of(name)]

    @property
    def denoisers(self) -> dict[str, Any]:
        """The loaded denoisers, by the pipeline's names."""
        return {name: self.components[name] for name in self.denoiser_names if name in self.components}

    def component(self, name: str) -> Any:
        """The loaded component of that name. Raises RuntimeError where it was left out."""
        if name not in self.components:
            raise RuntimeError(f"{name} was not loaded: load_generator got the parts of {', '.join(self.components)}")
        return self.components[name]

    # Noise: a clip's own, whatever batch it is sampled in

    @staticmethod
    def sample_seed(set_seed: int | str, prompt_id: str, index: int) -> int:
        """Noise seed of a prompt's index-th clip in a set, in [0, 2**63)."""
        digest = hashlib.sha256("\n".join([str(set_seed), prompt_id, str(index)]).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @staticmethod
    def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32 standard normal, each clip from its own seed, all bits of which count.

        Drawn on the CPU (numpy's PCG64), so it is bit-identical whatever the batch, order, device or number of
        processes.
        """
        return torch.stack([standard_normal(np.random.default_rng(seed), shape) for seed in seeds])

    # Predictions

    def predict(self, latents: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """(B, C, F, h, w) float32 prediction at process time t, with gradient: the training path.

        latents, conditions: of a `view`, where a clip has several parts. t: (B,) in [0, 1], 1 is pure noise. The
        prediction of given frames means nothing.
        """
        return self.ask(latents, self.process.model_timestep(t), conditions, self.always_asked)

    def ask(self, latents: Tensor, timestep: Tensor, conditions: Conditions, always: Sequence[str] = ()) -> Tensor:
        """(B, C, F, h, w) float32 prediction. Each row goes to the denoiser that owns its time.

        timestep: (B,) in the scheduler's unit; on the CPU it is read without a wait for the device. All forwards of
        denoisers, in training and in sampling, are counted here, and so are their backwards (data.counts).
        always: denoisers that run, forward and backward, also where no row is theirs; first of all, in this order.
        """
        several = len(self.denoiser_names) > 1
        turns = [self.denoiser_at(one) for one in timestep.tolist()] if several else [*self.denoiser_names]
        latents = with_given(latents.to(self.device, self.dtype), conditions)
        on_device = {name: self._moved(tensor) for name, tensor in conditions.items()}
        timestep = sent(timestep, self.device)
        asked = dict.fromkeys([*always, *turns])
        if len(asked) == 1:
            return _counted(self._ask(self.component(turns[0]), latents, timestep, on_device).float())
        places = {name: [place for place, turn in enumerate(turns) if turn == name] for name in asked}
        answers = []
        for name, own in places.items():
            rows = sent(torch.tensor(own or [0]), self.device)  # [0]: of another denoiser, its answer is cut off
            answer = self._ask(self.component(name), latents[rows], timestep[rows], chosen(on_device, rows))
            answers.append(answer[: len(own)].float())
        order = torch.tensor([place for own in places.values() for place in own]).argsort()
        return _counted(torch.cat(answers)[sent(order, self.device)])

    def guided(self, conditions: Conditions, empty: Mapping[str, Tensor], guidance: float) -> Predict:
        """The prediction under classifier-free guidance, as a function of latents and scheduler timestep.

        uncond + guidance (cond - uncond), both from one batch; guidance 1 never computes uncond. Where the generator
        has `unconditional`, uncond is a forward of its own within it, and a constant of the gradient. Where it
        `projects`, uncond is `projected`.
        conditions: (B, …) each. empty: those of the empty or the negative prompt, without a batch axis; what it lacks,
        such as the first frame, is the row's own. Raises ValueError for guidance below 1.
        """
        if guidance < 1:
            raise ValueError(f"guidance: found {guidance}; 1 is off, more follows the prompt more strongly")
        unwanted, apart = replaced(conditions, empty), self.unconditional
        batch = joined(conditions, unwanted) if guidance > 1 and apart is None else conditions
        batch = {name: self._moved(tensor) for name, tensor in batch.items()}  # once, not in every step
        unwanted = {name: self._moved(tensor) for name, tensor in unwanted.items()} if apart else {}

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            times = timestep.expand(len(latents))
            if guidance == 1:
                return self.ask(latents, times, batch)
            if apart is None:
                prediction = self.ask(torch.cat([latents, latents]), torch.cat([times, times]), batch)
                conditional, unconditional = prediction.chunk(2)
            else:
                with torch.no_grad(), apart():
                    unconditional = self.ask(latents, times, unwanted)
                conditional = self.ask(latents, times, batch)
            if self.projects:
                unconditional = projected(conditional, unconditional, given_frames(conditions))
            return unconditional + guidance * (conditional - unconditional)

        return predict

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    # Sampling

    def solver(self, name: str, steps: int, even: bool = False) -> Any:
        """The scheduler of that solver, with the timesteps of so many steps set. Raises as `solver_scheduler` does.

        even: of Euler, whether steps are of one length before the shift, where the pipeline has no levels of its own.
        diffusers' own reach 1 / 1000 with the last but one, and so hardly leave a last step.
        """
        scheduler = solver_scheduler(self.scheduler_config, name)
        sigmas = self._sigmas(steps) if name == "euler" else None
        if sigmas is None and even:
            sigmas = [1 - step / steps for step in range(steps)]
        if sigmas is None:
            scheduler.set_timesteps(steps, device=self.device)
        else:
            scheduler.set_timesteps(sigmas=list(sigmas), device=self.device)
        return scheduler

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        empty: Mapping[str, Tensor],
        noise: Tensor,
        steps: int,
        guidance: float,
        solver: str,
    ) -> Tensor:
        """(B, C, F, h, w) float32 clean latents, the given frames among them, on the generator's device.

        conditions, empty: as `guided` takes them. noise: (B, C, F, h, w). solver: of generators.core.solvers.
        Equal to the stock pipeline's latents in float32, given the same latents of the first frame; in bfloat16
        guidance, solver and timestep stay float32, where a pipeline may round them.
        """
        latents = self.start(noise.to(self.device, torch.float32), conditions)
        return self._denoised(latents, conditions, empty, self.solver(solver, steps), guidance)

    @torch.no_grad()
    def sample_from(
        self,
        clean: Tensor,
        share: float,
        conditions: Conditions,
        empty: Mapping[str, Tensor],
        noise: Tensor,
        steps: int,
        guidance: float,
        solver: str,
    ) -> Tensor:
        """As `sample`, from the clips `clean` (B, C, F, h, w) where a share of the solver's steps is still to run.

        x_t = (1 - t) clean + t noise, or as the noise process has it, with the t of step `first_step(share, steps)`.
        The clips keep what they show at that t, such as layout and the coarse motion, and get other details.
        DenseDPO, Alg. 2 (Wu et al., arXiv 2506.03517), whose x_n is noised by the share itself: n / N is their t. Our
        solvers have a shift, so that t is larger than the share where the shift is above 1, and it is their t.
        Raises ValueError as `first_step` does, and where the family samples a clip part by part.
        """
        if not self.restarts:
            raise ValueError(f"{self.family} samples a clip part by part, so it cannot begin with a noised clip")
        scheduler, first = self.solver(solver, steps), first_step(share, steps)
        t = solver_times(scheduler, self.process)[first].float().expand(len(clean))
        latents = self.process.noised(clean.to(self.device), noise.to(self.device), t.to(self.device))
        return self._denoised(latents, conditions, empty, scheduler, guidance, first)

    def _denoised(
        self,
        latents: Tensor,
        conditions: Conditions,
        empty: Mapping[str, Tensor],
        scheduler: Any,
        guidance: float,
        first: int = 0,
    ) -> Tensor:
        """(B, C, F, h, w) clean latents, the given frames among them. latents: of the noise level of step `first`."""
        predict = self.guided(conditions, empty, guidance)
        for step in denoise_steps(predict, scheduler, latents, given_frames(conditions), first):
            latents = step.latents
        return with_given(latents, conditions)

    def decode_float(self, latents: Tensor) -> Tensor:
        """(B, F, H, W, 3) float32 in [0, 1]; keeps the graph, but a clamp passes no gradient where it bites."""
        return self._pixels(latents).clamp(0, 1)

    def _pixels(self, latents: Tensor) -> Tensor:
        """(B, F, H, W, 3) float32, black 0 and white 1, not clamped."""
        count(Counts(decodes=len(latents)))
        scaled = self.vae_latents(latents.to(self.device, torch.float32))
        pixels: Tensor = self.component("vae").decode(scaled, return_dict=False)[0]
        return (pixels / 2 + 0.5).permute(0, 2, 3, 4, 1)

    def frame_decoder(self) -> FrameDecoder:
        """The VAE's decoder one group of latent frames at a time, which `generators.core.decoding` drives."""
        return frame_decoder(self.component("vae"))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 (B, F, H, W, 3) clips on the CPU.

        Raises NonFiniteClipError naming the rows, from 0, whose latents or pixels are infinite or NaN.
        """
        _check_finite(latents, "latents")
        frames = self._pixels(latents)
        _check_finite(frames, "pixels")
        return (frames.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def first_step(share: float, steps: int) -> int:
    """The index of the solver's step with which a share of its steps is left: round(share * steps) are run.

    Raises ValueError where that is none of them, or all: then nothing changes, or nothing of a clip is left.
    """
    left = round(share * steps)
    if not 0 < left < steps:
        raise ValueError(
            f"noise: {share} of {steps} solver steps are {left}; wanted are 1 to {steps - 1}, so that a clip changes "
            "and something of it is left"
        )
    return steps - left


def denoise_steps(
    predict: Predict, scheduler: Any, latents: Tensor, given: int = 0, first: int = 0
) -> Iterator[DenoiseStep]:
    """The solver's steps from noise to clean latents, one at a time.

    predict: (latents, timestep) -> prediction, from `Generator.guided`; wrap it to detach its input or to
        checkpoint it. scheduler: with its timesteps set. given: leading latent frames that no step changes. first: the
        index of the first step that is run, whose noise level the latents have.
    Grad mode is not touched: the caller of next() decides whether a step is recorded, so a rollout may take its first
    steps under no_grad and its last with gradient.
    """
    if hasattr(scheduler, "set_begin_index"):  # else a first timestep that rounding repeats is looked up as the second
        scheduler.set_begin_index(first)
    for timestep in scheduler.timesteps[first:]:
        prediction = predict(latents, timestep)
        stepped = scheduler.step(prediction[:, :, given:], timestep, latents[:, :, given:], return_dict=False)[0]
        latents = torch.cat([latents[:, :, :given], stepped], dim=2) if given else stepped
        yield DenoiseStep(timestep, prediction, latents)


def projected(conditional: Tensor, unconditional: Tensor, given: int = 0) -> Tensor:
    """(B, C, F, h, w) s unconditional, with s = <conditional, unconditional> / |unconditional|² of each clip.

    given: leading latent frames, whose predictions mean nothing and are left out of s.
    CFG-Zero* (Fan et al., arXiv 2503.18886), its optimised scale, without its "zero-init" of the first steps.
    """
    rows = [one[:, :, given:].flatten(1) for one in (conditional, unconditional)]
    scale = (rows[0] * rows[1]).sum(1) / (rows[1].square().sum(1) + 1e-8)
    return scale.view(-1, 1, 1, 1, 1) * unconditional


def _counted(prediction: Tensor) -> Tensor:
    """The prediction (B, …), counted as B forwards, and as B backwards once a gradient reaches it.

    What activation checkpointing computes again within a backward is not counted.
    """
    counts = current_counts()  # by name, since the hook may run in a thread of torch's
    if counts is None or torch._C._current_graph_task_id() != -1:
        return prediction
    counts.add(Counts(forwards=len(prediction)))
    if prediction.requires_grad:
        rows = Counts(backwards=len(prediction))
        prediction.register_hook(lambda _: counts.add(rows))
    return prediction


def _check_finite(values: Tensor, what: str) -> None:
    wrong = (~torch.isfinite(values).flatten(1).all(1)).nonzero().flatten().tolist()
    if wrong:
        raise NonFiniteClipError(what, wrong)


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float32 or bfloat16. Raises ValueError for another."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype: found {name!r}; known are {', '.join(DTYPES)}")
    return DTYPES[name]
