"""Asking about pairs: order, resume after a kill, and what is refused."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.labels import open_labels, read_verdicts
from data.manifest import read_manifest
from data.preferences import read_comparisons, read_preferences
from data.records import Comparison, Sample
from data.store import ClipSet, ClipSetWriter, encode_clips
from data.video import read_video
from feedback.core.kinds import make_source, read_block
from feedback.core.label import requests_for
from feedback.core.rubric import Question, Rubric
from feedback.core.source import FAILED, LabelError, Request
from feedback.core.verdicts import VerdictFile
from feedback.pairs.compare import Compared, as_comparer, compare_pairs, write_compared
from feedback.pairs.label import compare_clip_set
from feedback.pairs.sets import pairs_between, pairs_of
from feedback.pairs.shown import ShownPair, comparison
from tests.support.conditions import blank_conditions
from tests.support.judges import FAMILIES

BATCH, CLIPS = 2, 8


class Brighter:
    """Prefers the brighter clip of two; with `until`, stops with an error after so many shown pairs."""

    name = model = "brighter"
    model_version: str | None = "1"
    rubric = Rubric("b", None, "all", "{prompt}", (Question("b", "?", "First", "Second", True, True, "Tie"),), True)
    repeatable = True

    def __init__(self, until: int | None = None, lost: tuple[str, ...] = (), biased: bool = False) -> None:
        self.until, self.lost, self.biased = until, lost, biased
        self.shown: list[tuple[str, str]] = []

    def compare(self, pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
        for pair in pairs:
            if self.until is not None and len(self.shown) == self.until:
                raise LabelError("the money is spent")
            self.shown.append(pair.ids)
            yield [self.row(pair)]

    def row(self, pair: ShownPair) -> Comparison:
        one, other = (float(read_video(request.path).mean()) for request in (pair.first, pair.second))
        facts = {"answer": True if self.biased else one > other}
        if set(pair.ids) & set(self.lost):
            facts = {"error": f"{FAILED}timed out"}
        return comparison(self, pair, 0, self.rubric.questions[0], ([0], [0]), facts)

    def status(self) -> dict:
        return {}


def make_clips(folder: Path, prompts: int = 1, policy: str = "base", brightness: int = 0) -> ClipSet:
    """CLIPS clips of increasing brightness, evenly of each prompt."""
    grey = [brightness + 25 * index for index in range(CLIPS)]
    frames = np.stack([np.full((3, 32, 32, 3), value, np.uint8) for value in grey])
    names = [f"clip{index}" for index in range(CLIPS)]
    samples = [
        Sample(name, f"p{n % prompts}", f"ball {n % prompts}", "c", "train", policy, n, 3, 8.0, 32, 32,
               f"videos/{name}.mp4")
        for n, name in enumerate(names)
    ]  # fmt: skip
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(CLIPS, 1, 1, 1, 1))
    writer.finish(blank_conditions(f"p{n}" for n in range(prompts)), {"set": "r1", "policy": policy})
    return ClipSet.open(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    return make_clips(tmp_path_factory.mktemp("set") / "samples")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_set_gets_shares_of_won_comparisons_and_the_preferences_beside_them(clips, tmp_path):
    out = tmp_path / "labels"
    counts = compare_clip_set(clips, Brighter(), tmp_path / "work", out, CLIPS - 1, BATCH)

    labels = open_labels(out, clips.folder, clips.samples)
    assert [label.score for label in labels.labels] == pytest.approx([n / 7 for n in range(CLIPS)])  # wins of 7 games
    assert {(label.label, label.p_accept) for label in labels.labels} == {(None, None)}
    assert len(read_preferences(out, "labels")) == 28 and len(read_comparisons(out, "labels")) == 56
    facts = read_manifest(out, "labels", verify=True)["facts"]["comparisons"]
    assert facts == counts["comparisons"]
    assert (facts["pairs"], facts["ties"], facts["position_bias"]) == (28, 0, 0.0)


def test_each_pair_is_shown_in_both_orders(clips, tmp_path):
    source = Brighter()
    compare_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", 2, BATCH)

    assert len(source.shown) == len(set(source.shown)) == 16
    assert {(other, one) for one, other in source.shown} == set(source.shown)


def test_a_judge_that_always_prefers_the_first_gives_ties_and_shows_its_bias(clips, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "labels"
    counts = compare_clip_set(clips, Brighter(biased=True), tmp_path / "work", out, 3, BATCH)["comparisons"]

    assert (counts["ties"], counts["first_in_both"], counts["position_bias"]) == (12, 12, 1.0)
    assert {label.score for label in open_labels(out, clips.folder, clips.samples).labels} == {0.5}
    assert (
        "of 12 pairs 0 have a preferred clip, 12 are ties, 0 lack an answer; the clip that was shown first"
        in caplog.text
    )


@pytest.mark.parametrize("until", [0, 1, 5, 10, 23])
def test_a_run_that_was_stopped_continues_to_the_same_bytes(clips, tmp_path, until):
    compare_clip_set(clips, Brighter(), tmp_path / "whole", tmp_path / "expected", 3, BATCH)
    work, out = tmp_path / "work", tmp_path / "labels"
    with pytest.raises(LabelError, match="the money is spent"):
        compare_clip_set(clips, Brighter(until), work, out, 3, BATCH)
    assert not out.exists()
    again = Brighter()
    compare_clip_set(clips, again, work, out, 3, BATCH)

    assert len(again.shown) == 24 - until // 2 * 2  # pairs that were shown in both orders are kept
    assert contents(out) == contents(tmp_path / "expected")


def test_pairs_without_a_reply_have_no_preference_and_are_asked_about_again(clips, tmp_path):
    work, out = tmp_path / "work", tmp_path / "labels"
    counts = compare_clip_set(clips, Brighter(lost=("clip3",)), work, out, 1, BATCH, max_failed=0.25)
    assert counts["comparisons"]["unknown"] == 1 and counts["comparisons"]["clips_without"] == 2
    row = next(row for row in read_verdicts(out) if row.sample_id == "clip3")
    assert (row.score, row.error) == (None, "no comparison of this clip was answered")
    again = Brighter()
    compare_clip_set(clips, again, work, out, 1, BATCH)
    assert len(again.shown) == 2 and all("clip3" in pair for pair in again.shown)

    with pytest.raises(LabelError, match=r"no reply about 1 of 4 pairs, more than label.max_failed \(0.0%\) allows"):
        compare_clip_set(clips, Brighter(lost=("clip3",)), tmp_path / "other", tmp_path / "none", 1, BATCH)


def test_what_cannot_be_compared_is_an_error(clips, tmp_path):
    first, *others = requests_for(clips, 1)
    other = replace(others[0], sample=replace(others[0].sample, prompt="a cube falls"))
    with pytest.raises(ValueError, match="clips of different prompts: clip0 is of 'ball 0', clip1 of 'a cube falls'"):
        ShownPair(first, other)
    pair = ShownPair(first, others[0])
    with pytest.raises(ValueError, match="1 of 2 pairs are listed twice"):
        compare_pairs([pair, pair.swapped()], Brighter(), None, BATCH)
    alone = make_clips(tmp_path / "alone", prompts=CLIPS)
    with pytest.raises(ValueError, match="no prompt has two clips, so there is nothing to compare"):
        pairs_of(alone, 4, 1)


def test_answers_that_do_not_fit_the_pairs_are_an_error(clips):
    class Astray(Brighter):
        def row(self, pair):
            return replace(super().row(pair), first="clip99")

    class Twice(Brighter):
        def compare(self, pairs):
            for rows in super().compare(pairs):
                yield rows
                yield rows

    class Forgetful(Brighter):
        def compare(self, pairs):
            return iter(list(super().compare(pairs))[:-1])

    class Silent(Brighter):
        def row(self, pair):
            return replace(super().row(pair), answer=None)

    pairs = pairs_of(clips, 1, 1)
    table = {
        Astray: "which was not asked, or answered twice", Twice: "or answered twice", Forgetful: "left out 1 pairs",
        Silent: "neither an answer nor an error",
    }  # fmt: skip
    for kind, problem in table.items():
        with pytest.raises(ValueError, match=problem):
            compare_pairs(pairs, kind(), None, BATCH)


def test_two_policies_clips_are_paired_by_prompt_and_noise(tmp_path):
    base, policy = make_clips(tmp_path / "base", 2), make_clips(tmp_path / "policy", 2, "rwr1", brightness=10)
    pairs = pairs_between(policy.folder, base.folder, ("rwr1", "base"), 3, 1)

    assert len(pairs) == 6  # three of each of two prompts
    assert all(
        pair.ids == (f"rwr1/clip{seed}", f"base/clip{seed}") for pair in pairs for seed in [pair.first.sample.seed]
    )
    assert {row.preferred for row in compare_pairs(pairs, Brighter(), None, BATCH).preferences} == {"first"}
    with pytest.raises(ValueError, match="8 clips have no partner of the same prompt, noise and size"):
        pairs_between(policy.folder, make_clips(tmp_path / "other", 1).folder, ("a", "b"), None, 1)
    with pytest.raises(ValueError, match="base: compared with itself; wanted the evaluation clips of two policies"):
        pairs_between(base.folder, tmp_path / "policy/../base", ("a", "b"), None, 1)


# A VLM in this process

RUBRIC = """
name: pairs
frames: 2
rule: all
compares: true
instructions: "judge the video {prompt}"
questions:
  - {name: better, ask: Accept or Reject, affirmative: Accept, negative: Reject, wanted: yes, required: true}
