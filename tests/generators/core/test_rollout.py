"""Clip sets sampled from a generator: whose noise, in which order, and after a kill."""

from dataclasses import replace

import pytest
import torch

from data.prompts import Prompt
from data.store import ClipSet
from generators.core.identity import identify
from generators.core.load import load_generator
from generators.core.rollout import ClipSetName, Sampling, VideoSize, generate_clip_set, plan

SIZE = VideoSize(num_frames=5, height=16, width=16, fps=8.0)
SAMPLING = Sampling(steps=1, guidance=1.0, solver="euler", samples_per_prompt=3, batch_size=2, split="all", seed=1)
PROMPTS = [
    Prompt("p1", "the red ball rolls off the table", "falling", "train", None, None),
    Prompt("p2", "a hand lifts the blue cup", "lifting", "test", None, None),
]
R1 = ClipSetName("r1", "base")


@pytest.fixture(scope="module")
def generator(tiny_wan):
    return load_generator("wan", tiny_wan, max_prompt_tokens=8)


def seeds(samples):
    return {(sample.prompt_id, sample.sample_id[-3:]): sample.seed for sample in samples}


def test_every_prompt_of_the_split_gets_its_clips():
    rows = plan(PROMPTS, SIZE, SAMPLING, R1)

    assert [row.sample_id for row in rows] == [f"r1-{p}-{i:03d}" for p in ("p1", "p2") for i in range(3)]
    assert rows[0].file_name == "videos/r1-p1-000.mp4"
    assert (rows[5].prompt, rows[5].category, rows[5].split) == (PROMPTS[1].prompt, "lifting", "test")


def test_seeds_hang_on_neither_policy_batch_nor_other_prompts():
    rows = seeds(plan(PROMPTS, SIZE, SAMPLING, R1))

    assert len(set(rows.values())) == 6
    assert rows == seeds(plan(PROMPTS, SIZE, replace(SAMPLING, batch_size=64), ClipSetName("r1", "rwr1")))
    assert seeds(plan(PROMPTS[1:], SIZE, SAMPLING, R1)).items() <= rows.items()
    assert rows.items() <= seeds(plan(PROMPTS, SIZE, replace(SAMPLING, samples_per_prompt=5), R1)).items()


def test_rounds_have_noise_of_their_own():
    of_r1, of_r2 = (seeds(plan(PROMPTS, SIZE, SAMPLING, ClipSetName(name, "base"))) for name in ("r1", "r2"))

    assert not set(of_r1.values()) & set(of_r2.values())


def test_a_clip_set_holds_what_training_needs(generator, tmp_path):
    assert generate_clip_set(generator, PROMPTS, SIZE, SAMPLING, R1, tmp_path / "work", tmp_path / "out") == 6

    clips = ClipSet.open(tmp_path / "out", verify=True)
    ids = [sample.sample_id for sample in clips.samples]
    assert clips.latents(ids).shape == (6, *generator.latent_shape(5, 16, 16))
    assert torch.equal(clips.embeddings(["p2"])[0], generator.encode_text([PROMPTS[1].prompt])[0])
    assert torch.equal(clips.empty_embedding, generator.encode_text([""])[0])
    assert clips.frames(clips.samples[0]).shape == (5, 16, 16, 3)
    assert (clips.manifest["facts"]["set"], clips.manifest["facts"]["policy"]) == ("r1", "base")


def test_a_stopped_run_goes_on_with_the_next_batch_and_ends_with_the_same_bytes(generator, tmp_path, monkeypatch):
    generate_clip_set(generator, PROMPTS, SIZE, SAMPLING, R1, tmp_path / "work", tmp_path / "whole")
    sampled, sample = [], generator.sample

    def stopping(*args):
        sampled.append(args)
        if len(sampled) == 2:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(generator, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        generate_clip_set(generator, PROMPTS, SIZE, SAMPLING, R1, tmp_path / "work", tmp_path / "resumed")
    assert not (tmp_path / "resumed").exists()
    generate_clip_set(generator, PROMPTS, SIZE, SAMPLING, R1, tmp_path / "work", tmp_path / "resumed")

    assert len(sampled) == 2 + 2  # one done, one stopped; then two of three, the first being kept
    whole, resumed = ((tmp_path / name / "manifest.json").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed


def test_a_size_that_the_vae_cannot_represent_is_refused_before_anything_is_made(generator, tmp_path):
    with pytest.raises(ValueError, match="num_frames: 6 cannot be represented"):
        size = replace(SIZE, num_frames=6)
        generate_clip_set(generator, PROMPTS, size, SAMPLING, R1, tmp_path / "work", tmp_path / "out")
    assert not (tmp_path / "work").exists()


def test_a_prompt_that_is_too_long_is_named(generator, tmp_path):
    long = [replace(PROMPTS[0], prompt="the red ball " * 5)]

    with pytest.raises(ValueError, match="the red ball the red ball"):
        generate_clip_set(generator, long, SIZE, SAMPLING, R1, tmp_path / "work", tmp_path / "out")


# Identity


def test_a_generator_is_known_by_its_contents(tmp_path):
    weights = tmp_path / "transformer" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    first = identify("wan", str(tmp_path), None)
    again = identify("wan", str(tmp_path), None)
    weights.write_bytes(b"two")

    assert first == again
    assert first["fingerprint"] != identify("wan", str(tmp_path), None)["fingerprint"]


def test_a_path_that_is_no_generator_is_named():
    for path in ("no/such/folder", "nobody/has-this-model"):
        with pytest.raises(ValueError, match=f"generator.path: {path} is no local folder, and no hub id"):
            identify("wan", path, None)
