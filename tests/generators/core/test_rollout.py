"""Clip sets sampled from a generator: whose noise, in which order, and after a kill."""

import json
import re
import weakref
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cluster.pool import Here
from data.counts import Counts
from data.dense import read_starts
from data.first_frames import read_png
from data.manifest import StoreError
from data.prompts import Prompt
from data.store import ClipSet, ClipSetWriter
from generators.core.encoding import ENCODING, check_images, encode
from generators.core.generator import SAMPLING as SAMPLING_PARTS
from generators.core.generator import NonFiniteClipError
from generators.core.identity import identify
from generators.core.rollout import (
    ClipSetName,
    Sampling,
    counts_of,
    generate_clip_set,
    generate_pairs,
    load_policy,
    plan,
)
from tests.support.tiny import SIZE, load_wan

SAMPLING = Sampling(steps=1, guidance=1.0, solver="euler", samples_per_prompt=3, batch_size=2, split="all", seed=1)
PROMPTS = [
    Prompt("p1", "the red ball rolls off the table", "falling", "train", None, None),
    Prompt("p2", "a hand lifts the blue cup", "lifting", "test", None, None),
]
R1 = ClipSetName("r1", "base")


@pytest.fixture(scope="module")
def generator(tiny_wan):
    return load_wan(tiny_wan, max_prompt_tokens=8)


def generate(generator, home, out="out", sampling=SAMPLING, prompts=PROMPTS):
    return generate_clip_set(lambda _: generator, prompts, SIZE, sampling, R1, home / f"work-{out}", home / out)


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


def test_a_clip_set_says_who_predicted_without_the_prompt(tiny_wan, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    model = {"family": "wan", "path": str(tiny_wan), "revision": None, "dtype": "float32", "max_prompt_tokens": 8}
    plain = {"unconditional": "policy", "unconditional_scale": "one"}
    for sampled, found in (({}, {}), (plain, {}), ({"unconditional": "base"}, {"unconditional": "base"}),
                           ({"unconditional_scale": "projected"}, {"unconditional_scale": "projected"})):  # fmt: skip
        (folder / "policy.json").write_text(json.dumps({"sampling": sampled}))
        loaded = load_policy(model, SIZE, folder, "cpu", SAMPLING_PARTS + ENCODING)
        facts = encode(loaded, PROMPTS, None).facts
        assert {key: facts[key] for key in plain if key in facts} == found


def test_a_clip_set_holds_what_training_needs(generator, tmp_path):
    assert generate(generator, tmp_path) == 6

    clips = ClipSet.open(tmp_path / "out", verify=True)
    ids = [sample.sample_id for sample in clips.samples]
    assert clips.latents(ids).shape == (6, *generator.latent_shape)
    assert torch.equal(clips.conditions(["p2"])["text"], generator.encode_text([PROMPTS[1].prompt])["text"])
    assert torch.equal(clips.empty["text"], generator.encode_text([""])["text"][0])
    assert clips.frames(clips.samples[0]).shape == (5, 16, 16, 3)
    facts = {name: value for name, value in clips.manifest["facts"].items() if name != "shards"}
    assert facts == {
        "set": "r1", "policy": "base", "family": "wan", "shift": 3.0, "negative_prompt": "", "guidance": 1.0,
        "size": [5, 16, 16],
    }  # fmt: skip
    assert clips.negative is None and clips.first_frame("p1") is None


class OnTwo(Here):
    """As a pool that has two workers and lost a unit."""

    def status(self):
        return {"workers": 2, "lost": 1}


def test_the_progress_bar_shows_workers_lost_units_and_clips_a_second(generator, tmp_path, capsys):
    generate_clip_set(
        lambda _: generator, PROMPTS, SIZE, SAMPLING, R1, tmp_path / "work", tmp_path / "out", pool=OnTwo()
    )
    last = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]
    assert "6/6" in last and re.search("clip/s|s/clip", last) and "workers=2, lost=1" in last


