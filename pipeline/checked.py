"""Params that were checked need no second check while nothing that the check reads has changed.

Stage base runs at every `dvc repro`; the check imports torch, which takes seconds. So the last check that found nothing
wrong is kept in .state/checked.json, under a hash of all that it read: params.yaml, our code, the installed packages,
the names of the environment's variables, and what params.yaml names, by content.
"""

import contextlib
import hashlib
import json
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest import StoreError, atomically, sha256_of
from pipeline.identity import code_files, fingerprint
from pipeline.params import PARAMS
from pipeline.state import STATE

CHECKED = STATE / "checked.json"


class Found(NamedTuple):
    """What a check said of params that are valid."""

    headline: str
    notes: Sequence[str]


def recalled(params: dict[str, Any], inputs: Path, path: Path = CHECKED) -> Found | None:
    """What the last check said, where it would find the same again; None where it is to be made.

    inputs: a folder into which the inputs are written, by content, where params.yaml is as it was checked.
    """
    from pipeline.graph import needed_sources
    from pipeline.inputs import write_inputs

    with contextlib.suppress(OSError, ValueError, StoreError, LookupError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["params"] == _params_key(params):
            write_inputs(params, inputs, needed_sources(params))
            if kept["inputs"] == _inputs_key(inputs):
                return Found(kept["headline"], kept["notes"])
    return None


def remember(params: dict[str, Any], inputs: Path, found: Found, path: Path = CHECKED) -> None:
    """Keep what a check said. inputs: the folder that stage base has written."""
    kept = {"params": _params_key(params), "inputs": _inputs_key(inputs), **found._asdict()}
    with contextlib.suppress(OSError, StoreError), atomically(path) as partial:
        partial.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _params_key(params: dict[str, Any]) -> str:
    """Of all that a check reads besides the inputs."""
    named = [Path(one["prompts"]) for one in params["extend"].values()]
    named += [
        Path(folder) for folder in (params["audit"]["set"], (params["audit"]["human"] or {}).get("set")) if folder
    ]
    facts = [
        sha256_of(PARAMS),
        *(f"{path} {sha256_of(path)}" for path in code_files("base")),  # all of ours: dvc.yaml lists none for base
        str(Path(sysconfig.get_path("purelib")).stat().st_mtime_ns),  # changes with every package
        *sorted(name for name, value in os.environ.items() if value.strip() and not name.startswith("DVC_")),
        *(fingerprint(one) for one in named if one.parts[0] == "runs" or one.is_file()),  # a world is code of ours
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _inputs_key(inputs: Path) -> str:
    files = sorted(inputs.rglob("*.json"))
    listed = [f"{file.relative_to(inputs)} {sha256_of(file)}" for file in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()
