"""A clip set and its labels as a dataset on the Hugging Face Hub.

    README.md                   the card, written from the manifests
    train/, test/               the clips by their prompts' split: <prompt_id>/<sample_id>.mp4, and metadata.parquet
                                with the columns of Sample and label_, p_accept_, score_, reason_<source>
    verdicts/<source>.parquet   every answer of the source, a row a question and vote

`datasets.load_dataset` and the Hub's viewer read train/ and test/ as a videofolder. Latents and embeddings stay here.
"""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data.labels import LabelSet, open_labels, read_samples
from data.manifest import read_manifest
from data.records import Label, Sample, Verdict, schema
from data.store import METADATA
from report.text import aligned

MERGED = ("label", "p_accept", "score", "reason")  # columns of Label that stand beside the clip
FOLDERS = ("train/", "test/", "verdicts/")
MOST_FILES = 25_000  # that one commit may hold, by the Hub's documentation
TOKEN = "HF_TOKEN"  # environment variable


class Part(NamedTuple):
    """A file of the dataset."""

    path: str  # in the repository
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def gather(clips: Path, labels: Sequence[Path], repo: str, licence: str | None = None) -> list[Part]:
    """All files of the dataset, README.md first. Every byte is checked against the manifests.

    Raises StoreError for a folder that is unfinished or changed, ValueError where labels are not of these clips.
    """
    samples = read_samples(clips, verify=True)
    facts = read_manifest(clips, "clip_set")["facts"]
    sets = [open_labels(folder, clips, samples, verify=True) for folder in labels]
    names = [one.source for one in sets]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"--labels: two sets by {', '.join(twice)}, and their columns would have the same names")
    parts = [Part("README.md", card(facts, samples, sets, repo, licence).encode())]
    for split in sorted({sample.split for sample in samples}):
        of_split = [sample for sample in samples if sample.split == split]
        parts.append(Part(f"{split}/{METADATA}", _parquet(_metadata(of_split, sets))))
        parts += [Part(f"{split}/{_name(sample)}", clips / sample.file_name) for sample in of_split]
    parts += [Part(f"verdicts/{one.source}.parquet", _parquet(_verdicts(one.verdicts()))) for one in sets]
    if len(parts) > MOST_FILES:
        raise ValueError(f"{clips}: {len(parts)} files, and the Hub takes at most {MOST_FILES} in a commit")
    return parts


def listing(parts: Sequence[Part]) -> str:
    """What would be pushed: files and bytes by folder, and all together."""
    folders: dict[str, list[Part]] = {}
    for part in parts:
        top, _, name = part.path.partition("/")
        folders.setdefault(f"{top}/**/*.mp4" if name.endswith(".mp4") else part.path, []).append(part)
    rows = [["file", "files", "bytes"]]
    rows += [[name, f"{len(of):,}", f"{sum(part.size for part in of):,}"] for name, of in folders.items()]
    rows.append(["all", f"{len(parts):,}", f"{sum(part.size for part in parts):,}"])
    return aligned(rows, "lrr")


