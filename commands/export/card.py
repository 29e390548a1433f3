"""README.md of an exported dataset: what it holds, who labelled it, and how it is loaded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.labels import LabelSet
from data.records import Sample
from data.store import METADATA


class RowsFacts(NamedTuple):
    """What the card says of one table of training rows."""

    name: str  # of the configuration
    facts: Mapping[str, Any]  # of its manifest
    rows: int
    splits: list[str]  # that have rows


def card(
    facts: Mapping[str, Any],
    samples: Sequence[Sample],
    sets: Sequence[LabelSet],
    tables: Sequence[RowsFacts],
    title: str,
    licence: str | None = None,
) -> str:
    """The text of README.md. facts: of the clip set. title: the dataset's address on the Hub, or its folder's name."""
    splits = sorted({sample.split for sample in samples})
    shapes = sorted({(s.num_frames, s.width, s.height, s.fps) for s in samples})
    prompts = {split: len({s.prompt_id for s in samples if s.split == split}) for split in splits}
    formats = "; ".join(
        f"{frames} frames of {width} x {height} at {fps:g} per second" for frames, width, height, fps in shapes
    )
    lines = [
        f"---\n{_header(splits, tables, licence)}\n---\n",
        f"# {title.split('/')[-1]}\n",
        f"{len(samples)} generated clips with the labels of {', '.join(one.source for one in sets) or 'no source'}.\n",
        f"- Set: {facts['set']}, sampled from the policy {facts['policy']}",
        f"- Clips: {formats}",
        f"- Prompts: {', '.join(f'{count} {split}' for split, count in prompts.items())}",
        *(_table_line(table) for table in tables),
        "",
        *(line for one in sets for line in _labels_section(one, samples)),
        "## Columns\n",
        "A row is a clip: its prompt, category, split of the prompt, policy that made it and noise seed. Each source",
        "has `label_`, `p_accept_` (probability of acceptance), `score_` (raw value of a metric) and `reason_`.",
        "A label that is null is not known (no answer, an unreadable one, a tie); it is never a rejection.",
        "`verdicts/` holds every answer as it came: a row a clip, question and vote.",
        "`first/<prompt_id>.png`, where it is there, is the image that the generator was given for a prompt.\n",
        "## Loading\n",
        "Needs `datasets` 4.0 or later. The name is that of this folder, or of the dataset on the Hub.\n",
        "```python",
        "from datasets import Video, load_dataset",
        "",
        f'clips = load_dataset("{title}", split="{splits[0]}")',
        'paths = clips.cast_column("video", Video(decode=False))  # decoding needs torchcodec',
        *(
            f'{table.name} = load_dataset("{title}", "{table.name}", split="{table.splits[0]}")'
            for table in tables
            if table.splits
        ),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _header(splits: Sequence[str], tables: Sequence[RowsFacts], licence: str | None) -> str:
    """The YAML at the top: a configuration a table."""
    from huggingface_hub import DatasetCardData

    configs = [_configuration("default", METADATA, splits)]
    configs += [_configuration(table.name, f"{table.name}.parquet", table.splits) for table in tables if table.splits]
    data = DatasetCardData(
        license=licence,
        task_categories=["text-to-video"],
        tags=["video", "ai-feedback", "reinforcement-learning", *(["dpo"] if len(configs) > 1 else [])],
        configs=configs,
    )
    return data.to_yaml()


def _configuration(name: str, table: str, splits: Sequence[str]) -> dict[str, Any]:
    files = [{"split": split, "path": [f"{split}/{table}", f"{split}/**/*.mp4"]} for split in splits]
    own = {} if table == METADATA else {"metadata_filenames": [table]}
    return {"config_name": name, "data_files": files, **own}


def _table_line(table: RowsFacts) -> str:
    """A line on a table of training rows."""
    by = f" by {table.facts['source']}, reward {table.facts['reward']}" if "source" in table.facts else ""
    noun = "pairs (prompt, chosen, rejected, margin)" if table.name.startswith("pairs") else "clips with a weight"
    return f"- Configuration `{table.name}`: {table.rows} {noun}{by}"


def public(text: str) -> str:
    """A text without the folders of this machine."""
    return text.replace(f"{Path.cwd()}/", "").replace(str(Path.home()), "~")


def _labels_section(one: LabelSet, samples: Sequence[Sample]) -> list[str]:
    """A source's part of the card."""
    facts = one.facts
    agreement = (facts.get("agreement") or {}).get("label") or {}
    kappa = agreement.get("kappa")
    lines = [
        f"## Labels of {one.source}\n",
        f"- Model: {public(facts['model'])} ({', '.join(facts['model_versions'])})",
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
