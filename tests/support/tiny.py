"""The tiny generator of tests/conftest.py, loaded for its clips of 5 frames of 16 x 16."""

from pathlib import Path

from generators.core.generator import Generator
from generators.core.load import load_generator
from generators.core.size import VideoSize

SIZE = VideoSize(num_frames=5, height=16, width=16, fps=8.0)


def load_wan(folder: Path | str, size: VideoSize = SIZE, **options) -> Generator:
    """options: of load_generator; 12 tokens a prompt unless they say otherwise."""
    return load_generator("wan", str(folder), size, **{"max_prompt_tokens": 12} | options)