"""


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A judge of each family that compares, and clips of noise."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("vlm")
    (home / "pairs.yaml").write_text(RUBRIC)
    return {
        family: {
            "kind": "qwen", "path": str(build(tmp_path_factory.mktemp("judge"))), "revision": None, "batch_size": 4,
            "rubric": str(home / "pairs.yaml"), "dtype": "float32", "min_answer_mass": 0.0,
        }
        for family, build in FAMILIES.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> list[Request]:
    """Eight clips of noise of one prompt."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 255, (CLIPS, 3, 8, 8, 3)), 8, 2), 8, 3).astype(np.uint8)
    samples = [
        Sample(f"n{n}", "p", "red ball", "c", "train", "base", n, 3, 8.0, 64, 64, f"videos/n{n}.mp4")
        for n in range(CLIPS)
    ]
    writer = ClipSetWriter(folder / "samples")
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(CLIPS, 1, 1, 1, 1))
    writer.finish(blank_conditions(["p"]), {})
    return requests_for(ClipSet.open(folder / "samples"), 1)


def both_orders(requests: list[Request]) -> list[ShownPair]:
    pairs = [ShownPair(one, other) for one, other in zip(requests[::2], requests[1::2], strict=True)]
    return [shown for pair in pairs for shown in (pair, pair.swapped())]