def test_the_encoders_are_let_go_of_before_anything_is_sampled(tiny_wan, tmp_path):
    asked, encoders = [], []

    def load(parts):
        assert not [one for one in encoders if one() is not None]
        asked.append(tuple(parts))
        loaded = load_wan(tiny_wan, max_prompt_tokens=8, parts=parts)
        encoders.append(weakref.ref(loaded))
        return loaded

    generate_clip_set(load, PROMPTS, SIZE, SAMPLING, R1, tmp_path / "work", tmp_path / "out")
    assert asked == [ENCODING, SAMPLING_PARTS]


def test_a_negative_prompt_enters_guidance_and_the_clip_set(generator, tmp_path):
    guided = replace(SAMPLING, guidance=3.0, samples_per_prompt=1, steps=2)
    for name, sampling in (("plain", guided), ("negative", replace(guided, negative_prompt="the blue ball"))):
        generate(generator, tmp_path / name, sampling=sampling)
    plain, negative = (ClipSet.open(tmp_path / name / "out") for name in ("plain", "negative"))
    unwanted = generator.encode_text(["the blue ball"])["text"][0]
    assert torch.equal(negative.negative["text"], unwanted)
    assert torch.equal(negative.empty["text"], plain.empty["text"])
    assert negative.manifest["facts"]["negative_prompt"] == "the blue ball"
    assert [row.seed for row in negative.samples] == [row.seed for row in plain.samples]  # it seeds nothing
    expected = generator.sample(
        negative.conditions(["p1", "p2"]), {"text": unwanted},
        generator.draw_noise([row.seed for row in negative.samples], generator.latent_shape), 2, 3.0, "euler",
    )  # fmt: skip
    ids = [row.sample_id for row in negative.samples]
    torch.testing.assert_close(negative.latents(ids), expected)
    assert not torch.allclose(plain.latents(ids), expected, atol=1e-3)


def test_a_clip_of_no_numbers_is_named_and_nothing_of_its_batch_is_kept(generator, tmp_path, monkeypatch, caplog):
    """The second clip of the second batch."""
    sample, calls = generator.sample, []

    def diverging(*args):
        calls.append(1)
        latents = sample(*args)
        if len(calls) == 2:
            latents[1, 0, 0, 0, 0] = float("inf")
        return latents

    monkeypatch.setattr(generator, "sample", diverging)
    with pytest.raises(NonFiniteClipError, match=r"latents of clips r1-p2-000 .*infinite") as raised:
        generate(generator, tmp_path)
    assert "r1-p1-002" not in str(raised.value)
    assert ClipSetWriter(tmp_path / "work-out").done_batches() == {0}
    assert sorted(path.stem for path in (tmp_path / "work-out/videos").iterdir()) == ["r1-p1-000", "r1-p1-001"]
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    caplog.set_level("INFO")
    generate(generator, tmp_path)
    assert f"; 2 are done; the work lies in {tmp_path / 'work-out'}" in caplog.text


def test_pixels_that_are_infinite_are_no_white_clip(generator, monkeypatch):
    pixels = torch.zeros(2, 5, 16, 16, 3)
    pixels[1, 0, 0, 0, 0] = torch.inf
    monkeypatch.setattr(generator, "_pixels", lambda latents: pixels)
    with pytest.raises(NonFiniteClipError, match="pixels of clips 1 are infinite"):
        generator.decode(torch.zeros(2, *generator.latent_shape))


# First frames


def with_images(folder):
    """The prompts with a red and a blue image of the clip's size."""
    folder.mkdir(exist_ok=True)
    shown = []
    for prompt, colour in zip(PROMPTS, ((255, 0, 0), (0, 0, 255)), strict=True):
        Image.new("RGB", (16, 16), colour).save(folder / f"{prompt.prompt_id}.png")
        shown.append(replace(prompt, image=str(folder / f"{prompt.prompt_id}.png")))
    return shown


