"""Which sources and which generator of params.yaml are usable on this machine, and why others are not.

Nobody is asked anything that costs: of a provider only its key is looked for, of a server whether it answers at all.
"""

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from commands.doctor.machine import BROKEN, NOTE, OK, Finding
from feedback.core.kinds import read_block
from feedback.network.api import key_from

PATIENCE = 2.0  # seconds for a server's answer


class Doubt(NamedTuple):
    """Why something may not be usable."""

    told: str
    surely: bool = True  # false: it may yet be, as what is downloaded on first use


def sources(blocks: Mapping[str, Any], needed: set[str], prompts: Sequence[str]) -> list[Finding]:
    """A line for each block of feedback.sources. needed: those that a run asks. prompts: texts that they judge.

    Servers are asked side by side, so that all together take little more than PATIENCE.
    """

    def found(name: str) -> Finding:
        block, use = blocks[name], " (in use)" if name in needed else ""
        doubts = list(_doubts(name, block, prompts))
        what, kind = f"{name}{use}", block.get("kind") if isinstance(block, dict) else None
        model = str(block.get("path") or block.get("model") or "") if isinstance(block, dict) else ""
        return judged(what, doubts, name in needed, ", ".join(part for part in (kind, model) if part))

    with ThreadPoolExecutor(max(1, len(blocks))) as pool:
        return list(pool.map(found, blocks))


def generator(family: str, path: str, revision: str | None, known: Sequence[str]) -> Finding:
    """Whether the generator can be loaded. known: families."""
    doubts = [] if family in known else [Doubt(f"family {family} is unknown; known are {', '.join(known)}")]
    return judged("generator", [*doubts, *_model_doubts(path, revision, "model_index.json")], True, f"{family}, {path}")


def judged(what: str, doubts: Sequence[Doubt], needed: bool, told: str) -> Finding:
    """The line that these doubts amount to. told: what stands there when there are none."""
    if not doubts:
        return Finding(OK, what, told)
    broken = needed and any(doubt.surely for doubt in doubts)
    return Finding(BROKEN if broken else NOTE, what, "; ".join(doubt.told for doubt in doubts))


def key_variables(blocks: Mapping[str, Any]) -> list[str]:
    """Names of the environment variables that hold the keys of these sources and their members, each once."""
    names: dict[str, None] = {}
    for name, block in blocks.items():
        try:
            needs = read_block(name, block).needs
        except (ValueError, ImportError):  # what is wrong with it stands in the source's own line
            continue
        if needs.key_variable:
            names[needs.key_variable] = None
        names |= dict.fromkeys(key_variables(needs.inner))
    return list(names)


def keeps_answers(name: str, block: Mapping[str, Any]) -> bool:
    """Whether a source, or a member of it, keeps its answers in the ledger: those over the network, and people."""
    try:
        read = read_block(name, block)
    except (ValueError, ImportError):
        return False
    inner = read.needs.inner
    return read.kind.keeps_answers or any(keeps_answers(f"{name}.{key}", inner[key]) for key in inner)


def _doubts(name: str, block: Any, prompts: Sequence[str]) -> Iterator[Doubt]:
    """What keeps a source from judging here, by what its kind says it needs."""
    try:
        read = read_block(name, block if isinstance(block, dict) else {})
        needs = read.needs
    except (ValueError, ImportError) as error:
        yield Doubt(str(error))
        return
    try:
        if read.kind.check_prompts:
            read.kind.check_prompts(prompts)
        if needs.key_variable:
            key_from(needs.key_variable)
    except ValueError as error:
        yield Doubt(str(error))
    if needs.model:
        yield from _model_doubts(needs.model, needs.revision, "config.json")
    if needs.server:
        yield from _server_doubts(needs.server)
    for key, inner in needs.inner.items():
        for doubt in _doubts(f"{name}.{key}", inner, prompts):
            yield doubt._replace(told=f"{key.rpartition('.')[2]}: {doubt.told}")


def _model_doubts(path: str, revision: str | None, config: str) -> Iterator[Doubt]:
    """About a model: a local folder with its config and weights, or a hub id that lies in the cache."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / config).is_file():
            yield Doubt(f"{path}: no {config} in this folder")
        if not any(folder.rglob("*.safetensors")):
            yield Doubt(f"{path}: no weights (*.safetensors) in this folder")
    elif path.count("/") != 1 or path.startswith(("/", ".")):
        yield Doubt(f"{path}: no such folder, and no hub id")
    else:
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(path, config, revision=revision or "main"), str):
            yield Doubt(f"{path} is no folder here and not in the Hub's cache: downloaded at first use", surely=False)


def _server_doubts(url: str) -> Iterator[Doubt]:
    """Any reply will do, also one that wants a key."""
    asked = f"{url.rstrip('/')}/models"
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE):
            return
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors; a malformed URL is a ValueError
        yield Doubt(f"{asked} does not answer within {PATIENCE:g} s ({getattr(error, 'reason', error)})")
