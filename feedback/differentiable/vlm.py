"""A local video VLM as a function that torch differentiates: frames to the loss of each question's wanted answer.

Its inputs are those of `qwen` offline (feedback/judges/vlm.py): the same template, tokens and frames, and pixels that
equal the processor's. Here the pixels have a gradient; the weights are frozen.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, ProcessorMixin

from data.video import sample_frames
from feedback.core.kinds import KINDS, read_block
from feedback.differentiable.asks import Ask
from feedback.differentiable.augment import Augmentation
from feedback.differentiable.losses import LOSSES, TEACHER_FORCED, QuestionLosses, p_wanted
from feedback.differentiable.metric import KINDS as METRICS
from feedback.differentiable.overlay import RenderedOverlay, apply
from feedback.differentiable.packing import Packed, pack, packed_logits, prepare, recompute
from feedback.differentiable.pixels import make_pixels
from feedback.differentiable.targets import find_target, videos_of
from feedback.judges.vlm import (
    Loaded,
    build_inputs,
    frame_order,
    load_model,
    positions_of,
    sampled_fps,
    takes_pictures,
)

VLMS = ("qwen",)
NONE = Augmentation()
PICTURE = "image_grid_thw"  # of the Qwens, whose pictures and videos are inputs apart
CACHED = 256  # prompts whose packed questions are cached


class ClipShape(NamedTuple):
    """What the clips of a run have in common."""

    num_frames: int
    fps: float  # frames per second


class _PackedQuestions(NamedTuple):
    """The questions of a prompt, packed for frames of one size."""

    packed: Packed
    targets: list[Tensor]  # (T,) each, on the model's device
    places: list[Tensor]  # (T,) each, the place in its own sequence at which each of these tokens is predicted


def load_judge(name: str, block: Mapping[str, Any], device: str) -> Loaded:
    """The VLM of a `feedback.sources` block, its weights on the device.

    Raises ValueError as `read_block` and `check_differentiable` do.
    """
    check_differentiable(name, block)
    _, options = read_block(name, block)
    return load_model(name, options.path, options.revision, options.dtype, options.pixels, device)


def check_differentiable(name: str, block: Mapping[str, Any]) -> None:
    """Raises ValueError for a `feedback.sources` block of a kind without gradient."""
    if (kind := block.get("kind")) in KINDS and kind not in VLMS:
        raise ValueError(
            f"feedback.sources.{name} is of kind {kind}, whose answers have no gradient: only a VLM has one whose "
            f"weights are in this process, kind {', '.join(VLMS)}, and for recipe reward-gradient a metric, kind "
            f"{', '.join(METRICS)}"
        )


class VlmJudge:
    """A frozen VLM that answers the questions of a clip's prompt, all in one forward pass."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        asks: Mapping[str, Sequence[Ask]],
        loss: str,
        frames: int,
        clip: ClipShape,
        references: Mapping[str, Tensor] | None = None,
        overlay: RenderedOverlay | None = None,
        augment: Augmentation = NONE,
        pixels: int | None = None,
        checkpointing: bool = False,
        firsts: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """asks: by prompt_id. loss: a name in LOSSES. frames: how many of a clip's the judge sees, evenly spaced.

        references: by prompt_id, frames (F, H, W, 3) in [0, 1] of a real clip, F = `frames`.
        overlay, augment: of the generated clip's frames, in this order, and not of the reference's.
        pixels: as in `feedback.judges.vlm.build_inputs`.
        checkpointing: recompute activations in the backward: less memory, a third slower.
        firsts: by prompt_id, the image that a clip starts from, uint8 (H, W, 3) of the clip's size. It stands before
            the clip, as offline, and has no gradient.
        Raises ValueError for a loss that is unknown, for more frames than a clip has, for a prompt without questions,
        for a reference that is missing or has other frames, for a first frame that is missing, that only some of a
        prompt's questions show or that the model takes none of, and as `find_target` does for each question.
        """
        if loss not in LOSSES:
            raise ValueError(f"judge {name}: loss is {loss!r}, known are {sorted(LOSSES)}")
        if not 1 <= frames <= clip.num_frames:
            raise ValueError(f"judge {name}: frames is {frames}, expected 1 to {clip.num_frames}, the frames of a clip")
        self.name, self._processor, self._clip = name, processor, clip
        self._frames, self._pixel_count = frames, pixels
        self._asks = {prompt_id: tuple(of_prompt) for prompt_id, of_prompt in asks.items()}
        self._references, self._firsts = references or {}, firsts or {}
        self._check()
        self._targets = {
            prompt_id: [find_target(processor, ask, loss in TEACHER_FORCED) for ask in of_prompt]
            for prompt_id, of_prompt in self._asks.items()
        }
        self._loss, self._overlay, self._augment = LOSSES[loss], overlay, augment
        self._pixels = make_pixels(processor, pixels)
        self._model = model.eval().requires_grad_(False)
        prepare(model)
        if checkpointing:
            recompute(model)
        self._packed = lru_cache(CACHED)(self._pack)

    def _check(self) -> None:
        if not self._asks:
            raise ValueError(f"judge {self.name}: no questions")
        for prompt_id, of_prompt in self._asks.items():
            if not of_prompt:
                raise ValueError(f"judge {self.name}: no questions about {prompt_id}")
            self._check_first(prompt_id, {ask.with_first_frame for ask in of_prompt})
            if not any(ask.with_reference for ask in of_prompt):
                continue
            if prompt_id not in self._references:
                raise ValueError(
                    f"judge {self.name}: a question about {prompt_id} compares with a reference, and it has none"
                )
            if (found := len(self._references[prompt_id])) != self._frames:
                raise ValueError(
                    f"judge {self.name}: the reference of {prompt_id} has {found} frames, expected as many as the "
                    f"judge sees of the clip, {self._frames}"
                )

    def _check_first(self, prompt_id: str, shown: set[bool]) -> None:
        if len(shown) > 1:
            raise ValueError(
                f"judge {self.name}: of the questions about {prompt_id} some show the first frame, not all"
            )
        if shown == {True} and not takes_pictures(self._processor):
            raise ValueError(
                f"judge {self.name}: its questions show the first frame, and it takes no picture beside a video"
            )
        if shown == {True} and prompt_id not in self._firsts:
            raise ValueError(
                f"judge {self.name}: the questions about {prompt_id} show its first frame, and it has none"
            )

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        """Indices of the frames that the judge sees, evenly spaced but for the jitter.

        Raises ValueError for a clip of another length than the run's.
        """
        if num_frames != self._clip.num_frames:
            raise ValueError(f"judge {self.name}: a clip of {num_frames} frames, expected {self._clip.num_frames}")
        return self._augment.frame_indices(num_frames, self._frames, seed)

    def __call__(self, frames: Tensor, prompt_id: str, seed: int) -> QuestionLosses:
        """Its answers about a clip, with the gradient of each loss with respect to the frames.

        frames: (F, H, W, 3) in [0, 1], those of `frame_indices`. seed: of the augmentation.
        A loss may be NaN or infinite; the other questions' losses are unaffected.
        Raises ValueError for a prompt without questions.
        """
        if prompt_id not in self._asks:
            raise ValueError(f"judge {self.name}: no questions about {prompt_id}")
        questions = self._packed(prompt_id, *frames.shape[1:3])
        pixels = self._pixel_inputs(frames, prompt_id, seed)
        logits = packed_logits(self._model, questions.packed, pixels, questions.places)
        others = [target.other for target in self._targets[prompt_id]]
        answers = list(zip(logits, questions.targets, others, strict=True))
        return QuestionLosses(
            questions=tuple(ask.name for ask in self._asks[prompt_id]),
            loss=torch.stack([self._loss(*one) for one in answers]),
            p_wanted=torch.stack([p_wanted(*one) for one in answers]),
        )

    def _pixel_inputs(self, frames: Tensor, prompt_id: str, seed: int) -> dict[str, Tensor]:
        """The model's visual inputs for the clips that a prompt's questions are about."""
        if self._overlay is not None:
            frames = apply(frames, self.frame_indices(self._clip.num_frames, seed), self._overlay)
        clips = [self._augment(frames, seed)]
        if self._videos(prompt_id) > 1:
            clips.append(self._references[prompt_id].to(frames))
        inputs = [self._pixels(clip) for clip in clips]
        if self._asks[prompt_id][0].with_first_frame:
            inputs.insert(0, self._first(prompt_id))
        keys = dict.fromkeys(key for one in inputs for key in one)
        return {key: torch.cat([one[key] for one in inputs if key in one]).to(self._model.device) for key in keys}

    def _first(self, prompt_id: str) -> dict[str, Tensor]:
        """The picture's part of the inputs, as the processor prepares it beside a video."""
        ask, picture = self._asks[prompt_id][0], self._firsts[prompt_id]
        height, width, _ = picture.shape
        made = self._inputs(ask, prompt_id, height, width, picture)
        if PICTURE in made:
            return {key: made[key] for key in (PICTURE, "pixel_values") if key in made}
        return {"pixel_values": made["pixel_values"][: -len(frame_order(self._processor, self._frames))]}  # InternVL's

    def _videos(self, prompt_id: str) -> int:
        return max(map(videos_of, self._asks[prompt_id]))

    def _pack(self, prompt_id: str, height: int, width: int) -> _PackedQuestions:
        """A prompt's questions as one sequence, for frames of this size."""
        sequences, positions, places = [], [], []
        for ask, target in zip(self._asks[prompt_id], self._targets[prompt_id], strict=True):
            inputs = self._inputs(ask, prompt_id, height, width)
            length, forced = inputs["input_ids"].shape[1], target.tokens[:-1]
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([forced], dtype=torch.long)], 1)
            if "mm_token_type_ids" in inputs:
                inputs["mm_token_type_ids"] = functional.pad(inputs["mm_token_type_ids"], (0, len(forced)))
            sequences.append(inputs["input_ids"][0])
            positions.append(positions_of(self._model, inputs))
            places.append(torch.arange(length - 1, length + len(forced)))
        device = self._model.device
        targets = [torch.tensor(target.tokens, device=device) for target in self._targets[prompt_id]]
        return _PackedQuestions(pack(sequences, positions).to(device), targets, places)

    def _inputs(
        self, ask: Ask, prompt_id: str, height: int, width: int, picture: np.ndarray | None = None
    ) -> dict[str, Any]:
        """The processor's inputs for a question about black frames, since the tokens depend on the frame size alone.

        The times are those of evenly spaced frames, independent of the jitter. picture: the first frame; None: black.
        """
        black = [np.zeros((self._frames, height, width, 3), np.uint8)]
        if ask.with_reference:
            black.append(np.zeros(self._references[prompt_id].shape, np.uint8))
        indices = sample_frames(self._clip.num_frames, self._frames)
        rate, videos = sampled_fps(indices, self._clip.fps), len(black)
        times = [index * rate / self._clip.fps for index in indices]
        shown = np.zeros((height, width, 3), np.uint8) if picture is None else picture
        firsts = [shown] if ask.with_first_frame else []
        how = ([rate] * videos, self._pixel_count, [times] * videos, firsts)
        return dict(build_inputs(self._processor, black, [ask.text], *how))