def test_a_generator_that_takes_first_frames_is_shown_the_prompts_own(tiny_wan_with, tmp_path):
    generator, prompts = (
        load_wan(tiny_wan_with(in_channels=4 + 2 + 4), max_prompt_tokens=8),
        with_images(tmp_path / "i"),
    )
    generate(generator, tmp_path, prompts=prompts)
    clips = ClipSet.open(tmp_path / "out")
    red = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    red[..., 0] = 255
    conditions = clips.conditions(["p1", "p2"])
    torch.testing.assert_close(conditions["image"][:1], generator.encode_image(red)["image"])
    assert not torch.equal(conditions["image"][0], conditions["image"][1])
    assert clips.empty.keys() == {"text"}
    assert torch.equal(torch.from_numpy(read_png(clips.first_frame("p1"))), red[0])


def test_a_generator_of_text_alone_warns_of_images_and_leaves_them_out(generator, tmp_path, caplog):
    encoded = encode(generator, with_images(tmp_path / "i"))
    assert "takes no first frame, so the images of the prompts are not used" in caplog.text
    assert not encoded.images and all(own.keys() == {"text"} for own in encoded.conditions.prompts.values())
    assert check_images(generator, PROMPTS) is None


def test_a_generator_that_needs_first_frames_refuses_prompts_without(tiny_wan_with, tmp_path):
    generator = load_wan(tiny_wan_with(in_channels=4 + 2 + 4), max_prompt_tokens=8)
    with pytest.raises(ValueError, match="makes a clip from a prompt and its first frame, and the prompts have none"):
        generate(generator, tmp_path)


