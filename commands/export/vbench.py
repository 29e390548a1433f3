"""A clip set as VBench takes it: a folder of mp4s, and a JSON of the prompt of each file (its `custom_input` mode)."""

import json
import os
import shutil
from pathlib import Path

from data.store import ClipSet

COMMAND = "vbench evaluate --videos_path {videos} --mode custom_input --prompt_file {prompts} --dimension {dimension}"


def write_folder(clips: Path, out: Path) -> int:
    """Write out/videos/<sample_id>.mp4 and out/prompts.json; how many clips. Files are linked where that is possible.

    Raises StoreError where `clips` is no finished clip set, ValueError where `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; name another folder")
    clip_set = ClipSet.open(clips)
    work = out.with_name(f"{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    (work / "videos").mkdir(parents=True)
    prompts = {}
    for sample in clip_set.samples:
        name = f"{sample.sample_id}.mp4"
        _link(clip_set.video(sample), work / "videos" / name)
        prompts[name] = sample.prompt
    (work / "prompts.json").write_text(json.dumps(prompts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    work.rename(out)
    return len(prompts)


def command(out: Path, dimension: str) -> str:
    """What measures one of VBench's dimensions on the folder, in VBench's own environment."""
    return COMMAND.format(videos=out / "videos", prompts=out / "prompts.json", dimension=dimension)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
