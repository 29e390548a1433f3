import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.labels import read_asked, read_labels, read_verdicts
from data.manifest import StoreError, read_manifest
from data.records import Sample, Verdict
from data.store import ClipSet, ClipSetWriter, encode_clips
from data.video import write_video
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set, look_at
from feedback.core.rubric import Question, Rubric, RubricByPrompt
from feedback.core.source import FAILED, LabelError, Request, decoded, verdict, without_answer
from tabletop.captions import all_claims, caption
from tabletop.scenes import SIZE
from tests.support.conditions import blank_conditions

ROOT = Path(__file__).parents[3]
CLIPS = 10
BATCH = 2


class Brightness:
    """Accepts bright clips; takes `seconds` per clip."""

    name = "brightness"
    model = "brightness"
    model_version: str | None = "1"
    rubric = Rubric("bright", None, "all", "{prompt}", (Question("bright", "Bright?", "yes", "no", True, True),))
    repeatable = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.judged: list[str] = []

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        for request, frames in decoded(requests, BATCH):
            if isinstance(frames, str):
                yield without_answer(self, request, frames)
                continue
            time.sleep(self.seconds)
            self.judged.append(request.sample.sample_id)
            yield [self.verdict(request.sample, vote, frames) for vote in range(request.votes)]

    def status(self) -> dict:
        return {}

    def verdict(self, sample: Sample, vote: int, frames: np.ndarray) -> Verdict:
        return self.row(sample, vote, answer=bool(frames.mean() > 120))

    def row(self, sample: Sample, vote: int, **fields) -> Verdict:
        return verdict(self, sample, vote, self.rubric.questions[0], range(sample.num_frames), **fields)


class Undecided(Brightness):
    """Answers yes and no in turn, and gives no answer about the first clip."""

    def verdict(self, sample: Sample, vote: int, frames: np.ndarray) -> Verdict:
        return self.row(sample, vote, **({"error": "blocked"} if sample.seed == 0 else {"answer": vote % 2 == 0}))


class Wavering(Brightness):
    """Accepts all clips, but every fifth one in only two of three votes; the next clip lacks one vote."""

    def verdict(self, sample: Sample, vote: int, frames: np.ndarray) -> Verdict:
        if sample.seed % 5 == 1 and vote == 2:
            return self.row(sample, vote, error="refused")
        return self.row(sample, vote, answer=not (sample.seed % 5 == 0 and vote == 1))


class Own(Brightness):
    """Asks whether clips of a ball are bright, and those of a cup also whether they are dark."""

    rubric: Any = RubricByPrompt(
        "own", None, "all", "", "own.csv",
        {
            "a ball": (Question("bright", "Bright?", "yes", "no", True, True),),
            "a cup": (
                Question("dark", "Dark?", "yes", "no", False, True),
                Question("bright", "Bright?", "yes", "no", True, True),
            ),
        },
    )  # fmt: skip

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        for request, frames in decoded(requests, BATCH):
            time.sleep(self.seconds)
            self.judged.append(request.sample.sample_id)
            bright, seen = bool(np.mean(frames) > 120), range(request.sample.num_frames)
            yield [
                verdict(self, request.sample, vote, one, seen, answer=bright == one.wanted)
                for one in self.rubric.of(request.sample.prompt).questions
                for vote in range(request.votes)
            ]


class Mute(Brightness):
    def verdict(self, sample: Sample, vote: int, frames: np.ndarray) -> Verdict:
        return self.row(sample, vote, error="no answer")


class Unreachable(Brightness):
    """Gets no reply about the clips with these seeds."""

    def __init__(self, *seeds: int) -> None:
        super().__init__()
        self.seeds = seeds

    def verdict(self, sample: Sample, vote: int, frames: np.ndarray) -> Verdict:
        if sample.seed in self.seeds:
            return self.row(sample, vote, error=f"{FAILED}timed out")
        return super().verdict(sample, vote, frames)


