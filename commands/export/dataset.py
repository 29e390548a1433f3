"""A clip set, its labels and its training rows as a dataset for others, in the layout of a videofolder.

    README.md                   the card, written from the manifests; its header names the tables
    train/, test/               by the split of their prompts:
        <prompt_id>/<sample_id>.mp4
        metadata.parquet        a row a clip: Sample and label_, p_accept_, score_, reason_<source>
        weighted.parquet        a row a training row of RWR: the clip, its prompt, reward and weight
        pairs.parquet           a row a pair of DPO: prompt, the chosen and the rejected clip, margin
    verdicts/<source>.parquet   every answer of the source, a row a question and vote
    manifest.json               what it was made from; every file with size and sha256

`datasets.load_dataset` and the Hub's viewer read metadata, weighted and pairs as three configurations. A column
<name>_file_name becomes the video <name>, so that a pair loads as prompt, chosen and rejected, as preference trainers
want. A table must lie above its clips, and the builder is one for all configurations: so verdicts/ has none. Latents
and embeddings stay here.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from commands.export.card import RowsFacts, card, public
from data.labels import LabelSet, open_labels, read_samples
from data.manifest import FORMAT, MANIFEST, StoreError, read_manifest, sha256_of
from data.records import Label, Pair, Sample, Verdict, Weighted, read_rows, schema
from data.store import FIRST, METADATA, first_name
from inspection.view import TABLES
from report.text import aligned

KIND = "export"
ROWS = "dataset"  # rl.tables.KIND; importing it takes as long as torch
MERGED = ("label", "p_accept", "score", "reason")  # columns of Label that stand beside the clip
NAMES: dict[type, str] = {Weighted: "weighted", Pair: "pairs"}  # of configurations and files
BESIDE = ("rwr", "dpo")  # folders of datasets/ that are exported by default; sft has every clip with weight 1


class Part(NamedTuple):
    """A file of the dataset."""

    path: str  # in the dataset
    content: Path | bytes
    sha256: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


class Sources(NamedTuple):
    """The folders that are exported."""

    clips: Path
    labels: list[Path]
    rows: list[Path]


class _Rows(NamedTuple):
    """One table of training rows."""

    name: str  # of the configuration
    facts: dict[str, Any]
    rows: list[Any]  # Weighted or Pair


def find_sources(clips: Path | None, labels: Sequence[Path], rows: Sequence[Path]) -> Sources:
    """The folders to export: those named, or else what is finished beside the clips.

    clips: None takes the only round of runs/. Raises ValueError where there are several or none.
    """
    if clips is None:
        found = sorted(path.parent for path in Path("runs").glob(f"*/samples/{MANIFEST}"))
        if len(found) != 1:
            there = f"there are {', '.join(map(str, found))}" if found else "there is no runs/<round>/samples here"
            raise ValueError(f"name the clips with --set: {there}")
        clips = found[0]
    root = clips.parent
    beside_labels = sorted(path.parent for path in root.glob(f"labels/*/{MANIFEST}"))
    beside_rows = [root / "datasets" / name for name in BESIDE if (root / "datasets" / name / MANIFEST).is_file()]
    return Sources(clips, list(labels) or beside_labels, list(rows) or beside_rows)


def gather(sources: Sources, title: str, licence: str | None = None) -> list[Part]:
    """All files of the dataset, README.md first, manifest.json last. Every byte is checked against the manifests.

    title: the dataset's address on the Hub, or the name of its folder.
    Raises StoreError for a folder that is unfinished or changed, ValueError where labels or rows are of other clips.
    """
    clips = sources.clips
    samples = read_samples(clips, verify=True)
    manifest = read_manifest(clips, "clip_set")
    sets = [open_labels(folder, clips, samples, verify=True) for folder in sources.labels]
    names = [one.source for one in sets]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"--labels: two sets by {', '.join(twice)}, and their columns would have the same names")
    tables = _named([_read_rows(folder, samples, clips) for folder in sources.rows])
    hashes = {listed["path"]: listed["sha256"] for listed in manifest["files"]}
    parts = []
    for split in sorted({sample.split for sample in samples}):
        of_split = [sample for sample in samples if sample.split == split]
        parts.append(_part(f"{split}/{METADATA}", _metadata(of_split, sets)))
        parts += [
            _part(f"{split}/{table.name}.parquet", found)
            for table in tables
            if (found := _training_rows(table, of_split)).num_rows
        ]
        parts += [
            Part(f"{split}/{_name(sample)}", clips / sample.file_name, hashes[sample.file_name]) for sample in of_split
        ]
    of_prompts = (first_name(prompt_id) for prompt_id in dict.fromkeys(sample.prompt_id for sample in samples))
    parts += [Part(name, clips / name, hashes[name]) for name in of_prompts if name in hashes]
    parts += [_part(f"verdicts/{one.source}.parquet", _verdicts(one.verdicts())) for one in sets]
    described = [RowsFacts(table.name, table.facts, len(table.rows), _splits_of(table.name, parts)) for table in tables]
    text = card(manifest["facts"], samples, sets, described, title, licence)
    whole = [_part("README.md", text.encode()), *parts]
    return [*whole, _part(MANIFEST, _manifest(sources, manifest["facts"], names, [one.name for one in tables], whole))]


def listing(parts: Sequence[Part]) -> str:
    """The files and bytes by folder, and all together."""
    folders: dict[str, list[Part]] = {}
    for part in parts:
        top, _, name = part.path.partition("/")
        many = name.endswith(".mp4") or top == FIRST
        folders.setdefault(f"{top}/**/*{Path(name).suffix}" if many else part.path, []).append(part)
    rows = [["file", "files", "bytes"]]
    rows += [[name, f"{len(of):,}", f"{sum(part.size for part in of):,}"] for name, of in folders.items()]
    rows.append(["all", f"{len(parts):,}", f"{sum(part.size for part in parts):,}"])
    return aligned(rows, "lrr")


def _read_rows(folder: Path, samples: Sequence[Sample], clips: Path) -> _Rows:
    """The rows in a folder of a round's datasets, sft, rwr or dpo."""
    facts = read_manifest(folder, ROWS, verify=True)["facts"]
    files = {name: row_type for name, row_type in TABLES.items() if row_type in NAMES}
    file = next((name for name in files if (folder / name).is_file()), None)
    if file is None:
        raise StoreError(f"{folder}: no {' and no '.join(files)}; name a folder such as datasets/dpo")
    rows: list[Any] = read_rows(folder / file, files[file])
    known = {sample.sample_id for sample in samples}
    used = {getattr(row, name) for row in rows for name in ("sample_id", "chosen", "rejected") if hasattr(row, name)}
    if foreign := sorted(used - known):
        raise ValueError(f"{folder}: {len(foreign)} clips, such as {foreign[0]}, are not in {clips}")
    return _Rows(NAMES[files[file]], {"folder": folder.name, **facts}, rows)


