"""The page and the tables that people read."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.records import Label, Sample
from data.video import write_video
from evaluation.accept import EvaluationSet, summarise
from report.page import pick, read_logs, write_page
from report.table import BETTER, OPEN, WORSE, as_text, rows, verdict

HOSTILE = '<script>alert("x")</script> & "quoted"'


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """base and rwr1 on eight prompts, rwr1 accepted everywhere and base nowhere by `judge`; `physics` knows nothing."""
    found = {}
    for shade, (policy, answer) in enumerate((("base", False), ("rwr1", True))):
        folder = tmp_path_factory.mktemp(policy) / "samples"
        (folder / "videos").mkdir(parents=True)
        samples, labels = [], {"judge": [], "physics": []}
        for i in range(8):
            name = f"eval-p{i}-000"
            split, category = ("train", "test")[i % 2], ("falling", "bouncing")[i // 4]
            write_video(folder / "videos" / f"{name}.mp4", np.full((9, 32, 32, 3), 100 * shade + i, np.uint8), 8.0)
            file_name = f"videos/{name}.mp4"
            samples.append(Sample(name, f"p{i}", HOSTILE, category, split, policy, i, 9, 8.0, 32, 32, file_name))
            labels["judge"].append(Label(name, "judge", answer, 0.5, None, 1, 0, f"because {HOSTILE}"))
            labels["physics"].append(Label(name, "physics", None, None, None, 1, 1, None))
        found[policy] = EvaluationSet(folder, tuple(samples), {judge: tuple(of) for judge, of in labels.items()})
    return found


@pytest.fixture(scope="module")
def summary(sets):
    counts = {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1}
    return summarise(sets, {"rwr1": "base"}, {"r1": counts}, draws=50, seed=1)


ATTRIBUTES = {
    "lang", "charset", "name", "content", "class", "href", "srcset", "media", "src", "alt", "title",
    "loop", "muted", "autoplay", "playsinline",
}  # fmt: skip
LOGS = {"rwr1": [{"step": step, "loss": 1 / step} for step in range(1, 30)]}


@pytest.fixture(scope="module")
def page(sets, summary, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    write_page(summary, sets, LOGS, 1, out)
    return out


class Tags(HTMLParser):
    """What a page refers to."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def attributes(self, tag, name):
        return [attrs[name] for found, attrs in self.found if found == tag and name in attrs]


def test_everything_that_the_page_shows_lies_in_its_folder(page):
    tags = Tags((page / "index.html").read_text())
    shown = [
        *tags.attributes("video", "src"),
        *tags.attributes("img", "src"),
        *tags.attributes("source", "srcset"),
        *tags.attributes("a", "href"),
    ]

    # clips of two policies and categories, figures in two themes, what training turned, the summary
    assert len(shown) == 2 * 2 + 2 * 2 + 1 + 1
    assert all((page / path).is_file() for path in shown)


def videos(text):
    return [attributes for tag, attributes in Tags(text).found if tag == "video"]


def test_prompts_and_judges_words_are_shown_as_text(page):
    text = (page / "index.html").read_text()

    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert {name for tag, attributes in Tags(text).found for name in attributes} <= ATTRIBUTES  # none sprang from words


def test_videos_loop_silently_by_themselves(page):
    found = videos((page / "index.html").read_text())

    assert found
    assert all({"loop", "muted", "autoplay", "playsinline"} <= attributes.keys() for attributes in found)


def test_every_policy_shows_its_own_clip_of_the_same_prompt_and_seed(page):
    base, rwr1 = (sorted((page / "media" / policy).iterdir()) for policy in ("base", "rwr1"))

    assert [path.name for path in base] == [path.name for path in rwr1]
    assert base[0].read_bytes() != rwr1[0].read_bytes()


def test_equal_inputs_give_the_same_bytes(page, sets, summary, tmp_path):
    write_page(summary, sets, LOGS, 1, tmp_path / "again")

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(page) == contents(tmp_path / "again")


def test_the_summary_lies_beside_the_page(page, summary):
    assert json.loads((page / "summary.json").read_text()) == summary


def test_a_run_without_training_logs_has_no_training_figure(sets, summary, tmp_path):
    write_page(summary, sets, {}, 1, tmp_path / "out")

    assert "Training" not in (tmp_path / "out" / "index.html").read_text()


def test_logs_are_read_for_the_policies_that_were_trained(tmp_path):
    (tmp_path / "rwr1").mkdir()
    (tmp_path / "rwr1" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')

    assert read_logs(tmp_path, ["base", "rwr1"]) == {"rwr1": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]}