class Hasty(Brightness):
    """Answers in a random order, and stops with an error after `until` clips."""

    def __init__(self, seed: int, until: int) -> None:
        super().__init__()
        self.random, self.until = random.Random(seed), until

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        answers = list(super().judge(requests))
        self.random.shuffle(answers)
        yield from answers[: self.until]
        if self.until < len(answers):
            raise LabelError("the money is spent")


class Versioned(Brightness):
    """Each reply names the model version."""

    model_version = None

    def verdict(self, sample: Sample, vote: int, frames: np.ndarray) -> Verdict:
        return self.row(sample, vote, answer=sample.seed > 4, model_version=f"v{sample.seed // 5}")


class Forgetful(Brightness):
    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        yield from list(super().judge(requests))[1:]


class Stuttering(Brightness):
    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        for answer in super().judge(requests):
            yield from (answer, answer)


class Astray(Brightness):
    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        yield from ([replace(row, sample_id="clip99") for row in rows] for rows in super().judge(requests))


class Muddled(Brightness):
    """Mixes the verdicts on two clips in one answer."""

    def judge(self, requests: Iterable[Request]) -> Iterator[list[Verdict]]:
        (first, _), (_, second), *others = super().judge(requests)
        yield from ([first, second], *others)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    """Ten clips of increasing brightness."""
    return make_clips(tmp_path_factory.mktemp("set") / "samples")


def make_clips(folder: Path, *prompts: str) -> ClipSet:
    """prompts: of the clips in turn; without any, all are of a ball."""
    texts = prompts or ("a ball",)
    frames = np.stack([np.full((3, 32, 32, 3), 25 * index, np.uint8) for index in range(CLIPS)])
    names = [f"clip{index}" for index in range(CLIPS)]
    samples = [
        Sample(name, "p", texts[index % len(texts)], "c", "train", "base", index, 3, 8.0, 32, 32, f"videos/{name}.mp4")
        for index, name in enumerate(names)
    ]
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(CLIPS, 1, 1, 1, 1))
    writer.finish(blank_conditions(["p"]), {})
    return ClipSet.open(folder)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_progress_bar_shows_what_the_source_says_of_its_workers_and_clips_a_second(clips, tmp_path, capsys):
    source = Brightness()
    source.status = lambda: {"workers": 2, "lost": 1}
    label_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", BATCH)
    last = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]
    assert re.search("clip/s|s/clip", last) and "null=0, workers=2, lost=1" in last


def test_every_clip_gets_a_label_and_the_manifest_counts_them(clips, tmp_path):
    counts = label_clip_set(clips, Brightness(), tmp_path / "work", tmp_path / "labels", BATCH)
    assert counts == (5, 5, 0, 0, 0, 0)
    labels = read_labels(tmp_path / "labels")
    assert [label.sample_id for label in labels] == [sample.sample_id for sample in clips.samples]
    assert [label.label for label in labels] == [False] * 5 + [True] * 5
    assert {label.p_accept for label in labels} == {0.0, 1.0}
    facts = read_manifest(tmp_path / "labels", "labels", verify=True)["facts"]
    assert facts["clip_set"] == clips.fingerprint()
    assert (facts["source"], facts["rubric_hash"]) == ("brightness", Brightness.rubric.hash)
    assert (facts["accepted"], facts["rejected"], facts["unlabelled"]) == (5, 5, 0)


@pytest.mark.parametrize("seed", range(3))
def test_answers_in_any_order_end_in_clip_order_with_the_same_bytes(clips, tmp_path, seed):
    label_clip_set(clips, Brightness(), tmp_path / "whole", tmp_path / "expected", BATCH)
    work, out = tmp_path / "work", tmp_path / "labels"
    with pytest.raises(LabelError, match="the money is spent"):
        label_clip_set(clips, Hasty(seed, until=5), work, out, BATCH)
    last = Hasty(seed, until=CLIPS)
    label_clip_set(clips, last, work, out, BATCH)
    assert len(last.judged) == 5  # the five received answers are kept, including an incomplete batch
    assert contents(out) == contents(tmp_path / "expected")


