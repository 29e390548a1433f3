"""A clip set as VBench takes it: a folder of mp4s, and a JSON of the prompt of each file (its `custom_input` mode)."""

import json
import shlex
import shutil
from pathlib import Path

from data.store import ClipSet
from report.playable import link

COMMAND = "vbench evaluate --videos_path {videos} --mode custom_input --prompt_file {prompts} --dimension {dimension}"


def write_folder(clips: Path, out: Path) -> int:
    """Write out/videos/<sample_id>.mp4 and out/prompts.json; how many clips. Files are linked where that is possible.

    Raises StoreError where `clips` is no finished clip set, ValueError where `out` exists already.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; name another folder")
    clip_set = ClipSet.open(clips)
    work = out.with_name(f"{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    (work / "videos").mkdir(parents=True)
    prompts = {}
    for sample in clip_set.samples:
        name = f"{sample.sample_id}.mp4"
        link(clip_set.video(sample).resolve(), work / "videos" / name)
        prompts[name] = sample.prompt
    (work / "prompts.json").write_text(json.dumps(prompts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    work.rename(out)
    return len(prompts)


def command(out: Path, dimension: str) -> str:
    """The shell command that measures one of VBench's dimensions on the folder, in VBench's own environment."""
    videos, prompts = (shlex.quote(str(out / name)) for name in ("videos", "prompts.json"))
    return COMMAND.format(videos=videos, prompts=prompts, dimension=dimension)
