"""Noise processes: how a clean latent becomes noise, and what the transformer predicts on the way.

Each has the same methods (`NoiseProcess`), so a loss written against them fits flow matching, epsilon
and v models alike.

    variable     flow matching (Lipman et al., Wan)   diffusion (DDPM, Salimans & Ho)
    clean        x_0                                  x_0
    noise        epsilon                              epsilon
    noised       x_t                                  z_t
    t            t, diffusers' sigma                  timestep / (T - 1)
    alpha        1 - t                                sqrt(alpha_bar_t)
    sigma        t                                    sqrt(1 - alpha_bar_t)
    prediction   velocity                             epsilon_theta or v_theta

t is (B,) floats in [0, 1], 1 is pure noise. Latents are (B, C, F, h, w). Whatever the inputs' dtype, the
maths and the results are float32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cluster.devices import sent


def standard_normal(random: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """A float32 tensor of that shape on the CPU. Of numpy, since torch's CPU generator keeps 32 bits of a seed."""
    return torch.from_numpy(random.standard_normal(tuple(shape), dtype=np.float32))


class NoiseProcess(Protocol):
    """The methods of a noise process that a loss and a sampler use."""

    @property
    def shift(self) -> float:
        """Flow shift of the sampling schedule, for `shift_time`; 1 leaves time alone."""

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents at time t of the path from clean to noise."""

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the transformer should predict at time t."""

    def clean_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Clean latents that the prediction implies; exact when the prediction is the target."""

    def noise_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Noise that the prediction implies; exact when the prediction is the target. Only tests use it."""

    def clean_scale(self, t: Tensor) -> Tensor:
        """(B,) by how much the clean estimate moves with the prediction: its error over the prediction's."""

    def noise_scale(self, t: Tensor) -> Tensor:
        """(B,) by how much the noise estimate moves with the prediction."""

    def model_timestep(self, t: Tensor) -> Tensor:
        """(B,) timestep in the unit that the transformer was trained on."""


@dataclass(frozen=True)
class FlowMatching:
    """x_t = (1 - t) x_0 + t epsilon; the target is the velocity dx_t/dt = epsilon - x_0."""

    shift: float = 1.0
    num_train_timesteps: int = 1000

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = _per_sample(t, clean)
        return (1 - t) * clean.float() + t * noise.float()

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Velocity; the same at every t."""
        return noise.float() - clean.float()

    def clean_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return noised.float() - _per_sample(t, noised) * prediction.float()

    def noise_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return noised.float() + (1 - _per_sample(t, noised)) * prediction.float()

    def clean_scale(self, t: Tensor) -> Tensor:
        return t.float()

    def noise_scale(self, t: Tensor) -> Tensor:
        return 1 - t.float()

    def model_timestep(self, t: Tensor) -> Tensor:
        """1000 t, not rounded: a flow transformer takes any real timestep."""
        return self.num_train_timesteps * t.float()


@dataclass(frozen=True, eq=False)
class VariancePreserving:
    """z_t = alpha x_0 + sigma epsilon, alpha² + sigma² = 1, from a table of alpha_bar: what epsilon and v share.

    alphas_cumprod: (T,) alpha_bar by train timestep, falling. t picks the nearest of the T entries.
    """

    alphas_cumprod: Tensor
    shift: float = 1.0

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(t, clean)
        return alpha * clean.float() + sigma * noise.float()

    def model_timestep(self, t: Tensor) -> Tensor:
        """Integer train timestep, 0 … T - 1."""
        return (t.float() * (len(self.alphas_cumprod) - 1)).round().long()

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        timestep = self.model_timestep(_per_sample(t, like).flatten())
        alpha_bar = _per_sample(sent(self.alphas_cumprod, like.device)[timestep], like)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


class Epsilon(VariancePreserving):
    """The target is the noise itself (DDPM)."""

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise.float()

    def clean_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """(z_t - sigma epsilon) / alpha; not finite where the table ends in zero signal."""
        alpha, sigma = self._alpha_sigma(t, noised)
        return (noised.float() - sigma * prediction.float()) / alpha

    def noise_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return prediction.float()

    def clean_scale(self, t: Tensor) -> Tensor:
        """sigma / alpha; not finite where the table ends in zero signal."""
        alpha, sigma = self._alpha_sigma(t, t)
        return sigma / alpha

    def noise_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float32)


class Velocity(VariancePreserving):
    """The target is v = alpha epsilon - sigma x_0 (Salimans & Ho, Progressive Distillation, appendix D)."""

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(t, clean)
        return alpha * noise.float() - sigma * clean.float()

    def clean_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(t, noised)
        return alpha * noised.float() - sigma * prediction.float()

    def noise_estimate(self, noised: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(t, noised)
        return sigma * noised.float() + alpha * prediction.float()

    def clean_scale(self, t: Tensor) -> Tensor:
        return self._alpha_sigma(t, t)[1]

    def noise_scale(self, t: Tensor) -> Tensor:
        return self._alpha_sigma(t, t)[0]


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t): time moved toward noise where s > 1, its ends kept.

    Esser et al. (SD3), Eq. 23; larger videos need a larger shift (Wan2.1: 3 at 480p, 5 at 720p).
    """
    return shift * t / (1 + (shift - 1) * t)