def test_each_clip_is_asked_its_prompts_own_questions_and_what_was_asked_is_kept(tmp_path):
    clips = make_clips(tmp_path / "samples", "a ball", "a cup")
    counts = label_clip_set(clips, Own(), tmp_path / "work", tmp_path / "labels", BATCH, votes=2)
    assert counts[:3] == (5, 5, 0)
    rows = read_verdicts(tmp_path / "labels")
    assert [(row.question, row.vote) for row in rows[:6]] == [
        ("bright", 0), ("bright", 1), ("dark", 0), ("dark", 1), ("bright", 0), ("bright", 1),
    ]  # fmt: skip
    assert {row.rubric_hash for row in rows} == {Own.rubric.hash}
    asked = read_asked(tmp_path / "labels")
    assert {key: (one.ask, one.wanted) for key, one in asked.items()} == {
        ("a ball", "bright"): ("Bright?", True),
        ("a cup", "dark"): ("Dark?", False),
        ("a cup", "bright"): ("Bright?", True),
    }
    agreed = read_manifest(tmp_path / "labels", "labels")["facts"]["agreement"]
    assert {name: one["clips"] for name, one in agreed["questions"].items()} == {"bright": 10, "dark": 5}
    label_clip_set(clips, Brightness(), tmp_path / "work2", tmp_path / "one", BATCH)
    assert read_asked(tmp_path / "one") == {}


def test_clips_of_prompts_without_questions_stop_before_anything_is_asked(tmp_path):
    clips = make_clips(tmp_path / "samples", "a ball", "a dog", "a fox")
    source = Own()
    with pytest.raises(ValueError, match="own.csv has no question about 2 of 3 prompts, the first of them 'a dog'"):
        label_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", BATCH)
    assert source.judged == []


def test_verdicts_are_ordered_by_clip_and_vote(clips, tmp_path):
    label_clip_set(clips, Brightness(), tmp_path / "work", tmp_path / "labels", BATCH, votes=3)
    rows = read_verdicts(tmp_path / "labels")
    assert [(row.sample_id, row.vote) for row in rows] == [(s.sample_id, v) for s in clips.samples for v in range(3)]


def test_the_agreement_of_several_votes_is_logged_and_kept_in_the_manifest(clips, tmp_path, caplog):
    caplog.set_level("INFO")
    label_clip_set(clips, Wavering(), tmp_path / "work", tmp_path / "labels", BATCH, votes=3)
    agreement = read_manifest(tmp_path / "labels", "labels")["facts"]["agreement"]
    # 8 clips agree in all pairs, 2 in one of three: (8 + 2/3) / 10 = 13/15. All votes are yes on 8 clips, 2/3 on two:
    # 14/15, by chance (196 + 1) / 225. kappa = (195 - 197) / (225 - 197) = -1/14.
    bright = {"clips": 10, "not_unanimous": 2, "observed": pytest.approx(13 / 15), "kappa": pytest.approx(-1 / 14)}
    assert agreement == {"label": bright, "answers": bright, "questions": {"bright": bright}}
    line = "brightness: votes agree on the label: 86.7% of the pairs (kappa -0.07), 2 of 10 clips are not unanimous"
    assert line in caplog.text
    caplog.clear()
    look_at(clips, Wavering(), 1, votes=3)  # yes, no, yes: one pair of three, by chance 5/9; (3/9 - 5/9) / (4/9)
    assert "votes agree on the label: 33.3% of the pairs (kappa -0.50), 1 of 1 clips" in caplog.text


def test_a_single_vote_has_no_agreement(clips, tmp_path, caplog):
    caplog.set_level("INFO")
    label_clip_set(clips, Wavering(), tmp_path / "work", tmp_path / "labels", BATCH)
    assert read_manifest(tmp_path / "labels", "labels")["facts"]["agreement"] is None
    assert "agree" not in caplog.text


