"""Sources, clips and ledgers for tests of network judges, which call the servers beside this file through real SDKs."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data.records import Sample, Verdict
from data.store import ClipSet, ClipSetWriter, encode_clips
from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.core.source import LabelError
from feedback.network.api import ApiSource
from tests.support.conditions import blank_conditions
from tests.support.faulty_provider import Server, meant

ROOT = Path(__file__).parents[2]
KEY = "sk-proj-1234567890abcdefghij"
KINDS: dict[str, dict[str, Any]] = {
    "gpt": {"kind": "gpt"},
    "gpt-decision": {"kind": "gpt", "mode": "decision"},
    "served": {"kind": "served", "key_variable": "SERVED_KEY"},
    "gemini": {"kind": "gemini"},
    "gemini-decision": {"kind": "gemini", "mode": "decision"},
}
VARIABLES = {"gpt": "OPENAI_API_KEY", "served": "SERVED_KEY", "gemini": "GEMINI_API_KEY"}
PRICE = {
    "model": "m", "input": 1.0, "output": 4.0, "cached_input": 0.1, "batch": 0.5, "as_of": "2026-11-21",
    "output_tokens": 60,
}  # fmt: skip
FRAMES: dict[str, dict[str, Any]] = {"gpt": {"patch_tokens": 1.2}, "gemini": {"frame_tokens": 70}, "served": {}}
CLIPS = 12
every_kind = pytest.mark.parametrize("kind", KINDS)


def use_ledger(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the code under test use this ledger, with keys in the environment and short waits."""
    monkeypatch.setenv("FEEDBACK_LEDGER", str(path))
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, KEY)
    monkeypatch.setattr("feedback.network.pace.FIRST_REST", 0.02)
    monkeypatch.setattr("feedback.network.calls.POLL", 0.02)
    monkeypatch.setattr("feedback.network.batches.POLL", 0.02)
    return path


def make_clips(folder: Path, count: int, **facts: str) -> ClipSet:
    """Clips of noise, each of its own prompt, so that the server can tell them apart. facts: of the manifest."""
    frames = np.random.default_rng(0).integers(0, 255, (count, 9, 32, 32, 3)).astype(np.uint8)
    samples = [
        Sample(f"clip{n}", f"p{n}", f"scene {n}.", "c", "train", "base", n, 9, 8.0, 32, 32, f"videos/clip{n}.mp4")
        for n in range(count)
    ]
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(count, 1, 1, 1, 1))
    writer.finish(blank_conditions(sample.prompt_id for sample in samples), facts)
    return ClipSet.open(folder)


def block_of(kind: str, base: str, **more: Any) -> dict[str, Any]:
    """A block of feedback.sources for a kind of KINDS, with the server at this address."""
    of_kind = KINDS[kind]
    if price := more.get("price"):
        more |= {"price": FRAMES[of_kind["kind"]] | price}
    facts = {"model": "m", "rubric": str(ROOT / "feedback/rubrics/review.yaml"), "concurrency": 4, "timeout": 10.0}
    return facts | of_kind | {"base_url": base + ("" if of_kind["kind"] == "gemini" else "/v1")} | more


def source_at(server: Server, kind: str = "gpt", **more: Any) -> ApiSource:
    """The source of such a block."""
    source = make_source("j", block_of(kind, server.base, **more))
    assert isinstance(source, ApiSource)
    return source


def write_params(home: Path, base: str, sources: Iterable[str] = ("gpt", "served", "gemini"), **more: Any) -> None:
    """A params.yaml with these sources, for stages and commands."""
    blocks = {kind: block_of(kind, base, **more) for kind in sources}
    label = {"batch_size": 16, "votes": 1, "opponents": 4, "max_failed": 0.0}
    params = {"label": label, "feedback": {"sources": blocks}}
    (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def judged(source: ApiSource, clips: ClipSet, count: int = CLIPS) -> dict[str, Verdict]:
    """The verdict on each of the first clips. All rubrics here have one question."""
    return {rows[0].sample_id: rows[0] for rows in source.judge(requests_for(clips, 1)[:count])}


def stopped(source: ApiSource, clips: ClipSet, count: int = CLIPS) -> str:
    """The error of a run that must stop."""
    with pytest.raises(LabelError) as raised:
        judged(source, clips, count)
    message = str(raised.value)
    assert "he answers so far are kept" in message
    return message


@dataclass
class AttemptRow:
    """An attempt in the ledger."""

    id: str
    key: str
    outcome: str | None
    answered: bool  # whether its request has an answer


def attempts(ledger: Path) -> list[AttemptRow]:
    """All attempts in the order in which they were begun."""
    query = "SELECT id, key, outcome, EXISTS (SELECT 1 FROM answers WHERE key = a.key) FROM attempts a ORDER BY id"
    with sqlite3.connect(ledger) as db:
        return [AttemptRow(str(row[0]), row[1], row[2], bool(row[3])) for row in db.execute(query)]


def outcomes(ledger: Path) -> list[str | None]:
    """How every attempt ended, in the order in which they were begun."""
    return [row.outcome for row in attempts(ledger)]


def word(row: Verdict) -> str | None:
    """A verdict's answer in the rubric's words."""
    return {True: "Accept", False: "Reject", None: None}[row.answer]


def of_clip(server: Server, sample_id: str) -> list[dict[str, Any]]:
    """The attempts at a clip, known by its prompt, that arrived at the server."""
    scene = f"scene {sample_id.removeprefix('clip')}."
    return [a for a, body in zip(server.attempts, server.bodies, strict=True) if scene in json.dumps(body)]


def answered_as_meant(server: Server, rows: Mapping[str, Verdict]) -> bool:
    """Whether each clip has the verdict that the server meant."""
    for row in rows.values():
        (key,) = {attempt["key"] for attempt in of_clip(server, row.sample_id)}
        if word(row) != meant(key):
            return False
    return True


def files_with_the_key(folder: Path) -> list[Path]:
    """Ledger, tables, manifests, metrics, locks and logs below a folder that contain the key."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "ledger.sqlite" for path in files)
    return [path for path in files if KEY.encode() in path.read_bytes()]
