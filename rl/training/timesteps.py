"""Distributions of the training timestep t in (0, 1), 1 being pure noise.

Each is its settings, as the key `timesteps` gives them, and draws when it is called: LogitNormal(mean=0.0, std=1.0).
"""

from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from data.config import STRICT, Positive
from generators.core.process import shift_time, standard_normal

# Uniform draws are from [0, 1): t = 0 has nothing to denoise, and t = 1 would divide by zero in a clean estimate.
_EDGE = 1e-5


class Timesteps(Protocol):
    """A distribution of t."""

    def __call__(self, random: np.random.Generator, count: int) -> Tensor:
        """(count,) float32 in (0, 1), drawn on the CPU."""


@dataclass(frozen=True, config=STRICT)
class Uniform:
    """Every t equally likely."""

    name: Literal["uniform"] = "uniform"

    def __call__(self, random: np.random.Generator, count: int) -> Tensor:
        """(count,) float32."""
        return _uniform(random, count).clamp(_EDGE, 1 - _EDGE)


@dataclass(frozen=True, config=STRICT)
class LogitNormal:
    """sigmoid(mean + std · z) with z standard normal; Esser et al. (SD3) take 0 and 1."""

    mean: float
    std: Positive
    name: Literal["logit_normal"] = "logit_normal"

    def __call__(self, random: np.random.Generator, count: int) -> Tensor:
        """(count,) float32."""
        return torch.sigmoid(self.mean + self.std * standard_normal(random, (count,))).clamp(_EDGE, 1 - _EDGE)


@dataclass(frozen=True, config=STRICT)
class Shifted:
    """t = s u / (1 + (s - 1) u) with u uniform and s the shift; 1 is uniform, above moves to noise.

    The same map as the sampler's, so training visits the timesteps that a sampler of this shift visits.
    """

    shift: Positive
    name: Literal["shifted"] = "shifted"

    def __call__(self, random: np.random.Generator, count: int) -> Tensor:
        """(count,) float32."""
        return shift_time(_uniform(random, count), self.shift).clamp(_EDGE, 1 - _EDGE)


def _uniform(random: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(random.random(count, dtype=np.float32))


Distribution = Annotated[Uniform | LogitNormal | Shifted, Field(discriminator="name")]