def test_ties_and_blocked_answers_stay_unlabelled(clips, tmp_path):
    counts = label_clip_set(clips, Undecided(), tmp_path / "work", tmp_path / "labels", BATCH, votes=2)
    assert counts == (0, 0, CLIPS, 0, 0, 0)
    blocked, tied, *_ = read_labels(tmp_path / "labels")
    assert (blocked.label, blocked.nulls, blocked.reason) == (None, 2, "bright: no answer (blocked)")
    assert (tied.label, tied.nulls, tied.reason) == (None, 0, "bright: 2 votes tied")


def test_a_clip_that_cannot_be_decoded_gets_null_and_its_error_and_is_counted(tmp_path, caplog):
    clips = make_clips(tmp_path / "samples")
    broken = clips.video(clips.samples[7])
    broken.write_bytes(b"\0" * broken.stat().st_size)
    source = Brightness()
    counts = label_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", BATCH)
    assert counts == (4, 5, 1, 1, 0, 0)
    assert "clip7" not in source.judged
    row = read_verdicts(tmp_path / "labels")[7]
    assert (row.answer, row.p_yes, row.frames) == (None, None, [])
    assert "clip7.mp4" in row.error
    assert read_labels(tmp_path / "labels")[7].label is None
    assert "1 of 10 clips could not be decoded" in caplog.text


def test_no_answer_about_any_clip_is_an_error_and_publishes_nothing(clips, tmp_path):
    with pytest.raises(ValueError, match="brightness answered about none of 10 clips; the first error: no answer"):
        label_clip_set(clips, Mute(), tmp_path / "work", tmp_path / "labels", BATCH)
    with pytest.raises(StoreError):
        read_labels(tmp_path / "labels")


def test_a_clip_without_a_reply_gets_null_and_is_judged_again(clips, tmp_path, caplog):
    label_clip_set(clips, Brightness(), tmp_path / "whole", tmp_path / "expected", BATCH)
    work, out = tmp_path / "work", tmp_path / "labels"
    counts = label_clip_set(clips, Unreachable(2, 6), work, out, BATCH, max_failed=0.2)
    assert counts == (4, 4, 2, 0, 2, 0)
    assert "no reply about 2 of 10 clips" in caplog.text
    assert read_labels(out)[2].label is None
    assert read_verdicts(out)[2].error == "failed: timed out"
    assert read_manifest(out, "labels")["facts"]["failed"] == 2
    again = Brightness()
    assert label_clip_set(clips, again, work, out, BATCH).failed == 0
    assert again.judged == ["clip2", "clip6"]
    assert contents(out) == contents(tmp_path / "expected")


def test_more_clips_without_a_reply_than_allowed_stop_the_run_and_keep_the_answers(clips, tmp_path):
    work, out = tmp_path / "work", tmp_path / "labels"
    problem = (
        r"no reply about 2 of 10 clips, more than label.max_failed \(10.0%\) allows; the last error: failed: timed"
    )
    with pytest.raises(LabelError, match=problem):
        label_clip_set(clips, Unreachable(5, 7), work, out, batch_size=4, max_failed=0.1)
    assert not out.exists()
    again = Brightness()
    label_clip_set(clips, again, work, out, batch_size=4)
    assert again.judged == ["clip5", "clip7", "clip8", "clip9"]


def test_a_limit_judges_clips_of_the_whole_set_and_publishes_nothing(clips, tmp_path):
    source, work, out = Brightness(), tmp_path / "work", tmp_path / "labels"
    looks = look_at(clips, source, 4)
    assert source.judged == ["clip0", "clip2", "clip5", "clip7"]  # of ten
    assert [look.sample.sample_id for look in looks] == source.judged
    assert [look.label.label for look in looks] == [False, False, True, True]
    assert not out.exists()
    label_clip_set(clips, source, work, out, BATCH)
    assert source.judged[4:] == [sample.sample_id for sample in clips.samples]


