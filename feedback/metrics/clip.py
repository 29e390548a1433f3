"""CLIP score and PickScore: similarity of a clip's frames and its prompt according to a CLIP model.

clip        sum over frames of cos(image embedding, text embedding), the reward of Furuta et al. (CLIP: Radford et al.
            2021). The paper uses ViT-B/16, `openai/clip-vit-base-patch16`
pickscore   sum over frames of T * cos(image embedding, text embedding), with the model's own temperature T (about
            100), as its authors compute it (Kirstain et al. 2023). The model is a CLIP trained on people's choices
            between two pictures for a prompt. `yuvalkirstain/PickScore_v1` is a CLIP ViT-H/14; its tokenizer and
            preprocessing are those of the model from which its training started

The paper sums over frames; `reduce: mean` does not depend on the length.
"""

from pydantic.dataclasses import dataclass

from data.config import STRICT
from feedback.core.source import Metric
from feedback.core.weights import FolderOrHubId
from feedback.metrics.metric import FrameOptions, metric_kind, needs_model

VIT_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the model from which the training of PickScore and HPSv2 started


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClipOptions(FrameOptions):
    """Options of kind `clip`."""

    path: FolderOrHubId  # such as openai/clip-vit-base-patch16
    revision: str | None = None  # commit, tag or branch of a hub id; null for a local folder
    processor: FolderOrHubId | None = None  # model with the tokenizer and image preprocessing; null: `path`


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PickScoreOptions(ClipOptions):
    """Options of kind `pickscore`."""

    path: FolderOrHubId = "yuvalkirstain/PickScore_v1"
    processor: FolderOrHubId | None = VIT_H14


def clip_score(name: str, options: ClipOptions, device: str) -> Metric:
    """CLIP score, with its weights on the device."""
    from feedback.metrics.image_text import load_image_text  # transformers takes seconds to import

    definition = f"Cosine of CLIP's embeddings of a frame and of the prompt ({options.path})"
    return load_image_text(
        name, options.path, options.revision, options.processor, options, device, definition, scaled=False
    )


def pick_score(name: str, options: PickScoreOptions, device: str) -> Metric:
    """PickScore, with its weights on the device."""
    from feedback.metrics.image_text import load_image_text

    definition = f"PickScore of a frame for the prompt ({options.path}), with its temperature"
    return load_image_text(
        name, options.path, options.revision, options.processor, options, device, definition, scaled=True
    )


CLIP = metric_kind("clip", ClipOptions, clip_score, needs_device=True, needs=needs_model)
PICKSCORE = metric_kind("pickscore", PickScoreOptions, pick_score, needs_device=True, needs=needs_model)