def test_a_vlm_answers_about_two_clips_in_the_order_in_which_they_are_shown(vlm, noise):
    for family in ("qwen2.5", "internvl"):
        source = make_source("pairs", vlm[family])
        shown = both_orders(noise)
        rows = {(row.first, row.second): row for (row,) in source.compare(shown)}
        alone = {(row.first, row.second): row for pair in shown for (row,) in source.compare([pair])}

        assert rows.keys() == {pair.ids for pair in shown}, family
        for ids, row in rows.items():
            assert row.p_first == pytest.approx(alone[ids].p_first, abs=1e-5), family  # whatever it is batched with
            assert row.answer == ("first" if row.p_first > 0.5 else "second"), family
            assert (row.first_frames, row.second_frames) == ([0, 2], [0, 2]), family
        # The order is seen: otherwise both orders of a pair had the same probability.
        assert any(abs(rows[one, two].p_first - rows[two, one].p_first) > 1e-3 for one, two in rows), family


def test_a_clip_that_cannot_be_decoded_costs_its_pairs_alone(vlm, noise, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    requests = [replace(noise[0], path=broken), *noise[1:]]
    rows = [row for rows in make_source("pairs", vlm["qwen2.5"]).compare(both_orders(requests)) for row in rows]

    assert [row.answer is None for row in rows].count(True) == 2
    assert {row.error.startswith("unreadable clip: ") for row in rows if row.answer is None} == {True}


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """The file of verdicts."""
    monkeypatch.setenv("FEEDBACK_VERDICTS", str(tmp_path / "verdicts.sqlite"))
    return tmp_path / "verdicts.sqlite"


def asked(block: dict, pairs: list[ShownPair], until: int | None = None) -> tuple[list[tuple[str, str]], Compared]:
    """The shown pairs that a source is asked about, and what they come to. until: it stops after so many, and none."""
    source, shown = make_source("pairs", block), []
    inner = source.compare

    def compare(pairs: Iterable[ShownPair]) -> Iterator[list[Comparison]]:
        for rows in inner(pairs):
            if len(shown) == until:
                raise LabelError("the power is off")
            shown.append((rows[0].first, rows[0].second))
            yield rows

    source.compare = compare
    if until is None:
        return shown, compare_pairs(pairs, source, None, BATCH)
    with pytest.raises(LabelError, match="the power is off"):
        compare_pairs(pairs, source, None, BATCH)
    return shown, Compared([], [])


@pytest.mark.ci
def test_a_pair_that_was_compared_before_is_not_asked_about_again_and_gets_the_same_answers(vlm, noise, kept, tmp_path):
    pairs = both_orders(noise)[::2]
    orders = [pair.ids for pair in both_orders(noise)]
    shown, first = asked(vlm["qwen2.5"], pairs)
    again, second = asked(vlm["qwen2.5"] | {"batch_size": 2}, pairs)
    assert (shown, again) == (orders, [])
    for name, compared in (("first", first), ("second", second)):
        write_compared(tmp_path / name, compared)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert asked(vlm["qwen2.5"], [pair.swapped() for pair in pairs])[0] == []  # each is shown in both orders
    with VerdictFile(kept) as file:
        assert [(one.clips, one.shown_pairs) for one in file.kept()] == [(0, CLIPS)]

    (tmp_path / "other.yaml").write_text(RUBRIC.replace("judge the video", "the video judge"))
    other = vlm["qwen2.5"] | {"rubric": str(tmp_path / "other.yaml")}
    wordless = vlm["qwen2.5"] | {"min_answer_mass": 0.1}
    for what, block in {"rubric": other, "model": vlm["internvl"], "option": wordless}.items():
        assert sorted(asked(block, pairs)[0]) == sorted(orders), what
        assert asked(block, pairs)[0] == [], what
    renamed = [replace(one, sample=replace(one.sample, sample_id=f"of-{one.sample.sample_id}")) for one in noise]
    assert asked(vlm["qwen2.5"], both_orders(renamed)[::2])[0] == []  # the same bytes


def test_the_other_order_of_a_pair_is_another_question(vlm, noise, kept):
    pairs, orders = both_orders(noise)[::2], [pair.ids for pair in both_orders(noise)]
    asked(vlm["qwen2.5"], pairs, until=1)
    assert asked(vlm["qwen2.5"], pairs)[0] == orders[1:]


def test_answers_about_pairs_that_are_no_answers_are_not_kept(vlm, noise, kept, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    requests = [replace(noise[0], path=broken, content=None), *noise[1:]]
    orders = [pair.ids for pair in both_orders(requests)]
    assert len(asked(vlm["qwen2.5"], both_orders(requests)[::2])[0]) == CLIPS
    assert asked(vlm["qwen2.5"], both_orders(requests)[::2])[0] == orders[:2]


def test_only_kinds_that_compare_take_such_a_rubric(vlm):
    rubric = vlm["qwen2.5"]["rubric"]
    assert read_block("pairs", vlm["qwen2.5"]).compares
    with pytest.raises(ValueError, match="a source that compares clips cannot be part of another source"):
        read_block("panel", {"kind": "panel", "rule": "all", "members": {"a": vlm["qwen2.5"], "b": vlm["qwen2.5"]}})
    with pytest.raises(ValueError, match="mode is decision, but .*pairs.yaml compares two clips"):
        read_block("gpt", {"kind": "gpt", "model": "m", "mode": "decision", "rubric": rubric})
    one = make_source("judge", vlm["qwen2.5"] | {"rubric": "tabletop/rubric.yaml"})
    with pytest.raises(ValueError, match="its rubric tabletop is about one clip; expected compares: true"):
        as_comparer(one)
