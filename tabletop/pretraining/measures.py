"""What physics measures of the things in a clip, as a second lesson of a judge's vision tower.

A verdict is one bit of a clip, and it often turns on whether a thing of twelve pixels is a cube or a ball. The measures
behind it are many numbers for each frame. A linear head reads them from the tower's tokens while the judge is trained;
it is not saved.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from tabletop.captions import COLORS
from tabletop.physics import Blob, Blobs
from tabletop.scenes import WORLD

COUNT = 9  # measures of a patch; the first two are its place
FRAMES_OF_TOKEN = 2


def measured(blobs: Blobs) -> np.ndarray:
    """Float16 (F, colours, COUNT): of the largest patch of each colour in each frame; nan where there is none."""
    values = np.full((len(blobs), len(COLORS), COUNT), np.nan, np.float16)
    for frame, found in enumerate(blobs):
        for index, color in enumerate(COLORS):
            if found[color]:
                values[frame, index] = _of(found[color][0])
    return values


def _of(blob: Blob) -> tuple[float, ...]:
    """Place and looks, each within -2 to 3; what tells shapes apart has the widest range."""
    values = (
        blob.x / WORLD, (blob.top + blob.bottom) / 2 / WORLD, blob.width / 16, blob.height / 16, blob.area / 200,
        4 * blob.taper, 10 * (blob.corners - 0.865), 4 * blob.slant, float(blob.free),
    )  # fmt: skip
    return tuple(min(3.0, max(-2.0, value)) for value in values)


class MeasuresHead(nn.Module):
    """Reads from each token of a vision tower the patch whose centre lies in it: its colour and its measures.

    The measures are read in the same way whatever the colour, so that what a ball is is learnt once, not four times.
    """

    def __init__(self, width: int, side: int) -> None:
        """width: of a token. side: tokens a side of a frame."""
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, FRAMES_OF_TOKEN * (len(COLORS) + COUNT))

    def loss(self, tokens: Tensor, measures: Tensor) -> Tensor:
        """How far the tokens of N clips, (N * F/2 * side², width), are from `measured` of them, (N, F, colours, COUNT).

        The cross entropy of whether a patch of each colour is there, and the mean smooth error of the measures.
        """
        read = self.read(self.norm(tokens)).view(-1, self.side**2, FRAMES_OF_TOKEN, len(COLORS) + COUNT)
        read = read.transpose(1, 2).flatten(0, 1)  # (N * F, tokens, colours + COUNT)
        measures = measures.flatten(0, 1)
        frame, color = (~measures[..., 0].isnan()).nonzero(as_tuple=True)
        patches = measures[frame, color]
        cells = (patches[:, :2] * self.side).clamp(0, self.side - 1e-3)
        column, row = cells.floor().long().unbind(-1)
        token = row * self.side + column
        there = torch.zeros(*read.shape[:2], len(COLORS))
        there[frame, token, color] = 1
        presence = binary_cross_entropy_with_logits(read[..., : len(COLORS)], there)
        wanted = torch.cat([cells - cells.floor(), patches[:, 2:]], -1)
        return self.side**2 / 4 * presence + smooth_l1_loss(read[frame, token, len(COLORS) :], wanted, beta=0.2)
