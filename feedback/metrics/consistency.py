"""Similarity of a clip's frames according to an image model; VBench (Huang et al. 2024) calls it consistency.

    score = mean over frames i > 0 of (max(0, cos(f_i, f_{i-1})) + max(0, cos(f_i, f_0))) / 2

where f is the model's embedding of a frame. VBench-style: the formula is VBench's; the models are transformers' copies
of VBench's models, and images are downsized with antialiasing.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as images
from transformers import CLIPImageProcessor, CLIPModel, PreTrainedModel, ViTModel

from feedback.core.weights import weights_version
from feedback.metrics.image_text import TOGETHER, WHITE, Pixels

EDGE = 224  # pixels of the shorter side of DINO's input
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's


class Consistency:
    """Scores clips by the embeddings of their frames."""

    def __init__(
        self,
        model: PreTrainedModel,
        prepare: Callable[[np.ndarray], Tensor],
        embed: Callable[[Tensor], Tensor],
        *,
        name: str,
        version: str,
    ) -> None:
        """prepare: from uint8 (F, H, W, 3) to the input of `embed`, (F, 3, H', W'); embed: from that to (F, D)."""
        self._model, self._prepare, self._embed = model.eval().requires_grad_(False), prepare, embed
        self.model, self.model_version = name, version
        self.definition = (
            f"VBench-style consistency: how alike each frame is to the one before and to the first ({name})."
        )

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float] = ()) -> list[float]:
        """A number for each clip, uint8 (F, H, W, 3); nan for a clip of one frame."""
        return [consistency(self._embeddings(clip)) for clip in clips]

    def _embeddings(self, clip: np.ndarray) -> Tensor:
        parts = (part.to(self._model.device) for part in self._prepare(clip).split(TOGETHER))
        return torch.cat([self._embed(part).float().cpu() for part in parts])


def consistency(embeddings: Tensor) -> float:
    """The formula of this module for embeddings (F, D); nan for one frame."""
    if len(embeddings) < 2:
        return float("nan")
    unit = functional.normalize(embeddings, dim=-1)
    to_previous = (unit[1:] * unit[:-1]).sum(-1).clamp(min=0)
    to_first = (unit[1:] @ unit[0]).clamp(min=0)
    return float(((to_previous + to_first) / 2).mean())


def subject(name: str, path: str, revision: str | None, device: str) -> Consistency:
    """Consistency by DINO (Caron et al. 2021), a ViT whose embedding represents the subject of an image.

    name: of the block in feedback.sources. Raises ValueError that names its key `path` if no model can be loaded.
    """
    given = {"pretrained_model_name_or_path": path, "revision": revision or "main"}
    with _naming(name, path):
        model = ViTModel.from_pretrained(**given, add_pooling_layer=False, dtype=torch.float32).to(device)

    def embed(pixels: Tensor) -> Tensor:
        hidden: Tensor = model(pixels, interpolate_pos_encoding=True).last_hidden_state
        return hidden[:, 0]

    return Consistency(model, shorter_edge, embed, name=path, version=weights_version(path, revision, model.config))


def background(name: str, path: str, revision: str | None, device: str) -> Consistency:
    """Consistency by CLIP, whose embedding represents the scene of an image; otherwise as `subject`."""
    given = {"pretrained_model_name_or_path": path, "revision": revision or "main"}
    with _naming(name, path):
        model = CLIPModel.from_pretrained(**given, dtype=torch.float32).to(device)
        pixels = Pixels(CLIPImageProcessor.from_pretrained(**given))

    def embed(batch: Tensor) -> Tensor:
        pooled: Tensor = model.get_image_features(pixel_values=batch).pooler_output
        return pooled

    return Consistency(model, pixels, embed, name=path, version=weights_version(path, revision, model.config))


def shorter_edge(frames: np.ndarray) -> Tensor:
    """float32 (F, 3, H', W') for DINO: shorter side 224, other side in proportion, ImageNet's normalisation."""
    whole = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = images.resize(whole, [EDGE], images.InterpolationMode.BILINEAR, antialias=True)
    normalised: Tensor = images.normalize(resized / WHITE, MEAN, STD)
    return normalised


@contextlib.contextmanager
def _naming(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"feedback.sources.{name}.path: no model could be loaded from {path}: {error}") from error
