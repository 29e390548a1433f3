"""A small round by hand: six clips of two prompts, labelled by two sources, with rows to train on; and a dense set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.dense import open_window_labels, read_starts
from data.manifest import write_manifest
from data.records import Label, Pair, Sample, SharedStart, Verdict, Weighted, write_rows
from data.store import ClipSet, ClipSetWriter, encode_clips
from rl.dense import build_dense, write_dense
from tests.support.conditions import blank_conditions

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
    writer.finish(blank_conditions(prompt_id for prompt_id, *_ in PROMPTS.values()), {"set": "r1", "policy": "base"})
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


WINDOWS = {  # of 9 frames: the labels of frames 0 to 4, and of 5 to 8
    "roll0": (True, True), "roll1": (True, False), "roll2": (False, True), "roll3": (True, False),
    "drop0": (False, None), "drop1": (None, False), "drop2": (False, False), "drop3": (False, False),
}  # fmt: skip


def make_dense(root: Path) -> Path:
    """root/samples, pairs with one start; labels/physics of windows of 4 frames; datasets of them; returns root.

    A clip is as grey as 40 + 20 times its place in frames 0 to 4, and 5 brighter in 5 to 8.
    """
    samples = [sample for name in PROMPTS for sample in make_samples(name, 4)]
    writer = ClipSetWriter(root / "samples")
    frames = np.stack([np.full((9, 32, 32, 3), 20 * place + 40, np.uint8) for place in range(len(samples))])
    frames[:, 5:] += 5
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(len(samples), 4, 5, 4, 4))
    pairs = zip(samples[::2], samples[1::2], strict=True)
    writer.add_starts([SharedStart(a.prompt_id, f"r1-{a.sample_id}", a.sample_id, b.sample_id) for a, b in pairs])
    starts = {"round": "r1", "clip_set": "", "noise": 0.75, "steps": 6, "latent_frames": 5}
    told_of = blank_conditions(prompt_id for prompt_id, *_ in PROMPTS.values())
    writer.finish(told_of, {"set": "d1", "policy": "base", "starts": starts})
    answers = {f"{clip}-w{place}": label for clip, labels in WINDOWS.items() for place, label in enumerate(labels)}
    for source, changes in (("physics", {}), ("gpt", {"roll0-w1": False})):
        given = {window: (label, None, None) for window, label in (answers | changes).items()}
        make_labels(root / "labels" / source, source, given, root / "samples", window=4)
    clip_set = ClipSet.open(root / "samples")
    labelled = open_window_labels(root / "labels/physics", clip_set)
    rows = build_dense(clip_set, read_starts(clip_set), labelled, "d1/physics", "label", 0.0)
    labels = {"source": "physics", "reward": "label"}
    write_dense(root / "datasets", rows, clips={"round": "d1"}, labels=labels, min_margin=0.0)
    return root


def make_samples(name: str, count: int = 3) -> list[Sample]:
    first = Sample("", *PROMPTS[name], "base", 0, 9, 8.0, 32, 32, "")
    ids = [f"{name}{seed}" for seed in range(count)]
    return [replace(first, sample_id=one, seed=seed, file_name=f"videos/{one}.mp4") for seed, one in enumerate(ids)]


def make_labels(folder: Path, source: str, answers: dict, clips: Path, **facts: int) -> None:
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
        failed=0, **facts,
    )  # fmt: skip
