"""The stage `effects` on tiny clips of tiny policies, and what stage `evaluate` reads of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from data.records import ClipDrift, ClipMotion, Sample, read_rows
from data.store import ClipSet, ClipSetWriter, PromptConditions, encode_clips
from evaluation.effects.rows import DRIFT, MOTION, read_effects
from stages import effects
from tests.support.training import run, write_base, write_clip_set

PARAMS = {
    "generator": {"family": "wan", "revision": None, "dtype": "float32", "max_prompt_tokens": 6},
    "video": {"num_frames": 5, "height": 16, "width": 16, "fps": 8},
    "effects": {"drift": {"clips": 2, "times": 3, "seed": 1}},
    "evaluate": {"generate": {"batch_size": 4}},
}


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_wan):
    """A folder with params.yaml and clips of base; returns how to write params again with another section effects."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGE_DEVICE", "cpu")
    write_base(Path("runs/policies/base"))
    write_clip_set(Path("runs/eval/base/samples"), prompts=2, clips=3)

    def write(**changes):
        generator = PARAMS["generator"] | {"path": str(tiny_wan)}
        text = yaml.safe_dump(PARAMS | {"generator": generator, "effects": PARAMS["effects"] | changes})
        Path("params.yaml").write_text(text)

    write()
    return write


def measure(policy: str) -> dict:
    """What the stage writes into metrics/ of a policy, whose clips are the base's where it has none of its own."""
    samples = Path(f"runs/eval/{policy}/samples")
    if not samples.is_dir():
        shutil.copytree("runs/eval/base/samples", samples)
    options = ["--policy", f"runs/policies/{policy}", "--samples", str(samples), "--base", "runs/policies/base"]
    options += ["--base-samples", "runs/eval/base/samples", "--out", f"runs/eval/{policy}/effects"]
    done = CliRunner().invoke(effects.main, [*options, "--metrics", f"metrics/effects/{policy}.json"])
    assert done.exit_code == 0, done.output
    found: dict = json.loads(Path(f"metrics/effects/{policy}.json").read_text())
    return found


@pytest.mark.ci
def test_a_trained_policy_has_drifted_and_base_and_its_extension_have_not(project, tiny_wan, tmp_path):
    base = ClipSet.open(Path("runs/eval/base/samples"))
    run("rwr", tiny_wan, base, Path("runs/policies/base"), tmp_path / "training")
    shutil.move(tmp_path / "training/out", "runs/policies/rwr1")
    shutil.copytree("runs/policies/base", "runs/policies/base-extended")  # as stage extend copies it

    assert [measure(name)["drift"] for name in ("base", "base-extended")] == [0.0, 0.0]
    assert measure("rwr1")["drift"] > 0
    rows = read_rows(Path("runs/eval/rwr1/effects") / DRIFT, ClipDrift)
    assert {row.sample_id for row in rows} == {"p0-0", "p0-1", "p1-0", "p1-1"}
    assert len(rows) == 2 * 2 * 3  # prompts, clips of each, times


def test_equal_inputs_give_the_same_bytes_and_a_policy_without_its_clips_changed_has_the_base_s_diversity(project):
    first = measure("base")
    written = {path.name: path.read_bytes() for path in Path("runs/eval/base/effects").iterdir()}
    shutil.rmtree("runs/eval/base/effects")

    assert measure("base") == first
    assert {path.name: path.read_bytes() for path in Path("runs/eval/base/effects").iterdir()} == written
    assert 1 < first["vendi"] < 3 and first["motion"] == 0.0  # clips of one colour


def test_drift_may_be_left_out(project):
    project(drift=None)

    assert measure("base")["drift"] is None
    clips = ClipSet.open(Path("runs/eval/base/samples"))
    assert read_effects(Path("runs/eval/base/effects"), clips.folder, clips.samples).drift == []


def test_a_policy_that_learnt_stillness_has_less_motion(project):
    """A bright square that walks, under base; under `still` it stays."""
    told = ClipSet.open(Path("runs/eval/base/samples"))
    for policy, step in (("base", 2), ("still", 0)):
        folder = Path(f"runs/eval/{policy}/samples")
        frames = np.full((6, 5, 16, 16, 3), 40, np.uint8)
        for frame in range(5):
            frames[:, frame, 5:11, 1 + step * frame : 7 + step * frame] = np.arange(180, 252, 12)[:6, None, None, None]
        samples, latents = told.samples, told.latents([sample.sample_id for sample in told.samples])
        conditions = {p: {k: v[0] for k, v in told.conditions([p]).items()} for p in ("p0", "p1")}
        shutil.rmtree(folder, ignore_errors=True)
        writer = ClipSetWriter(folder)
        writer.add_batch(0, samples, encode_clips(samples, frames), latents)
        writer.finish(PromptConditions(conditions, told.empty, None), {})
    shutil.copytree("runs/policies/base", "runs/policies/still")

    moving, still = measure("base"), measure("still")

    assert moving["motion"] > 4 > still["motion"]  # 4 pairs of frames, 2 pixels each
    assert still["vendi"] == pytest.approx(moving["vendi"])
    rows = read_rows(Path("runs/eval/still/effects") / MOTION, ClipMotion)
    assert {row.sample_id for row in rows} == {
        row.sample_id for row in read_rows(Path("runs/eval/still/samples/metadata.parquet"), Sample)
    }