def _named(tables: Sequence[_Rows]) -> list[_Rows]:
    """The tables, with the source behind the name where several have the same. Raises ValueError where that fails."""
    count = Counter(table.name for table in tables)
    named = [
        table._replace(name=f"{table.name}_{table.facts.get('source', table.facts['folder'])}")
        if count[table.name] > 1
        else table
        for table in tables
    ]
    if twice := [name for name, times in Counter(table.name for table in named).items() if times > 1]:
        raise ValueError(f"--rows: two tables would have the same name, {', '.join(twice)}")
    return named


def _splits_of(name: str, parts: Sequence[Part]) -> list[str]:
    return [part.path.split("/")[0] for part in parts if part.path.endswith(f"/{name}.parquet")]


def _manifest(
    sources: Sources, clips: Mapping[str, Any], labels: Sequence[str], tables: Sequence[str], parts: Sequence[Part]
) -> bytes:
    facts = {"set": clips["set"], "policy": clips["policy"], "labels": labels, "tables": tables}
    facts["clip_set"] = sha256_of(sources.clips / MANIFEST)
    files = [{"path": part.path, "size": part.size, "sha256": part.sha256} for part in parts]
    document = {"format": FORMAT, "kind": KIND, "facts": facts, "files": files}
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _part(path: str, content: pa.Table | bytes) -> Part:
    data = content if isinstance(content, bytes) else _parquet(content)
    return Part(path, data, hashlib.sha256(data).hexdigest())


def _name(sample: Sample) -> str:
    """A clip's path from the folder of its split: a folder a prompt, because the Hub limits the files in one."""
    return f"{sample.prompt_id}/{sample.sample_id}.mp4"


def _metadata(samples: Sequence[Sample], sets: Sequence[LabelSet]) -> pa.Table:
    table = pa.Table.from_pylist([vars(replace(s, file_name=_name(s))) for s in samples], schema(Sample))
    for one in sets:
        for column in MERGED:
            cells = [getattr(one.by_id[sample.sample_id], column) for sample in samples]
            table = table.append_column(f"{column}_{one.source}", pa.array(cells, schema(Label).field(column).type))
    return table


def _training_rows(table: _Rows, samples: Sequence[Sample]) -> pa.Table:
    """The rows whose clips are among the samples, with the prompt and the files of the clips."""
    of = {sample.sample_id: sample for sample in samples}
    rows = []
    for row in table.rows:
        first = of.get(row.chosen if isinstance(row, Pair) else row.sample_id)
        if first is None:
            continue
        prompt = {"prompt": first.prompt, "prompt_id": first.prompt_id, "category": first.category}
        if isinstance(row, Pair):
            files = {"chosen_file_name": _name(first), "rejected_file_name": _name(of[row.rejected])}
            ids = {"chosen_sample_id": row.chosen, "rejected_sample_id": row.rejected}
            rows.append({**prompt, **files, **ids, "margin": row.margin})
        else:
            clip = {"file_name": _name(first), "sample_id": row.sample_id}
            rows.append({**prompt, **clip, "reward": row.reward, "weight": row.weight})
    return pa.Table.from_pylist(rows)


def _verdicts(rows: Sequence[Verdict]) -> pa.Table:
    shown = [replace(row, model=public(row.model), error=row.error and public(row.error)) for row in rows]
    return pa.Table.from_pylist([vars(row) for row in shown], schema(Verdict))


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
