"""Which sources of params.yaml are usable on this machine, and why others are not.

No call that costs is made: the key of a provider is only looked for, and a server need only answer at all.
"""

import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from commands.doctor.machine import BROKEN, NOTE, OK, Finding
from data.manifest import MANIFEST, StoreError
from feedback.core.kinds import SourceBlock, read_block, resolve
from feedback.network.calls import key_from
from feedback.network.provider import is_loopback, via_proxy
from pipeline.graph import BASE

PATIENCE = 2.0  # seconds for a server's answer
OF_PROXY = (502, 503, 504)  # statuses by which a proxy says that it cannot reach the server


class Doubt(NamedTuple):
    """Why something may not be usable."""

    reason: str
    certain: bool = True  # false: it may be usable, as a model that is downloaded on first use


class Configured(NamedTuple):
    """A source of feedback.sources, with its members where it is a panel."""

    name: str
    block: Mapping[str, Any]
    read: SourceBlock | None = None  # None where `error` says why the block cannot be read
    error: str = ""
    members: tuple["Configured", ...] = ()


class Labelling(NamedTuple):
    """A clip set that a source labels in a run of these params."""

    clips: Path
    labels: Path
    later: bool = False  # whether a trained policy samples the clips, so that other labels may lead to other clips


def labellings(params: Mapping[str, Any]) -> dict[str, list[Labelling]]:
    """By source, the clip sets that it labels, as dvc.yaml names their folders."""
    found: dict[str, list[Labelling]] = {}

    def add(source: str, folder: Path, labels: str, later: bool = False) -> None:
        found.setdefault(source, []).append(Labelling(folder / "samples", folder / labels, later))

    for one, entry in params["rounds"].items():
        add(name := params["feedback"]["source"], Path("runs", one), f"labels/{name}", entry["policy"] != BASE)
    for one in params["comparison"]["rounds"]:
        for name in params["comparison"]["sources"]:
            add(name, Path("runs", one), f"compare/{name}/labels")
    for group, section in (("eval", "evaluate"), ("select", "select")):
        for one in params[section]["policies"]:
            for name in params[section]["judges"]:
                add(name, Path("runs", group, one), f"labels/{name}")
    return found


def read_sources(blocks: Mapping[str, Any]) -> list[Configured]:
    """Every block, read once."""
    return [_read(name, _resolved(name, blocks)) for name in blocks]


def _resolved(name: str, blocks: Mapping[str, Any]) -> Mapping[str, Any] | ValueError:
    try:
        return resolve(name, blocks) if isinstance(blocks[name], Mapping) else {}
    except ValueError as error:
        return error


def _read(name: str, block: Mapping[str, Any] | ValueError) -> Configured:
    if isinstance(block, ValueError):
        return Configured(name, {}, error=str(block))
    try:
        read = read_block(name, block)
    except (ValueError, ImportError) as error:
        return Configured(name, block, error=str(error))
    members = tuple(_read(f"{name}.{key}", inner) for key, inner in read.needs.inner.items())
    return Configured(name, block, read, members=members)


def check_sources(
    sources: Sequence[Configured],
    needed: Collection[str],
    prompts: Sequence[str],
    sets: Mapping[str, Sequence[Labelling]] | None = None,
) -> list[Finding]:
    """A line for each source. needed: names of those that a run uses. prompts: texts that they judge.

    sets: the clip sets that each of them labels, of which people's ratings are counted.

    Servers are called side by side, so that all together take little more than PATIENCE.
    """

    def found(source: Configured) -> Finding:
        use = " (in use)" if source.name in needed else ""
        model = str(source.block.get("path") or source.block.get("model") or "")
        rated = list(_ratings(source, (sets or {}).get(source.name, ())))
        doubts = [*_doubts(source, prompts), *(one.doubt for one in rated if one.doubt)]
        detail = ", ".join(part for part in (source.block.get("kind"), model, *(one.words for one in rated)) if part)
        return as_finding(f"{source.name}{use}", doubts, source.name in needed, detail)

    with ThreadPoolExecutor(max(1, len(sources))) as pool:
        return list(pool.map(found, sources))


def as_finding(what: str, doubts: Sequence[Doubt], needed: bool, detail: str) -> Finding:
    """The line for these doubts. detail: what the line says when there are none."""
    if not doubts:
        return Finding(OK, what, detail)
    broken = needed and any(doubt.certain for doubt in doubts)
    return Finding(BROKEN if broken else NOTE, what, "; ".join(doubt.reason for doubt in doubts))


def key_variables(sources: Iterable[Configured]) -> list[str]:
    """Names of the environment variables that hold the keys of these sources and their members, each once."""
    names: dict[str, None] = {}
    for source in sources:
        if source.read and source.read.needs.key_variable:
            names[source.read.needs.key_variable] = None
        names |= dict.fromkeys(key_variables(source.members))
    return list(names)