def process_of(scheduler_config: Mapping[str, Any]) -> FlowMatching | Epsilon | Velocity:
    """The noise process that a diffusers scheduler's config describes.

    scheduler_config: as saved, so with its _class_name, which the `.config` of a scheduler in memory lacks.
    Raises ValueError where its prediction type is none of ours, and where its shift depends on the resolution, which
    `with_fixed_shift` resolves.
    """
    prediction_type = scheduler_config.get("prediction_type")
    if _class_name(scheduler_config).startswith("FlowMatch") or prediction_type == "flow_prediction":
        if scheduler_config.get("use_dynamic_shifting"):
            raise ValueError("scheduler config has use_dynamic_shifting: true, so its shift needs the size of a clip")
        return FlowMatching(
            shift=float(scheduler_config.get(shift_key(scheduler_config), 1.0)),
            num_train_timesteps=scheduler_config.get("num_train_timesteps", 1000),
        )
    kinds: dict[Any, type[Epsilon | Velocity]] = {"epsilon": Epsilon, "v_prediction": Velocity}
    if prediction_type not in kinds:
        known = ", ".join(["flow_prediction", *kinds])
        raise ValueError(f"scheduler config has prediction_type {prediction_type!r}; known are {known}")
    return kinds[prediction_type](_alphas_cumprod(scheduler_config))


def with_fixed_shift(scheduler_config: Mapping[str, Any], tokens: int, largest: float = math.inf) -> dict[str, Any]:
    """The config, with the shift of clips of that many tokens where it depends on their number.

    diffusers' dynamic shifting: mu is linear in the number of tokens, and the shift of time is e^mu. So at a known size
    it is plain flow matching. largest: what a pipeline bounds the shift by. Raises ValueError for another kind of
    dependence.
    """
    config = dict(scheduler_config)
    if not config.get("use_dynamic_shifting"):
        return config
    kind = config.get("time_shift_type", "exponential")
    if kind != "exponential":
        raise ValueError(f"scheduler config has time_shift_type {kind!r}; known is exponential")
    first, last = (config.get(f"{end}_image_seq_len", default) for end, default in (("base", 256), ("max", 4096)))
    low, high = (config.get(f"{end}_shift", default) for end, default in (("base", 0.5), ("max", 1.15)))
    mu = low + (high - low) * (tokens - first) / (last - first)
    return config | {"use_dynamic_shifting": False, shift_key(config): min(math.exp(mu), largest)}


def shift_key(scheduler_config: Mapping[str, Any]) -> str:
    """What a flow scheduler's config calls the shift of its time."""
    return "shift" if _class_name(scheduler_config).startswith("FlowMatch") else "flow_shift"


def _class_name(scheduler_config: Mapping[str, Any]) -> str:
    return str(scheduler_config.get("_class_name", ""))


def _alphas_cumprod(scheduler_config: Mapping[str, Any]) -> Tensor:
    """Table of alpha_bar as the scheduler that the config names computes it, DDPM's where it names none.

    Not always DDPM's: CogVideoX's schedulers bend the table (snr_shift_scale), which DDPM would silently ignore.
    """
    import diffusers

    scheduler = getattr(diffusers, _class_name(scheduler_config) or "DDPMScheduler")
    return torch.as_tensor(scheduler.from_config(dict(scheduler_config)).alphas_cumprod).float()


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as float32 (B, 1, 1, …) on the device of `like`. Raises ValueError for anything but (B,) floats."""
    if values.shape != like.shape[:1] or not values.is_floating_point():
        raise ValueError(
            f"t: found {values.dtype} of shape {tuple(values.shape)}; expected ({len(like)},) floats in [0, 1]"
        )
    return values.to(like.device, torch.float32).view(-1, *[1] * (like.ndim - 1))
