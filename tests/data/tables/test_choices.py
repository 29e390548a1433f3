from pathlib import Path

import numpy as np
import pytest

from data.store import read_clip
from data.tables.choices import Clip, open_clips, read_said
from data.video import write_video
from tests.support.refusals import assert_refused

PAIRS = "clip_a,clip_b,prompt,preferred,dimension,model_a\n"


def said(folder: Path, text: str):
    (folder / "said.csv").write_text(text)
    return read_said(folder / "said.csv")


def clip(path: Path, grey: int, frames: int = 5, fps: float = 8.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.full((frames, 32, 48, 3), grey, np.uint8), fps)
    return path


def test_choices_are_read_by_clip_prompt_and_dimension(tmp_path):
    rows = said(
        tmp_path, PAIRS + "a.mp4,b.mp4,a ball,A,VQ,x\na.mp4,b.mp4,a ball,same,TA,x\na.mp4,c.mp4,a ball, b ,,x\n"
    )
    a, b, c = (Clip(tmp_path / name, "a ball") for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert [(one.a, one.b, one.preferred, one.dimension) for one in rows.choices] == [
        (a, b, 1, "VQ"), (a, b, 0, "TA"), (a, c, -1, "")
    ]  # fmt: skip
    assert rows.clips == [a, b, c]  # each once
    assert rows.dimensions == ["VQ", "TA", ""] and not rows.scores


def test_what_spreadsheets_write_is_read_and_a_misspelt_column_is_named(tmp_path, caplog):
    text = "\ufeffClip A,Clip-B, Prompt ,PREFERRED,Dimensions,,\r\na.mp4,b.mp4, a ball ,B,VQ,,\r\n,,,,,,\r\n"
    (tmp_path / "said.csv").write_bytes(text.encode())
    rows = read_said(tmp_path / "said.csv")
    assert rows.choices == [(Clip(tmp_path / "a.mp4", "a ball"), Clip(tmp_path / "b.mp4", "a ball"), -1, "")]
    assert (
        "column 'Dimensions' is kept and not used; the name of the column for such files is 'dimension'" in caplog.text
    )


def test_scores_are_read_and_a_clip_of_two_prompts_is_two_clips(tmp_path):
    rows = said(tmp_path, "prompt,score,clip\na ball,2.5,a.mp4\na box,-1,a.mp4\n")
    assert [(one.clip.prompt, one.score, one.dimension) for one in rows.scores] == [
        ("a ball", 2.5, ""),
        ("a box", -1, ""),
    ]
    assert len(rows.clips) == 2


def test_wrong_rows_are_refused_by_their_number(tmp_path):
    row = "a.mp4,b.mp4,a ball,{},VQ,x\n"
    cases = [
        (PAIRS + row.format("left"), "said.csv, row 2: preferred is 'left', expected A, B or tie"),
        (PAIRS + row.format("A") + row.format(""), "row 3: preferred is empty"),
        (PAIRS + "a.mp4,a.mp4,a ball,A,,\n", "row 2: clip_a and clip_b are the same file"),
        (PAIRS, "no rows below the header"),
        (
            "clip_a,clip_b,preferred\na,b,A\n",
            "no column prompt in the header .* wanted clip_a, clip_b, prompt, preferred",
        ),
        ("clip,prompt\na.mp4,a ball\n", "no column score in the header"),
        ("clip;prompt;score\na.mp4;a ball;1\n", "separated by semicolons; wanted commas"),
        ("clip,prompt,score,clip_a,clip_b,preferred\n", "columns of choices and of scores; wanted one of both"),
        ("clip,prompt,score\na.mp4,a ball, red,1\n", "row 2: more cells than columns"),
        ("clip,prompt,score\na.mp4,a ball,good\n", "row 2: score is 'good', expected a number"),
        ("clip,prompt,score\na.mp4,a ball,nan\n", "row 2: score is 'nan'"),
        ("", "the file is empty"),
    ]
    assert_refused(lambda text: said(tmp_path, text), cases)
    (tmp_path / "latin.csv").write_bytes("clip,prompt,score\na.mp4,für,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.csv, line 2: byte 0xfc is not UTF-8; in Windows-1252"):
        read_said(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match="nowhere.csv: not read: No such file"):
        read_said(tmp_path / "nowhere.csv")


def test_clips_are_opened_as_a_set_of_links_and_what_cannot_be_decoded_is_named(tmp_path):
    good = Clip(clip(tmp_path / "in/a.mp4", 100), "a ball")
    longer = Clip(clip(tmp_path / "in/b.mp4", 50, frames=9, fps=16.0), "a box")
    (tmp_path / "in/broken.mp4").write_bytes(b"no video")
    broken, absent = (Clip(tmp_path / "in" / name, "a ball") for name in ("broken.mp4", "absent.mp4"))
    opened = open_clips([good, broken, longer, absent], tmp_path / "samples")
    samples = opened.clip_set.samples
    assert [(one.num_frames, one.fps, one.prompt) for one in samples] == [(5, 8.0, "a ball"), (9, 16.0, "a box")]
    assert opened.ids.keys() == {good, longer} and opened.unreadable.keys() == {broken, absent}
    assert "broken.mp4" in opened.unreadable[broken] and "absent.mp4" in opened.unreadable[absent]
    path = opened.clip_set.video(samples[0])
    assert path.is_symlink() and read_clip(path, samples[0]).shape == (5, 32, 48, 3)
    with pytest.raises(ValueError, match="none of 1 clips can be decoded"):
        open_clips([broken], tmp_path / "none")


def test_a_changed_file_changes_the_sets_fingerprint(tmp_path):
    one = Clip(clip(tmp_path / "in/a.mp4", 100), "a ball")
    prints = [open_clips([one], tmp_path / "samples").clip_set.fingerprint() for _ in range(2)]
    clip(one.path, 101)
    assert prints[0] == prints[1] != open_clips([one], tmp_path / "samples").clip_set.fingerprint()


def test_a_folder_that_holds_something_else_is_never_written_over(tmp_path):
    one = Clip(clip(tmp_path / "in/a.mp4", 100), "a ball")
    made = clip(tmp_path / "eval/samples/videos/clip-000000.mp4", 7)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/read.me").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = made.read_bytes()
    for name in ("eval/samples", "notes", "file", "link"):
        with pytest.raises(ValueError, match=f"{name}: .*name another --out"):
            open_clips([one], tmp_path / name)
    assert made.read_bytes() == before and not made.is_symlink()
    open_clips([one], tmp_path / "samples")
    (tmp_path / "samples/manifest.json").unlink()  # a kill before the end
    assert open_clips([one], tmp_path / "samples").ids
