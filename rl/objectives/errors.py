"""Per-sample errors, and what an objective is to the training loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


def per_sample_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) mean over all elements of (prediction - target)^2, in float32 whatever the inputs' dtype.

    The elements are those that are predicted: latent frames that are given, such as a first frame, are cut off before.
    """
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def per_frame_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B, F) mean over the elements of each latent frame of (prediction - target)^2, in float32 whatever the dtype.

    prediction, target: (B, C, F, h, w), without the latent frames that are given.
    """
    return (prediction.float() - target.float()).square().mean((1, 3, 4))


class Errors(NamedTuple):
    """What a loss reads of a batch of rows. All clips of a row share noise, timestep and caption.

    Of an objective `by_frame`, the errors are (B, F), one for each latent frame that is predicted.
    """

    policy: tuple[Tensor, ...]  # (B,) float32 per-sample errors for each clip of a row, the chosen one first
    reference: tuple[Tensor, ...]  # the same of the reference; empty where the objective reads none
    weight: Tensor  # (B,)
    signal: Tensor | None = None  # (B,) or (B, …) what `Objective.signal` says of the rows
    to_noise: Tensor | None = None  # (B,) by how much the noise estimate moves with the prediction; flow: 1 - t
    to_clean: Tensor | None = None  # (B,) by how much the clean estimate does; flow: t
    measured: tuple[Tensor, ...] = ()  # (B,) each, from `Objective.measure`
    batch_mean: Tensor | None = None  # () mean of `Objective.of_batch` over the batch of all processes, no gradient


class Loss(NamedTuple):
    """An objective's value on a batch of errors."""

    value: Tensor  # (B,), to be averaged and differentiated
    # (B,) each, without gradient: the objective's `facts`, to be averaged into the log; nan in rows that one is not of
    facts: tuple[Tensor, ...]


def unweighted(row: Any) -> float:
    """1 for every row."""
    return 1.0


def every_row(errors: Errors) -> Tensor:
    """(B,) true."""
    return torch.ones_like(errors.policy[0], dtype=torch.bool)


def only(values: Tensor, rows: Tensor) -> Tensor:
    """(B,) the values without gradient, nan outside of these rows (B,)."""
    return torch.where(rows, values.detach(), torch.nan)


@dataclass(frozen=True)
class Objective:
    """What a training run minimises, and all that the trainer needs for it.

    signal: of all rows and the settings, a number of each row, or a list of them, that the loss reads beside its
        errors; raises ValueError for rows that the objective cannot learn from. None: there is none.
    measure: (B,) statistics, in float32, of the deviations of policy and reference from the target, both
        (B, C, F, h, w), by the settings; for what two errors cannot say.
    of_batch: (B,) whose mean over the batch of all processes the loss reads. Where a process splits its share into
        several forwards, they run once more for it, without gradient.
    wanted: (B,) whether the first clip of a row should become more probable; the trainer watches its error.
    by_frame: whether the errors, and with them `wanted`, are of each latent frame, (B, F). The rows of such an
        objective are of a dense set (data/dense.py), and rounds and pools have none.
    """

    name: str
    row_type: type  # the table it reads
    sample_ids: Callable[[Any], tuple[str, ...]]  # the clips of a row; they share noise, timestep and caption dropout
    weight: Callable[[Any], float]  # a row of weight 0 has no gradient, so the trainer does not run it
    uses_reference: bool
    settings: tuple[str, ...]  # the fields of its config (rl.training.config.CONFIGS) that `loss` takes
    facts: tuple[str, ...]  # names of the means that the log holds beside its value
    loss: Callable[..., Loss]
    signal: Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Any]] | None = None
    measure: Callable[[Tensor, Tensor, Mapping[str, Any]], tuple[Tensor, ...]] | None = None
    of_batch: Callable[[Errors], Tensor] | None = None
    wanted: Callable[[Errors], Tensor] = every_row
    by_frame: bool = False
