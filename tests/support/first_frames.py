"""Clip sets whose generator was given a first frame."""

import shutil
from pathlib import Path

import numpy as np

from data.first_frames import png_bytes
from data.manifest import MANIFEST, write_manifest
from data.store import KIND, ClipSet

TOLD = "The first picture is the image that the video began with. Judge the video that follows it."


def with_first_frames(clip_set: ClipSet, folder: Path, red: int = 200) -> ClipSet:
    """A copy of the set with a first frame for each prompt: of this red, its green rising from prompt to prompt."""
    shutil.copytree(clip_set.folder, folder)
    of_prompt = {sample.prompt_id: sample for sample in clip_set.samples}
    (folder / "first").mkdir()
    for place, (prompt_id, sample) in enumerate(of_prompt.items()):
        pixels = np.broadcast_to(np.array([red, 20 * place % 256, 60], np.uint8), (sample.height, sample.width, 3))
        (folder / f"first/{prompt_id}.png").write_bytes(png_bytes(pixels))
    (folder / MANIFEST).unlink()
    write_manifest(folder, KIND, **clip_set.manifest["facts"])
    return ClipSet.open(folder)


def shows_first_frame(rubric: Path, out: Path) -> Path:
    """A copy of a rubric's file that shows the first frame."""
    out.write_text(f"first_frame: {TOLD}\n{rubric.read_text(encoding='utf-8')}", encoding="utf-8")
    return out
