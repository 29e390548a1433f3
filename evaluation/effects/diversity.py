"""How different a policy's clips of one prompt are, from their latents: no model is needed.

Letters: n clips of a prompt, D numbers of a clip, C channels, F frames, h and w height and width of latents.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.records import PromptSpread, Sample

if TYPE_CHECKING:  # torch takes seconds to import
    from data.store import ClipSet

SIDE = 8  # cells of a clip's latents in height and in width: larger latents are averaged over blocks
FEATURES = f"latents, averaged to at most {SIDE} x {SIDE} cells a frame"


def spreads(clip_set: "ClipSet", base: "ClipSet") -> list[PromptSpread]:
    """The diversity within each prompt, in the order of the set's prompts.

    base: the base policy's clips of the same prompts. Both figures are null for a prompt with fewer than two clips, or
    whose clips of the base do not differ. Raises ValueError for a prompt of which the base has no clip.
    """
    of_base, found = _by_prompt(base.samples), []
    for prompt_id, own in _by_prompt(clip_set.samples).items():
        if prompt_id not in of_base:
            raise ValueError(f"{base.folder}: no clip of prompt {prompt_id}, which {clip_set.folder} has clips of")
        scale = spread_of(features(base, of_base[prompt_id]))
        if len(own) < 2 or not scale:
            found.append(PromptSpread(prompt_id, len(own), None, None))
            continue
        similar = similarity(features(clip_set, own), scale)
        found.append(PromptSpread(prompt_id, len(own), vendi_score(similar), mean_distance(similar)))
    return found


def features(clip_set: "ClipSet", samples: Sequence[Sample]) -> np.ndarray:
    """(n, D) float64 of each clip, its latents averaged over blocks so that a frame has at most SIDE x SIDE cells."""
    from torch.nn.functional import adaptive_avg_pool3d

    latents = clip_set.latents([sample.sample_id for sample in samples]).float()
    _, _, frames, height, width = latents.shape
    pooled = adaptive_avg_pool3d(latents, (frames, min(height, SIDE), min(width, SIDE)))
    return np.asarray(pooled.flatten(1).double().numpy())


def spread_of(found: np.ndarray) -> float:
    """Root of the mean squared distance of n clips' features (n, D) from their mean; 0 for one clip."""
    return float(np.sqrt(((found - found.mean(0)) ** 2).sum(1).mean()))


def similarity(found: np.ndarray, scale: float) -> np.ndarray:
    """(n, n) cosines K of the vectors ((x - m) / scale, 1), with 1 on the diagonal.

    found: (n, D) features x of a prompt's clips; m is their mean. scale: the base's `spread_of` for this prompt.
    Friedman and Dieng take cosines of x itself. Latents of one prompt share most of their content, so those are close
    to 1, and change with all that the clips share, such as a darker wall. Without m they see differences alone, but not
    their size: clips that differ half as much have the same cosines. The last entry keeps the size, in units of the
    base's spread: K is 1 where clips are equal, and about 1/2 between clips as far from their mean as the base's, in
    unrelated directions.
    """
    own = np.column_stack([(found - found.mean(0)) / scale, np.ones(len(found))])
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    return np.asarray(own @ own.T)


def vendi_score(similar: np.ndarray) -> float:
    """exp(-sum l ln l) over the eigenvalues l of K / n: 1 where all clips are equal, n where none resembles another.

    Friedman and Dieng (2023), arXiv 2210.02410, Definition 3.1. similar: (n, n) K, positive semidefinite, 1 on the
    diagonal. Eigenvalues that rounding makes negative count as 0.
    """
    values = np.linalg.eigvalsh(similar / len(similar))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_distance(similar: np.ndarray) -> float:
    """Mean of 1 - K over all pairs of two clips. similar: (n, n), n at least 2."""
    pairs = ~np.eye(len(similar), dtype=bool)
    return float((1 - similar[pairs]).mean())


def _by_prompt(samples: Sequence[Sample]) -> Mapping[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.prompt_id, []).append(sample)
    return found