def test_a_limit_above_the_number_of_clips_takes_them_all(clips):
    assert [look.sample for look in look_at(clips, Brightness(), 99)] == clips.samples


class Talker(Brightness):
    """Gives a reason for the first clip, a bare word for the second, and no answer about the third."""

    def verdict(self, sample: Sample, vote: int, frames: np.ndarray) -> Verdict:
        fields = [
            {"answer": False, "p_yes": 0.125, "reason": "it is dark", "raw": '{"a": 1}'},
            {"answer": True, "raw": "yes,\n  quite"},
            {"error": "unreadable: neither word", "raw": "x" * 300},
        ]
        return self.row(sample, vote, **fields[sample.seed])


def test_a_look_prints_prompt_label_and_reason_or_raw_reply(clips):
    first_three = ClipSet(clips.folder, clips.manifest, clips.samples[:3])
    one, two, three = (look.in_words(Talker.rubric).splitlines() for look in look_at(first_three, Talker(), 3))
    sample = clips.samples[0]
    assert one == [
        f"{sample.file_name}: {sample.prompt}",
        "    rejected, p_accept 0.12",
        "    bright: no (0.12 yes): it is dark",
    ]
    assert two[1:] == ["    accepted, p_accept 1.00", "    bright: yes: yes, quite"]
    assert three[1:] == ["    unlabelled", f"    bright: no answer: unreadable: neither word; {'x' * 240}"]


def test_a_look_prints_each_vote(clips):
    (look,) = look_at(clips, Undecided(), 1, votes=2)
    assert look.in_words(Undecided.rubric).splitlines()[1:] == [
        "    unlabelled",
        "    bright (vote 0): no answer: blocked",
        "    bright (vote 1): no answer: blocked",
    ]


def test_a_repeatable_source_votes_once_regardless_of_the_number_of_votes(clips, tmp_path):
    source = Brightness()
    source.repeatable = True
    label_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", BATCH, votes=3)
    assert source.judged == [sample.sample_id for sample in clips.samples]
    assert {row.vote for row in read_verdicts(tmp_path / "labels")} == {0}
    with pytest.raises(ValueError, match="votes 0 must be at least 1"):
        label_clip_set(clips, source, tmp_path / "work", tmp_path / "others", BATCH, votes=0)


FAULTY_SOURCES = (
    (Forgetful(), r"brightness left out 1 clips, such as \['clip0'\]"),
    (Stuttering(), "brightness answered about clip0, which was not requested, or answered twice"),
    (Astray(), "brightness answered about clip99, which was not requested, or answered twice"),
    (Muddled(), "2 verdicts on clip0 do not match the 2 requested"),
)


def test_a_source_whose_verdicts_do_not_match_the_requests_is_an_error(clips, tmp_path):
    for number, (source, problem) in enumerate(FAULTY_SOURCES):
        with pytest.raises(ValueError, match=problem):
            label_clip_set(clips, source, tmp_path / f"work{number}", tmp_path / "labels", BATCH, votes=2)


def test_replies_that_name_their_own_version_are_all_listed(clips, tmp_path):
    label_clip_set(clips, Versioned(), tmp_path / "work", tmp_path / "labels", BATCH)
    assert read_manifest(tmp_path / "labels", "labels")["facts"]["model_versions"] == ["v0", "v1"]
    assert [row.model_version for row in read_verdicts(tmp_path / "labels")] == ["v0"] * 5 + ["v1"] * 5


def test_clips_are_decoded_a_few_ahead_in_the_order_of_the_requests(clips):
    drawn = []

    def requests() -> Iterator[Request]:
        for sample in clips.samples:
            drawn.append(sample.sample_id)
            yield Request(sample, clips.video(sample))

    coming = decoded(requests(), ahead=3)
    first, frames = next(coming)
    assert drawn == ["clip0", "clip1", "clip2"]
    assert (first.sample.sample_id, frames.shape) == ("clip0", (3, 32, 32, 3))
    assert [request.sample.sample_id for request, _ in coming] == [f"clip{index}" for index in range(1, CLIPS)]


