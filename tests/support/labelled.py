"""A small round by hand: six clips of two prompts, labelled by two sources, with rows to train on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.manifest import write_manifest
from data.records import Label, Pair, Sample, Verdict, Weighted, write_rows
from data.store import ClipSet, ClipSetWriter, encode_clips
from tests.support.told import told

PROMPTS = {
    "roll": ("p-roll", "a ball rolls", "roll", "train"),
    "drop": ("p-drop", "a <b>cup</b> drops & breaks", "drop", "test"),
}
JUDGE = {  # label, p_accept and the error of the verdict
    "roll0": (True, 0.9, None),
    "roll1": (False, 0.2, None),
    "roll2": (None, None, "refused: not a topic for me"),
    "drop0": (True, 0.6, None),
    "drop1": (True, 0.95, None),
    "drop2": (False, 0.05, None),
}
GPT = {
    "roll0": (True, 0.8, None),
    "roll1": (True, 0.7, None),
    "roll2": (True, 0.75, None),
    "drop0": (False, 0.4, None),
    "drop1": (True, 1.0, None),
    "drop2": (None, 0.5, None),  # its votes tied
}


def make_round(root: Path) -> Path:
    """root/samples, labels/judge, compare/gpt/labels and datasets/{rwr,dpo}; returns root."""
    samples = [sample for name in PROMPTS for sample in make_samples(name)]
    writer = ClipSetWriter(root / "samples")
    frames = np.stack([np.full((9, 32, 32, 3), 20 * place + 40, np.uint8) for place in range(len(samples))])
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(len(samples), 4, 3, 4, 4))
    writer.finish(told(prompt_id for prompt_id, *_ in PROMPTS.values()), {"set": "r1", "policy": "base"})
    make_labels(root / "labels/judge", "judge", JUDGE, root / "samples")
    make_labels(root / "compare/gpt/labels", "gpt", GPT, root / "samples")
    write_rows(root / "datasets/rwr/weighted.parquet", [Weighted("roll0", "p-roll", 1.0, 1.0)], Weighted)
    write_manifest(root / "datasets/rwr", "dataset", round="r1", source="judge", reward="label")
    pairs = [Pair("p-roll", "roll0", "roll1", 0.7), Pair("p-drop", "drop1", "drop2", 0.9)]
    write_rows(root / "datasets/dpo/paired.parquet", pairs, Pair)
    write_manifest(root / "datasets/dpo", "dataset", round="r1", source="judge", reward="p_accept")
    counts = {"pairs_per_prompt": {"p-roll": 1, "p-drop": 1}, "prompts_without_a_pair": {}}
    (root / "datasets/composition.json").write_text(json.dumps(counts))
    write_manifest(root / "datasets", "datasets", round="r1", source="judge", reward="p_accept")
    return root


def make_samples(name: str) -> list[Sample]:
    first = Sample("", *PROMPTS[name], "base", 0, 9, 8.0, 32, 32, "")
    return [
        replace(first, sample_id=f"{name}{seed}", seed=seed, file_name=f"videos/{name}{seed}.mp4") for seed in range(3)
    ]


def make_labels(folder: Path, source: str, answers: dict, clips: Path) -> None:
    """Labels of a source with one question and one vote, whose reason for every label is "It shows: …"."""
    labels, verdicts = [], []
    for clip, (label, p_accept, error) in answers.items():
        reason = None if label is None else f"It shows: <{clip}>"
        labels.append(Label(clip, source, label, p_accept, None, 1, int(label is None), reason or error))
        vote = (clip, source, "fulfilled", 0)
        model = ("some-model", "v1", "0123456789ab", [0, 8], 10, None)
        verdicts.append(Verdict(*vote, label, p_accept, None, reason, "raw " + clip, *model, error))
    write_rows(folder / "labels.parquet", labels, Label)
    write_rows(folder / "verdicts.parquet", verdicts, Verdict)
    counts = [label for label, _, _ in answers.values()]
    write_manifest(
        folder, "labels", source=source, model="some-model", model_versions=["v1"], rubric="sheet",
        rubric_hash="0123456789ab", votes=1, agreement=None, clip_set=ClipSet.open(clips).fingerprint(),
        accepted=counts.count(True), rejected=counts.count(False), unlabelled=counts.count(None), unreadable=0,
        failed=0,
    )  # fmt: skip
