"""Distributions of the training timestep t in (0, 1), 1 being pure noise.

A distribution is a function of a CPU generator and a count, made by name: `make("logit_normal", mean=0.0, std=1.0)`.
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from generators.core.process import shift_time

Timesteps = Callable[[torch.Generator, int], Tensor]

# torch.rand draws from [0, 1): t = 0 has nothing to denoise, and t = 1 would divide by zero in a clean estimate.
_EDGE = 1e-5


def uniform(generator: torch.Generator, count: int) -> Tensor:
    """(count,) float32, every t equally likely."""
    return torch.rand(count, generator=generator).clamp(_EDGE, 1 - _EDGE)


def logit_normal(generator: torch.Generator, count: int, mean: float, std: float) -> Tensor:
    """(count,) float32, sigmoid(mean + std · z) with z standard normal; Esser et al. (SD3) take 0 and 1."""
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator)).clamp(_EDGE, 1 - _EDGE)


def shifted(generator: torch.Generator, count: int, shift: float) -> Tensor:
    """(count,) float32, t = s u / (1 + (s - 1) u) with u uniform and s the shift; 1 is uniform, above moves to noise.

    The same map as the sampler's, so training visits the timesteps that a sampler of this shift visits.
    """
    return shift_time(torch.rand(count, generator=generator), shift).clamp(_EDGE, 1 - _EDGE)


DISTRIBUTIONS: dict[str, Callable[..., Tensor]] = {"uniform": uniform, "logit_normal": logit_normal, "shifted": shifted}


def make(name: str, **settings: float) -> Timesteps:
    """The distribution of that name with its settings filled in.

    Raises ValueError for an unknown name (listing the known), for a setting that is unknown or missing, and for a
    std or shift that is not positive.
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(f"timestep distribution {name!r} is unknown; known: {', '.join(DISTRIBUTIONS)}")
    wanted = set(inspect.signature(DISTRIBUTIONS[name]).parameters) - {"generator", "count"}
    if set(settings) != wanted:
        found, right = sorted(settings) or "none", sorted(wanted) or "none"
        raise ValueError(f"timestep distribution {name!r} takes the settings {right}, found {found}")
    for key in ("std", "shift"):
        if key in settings and not settings[key] > 0:
            raise ValueError(f"timestep distribution {name!r}: {key} must be > 0, found {settings[key]}")
    return partial(DISTRIBUTIONS[name], **settings)