def test_work_of_another_source_is_an_error(clips, tmp_path):
    label_clip_set(clips, Brightness(), tmp_path / "work", tmp_path / "labels", BATCH)
    newer = Brightness()
    newer.model_version = "2"
    with pytest.raises(ValueError, match="verdicts-00000.parquet: clip0 was judged by"):
        label_clip_set(clips, newer, tmp_path / "work", tmp_path / "labels", BATCH)


def test_verdicts_on_other_clips_of_the_same_names_are_refused(tmp_path):
    one, _ = (make_clips(tmp_path / prompt / "samples", prompt) for prompt in ("a ball", "a cup"))
    label_clip_set(one, Brightness(), tmp_path / "work", tmp_path / "labels", BATCH)
    (tmp_path / "a ball/samples").rename(tmp_path / "aside")
    (tmp_path / "a cup/samples").rename(tmp_path / "a ball/samples")
    with pytest.raises(StoreError, match="about other contents of .*/a ball/samples than there are now"):
        label_clip_set(ClipSet.open(one.folder), Brightness(), tmp_path / "work", tmp_path / "labels", BATCH)


@pytest.mark.parametrize("judge", [Brightness, Own])
def test_a_killed_run_resumes_and_produces_the_same_bytes(tmp_path, judge, caplog):
    clips = make_clips(tmp_path / "samples", "a ball", "a cup")
    label_clip_set(clips, judge(), tmp_path / "whole", tmp_path / "expected", BATCH, votes=2)
    work, out = tmp_path / "work", tmp_path / "labels"
    code = (
        "from tests.feedback.core.test_label import label_slowly; "
        f"label_slowly({str(clips.folder)!r}, {str(work)!r}, {str(out)!r}, {judge.__name__!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(work / "verdicts-00001.parquet", child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    committed = len(list(work.glob("verdicts-*.parquet")))
    assert 2 <= committed < CLIPS // BATCH
    (work / "out").mkdir()
    (work / "out" / "torn.parquet").write_bytes(b"left by a kill during publishing")
    source = judge()
    caplog.set_level("INFO")
    label_clip_set(clips, source, work, out, BATCH, votes=2)
    assert len(source.judged) == CLIPS - BATCH * committed
    assert f"; {BATCH * committed} are done; the work lies in {work}" in caplog.text
    assert contents(out) == contents(tmp_path / "expected")


def label_slowly(clip_set: str, work: str, out: str, judge: str) -> None:
    """The code of the killed child: half a second per batch. judge: the name of a class here."""
    source = globals()[judge](0.5 / BATCH)
    label_clip_set(ClipSet.open(Path(clip_set)), source, Path(work), Path(out), BATCH, votes=2)


def wait_for(path: Path, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert child.poll() is None and time.monotonic() < deadline, "the child ended before it could be killed"
        time.sleep(0.02)


def test_physics_gives_its_reason_and_no_answer_outside_the_tabletop_world(tmp_path):
    source = make_source("physics", {"kind": "physics"})
    path = tmp_path / "empty.mp4"
    write_video(path, np.full((9, SIZE, SIZE, 3), 200, np.uint8), 8.0)
    facts = ("c", "train", "base", 0, 9, 8.0, SIZE, SIZE, "v.mp4")
    requests = [
        Request(Sample("known", "p", caption(all_claims()[0]), *facts), path),
        Request(Sample("unknown", "p", "a parade of elephants", *facts), path),
        Request(Sample("absent", "p", caption(all_claims()[0]), *facts), tmp_path / "absent.mp4"),
    ]
    (known,), (unknown,), (absent,) = source.judge(requests)
    assert (known.answer, known.error, known.frames) == (False, None, list(range(9)))
    assert known.reason
    assert unknown.answer is None
    assert "no caption of the tabletop world" in unknown.error
    assert absent.answer is None
    assert "absent.mp4" in absent.error
