"""First frames of captions, for generators that start from one: prompts become a prompt set with the column `image`."""

import logging
from dataclasses import replace
from pathlib import Path

from PIL import Image

from data.prompts import load_prompts, write_prompts
from tabletop.references import rendered_clip

logger = logging.getLogger(__name__)

FOLDER = "first-frames"  # beside the prompt set


def write_first_frames(prompts: Path, to: Path) -> None:
    """Write a prompt set like `prompts`, each prompt with a first frame in the folder first-frames beside `to`.

    A frame is the first of the clip that `references: tabletop` shows of the prompt: the things are there, and nothing
    has happened yet. Raises ValueError for a prompt of another world.
    """
    folder = to.parent / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with_frames = []
    for prompt in load_prompts(prompts):
        path = folder / f"{prompt.prompt_id}.png"
        Image.fromarray(rendered_clip(prompt.prompt)[0]).save(path, optimize=True)
        with_frames.append(replace(prompt, image=str(path)))
    write_prompts(to, with_frames)
    logger.info("wrote %s and %d first frames", to, len(with_frames))
