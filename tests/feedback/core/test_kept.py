"""No clip is judged twice by the same judge, and a judge that has changed judges again."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from data.labels import read_verdicts
from data.manifest import StoreError, write_manifest
from data.records import Sample, Verdict
from data.store import ClipSet, ClipSetWriter, encode_clips
from feedback.core import verdicts
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set, look_at, requests_for
from feedback.core.source import LabelError
from feedback.core.verdicts import APPLICATION, Chosen, VerdictFile, verdicts_path
from tests.support.conditions import blank_conditions
from tests.support.first_frames import TOLD, with_first_frames
from tests.support.judges import build_judge

ROOT = Path(__file__).parents[3]
CLIPS = 6
KIND = """
import numpy as np
from pydantic.dataclasses import dataclass
from data.config import STRICT
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import load_rubric
from feedback.core.source import FAILED, decoded, verdict, without_answer
from my_lab.scale import LEAST

SEEN = []  # sample ids, in the order in which they were judged


@dataclass(frozen=True, config=STRICT)
class Options:
    rubric: str
    weights: str
    batch_size: int = 2
    more: float = 0.0
    fail: tuple[str, ...] = ()


class Bright:
    model, model_version, repeatable = "bright", "1", False

    def __init__(self, name, options):
        self.name, self.options, self.rubric = name, options, load_rubric(options.rubric)

    def judge(self, requests):
        for request, frames in decoded(requests, ahead=2):
            if isinstance(frames, str):
                yield without_answer(self, request, frames)
                continue
            SEEN.append(request.sample.sample_id)
            if request.sample.sample_id in self.options.fail:
                yield without_answer(self, request, f"{FAILED}no reply")
                continue
            value = np.float32(frames.mean() / 255 + self.options.more)
            (question,) = self.rubric.questions
            yield [
                verdict(self, request.sample, vote, question, np.arange(len(frames)), answer=value > LEAST, p_yes=value)
                for vote in range(request.votes)
            ]

    def status(self):
        return {}


def load(name, options, device):
    return Bright(name, options)


KIND = Kind(Options, load, needs=lambda given: Needs(rubric=given.rubric))
"""
RUBRIC = """
name: bright
frames: null
rule: all
instructions: "A clip of: {prompt}"
questions: [{name: bright, ask: "Is it bright?", affirmative: "yes", negative: "no", wanted: true, required: true}]
"""


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch) -> Path:
    """The file of verdicts, with a kind of one's own and its files in the working folder."""
    for name, text in {"kind": KIND, "scale": "LEAST = 0.4\n"}.items():
        write(tmp_path / f"my_lab/{name}.py", text)
    write(tmp_path / "lab/rubric.yaml", RUBRIC)
    write(tmp_path / "lab/weights.pt", "w")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FEEDBACK_VERDICTS", str(tmp_path / "kept/verdicts.sqlite"))
    yield tmp_path / "kept/verdicts.sqlite"
    forget_modules()


@pytest.fixture
def clips(tmp_path) -> ClipSet:
    return make_clips(tmp_path / "samples")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def forget_modules() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def make_clips(folder: Path, called: str = "clip", **changes) -> ClipSet:
    """Clips of rising brightness."""
    frames = np.stack([np.full((9, 32, 32, 3), 30 * place, np.uint8) for place in range(CLIPS)])
    samples = [
        Sample(
            f"{called}{n}", f"p{n}", f"red ball {n}", "c", "train", "base", n, 9, 8.0, 32, 32, f"videos/{called}{n}.mp4"
        )
        for n in range(CLIPS)
    ]
    writer = ClipSetWriter(folder)
    samples = [replace(sample, **changes) for sample in samples]
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(CLIPS, 1, 1, 1, 1))
    writer.finish(blank_conditions(f"p{n}" for n in range(CLIPS)), {})
    return ClipSet.open(folder)


def block(**changes) -> dict:
    return {"kind": "my_lab.kind", "rubric": "lab/rubric.yaml", "weights": "lab/weights.pt"} | changes


def judged(clips: ClipSet, given: dict | None = None, name: str = "mine", votes: int = 1) -> list[str]:
    """The clips that a source of one's own judges anew when a set is labelled; the labels are in out/."""
    forget_modules()
    shutil.rmtree("work", ignore_errors=True)
    label_clip_set(clips, make_source(name, given or block()), Path("work"), Path("out"), 2, votes, 0.5)
    return list(sys.modules["my_lab.kind"].SEEN)