def test_clips_are_picked_by_name_test_prompts_first(sets):
    assert [sample.prompt_id for sample in pick(sets["base"].samples, 1)] == ["p5", "p1"]  # bouncing, falling
    assert [sample.prompt_id for sample in pick(sets["base"].samples, 3)] == ["p5", "p7", "p4", "p1", "p3", "p0"]


def agreement(observed: float | None, kappa: float | None, clips: int, not_unanimous: int) -> dict:
    return {"label": {"clips": clips, "not_unanimous": not_unanimous, "observed": observed, "kappa": kappa}}


def cells_of(text: str, row: str) -> list[list[str]]:
    """Texts of the table rows of a page that begin with this cell."""
    lines = re.findall(r"<tr>.*?</tr>", text, re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL) for line in lines]
    return [cells for cells in found if cells and cells[0] == row]


def test_the_agreement_of_several_votes_is_shown_and_lies_in_the_summary(sets, tmp_path):
    judged = {
        "base": replace(sets["base"], agreement={"judge": agreement(0.875, 0.746, 8, 1)}),
        "rwr1": replace(sets["rwr1"], agreement={"judge": agreement(1.0, None, 8, 0)}),
    }
    counts = {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1}
    rounds = {"r1": counts | {"agreement": agreement(0.6, -0.1, 9, 4)}, "r2": counts}
    summary = summarise(judged, {"rwr1": "base"}, rounds, draws=50, seed=1)
    write_page(summary, judged, {}, 1, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    written = json.loads((tmp_path / "out" / "summary.json").read_text())

    r1, r2 = cells_of(text, "r1") + cells_of(text, "r2")
    assert (r1[-2:], r2[-2:]) == (["60.0 (-0.10)", "4 of 9"], ["", ""])
    judge, physics = cells_of(text, "base")
    assert judge[-2:] == ["87.5 (0.75)", "1 of 8"]
    assert len(physics) == len(judge) - 2
    assert cells_of(text, "rwr1")[0][-2:] == ["100.0 (–)", "0 of 8"]
    assert "Votes agree:" in text
    assert written["rounds"]["r1"]["agreement"] == agreement(0.6, -0.1, 9, 4)
    assert written["policies"]["base"]["agreement"]["judge"] == agreement(0.875, 0.746, 8, 1)
    assert re.search(r"base .* 87\.5 \(0\.75\) +1 of 8", as_text(summary))


def test_a_single_vote_has_no_agreement_on_the_page(page):
    assert "agree" not in (page / "index.html").read_text()


# What training turned


def test_the_picture_shows_base_beside_the_best_policy_for_each_category(page):
    text = " ".join((page / "index.html").read_text().split())
    picture = np.asarray(Image.open(page / "media/turned.png").convert("RGB"))

    assert "Of 8 clips judge rejects 8 as base makes them and accepts them as rwr1 does; 0 go the other way" in text
    for shade in (5, 105, 1, 101):  # p5 and p1, the first test prompts of bouncing and falling, of base and of rwr1
        assert (abs(picture.astype(int) - shade).max(-1) <= 1).sum() >= 5 * 90 * 90


def test_where_nothing_was_gained_there_is_no_picture(sets, tmp_path):
    swapped = {"base": sets["rwr1"], "rwr1": sets["base"]}
    summary = summarise(swapped, {"rwr1": "base"}, {}, draws=50, seed=1)
    write_page(summary, swapped, LOGS, 1, tmp_path / "out")

    assert not (tmp_path / "out/media/turned.png").exists()
    assert "training turned" not in (tmp_path / "out/index.html").read_text()


# Tables


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.2, BETTER), (-0.2, -0.01, WORSE), (-0.01, 0.2, OPEN), (0.0, 0.2, OPEN), (None, None, OPEN)],
)
def test_better_and_worse_are_said_only_when_the_interval_is_clear_of_zero(low, high, said):
    assert verdict(low, high) == said


def test_a_clear_gain_is_marked_and_the_unknown_is_not(summary):
    judged, unknown = (dict(rows(summary, judge))["rwr1"] for judge in ("judge", "physics"))

    assert judged["− base"] == ("+100.0 [+100.0, +100.0]", BETTER)
    assert unknown["− base"] == ("–", OPEN)
    assert unknown["all"].text == "–"


def test_the_text_table_lines_up(summary):
    blocks = as_text(summary).split("\n\n")

    assert len(blocks) == 2
    for block in blocks:
        assert len({len(line) for line in block.split("\n")}) == 1
    assert re.search(r"rwr1 +100\.0 \[100\.0, 100\.0\].*\+100\.0 \[\+100\.0, \+100\.0\] ▲", blocks[0])
