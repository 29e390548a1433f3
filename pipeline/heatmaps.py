"""Sheets of where judges look, of a clip that an online run checks and of the clips of `vfrl heatmap`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor

    from feedback.differentiable.asks import Ask
    from rl.online.judging import WeightedJudge


def draw_heatmap(
    path: Path,
    judges: "Sequence[WeightedJudge]",
    asks: "Mapping[str, Sequence[Ask]]",
    prompt_id: str,
    prompt: str,
    frames: "Tensor",
) -> None:
    """Write the sheet of a clip.

    judges: without augmentation. asks: by prompt_id. frames: (F, H, W, 3) in [0, 1], all of the clip, on the judges'
    device. Raises ValueError as `rl.online.heatmap.heatmaps` does.
    """
    from data.counts import uncounted
    from data.video import is_writable
    from rl.online.heatmap import heatmaps, write_sheet

    with uncounted():  # pictures shape no weight
        drawn = [heatmaps(judge, frames, prompt_id) for judge, _ in judges]
    texts = {ask.name: f"{ask.text} ({ask.wanted})" for ask in asks.get(prompt_id, ())}
    write_sheet(path, prompt if is_writable(prompt) else prompt_id, drawn, texts)
