"""A reward model on a Qwen2-VL: clips and prompts to one number for each dimension, with the gradient of the frames.

1. Frames, evenly spaced (feedback/metrics/reward_models/frames.py), resized to the size that qwen_vl_utils chooses.
2. The processor's own preprocessing, which resizes again only where its own bounds are narrower.
3. One user message: the video, then the text with the clip's prompt, then the tokens that begin an answer.
4. The hidden states of the last layer at the tokens of `Head.tokens`, or at the last token.
5. The head, a linear layer, in float32.

Positions in the language model are 0, 1, 2 … on all three rotary axes, not Qwen2-VL's positions in time, height and
width: both published models call their language model without positions, and that is its default. Other positions
give other numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as images
from transformers import ProcessorMixin, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from data.video import sample_frames
from feedback.judges.vlm import templated, unreadable
from feedback.metrics.image_text import WHITE, channels_first, rounding
from feedback.metrics.reward_models.texts import PROMPT


class Head(NamedTuple):
    """The linear layer on the hidden states."""

    weight: Tensor  # (1 or D, hidden size) float32; 1: the same for all dimensions
    bias: Tensor | None  # as many as rows of `weight`
    tokens: tuple[int, ...] | None  # a token of the text for each dimension; None: the last token of the whole message


class Scale(NamedTuple):
    """A dimension's mean and standard deviation over the authors' data, which its number is normalised by."""

    mean: float = 0.0
    std: float = 1.0


class Shown(NamedTuple):
    """How clips are shown."""

    frames: Callable[[int, float], int]  # frames of a clip and its rate -> how many are shown, 0: it cannot be judged
    pixels: Callable[[int], tuple[int, int]]  # how many are shown -> least and most pixels of a frame


class RewardModel:
    """A reward model with its processor.

    Its measures are the dimensions and OVERALL of them; `score` and `scores` are of the first in `measures`.
    """

    def __init__(
        self,
        backbone: Qwen2VLModel,
        processor: ProcessorMixin,
        head: Head,
        text: str,
        dimensions: Mapping[str, Scale],
        overall: tuple[str, Callable[[Tensor], Tensor]],
        shown: Shown,
        *,
        score: str,
        name: str,
        version: str,
        definition: str,
    ) -> None:
        """text: with PROMPT in it. dimensions: in the order of the head. overall: its name, and (D,) -> scalar.

        score: the measure that is the source's score. name, version: of the model. definition: begins a sentence that
        ends with a measure's name. Raises ValueError for a score that is no measure.
        """
        self._backbone, self._processor = backbone.eval().requires_grad_(False), processor
        self._head = head._replace(weight=head.weight.float().to(backbone.device))
        self._bias = None if head.bias is None else head.bias.float().to(backbone.device)
        self._text, self._scales, self._overall, self._shown = text, list(dimensions.values()), overall[1], shown
        known = [*dimensions, overall[0]]
        if score not in known:
            raise ValueError(f"score is {score!r}; its measures are {', '.join(known)}")
        self._order = [known.index(one) for one in (score, *(name for name in known if name != score))]
        self.measures = [known[place] for place in self._order]
        self.model, self.model_version, self._definition = name, version, definition
        self.definition = self.define(score)

    def define(self, measure: str) -> str:
        """A sentence that defines a measure."""
        return f"{self._definition}: {measure}."

    def frame_indices(self, num_frames: int, fps: float) -> list[int]:
        """Indices of the frames that it sees of a clip with `fps` frames per second; none of a clip of one frame."""
        count = self._shown.frames(num_frames, fps)
        return sample_frames(num_frames, count) if count else []

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]) -> Sequence[float]:
        """As feedback.core.source.Metric says."""
        return self.all_scores(clips, prompts, fps)[0]

    @torch.no_grad()  # not inference_mode: the processor keeps tensors for later calls, which may need a gradient
    def all_scores(
        self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]
    ) -> Sequence[Sequence[float]]:
        """A sequence for each of `measures`, a number for each clip, uint8 (F, H, W, 3), one clip at a time.

        nan for a clip of one frame and a prompt that holds a control token.
        """
        rows = [self._of_clip(*one) for one in zip(clips, prompts, fps, strict=True)]
        return torch.stack(rows, 1).tolist()

    def scores(self, clips: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """The first measure, float32 (N,), of the frames of `frame_indices`, (F, H, W, 3) in [0, 1], with gradient.

        On 8-bit frames the numbers are those of `score`. Raises ValueError for a prompt that holds a control token.
        """
        for prompt in prompts:
            if problem := unreadable(self._processor, prompt):
                raise ValueError(f"{prompt!r}: {problem}")
        return torch.stack([self.values(clip, prompt)[0] for clip, prompt in zip(clips, prompts, strict=True)])

    def values(self, frames: np.ndarray | Tensor, prompt: str) -> Tensor:
        """All measures, float32 (M,), of the frames that it sees: uint8 (F, H, W, 3), or float in [0, 1]."""
        raw = self._raw(self._features(frames), prompt)
        dimensions = torch.stack([(one - scale.mean) / scale.std for one, scale in zip(raw, self._scales, strict=True)])
        return torch.cat([dimensions, self._overall(dimensions)[None]])[self._order]

    def _of_clip(self, clip: np.ndarray, prompt: str, fps: float) -> Tensor:
        indices = self.frame_indices(len(clip), fps)
        if not indices or unreadable(self._processor, prompt):
            return torch.full((len(self.measures),), torch.nan)
        return self.values(clip[indices], prompt).cpu()

    def _raw(self, features: Mapping[str, Tensor], prompt: str) -> Tensor:
        """The head's numbers, (D,) float32."""
        ids = self._tokens(features["video_grid_thw"], prompt)
        positions = torch.arange(len(ids)).expand(3, 1, -1)
        hidden = self._backbone(
            input_ids=ids[None].to(self._backbone.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self._backbone.device),
            position_ids=positions.to(self._backbone.device),
            pixel_values_videos=features["pixel_values_videos"].to(self._backbone.device, self._backbone.dtype),
            video_grid_thw=features["video_grid_thw"].to(self._backbone.device),
            use_cache=False,
        ).last_hidden_state[0]
        places = [len(ids) - 1] if self._head.tokens is None else [_place(ids, token) for token in self._head.tokens]
        numbers = torch.nn.functional.linear(hidden[places].float(), self._head.weight, self._bias)
        return numbers.diagonal() if numbers.shape[0] == numbers.shape[1] else numbers.flatten()

    def _tokens(self, grid: Tensor, prompt: str) -> Tensor:
        """Ids of the message, (L,): the video's token stands once for each of its merged patches."""
        processor: Any = self._processor
        patches = int(grid.prod()) // processor.video_processor.merge_size**2
        message = templated(processor, self._text.replace(PROMPT, prompt))
        message = message.replace(processor.video_token, processor.video_token * patches, 1)
        return torch.tensor(processor.tokenizer(message, add_special_tokens=False)["input_ids"])

    def _features(self, frames: np.ndarray | Tensor) -> dict[str, Tensor]:
        """pixel_values_videos and video_grid_thw."""
        if isinstance(frames, np.ndarray):
            return self._prepared(frames)
        made = self._prepared(frames.float() * WHITE)
        exact = rounding(lambda clip: self._prepared(clip)["pixel_values_videos"], frames.float())
        return made | {"pixel_values_videos": made["pixel_values_videos"] + exact}

    def _prepared(self, frames: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Steps 1 and 2 for uint8 (F, H, W, 3), or for float32 in [0, 255] with their gradient."""
        prepare: Any = self._processor.video_processor  # type: ignore[attr-defined]
        video, (least, most) = channels_first(frames), self._shown.pixels(len(frames))
        size = smart_resize(*video.shape[-2:], prepare.patch_size * prepare.merge_size, least, most)
        resized = images.resize(video.float(), list(size), images.InterpolationMode.BICUBIC, antialias=True)
        if isinstance(frames, np.ndarray) or frames.dtype == torch.uint8:  # what overshoots is clipped once, at the end
            resized = resized.clamp(0, WHITE).round().to(torch.uint8)
        return dict(prepare(videos=[resized], do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt"))


def _place(ids: Tensor, token: int) -> int:
    """Where a token stands. Raises ValueError unless it stands once."""
    places = (ids == token).nonzero().flatten().tolist()
    if len(places) != 1:
        raise ValueError(f"the text holds the token {token} of a dimension {len(places)} times, expected once")
    return int(places[0])


def load_backbone(config: Qwen2VLConfig, weights: dict[str, Tensor], dtype: str, device: str) -> Qwen2VLModel:
    """A Qwen2-VL without its language-model head, on the device.

    weights: by the names of `backbone_name`. Raises ValueError that names weights that are missing, unknown or of
    another shape.
    """
    with torch.device("meta"):
        wanted = {name: weight.shape for name, weight in Qwen2VLModel(config).state_dict().items()}
    found = {name: weight.shape for name, weight in weights.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        first = "; ".join(
            f"{name} is {_shape(found.get(name))}, expected {_shape(wanted.get(name))}" for name in wrong[:3]
        )
        raise ValueError(f"the weights are not those of its Qwen2-VL: {first}; and {len(wrong[3:])} more")
    model = Qwen2VLModel.from_pretrained(None, config=config, state_dict=weights, dtype=getattr(torch, dtype))
    loaded: Qwen2VLModel = model.to(device)
    return loaded


def backbone_name(name: str) -> str:
    """A weight's name in transformers 5's Qwen2VLModel, from its name in Qwen2-VL's classes of transformers 4 or 5.

    transformers 4 has `visual` and `model`, 5 has `model.visual` and `model.language_model`. Other names are unchanged.
    """
    for old, new in (("model.visual.", "visual."), ("model.language_model.", "language_model.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return f"language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))
