"""An exported dataset as a folder on this machine."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from commands.export.dataset import KIND, Part
from data.manifest import MANIFEST
from report.playable import link


class Written(NamedTuple):
    """How the clips came into the folder."""

    linked: int  # as hard links
    copied: int


def check_folder(out: Path, facts: dict[str, Any]) -> None:
    """Raises ValueError where `out` holds anything but an earlier export of the same set.

    facts: of the clip set's manifest.
    """
    if out.is_dir() and not any(out.iterdir()) or not out.exists():
        return
    document = _parsed(out / MANIFEST)
    if document.get("kind") != KIND:
        raise ValueError(f"{out} is not empty and no earlier export; name another folder")
    earlier, wanted = ({key: of[key] for key in ("set", "policy")} for of in (document["facts"], facts))
    if earlier != wanted:
        raise ValueError(
            f"{out} holds an export of set {earlier['set']} of the policy {earlier['policy']}, and this is set "
            f"{wanted['set']} of the policy {wanted['policy']}; name another folder"
        )
    listed = {MANIFEST, *(file["path"] for file in document["files"])}
    there = sorted(str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir())
    if foreign := [path for path in there if path not in listed]:
        raise ValueError(
            f"{out}: {', '.join(foreign[:3])} is not of the earlier export, which would be replaced; move it away"
        )


def write_folder(parts: Sequence[Part], out: Path) -> Written:
    """Write the files as the folder `out`, in place of an earlier export. Clips are hard links where that is possible.

    A kill leaves `out` as it was, absent, or whole.
    """
    out = out.absolute()
    work, replaced = (out.with_name(f".{out.name}.{word}") for word in ("partial", "replaced"))
    for leftover in (work, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    linked = copied = 0
    with _removed(work):
        for part in tqdm(parts, unit="file", desc="export", delay=2):
            path = work / part.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(part.content, bytes):
                path.write_bytes(part.content)
                continue
            link(part.content.resolve(), path)
            same = path.samefile(part.content)
            linked, copied = linked + same, copied + (not same)
        if out.exists():
            out.rename(replaced)
        work.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)
    return Written(linked, copied)


def in_words(written: Written, out: Path, clips: Path) -> str:
    """What was written, and what hard links mean."""
    if written.copied:
        return f"written: {out}; {written.copied} clips were copied, for it is not on the file system of {clips}"
    return (
        f"written: {out}; its {written.linked} clips are hard links to those of {clips} and use no disk: do not change "
        "them in place"
    )


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Remove the folder at the end of the block, where it is still there."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parsed(path: Path) -> dict[str, Any]:
    """A JSON document; empty where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
