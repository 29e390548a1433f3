"""The inputs of a denoiser beside latents and time: named tensors, most of them made once a prompt.

Which names there are is the family's own (`text`, `vision`, `image`, masks …). One is known here:

    given    (B, C, n, h, w) the first n latent frames, clean and normalised. They are a condition in place of a
             prediction: the denoiser sees them as they are, and the loss, the solver's step and the estimate of clean
             latents leave them out

Letters: B batch; C, h, w the latents' channels, height, width; n given latent frames.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Conditions = dict[str, Tensor]  # each (B, …)

GIVEN = "given"


def given_frames(conditions: Mapping[str, Tensor]) -> int:
    """The number n of leading latent frames that are given, 0 where none are."""
    return conditions[GIVEN].shape[2] if GIVEN in conditions else 0


def with_given(latents: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    """(B, C, F, h, w) the latents with the given frames in their place."""
    count = given_frames(conditions)
    if count == 0:
        return latents
    return torch.cat([conditions[GIVEN].to(latents.device, latents.dtype), latents[:, :, count:]], dim=2)


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> Conditions:
    """The conditions of several rows as one batch. rows: tensors without a batch axis, as clip sets hold them.

    Raises ValueError where a row has other names than the first, such as a prompt without a first frame.
    """
    names = rows[0].keys()
    for row in rows:
        if row.keys() != names:
            raise ValueError(
                f"conditions of one batch differ: {', '.join(names)} and {', '.join(row)}; are there prompts with and "
                "without an image?"
            )
    return {name: torch.stack([row[name] for row in rows]) for name in names}


def chosen(conditions: Mapping[str, Tensor], rows: Sequence[int] | Tensor) -> Conditions:
    """The conditions of these rows of a batch, by index or by a mask."""
    index = rows if isinstance(rows, Tensor) else list(rows)
    return {name: tensor[index] for name, tensor in conditions.items()}


def replaced(conditions: Mapping[str, Tensor], by: Mapping[str, Tensor]) -> Conditions:
    """The batch's conditions, with those of `by`, tensors without a batch axis, in every row instead of its own.

    What `by` lacks, such as the first frame, stays.
    """
    count = len(next(iter(conditions.values())))
    return dict(conditions) | {name: tensor.expand(count, *tensor.shape) for name, tensor in by.items()}


def joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Conditions:
    """Two batches with equal names as one, `first` in front."""
    return {name: torch.cat([first[name], second[name].to(first[name].device)]) for name in first}