def card(
    facts: Mapping[str, Any], samples: Sequence[Sample], sets: Sequence[LabelSet], repo: str, licence: str | None = None
) -> str:
    """README.md of the dataset: the clips, the judges, the columns, and how to load it."""
    from huggingface_hub import DatasetCardData

    splits = sorted({sample.split for sample in samples})
    files = [{"split": split, "path": f"{split}/**"} for split in splits]
    data = DatasetCardData(
        license=licence,
        task_categories=["text-to-video"],
        tags=["video", "ai-feedback", "reinforcement-learning"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    shapes = sorted({(s.num_frames, s.width, s.height, s.fps) for s in samples})
    prompts = {split: len({s.prompt_id for s in samples if s.split == split}) for split in splits}
    formats = "; ".join(
        f"{frames} frames of {width} x {height} at {fps:g} per second" for frames, width, height, fps in shapes
    )
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {repo.split('/')[-1]}\n",
        f"{len(samples)} generated clips with the labels of {_listed([one.source for one in sets])}.\n",
        f"- Set: {facts['set']}, sampled from the policy {facts['policy']}",
        f"- Clips: {formats}",
        f"- Prompts: {', '.join(f'{count} {split}' for split, count in prompts.items())}\n",
        *(line for one in sets for line in _labels_section(one, samples)),
        "## Columns\n",
        "A row is a clip: its prompt, category, split of the prompt, policy that made it and noise seed. Of each",
        "source `label_`, `p_accept_` (probability of acceptance), `score_` (raw value of a metric) and `reason_`.",
        "A label that is null is not known (no answer, an unreadable one, a tie); it is never a rejection.",
        "`verdicts/` holds every answer as it came: a row a clip, question and vote.\n",
        "## Loading\n",
        "```python",
        "from datasets import Video, load_dataset",
        "",
        f'clips = load_dataset("{repo}", split="{splits[0]}")',
        'paths = clips.cast_column("video", Video(decode=False))  # decoding needs torchcodec',
        "```",
    ]
    return "\n".join(lines) + "\n"


def push(repo: str, parts: Sequence[Part], token: str, private: bool) -> str:
    """Make the dataset repository hold these files, and no others in their folders, in one commit; its address.

    Raises ValueError with the Hub's message where it refuses or cannot be reached.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    api, ours = HfApi(token=token), {part.path for part in parts}
    try:
        address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(repo, repo_type="dataset")
        stale = [path for path in there if path.startswith(FOLDERS) and path not in ours]
        changes: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationDelete(path) for path in stale),
            *(CommitOperationAdd(part.path, part.content) for part in parts),
        ]
        message = f"{len(parts)} files from their manifests"
        api.create_commit(repo, changes, commit_message=message, repo_type="dataset")
    except (httpx2.HTTPError, OSError, ValueError) as error:  # the Hub's own errors are among them
        raise ValueError(f"{repo}: not pushed: {error}") from error
    return str(address)


def token_from_environment() -> str:
    """The token for the Hub. Raises ValueError naming the variable where it is not set."""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    raise ValueError(f"the environment variable {TOKEN} is not set; set it to a token of the Hub with write access")


def check_repo(repo: str) -> None:
    """Raises ValueError where this is no name of a repository, user/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--hub {repo}: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"--hub {repo}: expected user/name")


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


def _verdicts(rows: Sequence[Verdict]) -> pa.Table:
    public = [replace(row, model=_public(row.model), error=row.error and _public(row.error)) for row in rows]
    return pa.Table.from_pylist([vars(row) for row in public], schema(Verdict))


def _public(text: str) -> str:
    """A text without the folders of this machine."""
    return text.replace(f"{Path.cwd()}/", "").replace(str(Path.home()), "~")


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _labels_section(one: LabelSet, samples: Sequence[Sample]) -> list[str]:
    """A source's part of the card."""
    facts = one.facts
    agreement = (facts.get("agreement") or {}).get("label") or {}
    kappa = agreement.get("kappa")
    lines = [
        f"## Labels of {one.source}\n",
        f"- Model: {_public(facts['model'])} ({', '.join(facts['model_versions'])})",
        f"- Rubric: {facts['rubric']}, hash {facts['rubric_hash']}; votes a clip: {facts['votes']}",
        *([f"- Votes: Fleiss' kappa {kappa:.3f}"] if kappa is not None else []),
        f"- Unlabelled: {facts['unlabelled']}, of them {facts['unreadable']} clips that could not be decoded and "
        f"{facts['failed']} without a reply\n",
        "| category | clips | accepted | rejected | unlabelled |",
        "|---|---|---|---|---|",
    ]
    counts: dict[str, Counter[bool | None]] = {}
    for sample in samples:
        for group in (sample.category, "all"):
            counts.setdefault(group, Counter())[one.by_id[sample.sample_id].label] += 1
    for group in [*sorted(counts.keys() - {"all"}), "all"]:
        of = counts[group]
        lines.append(f"| {group} | {of.total()} | {of[True]} | {of[False]} | {of[None]} |")
    return [*lines, ""]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no source"
