"""What a person should know of valid params before a run: keys that are not set, frames that no clip has."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from feedback.core.kinds import SourceBlock, read_block, resolve
from feedback.core.rubric import load_rubric
from pipeline.graph import needed_sources


def advice(params: Mapping[str, Any]) -> list[str]:
    """A sentence for each key that a run needs and the environment lacks, and each rubric of more frames than a clip.

    A missing key is no error: labels that are there already need none.
    """
    sources, lines = params["feedback"]["sources"], dict[str, None]()
    for name in sorted(needed_sources(params)):
        for where, read in _read(name, resolve(name, sources)):
            variable, rubric = read.needs.key_variable, read.needs.rubric
            if variable and not os.environ.get(variable, "").strip():
                lines[f"{where} needs the environment variable {variable}, which is not set"] = None
            frames = None if rubric is None or read.needs.whole_clips else load_rubric(Path(rubric)).frames
            if frames is not None and frames > (there := params["video"]["num_frames"]):
                lines[f"{where}: frames is {frames} in {rubric}, but clips have {there}, so it sees all of them"] = None
    return list(lines)


def _read(name: str, block: Mapping[str, Any]) -> Iterator[tuple[str, SourceBlock]]:
    """A source's block and those within it, by the name of each."""
    read = read_block(name, block)
    yield f"feedback.sources.{name}", read
    for key, inner in read.needs.inner.items():
        yield from _read(f"{name}.{key}", inner)
