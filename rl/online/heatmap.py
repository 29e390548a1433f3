"""Where a judge looks: the gradient of its answers by a clip's pixels, drawn over the frames.

Figs. 2 and 8 of Diffusion-DRF show such pictures; how they are drawn is not said. Ours, for each question:

    heat[f, y, x] = sum over channels of |d loss / d frame[f, y, x, channel]|

smoothed within each frame and divided by its largest value in the clip. So heat is where a pixel changes the answer
most, for better or worse, compared within one question; how much it changes the answer is in the captions.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data.manifest import atomically
from data.video import contact_sheet, small_frames
from rl.online.judging import Judge

SMOOTHING = 1 / 40  # standard deviation of the Gaussian, of the shorter side of a frame
REACH = 2  # standard deviations at which the Gaussian is cut off
SEED = 0  # of an augmentation; a judge without one does not read it
TEXT = 300  # characters of a question in a caption
DIMMED = 0.6  # brightness of the frame beneath the heat, which has no colours of its own
RED, YELLOW = (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)  # little and much heat


class Heat(NamedTuple):
    """Where one answer depends on the frames."""

    question: str
    loss: float  # of the wanted answer, or minus a metric's score
    p_wanted: float  # NaN where a metric has none
    largest: float  # gradient of a pixel, smoothed: the value that is 1 in `heat`
    heat: Tensor  # (F, H, W) in [0, 1], on the CPU


class Heatmaps(NamedTuple):
    """What a judge's answers about a clip depend on."""

    judge: str
    indices: tuple[int, ...]  # of the frames that it sees, F
    frames: Tensor  # (F, H, W, 3) in [0, 1] those frames, on the CPU
    heats: tuple[Heat, ...]  # of each question


def heatmaps(judge: Judge, frames: Tensor, prompt_id: str, smoothing: float = SMOOTHING) -> Heatmaps:
    """What the judge's answers about a clip depend on; grad mode may be off.

    frames: (F, H, W, 3) in [0, 1], all of the clip, on the judge's device. smoothing: of the shorter side; 0: none.
    Raises ValueError naming judge, question and prompt where a gradient is not finite.
    """
    indices = judge.frame_indices(len(frames), SEED)
    seen = frames[indices].detach().requires_grad_()
    with torch.enable_grad():
        answers = judge(seen, prompt_id, SEED)
        losses = answers.loss.unbind()
    heats = []
    last = len(losses) - 1
    for place, (question, loss, p) in enumerate(zip(answers.questions, losses, answers.p_wanted, strict=True)):
        (gradient,) = torch.autograd.grad(loss, seen, retain_graph=place < last)
        heat = smoothed(gradient.abs().sum(-1), smoothing)
        largest = heat.max().item()
        if not math.isfinite(largest):
            raise ValueError(f"judge {judge.name}, question {question}, prompt {prompt_id}: its gradient is not finite")
        heat = heat / largest if largest > 0 else heat
        heats.append(Heat(question, loss.item(), p.item(), largest, heat.cpu()))
    return Heatmaps(judge.name, tuple(indices), seen.detach().cpu(), tuple(heats))


def smoothed(heat: Tensor, smoothing: float) -> Tensor:
    """(F, H, W) under a Gaussian within each frame, cut off at REACH standard deviations; edges are repeated.

    smoothing: standard deviation, of the shorter side.
    """
    deviation = smoothing * min(heat.shape[1:])
    reach = math.ceil(REACH * deviation)
    if not reach:
        return heat
    offsets = torch.arange(-reach, reach + 1, device=heat.device, dtype=heat.dtype)
    weights = torch.exp(-(offsets**2) / (2 * deviation**2))
    weights = weights / weights.sum()
    padded = functional.pad(heat[:, None], (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, weights.view(1, 1, 1, -1))
    return functional.conv2d(rows, weights.view(1, 1, -1, 1))[:, 0]


def overlaid(frames: Tensor, heat: Tensor) -> np.ndarray:
    """uint8 (F, H, W, 3) the frames in dimmed grey, under colours from red to yellow, by the square root of the heat.

    frames: (F, H, W, 3) in [0, 1]. heat: (F, H, W) in [0, 1].
    """
    grey = DIMMED * frames.mean(-1, keepdim=True)
    share = heat.sqrt()[..., None]
    colour = torch.lerp(torch.tensor(RED), torch.tensor(YELLOW), share)
    return _as_bytes((1 - share) * grey + share * colour)


def write_sheet(path: Path, title: str, clip: Sequence[Heatmaps], texts: Mapping[str, str]) -> None:
    """Write a PNG: a row of frames for what each judge sees, and one below it for each of its questions.

    title: of the clip. clip: of each judge. texts: by question, what it asks; none of a metric. Of many frames, as many
    as `data.video.small_frames` takes.
    """
    rows = []
    for judge in clip:
        rows.append((f"{title} · frames {', '.join(map(str, judge.indices))}", _as_bytes(judge.frames)))
        rows += [(caption(judge.judge, heat, texts), overlaid(judge.frames, heat.heat)) for heat in judge.heats]
    sheet = contact_sheet([(words, small_frames(frames)) for words, frames in rows], scale=1)
    with atomically(path) as partial:
        sheet.save(partial, format="PNG")


def caption(judge: str, heat: Heat, texts: Mapping[str, str]) -> str:
    """A question's name, the judge's answer, the largest gradient of a pixel, and what is asked."""
    metric = math.isnan(heat.p_wanted)
    answer = f"score {-heat.loss:.4g}" if metric else f"p of the wanted answer {heat.p_wanted:.2f}"
    asked = textwrap.shorten(texts.get(heat.question, ""), TEXT, placeholder=" …")
    parts = [f"{judge}/{heat.question}", answer, f"gradient up to {heat.largest:.2g}", asked]
    return " · ".join(part for part in parts if part)


def _as_bytes(frames: Tensor) -> np.ndarray:
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
