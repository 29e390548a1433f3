"""Implements kinds `clip`, `pickscore` and `hpsv2`: a CLIP model that scores each frame against the prompt."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as images
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cluster.devices import fit_threads
from data.video import sample_frames
from feedback.core.weights import weights_version
from feedback.metrics.metric import FrameOptions
from feedback.metrics.reduction import Reduction

WHITE = 255.0
TOGETHER = 256  # frames per forward pass


class ImageText:
    """A CLIP model with its preprocessing. `definition` defines the score."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: Callable[..., Mapping[str, Tensor]],
        pixels: Callable[[np.ndarray | Tensor], Tensor],
        *,
        name: str,
        version: str,
        definition: str,
        reduce: Reduction,
        frames: int | None,
        temperature: float = 1.0,
    ) -> None:
        """tokenizer: a PreTrainedTokenizer or a function with the same arguments.

        pixels: converts uint8 (F, H, W, 3), or float32 in [0, 255] with gradient, to the model's input.
        temperature: factor of the cosine. name, version, definition, reduce, frames: see the options.
        """
        self._model, self._tokenizer, self._pixels = model.eval().requires_grad_(False), tokenizer, pixels
        self.model, self.model_version, self.definition = name, version, definition
        self._reduce, self.frames, self._temperature = reduce, frames, temperature

    @torch.inference_mode()
    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float] = ()) -> list[float]:
        """A number for each clip, from its frames, uint8 (F, H, W, 3), and its prompt."""
        return self.scores(clips, prompts).tolist()

    def scores(self, clips: Sequence[np.ndarray] | Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """The same as float64 (N,) on the CPU, with the gradient of clips that are float32 tensors in [0, 1]."""
        chosen = [clip[self.frame_indices(len(clip))] for clip in clips]
        counts = torch.tensor([len(clip) for clip in chosen])
        texts = self._text_embeddings(prompts).repeat_interleave(counts, 0)
        alike = self._temperature * (self._image_embeddings(chosen) * texts).sum(-1)
        totals = torch.stack([of_clip.double().sum() for of_clip in alike.split(counts.tolist())])
        return totals if self._reduce == "sum" else totals / counts

    def frame_indices(self, num_frames: int, fps: float = 0) -> list[int]:
        """Indices of the frames that it scores, evenly spaced."""
        return sample_frames(num_frames, self.frames or num_frames)

    def _image_embeddings(self, clips: Sequence[np.ndarray | Tensor]) -> Tensor:
        """(sum of F, D) float32 of unit length, on the CPU."""
        pixels = torch.cat([self._prepared(clip) for clip in clips])
        parts = (part.to(self._model.device, self._model.dtype) for part in pixels.split(TOGETHER))
        return torch.cat([_unit(self._model.get_image_features(pixel_values=part)) for part in parts])

    def _prepared(self, clip: np.ndarray | Tensor) -> Tensor:
        if isinstance(clip, np.ndarray):
            return self._pixels(clip)
        return self._pixels(clip * WHITE) + rounding(self._pixels, clip)

    def _text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """(N, D) float32 of unit length, on the CPU. A prompt longer than CLIP's context is truncated, as CLIP does."""
        unlike = sorted(set(prompts))
        context = int(self._model.config.text_config.max_position_embeddings)
        tokens = self._tokenizer(unlike, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
        features = self._model.get_text_features(
            input_ids=tokens["input_ids"].to(self._model.device),
            attention_mask=tokens["attention_mask"].to(self._model.device),
        )
        return _unit(features)[[unlike.index(prompt) for prompt in prompts]]


class Pixels:
    """A CLIP's image preprocessing as tensor operations, with the values of its config."""

    def __init__(self, processor: CLIPImageProcessor) -> None:
        """Raises ValueError for a config that does not resize the shorter edge and crop the centre, as CLIP does."""
        if not (processor.size.shortest_edge and processor.do_center_crop and processor.do_normalize):
            raise ValueError(
                f"its image preprocessing differs from CLIP's: {dict(processor.size)}, expected shortest_edge"
            )
        self._edge = int(processor.size.shortest_edge)
        self._crop = [int(processor.crop_size.height), int(processor.crop_size.width)]
        self._mean, self._std = list(processor.image_mean), list(processor.image_std)

    def __call__(self, frames: np.ndarray | Tensor) -> Tensor:
        """float32 (F, 3, crop, crop) from uint8 (F, H, W, 3), equal to CLIPImageProcessor's result.

        For float32 in [0, 255] the result is the same except for the resize's rounding, and has a gradient.
        """
        resized = images.resize(channels_first(frames), [self._edge], images.InterpolationMode.BICUBIC, antialias=True)
        top, left = ((size - crop) // 2 for size, crop in zip(resized.shape[-2:], self._crop, strict=True))
        cropped = images.crop(resized, top, left, *self._crop) / WHITE
        normalised: Tensor = images.normalize(cropped, self._mean, self._std)
        return normalised


def rounding(prepare: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """The constant that makes `prepare(frames * WHITE)` equal `prepare` of the nearest 8-bit frames, on those frames.

    prepare: takes uint8 (F, H, W, 3), or float32 in [0, 255]. frames: float32 (F, H, W, 3) in [0, 1].
    Returns a tensor of the shape of `prepare`'s result, without gradient, on the device of `frames`.

    A resize of 8-bit frames rounds its result to 8 bits and clips it to [0, 255]; neither operation has a gradient. A
    resize of floats does neither. With the constant, the resize of floats has the values of the resize of bytes and
    keeps its own gradient (a straight-through estimator). Without a resize the constant is 0.
    """
    with torch.no_grad():
        nearest = (frames * WHITE).round().clamp(0, WHITE)
        # Bytes on the CPU, where judges prepare their clips: a GPU's resize rounds some bytes differently.
        return prepare(nearest.to("cpu", torch.uint8)).to(frames.device) - prepare(nearest)


def channels_first(frames: np.ndarray | Tensor) -> Tensor:
    """Frames (F, H, W, 3) as (F, 3, H, W), in the same dtype."""
    whole = frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
    return whole.permute(0, 3, 1, 2)


def load_image_text(
    name: str,
    path: str,
    revision: str | None,
    processor: str | None,
    options: FrameOptions,
    device: str,
    definition: str,
    scaled: bool,
) -> ImageText:
    """A CLIP with its weights on the device.

    path, processor: folder or hub id of the model, and of tokenizer and preprocessing (None: `path`).
    definition: the formula, as a sentence. scaled: whether cosines are multiplied by the model's own temperature.
    Raises ValueError that names feedback.sources.<name>.path if no model can be loaded.
    """
    branch = revision or "main"
    try:
        model = CLIPModel.from_pretrained(
            path, revision=branch, use_safetensors=True, dtype=getattr(torch, options.dtype)
        )
        other = {"revision": branch} if processor is None else {}
        tokenizer = AutoTokenizer.from_pretrained(processor or path, **other)
        pixels = Pixels(CLIPImageProcessor.from_pretrained(processor or path, **other))
    except (OSError, ValueError) as error:
        raise ValueError(f"feedback.sources.{name}.path: no CLIP could be loaded from {path}: {error}") from error
    prepared = f", prepared by {processor}" if processor else ""
    fit_threads([model])
    return ImageText(
        model.to(device),
        tokenizer,
        pixels,
        name=path,
        version=weights_version(path, revision, model.config),
        definition=f"{definition}{prepared}, {how_reduced(options)}.",
        reduce=options.reduce,
        frames=options.frames,
        temperature=model.logit_scale.exp().item() if scaled else 1.0,
    )


def how_reduced(options: FrameOptions) -> str:
    """The end of a definition: the reduction, its frames and the precision, from FrameOptions."""
    seen = f"{options.frames} evenly spaced frames" if options.frames else "all frames"
    return f"{options.reduce} over {seen}, in {options.dtype}"


def _unit(features: BaseModelOutputWithPooling) -> Tensor:
    """Projected embeddings of unit length, float32 on the CPU."""
    return functional.normalize(features.pooler_output.float(), dim=-1).cpu()