@pytest.mark.ci
def test_a_stopped_run_goes_on_with_the_next_batch_and_ends_with_the_same_bytes(generator, tmp_path, monkeypatch):
    generate(generator, tmp_path, "whole")
    sampled, sample = [], generator.sample

    def stopping(*args):
        sampled.append(args)
        if len(sampled) == 2:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(generator, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        generate(generator, tmp_path, "resumed")
    assert not (tmp_path / "resumed").exists()
    generate(generator, tmp_path, "resumed")

    assert len(sampled) == 2 + 2  # one done, one stopped; then two of three, the first being kept
    whole, resumed = ((tmp_path / name / "manifest.json").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    of_whole, of_resumed = (counts_of(tmp_path / f"work-{name}") for name in ("whole", "resumed"))
    assert of_whole == of_resumed == Counts(clips=6, forwards=6, decodes=6)  # one solver step
    assert not list((tmp_path / "whole").rglob("*counts*"))


def test_guidance_takes_two_forwards_a_step(generator, tmp_path):
    generate(generator, tmp_path, sampling=replace(SAMPLING, steps=3, guidance=2.0))
    assert counts_of(tmp_path / "work-out") == Counts(clips=6, forwards=6 * 3 * 2, decodes=6)


def test_what_a_set_took_is_unknown_where_a_batch_is_of_a_version_that_did_not_count(generator, tmp_path):
    generate(generator, tmp_path)
    next((tmp_path / "work-out.counts").iterdir()).unlink()
    assert counts_of(tmp_path / "work-out") is None


def test_batches_that_are_not_planned_in_their_place_are_refused_and_stay(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(ClipSetWriter, "finish", stop)  # all batches are done
    with pytest.raises(KeyboardInterrupt):
        generate(generator, tmp_path)
    other_prompt = [replace(PROMPTS[0], prompt="the red ball rolls on"), PROMPTS[1]]
    wrong = (
        {"sampling": replace(SAMPLING, seed=2)}, {"sampling": replace(SAMPLING, batch_size=4)},
        {"prompts": other_prompt}, {"prompts": PROMPTS[:1]},
    )  # fmt: skip
    for change in wrong:
        with pytest.raises(
            StoreError, match="work-out: batch . holds clips that are not planned in its place, such as r1-p"
        ):
            generate(generator, tmp_path, **change)
    assert len(list((tmp_path / "work-out/.batches").iterdir())) == 3
    with pytest.raises(KeyboardInterrupt):  # the guidance is not in the rows: the clips stay, and nothing is sampled
        generate(generator, tmp_path, sampling=replace(SAMPLING, guidance=2.0))


def stop(*_):
    raise KeyboardInterrupt


def test_a_prompt_that_is_too_long_is_named(generator, tmp_path):
    long = [replace(PROMPTS[0], prompt="the red ball " * 5)]

    with pytest.raises(ValueError, match="the red ball the red ball"):
        generate(generator, tmp_path, prompts=long)


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


def pairs(generator, home, share=0.5, out="pairs", name="d1", **sampling) -> ClipSet:
    """Two pairs of each prompt, from the clips of a round."""
    if not (home / "round").is_dir():
        generate(generator, home, "round")
    how, called = replace(SAMPLING, steps=4, **sampling), ClipSetName(name, "base")
    starts = ClipSet.open(home / "round")
    generate_pairs(lambda _: generator, starts, SIZE, how, called, share, 2, home / f"work-{out}", home / out)
    return ClipSet.open(home / out, verify=True)


@pytest.mark.ci
def test_both_clips_of_a_pair_start_from_one_clip_with_a_noise_each(generator, tmp_path):
    clips = pairs(generator, tmp_path)
    starts = ClipSet.open(tmp_path / "round")

    rows = read_starts(clips)
    assert [row.start for row in rows] == [f"r1-{p}-{i:03d}" for p in ("p1", "p2") for i in range(2)]
    assert [(row.first, row.second) for row in rows][:2] == [("d1-p1-000", "d1-p1-001"), ("d1-p1-002", "d1-p1-003")]
    assert len({sample.seed for sample in clips.samples}) == len(clips.samples) == 8
    told = starts.conditions(["p2"])["text"]
    assert torch.equal(clips.conditions(["p2"])["text"], told)
    facts = clips.manifest["facts"]["starts"]
    latent_frames = generator.latent_shape[1]
    assert facts == {
        "round": "r1", "clip_set": starts.fingerprint(), "noise": 0.5, "steps": 2, "latent_frames": latent_frames,
    }  # fmt: skip
    # the same by hand: the clip at the t of the third of four steps, and two steps of Euler from there
    scheduler = generator.solver("euler", 4)
    noise = generator.draw_noise([clips.samples[1].seed], generator.latent_shape)
    t = scheduler.sigmas[2]
    latents = (1 - t) * starts.latents(["r1-p1-000"]) + t * noise
    for step in (2, 3):
        timestep = scheduler.timesteps[step]
        velocity = generator.ask(latents, timestep.expand(1), starts.conditions(["p1"]))
        latents = latents + (scheduler.sigmas[step + 1] - scheduler.sigmas[step]) * velocity
    torch.testing.assert_close(clips.latents(["d1-p1-001"]), latents, atol=1e-5, rtol=0)


@pytest.mark.ci
def test_pairs_do_not_hang_on_the_batch_and_a_kill_changes_no_byte(generator, tmp_path):
    whole = pairs(generator, tmp_path)
    others = pairs(generator, tmp_path, out="others", batch_size=3)
    torch.testing.assert_close(others.latents(["d1-p2-001"]), whole.latents(["d1-p2-001"]))
    work = tmp_path / "work-again"
    with pytest.raises(KeyboardInterrupt):
        pairs(Stopped(generator, after=2), tmp_path, out="again")
    assert len(ClipSetWriter(work / "").done_batches()) == 2
    again = pairs(generator, tmp_path, out="again")
    assert again.fingerprint() == whole.fingerprint()


class Stopped:
    """A generator that is interrupted after some batches."""

    def __init__(self, generator, after: int) -> None:
        self.generator, self.left = generator, after

    def __getattr__(self, name):
        return getattr(self.generator, name)

    def sample_from(self, *how):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.generator.sample_from(*how)


def test_a_share_of_no_step_or_of_all_steps_is_an_error(generator, tmp_path):
    for share in (0.1, 0.9):
        with pytest.raises(ValueError, match=f"noise: {share} of 4 solver steps are [04]; wanted are 1 to 3"):
            pairs(generator, tmp_path, share)