def keeps_answers(source: Configured) -> bool:
    """Whether a source, or a member of it, keeps its answers in the ledger: those over the network, and people."""
    itself = source.read is not None and source.read.kind.keeps_answers
    return itself or any(map(keeps_answers, source.members))


def _doubts(source: Configured, prompts: Sequence[str]) -> Iterator[Doubt]:
    """What keeps a source from judging here, by what its kind needs."""
    if source.read is None:
        yield Doubt(source.error)
        return
    kind, needs = source.read.kind, source.read.needs
    try:
        if kind.check_prompts:
            kind.check_prompts(prompts)
        if needs.key_variable:
            key_from(needs.key_variable)
    except ValueError as error:
        yield Doubt(str(error))
    if needs.model:
        yield from _model_doubts(needs.model, needs.revision, "config.json")
    if needs.server:
        yield from _server_doubts(needs.server)
    for member in source.members:
        for doubt in _doubts(member, prompts):
            yield doubt._replace(reason=f"{member.name.rpartition('.')[2]}: {doubt.reason}")


class Rated(NamedTuple):
    """How far people have rated a clip set."""

    words: str  # empty where there is nothing to count
    doubt: Doubt | None  # None where its labelling would succeed, or is done


def _ratings(source: Configured, sets: Sequence[Labelling]) -> Iterator[Rated]:
    """A source's ratings of these sets, if it is people, and of a panel's members that are."""
    for member in source.members:
        yield from _ratings(member, sets)
    if source.read is None or not source.read.kind.people:
        return
    made = [one for one in sets if (one.clips / MANIFEST).is_file()]
    if sets and not made:
        clips = sets[0].clips
        yield Rated("", Doubt(f"{clips} is not made yet, so no clip can be rated", certain=False))
    for one in made:
        try:
            yield _rated(source, one)
        except (ValueError, OSError, StoreError) as error:
            yield Rated("", Doubt(str(error)))


def _rated(source: Configured, sets: Labelling) -> Rated:
    """The ratings of one set."""
    from data.manifest import read_manifest
    from data.store import ClipSet  # torch takes seconds to import
    from feedback.core.kinds import make_source
    from feedback.core.label import requests_for
    from feedback.judges.human import HumanSource

    people = make_source(source.name, source.block)
    if not isinstance(people, HumanSource):
        return Rated("", None)
    clip_set = ClipSet.open(sets.clips)
    by_rater = people.rated(requests_for(clip_set, 1))
    clips = len(clip_set.samples)
    (rater, ids), *others = by_rater.items()
    count = f"{len(ids):,} of {clips:,} clips of {sets.clips} rated by {rater}"
    count += "".join(f", {len(ids):,} by {rater}" for rater, ids in others)
    enough = any(by_rater.values()) if people.leave_out else all(len(ids) == clips for ids in by_rater.values())
    if enough:
        return Rated(count, None)
    labelled = (sets.labels / MANIFEST).is_file() and read_manifest(sets.labels, "labels")["facts"]["clip_set"]
    if labelled == clip_set.fingerprint():
        return Rated(f"{count}, and labelled", None)
    cure = "rate some" if people.leave_out else "rate all, or set unrated: leave_out"
    if sets.later:
        cure += f"; first `dvc repro`, which may make {sets.clips} anew"
    return Rated(count, Doubt(f"{count}: {cure}"))


def _model_doubts(path: str, revision: str | None, config: str) -> Iterator[Doubt]:
    """About a model: a local folder with its config and weights, or a Hub id that is in the cache."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / config).is_file():
            yield Doubt(f"{path}: no {config} in this folder")
        if not any(folder.rglob("*.safetensors")):
            yield Doubt(f"{path}: no weights (*.safetensors) in this folder")
    elif path.count("/") != 1 or path.startswith(("/", ".")):
        yield Doubt(f"{path}: no such folder, and no Hub id")
    else:
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(path, config, revision=revision or "main"), str):
            yield Doubt(
                f"{path} is no folder here, and not in the Hub's cache: it is downloaded at first use", certain=False
            )


def _server_doubts(url: str) -> Iterator[Doubt]:
    """About a server: any reply will do, also one that demands a key."""
    models = f"{url.rstrip('/')}/models"
    proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)  # None: those of the environment
    via = via_proxy(url)
    try:
        with urllib.request.build_opener(proxies).open(models, timeout=PATIENCE):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if via and error.code in OF_PROXY:
            yield Doubt(f"{models} does not answer{via} (HTTP {error.code})")
    except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors; a malformed URL is a ValueError
        yield Doubt(f"{models} does not answer within {PATIENCE:g} s{via} ({getattr(error, 'reason', error)})")