def published() -> dict[str, str]:
    """Hashes of the label folder's files."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path("out").iterdir()}


def test_a_set_that_is_labelled_again_is_not_judged_again_and_gets_the_same_bytes(clips):
    assert judged(clips) == [f"clip{n}" for n in range(CLIPS)]
    first = published()
    assert judged(clips) == []
    assert published() == first


def test_what_decides_no_answer_judges_nothing_again(clips, tmp_path):
    judged(clips)
    rubric, scale, kind = Path("lab/rubric.yaml"), Path("my_lab/scale.py"), Path("my_lab/kind.py")

    def moved() -> dict:
        shutil.copytree("lab", tmp_path / "elsewhere")
        return block(rubric=str(tmp_path / "elsewhere/rubric.yaml"), weights=str(tmp_path / "elsewhere/weights.pt"))

    changes = {
        "the rule": lambda: rubric.write_text(RUBRIC.replace("rule: all", "rule: mean")),
        "a comment": lambda: scale.write_text("# of 1\nLEAST = 0.4  # below it a clip is dark\n"),
        "layout": lambda: kind.write_text(KIND.replace("self.name, self.options, ", "self.name, \\\n  self.options, ")),
        "another file beside them": lambda: write(Path("my_lab/other.py"), "X = 1"),
        "the batch": lambda: block(batch_size=3),
        "a default that is written down": lambda: block(more=0.0),
        "another folder": moved,
    }
    for what, change in changes.items():
        given = change()
        assert judged(clips, given if isinstance(given, dict) else None) == [], what
    assert judged(make_clips(tmp_path / "again", "other", policy="rwr1", seed=7), name="member") == []  # the same bytes


def test_what_may_decide_an_answer_judges_again(clips, monkeypatch):
    judged(clips)
    texts = {
        "the weights": ("lab/weights.pt", "v"),
        "the rubric's words": ("lab/rubric.yaml", RUBRIC.replace("Is it bright?", "Is it very bright?")),
        "the frames": ("lab/rubric.yaml", RUBRIC.replace("frames: null", "frames: 3")),
        "the kind's code": ("my_lab/kind.py", KIND.replace("frames.mean()", "frames.max()")),
        "a docstring, which may be a prompt": ("my_lab/scale.py", '"""Dark."""\nLEAST = 0.4\n'),
        "what it imports": ("my_lab/scale.py", "LEAST = 0.6\n"),
        "the model's version": ("my_lab/kind.py", KIND.replace('"1"', '"2"')),
    }
    for what, (name, text) in texts.items():
        before = Path(name).read_text()
        Path(name).write_text(text)
        assert len(judged(clips)) == CLIPS, what
        Path(name).write_text(before)
        assert judged(clips) == [], f"{what}, changed back"
    assert len(judged(clips, block(more=0.1))) == CLIPS
    assert len(judged(clips, votes=3)) == CLIPS
    assert judged(clips, votes=3) == []
    monkeypatch.setattr("feedback.core.kept.installed_versions", lambda files: {"numpy": "0.1"})
    assert len(judged(clips)) == CLIPS


def test_a_clip_with_other_bytes_prompt_or_rate_is_judged_again(clips, tmp_path):
    judged(clips)
    frames = clips.frames(clips.samples[0])
    assert len(judged(make_clips(tmp_path / "faster", fps=16.0))) == CLIPS
    assert len(judged(make_clips(tmp_path / "renamed", prompt="a blue ball"))) == CLIPS
    assert frames.shape == (9, 32, 32, 3)


def test_an_edited_first_frame_is_another_question_where_the_rubric_shows_it_and_nowhere_else(clips, tmp_path):
    red, blue = with_first_frames(clips, tmp_path / "red"), with_first_frames(clips, tmp_path / "blue", red=0)
    judged(clips)
    assert judged(red) == judged(blue) == []  # the judge does not see it

    write(Path("my_lab/kind.py"), KIND.replace("Kind(Options, load,", "Kind(Options, load, first_frame=True,"))
    write(Path("lab/rubric.yaml"), f"first_frame: {TOLD}\n{RUBRIC}")
    assert len(judged(red)) == len(judged(blue)) == CLIPS
    assert judged(red) == judged(blue) == []
    first, other = blue.first_frame("p2"), red.first_frame("p2")
    assert first and other
    first.write_bytes(other.read_bytes())
    (blue.folder / "manifest.json").unlink()
    write_manifest(blue.folder, "clip_set", **blue.manifest["facts"])
    assert judged(ClipSet.open(blue.folder)) == []  # each was seen before: p2 red, the others blue


def test_a_set_without_first_frames_is_refused_by_a_rubric_that_shows_them_before_anything_is_judged(clips):
    write(Path("my_lab/kind.py"), KIND.replace("Kind(Options, load,", "Kind(Options, load, first_frame=True,"))
    write(Path("lab/rubric.yaml"), f"first_frame: {TOLD}\n{RUBRIC}")
    panel = {"kind": "panel", "rule": "mean", "members": {"physics": {"kind": "physics"}, "mine": block()}}
    for given in (block(), panel):
        with pytest.raises(LabelError, match="clip0.mp4: has no first frame, and the rubric bright shows it"):
            judged(clips, given)
    assert not list(Path("work").glob("*.parquet"))


def test_a_kind_that_shows_no_first_frame_refuses_a_rubric_that_does():
    write(Path("lab/rubric.yaml"), f"first_frame: {TOLD}\n{RUBRIC}")
    with pytest.raises(ValueError, match="rubric: lab/rubric.yaml shows the first frame, and kind my_lab.kind sees"):
        make_source("mine", block())


def test_a_clip_without_a_reply_is_judged_again_and_the_others_are_not(clips):
    failing = block(fail=["clip2"])
    assert len(judged(clips, failing)) == CLIPS
    assert judged(clips, failing) == ["clip2"]


OWN = "name: own\nframes: null\nrule: all\ninstructions: ''\nquestions: lab/questions.csv\n"


def questions_of(**asked: str) -> None:
    """Give each prompt a question of its own. asked: by prompt_id, its words where they are others."""
    rows = [f"red ball {n},bright,{asked.get(f'p{n}', 'Is it bright?')},Yes" for n in range(CLIPS)]
    write(Path("lab/questions.csv"), "\n".join(["prompt,name,question,wanted", *rows]))


def test_another_question_about_one_prompt_judges_its_clips_again_and_no_others(clips):
    kind = KIND.replace("= self.rubric.questions", "= self.rubric.of(request.sample.prompt).questions")
    write(Path("my_lab/kind.py"), kind.replace("Kind(Options, load,", "Kind(Options, load, by_prompt=True,"))
    write(Path("lab/rubric.yaml"), OWN)
    questions_of()
    assert len(judged(clips)) == CLIPS
    first = published()
    questions_of(p2="Is the ball bright?")
    assert judged(clips) == ["clip2"]
    assert read_verdicts(Path("out"))[0].rubric_hash == make_source("mine", block()).rubric.hash
    questions_of()
    assert judged(clips) == [] and published() == first
    write(Path("lab/rubric.yaml"), OWN.replace("frames: null", "frames: 3"))
    assert len(judged(clips)) == CLIPS


def test_a_kind_that_does_not_know_own_questions_refuses_them():
    write(Path("lab/rubric.yaml"), OWN)
    questions_of()
    with pytest.raises(ValueError, match="sources.mine.rubric: lab/rubric.yaml has questions of each prompt's own"):
        make_source("mine", block())


def test_a_look_keeps_what_it_sees_and_the_label_stage_judges_the_rest(clips):
    looks = look_at(clips, make_source("mine", block()), 2)
    seen = [look.sample.sample_id for look in looks]
    assert len(seen) == 2
    assert judged(clips) == [f"clip{n}" for n in range(CLIPS) if f"clip{n}" not in seen]


def test_a_panels_members_are_kept_apart_and_shared_with_the_source_that_they_repeat(clips):
    judged(clips)
    members = {"mine": block(), "physics": {"kind": "physics"}}
    panel = {"kind": "panel", "rule": "mean", "members": members}
    assert judged(clips, panel, "panel") == []
    with VerdictFile(verdicts_path()) as file:
        kept = {(one.name, one.kind): one.clips for one in file.kept()}
    assert kept == {("mine", "my_lab.kind"): CLIPS, ("panel.members.physics", "physics"): CLIPS}


def test_another_number_of_frames_in_an_audit_is_another_judge(clips, tmp_path):
    from feedback.core.audit import with_other_frames

    build_judge(tmp_path / "judge", ["A", "clip", "of:", "Is", "it", "bright?", "yes", "no", "red", "ball", *"012345"])
    given = {"kind": "qwen", "path": "judge", "revision": None, "batch_size": 4, "dtype": "float32"}
    given |= {"rubric": "lab/rubric.yaml", "min_answer_mass": 0.0}
    write(Path("lab/rubric.yaml"), RUBRIC.replace("frames: null", "frames: 8"))
    source = make_source("judge", given)
    first = [look.verdicts for look in look_at(clips, source, CLIPS)]
    source.vlm = None  # it could not judge now
    assert [look.verdicts for look in look_at(clips, source, CLIPS)] == first
    other = with_other_frames(source, False, clips.samples, 4)
    with pytest.raises(AttributeError):
        look_at(clips, other, CLIPS)
    config = json.loads(Path("judge/config.json").read_text())
    Path("judge/config.json").write_text(json.dumps(config, indent=3))  # another file, which the version counts
    again = make_source("judge", given)
    again.vlm = None
    with pytest.raises(AttributeError):
        look_at(clips, again, CLIPS)


def test_switched_off_nothing_is_read_and_nothing_written(clips, path, monkeypatch):
    judged(clips)
    before = path.read_bytes()
    monkeypatch.setenv("FEEDBACK_VERDICTS", "off")
    assert len(judged(clips)) == CLIPS
    assert path.read_bytes() == before
    monkeypatch.delenv("FEEDBACK_VERDICTS")
    monkeypatch.setenv("FEEDBACK_LEDGER", "some/ledger.sqlite")
    assert verdicts_path() == Path("some/verdicts.sqlite").absolute()


def label_slowly(folder: str, out: str) -> None:
    """In another process: 0.1 s a clip."""
    source = make_source("mine", block())
    inner = source.judge
    source.judge = lambda requests: (time.sleep(0.1) or rows for rows in inner(requests))
    label_clip_set(ClipSet.open(Path(folder)), source, Path(f"work-{out}"), Path(out), 2)


def test_a_killed_run_judges_the_rest_when_it_is_started_again(clips, path, monkeypatch):
    monkeypatch.setattr("feedback.core.kept.SECONDS", 0.0)
    process = multiprocessing.get_context("fork").Process(target=label_slowly, args=("samples", "killed"))
    process.start()
    deadline = time.monotonic() + 60
    while kept_clips(path) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    known = kept_clips(path)
    assert known in (4, 6) and known % 2 == 0  # whole batches of 2
    assert len(judged(clips)) == CLIPS - known


def kept_clips(path: Path) -> int:
    try:
        with sqlite3.connect(path) as db:
            return db.execute("SELECT COUNT(*) FROM verdicts").fetchone()[0]
    except sqlite3.Error:  # not made yet
        return 0


def test_two_processes_at_once_publish_the_same_bytes_and_leave_a_whole_file(clips, path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=label_slowly, args=("samples", out)) for out in ("one", "two")]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    for name in ("verdicts.parquet", "labels.parquet", "manifest.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    assert kept_clips(path) == CLIPS
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_run_keeps_and_returns_what_another_one_kept_first(clips):
    """The last digits may differ between batches, and a set that is labelled again must get the same bytes."""
    source = make_source("mine", block())
    other = make_source("mine", block())
    inner = source.judge

    def meanwhile(requests):
        for index, rows in enumerate(inner(requests)):
            if index == 0:
                look_at(clips, other, CLIPS)
            yield [replace(row, p_yes=row.p_yes + 1e-6) for row in rows]

    source.judge = meanwhile
    late = [look.verdicts[0].p_yes for look in look_at(clips, source, CLIPS)]
    assert late == [look.verdicts[0].p_yes for look in look_at(clips, other, CLIPS)]


def test_what_was_judged_before_an_error_of_the_source_is_kept(clips):
    source = make_source("mine", block())
    inner = source.judge

    def breaks(requests):
        for index, rows in enumerate(inner(requests)):
            if index == 3:
                raise LabelError("it broke")
            yield rows

    source.judge = breaks
    with pytest.raises(LabelError, match="it broke"):
        look_at(clips, source, CLIPS)
    assert judged(clips) == ["clip3", "clip4", "clip5"]


def test_verdicts_that_the_caller_refuses_are_not_kept(clips, path):
    wrong = {
        "another rubric": lambda rows: [replace(row, rubric_hash="0") for row in rows],
        "a vote too many": lambda rows: [*rows, replace(rows[0], vote=1)],
        "another question": lambda rows: [replace(row, question="loud") for row in rows],
    }
    for what, change in wrong.items():
        source = make_source("mine", block())
        inner = source.judge
        source.judge = lambda requests, inner=inner, change=change: map(change, inner(requests))
        with pytest.raises(ValueError, match="clip0"):
            look_at(clips, source, CLIPS)
        assert kept_clips(path) == 0, what


def test_a_file_that_cannot_be_used_is_an_error_that_says_what_to_do(clips, path):
    def newer():
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute("PRAGMA user_version = 9")

    def foreign():
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE songs (name TEXT)")

    def torn():
        judged(clips)
        path.write_bytes(path.read_bytes()[:1000] + b"\xff" * 20_000)

    cases = {
        newer: "a file of verdicts of version 9, but this code knows versions up to 1; update the code",
        foreign: "an SQLite file of another program, not a file of verdicts",
        torn: "a damaged file of verdicts, or another file .* Delete it: .* FEEDBACK_VERDICTS",
        lambda: path.write_text("Dear diary, " * 100): "a damaged file of verdicts, or another file",
    }
    for spoil, message in cases.items():
        path.parent.mkdir(exist_ok=True)
        spoil()
        before = path.read_bytes()
        with pytest.raises(StoreError, match=rf"verdicts\.sqlite: {message}"):
            judged(clips)
        assert path.read_bytes() == before, message
        path.unlink()


def test_a_file_of_an_older_version_is_brought_up_to_date_with_its_verdicts(clips, path, monkeypatch):
    judged(clips)
    newer = (*verdicts._MIGRATIONS, "ALTER TABLE verdicts ADD COLUMN note TEXT;")
    monkeypatch.setattr(verdicts, "_MIGRATIONS", newer)
    with VerdictFile(path) as file:
        assert [one.clips for one in file.kept()] == [CLIPS]
        assert file._db.execute("PRAGMA user_version").fetchone() == (2,)


def test_where_the_file_cannot_be_written_clips_are_judged_and_a_warning_says_so(clips, path, caplog):
    path.parent.write_text("no folder")
    assert len(judged(clips)) == CLIPS
    assert len(judged(clips)) == CLIPS
    assert "verdicts are not kept" in caplog.text and str(path) in caplog.text


def test_pruning_removes_by_source_by_age_and_by_size(clips, path):
    for name in ("one", "two"):
        judged(clips, block(more={"one": 0.1, "two": 0.2}[name]), name)
    with VerdictFile(path) as file:
        file._db.execute(
            "UPDATE verdicts SET at = '2020-01-01T00:00:00.000+00:00' WHERE judge = 1 AND clip IN "
            "(SELECT clip FROM verdicts WHERE judge = 1 LIMIT 2)"
        )
        month = datetime.now(UTC) - timedelta(days=30)
        total = sum(one.bytes for one in file.kept())
        counts = {
            Chosen(): 2 * CLIPS,
            Chosen(source="two"): CLIPS,
            Chosen(source="none"): 0,
            Chosen(before=month): 2,
            Chosen(source="two", before=month): 0,
            Chosen(beyond=total): 0,
            Chosen(beyond=total - 1): 2,  # the oldest go first
            Chosen(beyond=0): 2 * CLIPS,
        }
        assert {chosen: file.count(chosen) for chosen in counts} == counts
        assert file.remove(Chosen(source="one", before=month)) == 2
        assert file.remove(Chosen(source="two")) == CLIPS
        assert [(one.name, one.clips) for one in file.kept()] == [("one", CLIPS - 2)]
    assert len(judged(clips, block(more=0.1), "one")) == 2


def test_every_field_of_a_verdict_comes_back(clips, path):
    row = Verdict("s", "mine", "q", 1, True, 0.1, 0.2, "why \ud800", "raw", "m", "v", "h", [0, 3], 7, 0.5, "e")
    from feedback.core.kept import ONE_CLIP, _Asking, _text

    source = make_source("mine", block())
    source.model = "m"
    request = replace(requests_for(clips, 1)[0], sample=replace(clips.samples[0], sample_id="s"))
    asking = _Asking(source, source.keeping, VerdictFile(path), ONE_CLIP, {"s": request})
    (back,) = asking._read("s", _text([row], ONE_CLIP))
    assert back == replace(row, rubric_hash=source.rubric.hash)
