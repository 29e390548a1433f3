"""VBench-style metrics (Huang et al. 2024): VBench's formulas; the differences between the models are stated here.

subject_consistency      similarity of frames by DINO (feedback/metrics/consistency.py); VBench loads DINO ViT-B/16
background_consistency   the same by CLIP; VBench loads CLIP ViT-B/32
temporal_flickering      1 - mean absolute difference of successive frames / 255. VBench computes it only on
                         prompts of static scenes and requires static clips. On other clips it measures stillness and
                         is highest for a clip without motion
dynamic_degree           1 if enough pairs of frames move, else 0. A pair moves if the mean norm of RAFT's flow over
                         its fastest 5 % of pixels is above 6 pixels for a shorter side of 256, in proportion. Enough
                         is 4 of 16 frames, rounded, and at least one: VBench calls every clip of two frames moving. As
                         in VBench, a clip is first thinned to about 8 frames a second, by its own rate. In a clip of
                         fewer a second a pair must move more, in proportion; VBench keeps 6 pixels.
                         VBench loads the weights `raft-things`; torchvision trained its own weights
imaging_quality          mean over the frames of MUSIQ / 100, by the package pyiqa and the weights that VBench loads
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT
from feedback.core.source import Metric
from feedback.core.weights import FolderOrHubId
from feedback.metrics.flow import Motion, fastest
from feedback.metrics.metric import MetricOptions, existing_file, metric_kind, needs_model
from feedback.metrics.optical_flow import RaftOptions, raft

# subject_consistency, background_consistency


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SubjectOptions(MetricOptions):
    """Options of kind `subject_consistency`."""

    path: FolderOrHubId = "facebook/dino-vitb16"
    revision: str | None = None  # commit, tag or branch of a hub id; null for a local folder


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackgroundOptions(SubjectOptions):
    """Options of kind `background_consistency`."""

    path: FolderOrHubId = "openai/clip-vit-base-patch32"


def subject_consistency(name: str, options: SubjectOptions, device: str) -> Metric:
    """The metric of this block, with its weights on the device. Raises ValueError if they cannot be loaded."""
    from feedback.metrics.consistency import subject  # transformers takes seconds to import

    return subject(name, options.path, options.revision, device)


def background_consistency(name: str, options: BackgroundOptions, device: str) -> Metric:
    """The metric of this block, with its weights on the device. Raises ValueError if they cannot be loaded."""
    from feedback.metrics.consistency import background

    return background(name, options.path, options.revision, device)


SUBJECT_CONSISTENCY = metric_kind(
    "vbench_style_subject_consistency", SubjectOptions, subject_consistency, needs_device=True, needs=needs_model
)
BACKGROUND_CONSISTENCY = metric_kind(
    "vbench_style_background_consistency",
    BackgroundOptions,
    background_consistency,
    needs_device=True,
    needs=needs_model,
)


# temporal_flickering


class Stillness:
    """1 - mean absolute difference of successive frames / 255."""

    model, model_version = "VBench's formula", "1"
    definition = "VBench-style temporal flickering: 1 - mean absolute difference of successive frames / 255."

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float] = ()) -> list[float]:
        """A number for each clip, uint8 (F, H, W, 3); nan for a clip of one frame."""
        return [stillness(clip) for clip in clips]


def stillness(clip: np.ndarray) -> float:
    """The formula of `Stillness` for a clip, uint8 (F, H, W, 3); nan for one frame."""
    if len(clip) < 2:
        return float("nan")
    return float(1 - np.abs(np.diff(clip.astype(np.float32), axis=0)).mean() / 255)


def temporal_flickering(name: str, options: MetricOptions, device: str) -> Metric:
    """The metric of this block. The device is not used."""
    return Stillness()


TEMPORAL_FLICKERING = metric_kind("vbench_style_temporal_flickering", MetricOptions, temporal_flickering)


# dynamic_degree

PIXELS, SIDE = 6.0, 256.0  # threshold of motion in pixels, at this shorter side
ENOUGH, OF = 4, 16  # pairs that must move, per this number of frames
FRAMES_PER_SECOND = 8.0  # rate of thinned clips


def dynamic_degree(name: str, options: RaftOptions, device: str) -> Metric:
    """The metric of this block, with its weights on the device."""
    return DynamicDegree(Motion(raft(name, options, device), "sum"))


class DynamicDegree:
    """1 if a clip moves, else 0."""

    def __init__(self, motion: Motion) -> None:
        self._flow = motion.flow
        self.model, self.model_version = motion.model, motion.model_version
        self.definition = f"VBench-style dynamic degree, of clips at their own frame rate. {motion.definition}"

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]) -> list[float]:
        """0 or 1 for each clip, uint8 (F, H, W, 3), with these frames per second; nan for a clip of one frame."""
        return [self._moves(clip, rate) for clip, rate in zip(clips, fps, strict=True)]

    def frame_indices(self, num_frames: int, fps: float) -> range:
        """Indices of the frames of a thinned clip."""
        return range(0, num_frames, max(1, round(fps / FRAMES_PER_SECOND)))

    def _moves(self, clip: np.ndarray, fps: float) -> float:
        thinned = clip[list(self.frame_indices(len(clip), fps))]
        return moves([fastest(flow) for flow in self._flow.flows(thinned)], min(clip.shape[1:3]), fps)


def moves(of_pairs: Sequence[float], side: int, fps: float) -> float:
    """1 or 0 from the motion of each pair, in pixels. side: the shorter side, in pixels. fps: of the whole clip."""
    if not of_pairs:
        return float("nan")
    threshold = max(1.0, FRAMES_PER_SECOND / fps) * PIXELS * side / SIDE
    wanted = round(ENOUGH * (len(of_pairs) + 1) / OF)
    return float(sum(motion > threshold for motion in of_pairs) >= max(1, wanted))


DYNAMIC_DEGREE = metric_kind("vbench_style_dynamic_degree", RaftOptions, dynamic_degree, needs_device=True)


# imaging_quality


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImagingOptions(MetricOptions):
    """Options of kind `imaging_quality`."""

    # musiq_spaq_ckpt-358bb6af.pth of https://huggingface.co/chaofengc/IQA-PyTorch-Weights
    file: Annotated[str, AfterValidator(existing_file)]


def imaging_quality(name: str, options: ImagingOptions, device: str) -> Metric:
    """The metric of this block, with its weights on the device. Raises ValueError where pyiqa is not installed."""
    from feedback.metrics.musiq import load_musiq  # torchvision takes seconds to import

    return load_musiq(name, options.file, device)


IMAGING_QUALITY = metric_kind("vbench_style_imaging_quality", ImagingOptions, imaging_quality, needs_device=True)
