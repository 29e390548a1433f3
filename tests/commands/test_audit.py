"""`vfrl audit`: a judge beside people's choices and scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from commands.audit import main
from data.video import read_video, write_video
from feedback.core.kinds import Kind
from feedback.metrics.metric import MetricOptions, MetricSource, metric_kind
from feedback.pairs.shown import comparison
from tests.feedback.pairs.test_compare import Brighter

calls: list[int] = []


class Brightness:
    """The mean of a colour channel."""

    model, model_version = "brightness", "1"

    def __init__(self, channel: int) -> None:
        self.channel, self.definition = channel, f"Mean of channel {channel}."

    def score(self, clips, prompts, fps):
        calls.append(len(clips))
        return [float(clip[..., self.channel].mean()) for clip in clips]


def load(name: str, options: MetricOptions, device: str) -> MetricSource:
    return MetricSource(name, {"Red": Brightness(0), "Blue": Brightness(2)}, options.batch_size)


SEVERAL = Kind(MetricOptions, load)
ONE = metric_kind("red", MetricOptions, lambda *_: Brightness(0))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with params.yaml and four clips: a and b of one prompt, c and d of another, redder in this order."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    here = "tests.commands.test_audit"
    params["feedback"]["sources"] |= {"several": {"kind": f"{here}.SEVERAL"}, "one": {"kind": f"{here}.ONE"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for place, name in enumerate("abcd"):
        frame = np.zeros((4, 32, 32, 3), np.uint8)
        frame[..., 0], frame[..., 2] = 40 * (place + 1), 200 - 40 * place
        write_video(tmp_path / f"{name}.mp4", frame, 8.0)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    monkeypatch.chdir(tmp_path)
    calls.clear()
    return tmp_path


def audited(project: Path, rows: str, source: str = "several", *options: str) -> tuple[str, dict]:
    (project / "said.csv").write_text(rows)
    given = ["--source", source, "--preferences", "said.csv", "--out", "out", *options]
    result = CliRunner().invoke(main, given)
    if result.exit_code:
        return result.output, {}
    return result.output, json.loads((project / "out/audit.json").read_text())


CHOICES = """clip_a,clip_b,prompt,preferred,dimension
a.mp4,b.mp4,one,B,red
c.mp4,d.mp4,two,A,red
a.mp4,b.mp4,one,A,Blue
a.mp4,b.mp4,one,B,
broken.mp4,c.mp4,two,A,red
"""


def test_each_dimension_is_compared_with_its_measure_and_undecodable_clips_are_counted(project):
    """b is redder than a (right), d redder than c (wrong); a is bluer than b (right); as a whole it is the first
    measure, red (right). The row with the broken file is in no figure."""
    said, figures = audited(project, CHOICES)
    found = figures["dimensions"]
    assert {name: one["measure"] for name, one in found.items()} == {
        "red": "Red",
        "Blue": "Blue",
        "whole clip": "score",
    }
    assert [found[name]["accuracy_without_ties"] for name in ("red", "Blue", "whole clip")] == [0.5, 1.0, 1.0]
    assert (found["red"]["pairs"], found["red"]["judged"], figures["unreadable"]) == (3, 2, 1)
    assert "red (Red): 2 of 3 pairs judged; right on 50.0 % of the pairs without a tie" in said
    assert "1 of 5 clips cannot be decoded" in said
    rows = [json.loads(line) for line in (project / "out/rows.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and rows[-1]["dimension"] == "" and rows[2]["a"] is None and rows[2]["b"] is not None


def test_a_clip_of_many_pairs_is_judged_once_and_never_again_until_its_bytes_change(project):
    audited(project, CHOICES)
    assert sum(calls) == 2 * 4  # two metrics, four clips
    calls.clear()
    audited(project, CHOICES)
    assert not calls
    write_video(project / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8), 8.0)
    _, figures = audited(project, CHOICES)
    assert sum(calls) == 2 * 4
    assert figures["dimensions"]["Blue"]["accuracy_without_ties"] == 0.0  # a is black now


def test_a_source_of_one_number_is_compared_with_every_dimension(project):
    _, figures = audited(project, CHOICES, "one")
    assert {name: one["accuracy_without_ties"] for name, one in figures["dimensions"].items()} == {
        "red": 0.5, "Blue": 0.0, "whole clip": 1.0
    }  # fmt: skip


def test_scores_give_rank_correlations(project):
    """People's scores rise with red and fall with blue."""
    rows = "clip,prompt,score,dimension\n" + "".join(
        f"{name}.mp4,{prompt},{place},{dimension}\n"
        for dimension in ("red", "blue")
        for place, (name, prompt) in enumerate(zip("abcd", ("one", "one", "two", "two"), strict=True))
    )
    said, figures = audited(project, rows)
    red, blue = figures["dimensions"]["red"], figures["dimensions"]["blue"]
    assert (red["spearman"], red["kendall"]) == (pytest.approx(1), pytest.approx(1))
    assert (blue["spearman"], blue["per_prompt"]) == (
        pytest.approx(-1),
        {"prompts": 2, "spearman": pytest.approx(-1), "kendall": pytest.approx(-1)},
    )
    assert "red (Red): 4 of 4 clips judged; Spearman 1.00, Kendall 1.00; per prompt, mean of 2: 1.00, 1.00" in said


def test_an_unknown_dimension_is_refused_unless_it_is_named(project):
    rows = CHOICES.replace(",red", ",VQ")
    said, _ = audited(project, rows)
    assert "dimension 'VQ' is none of the source's measures, Red, Blue; say which it is" in said and not calls
    _, figures = audited(project, rows, "several", "--measure", "VQ=Red")
    assert figures["dimensions"]["VQ"]["measure"] == "Red"
    said, _ = audited(project, rows, "several", "--measure", "VQ=Green")
    assert "--measure VQ=Green: the source measures Red, Blue" in said
    said, _ = audited(project, rows, "several", "--measure", "VQ")
    assert "expected DIMENSION=MEASURE" in said


class Redder(Brighter):
    """Prefers the redder clip of two, but for d, with which it is biased to the first."""

    def row(self, pair):
        one, other = (float(read_video(request.path)[..., 0].mean()) for request in (pair.first, pair.second))
        return comparison(self, pair, 0, self.rubric.questions[0], ([0], [0]), {"answer": one > other or other > 150})


def test_a_source_that_compares_is_asked_about_the_listed_pairs_and_no_clip_alone(project, monkeypatch):
    judge = Redder()
    monkeypatch.setattr("feedback.core.kinds.make_source", lambda *_: judge)
    rows = CHOICES.replace("Blue", "red") + "b.mp4,a.mp4,one,tie,red\n"
    output, figures = audited(project, rows, "one")
    found = figures["dimensions"]["red"]
    assert (found["pairs"], found["judged"], found["judge_tie"]) == (5, 4, 1), output  # c and d are a tie by position
    assert found["accuracy_without_ties"] == pytest.approx(1 / 3)  # right of a and b once of twice, and not of c and d
    assert len(judge.shown) == 4  # two pairs in both orders, however many rows they are in
    lines = map(json.loads, (project / "out/rows.jsonl").read_text().splitlines())
    assert [line["judge"] for line in lines] == [-1, 0, -1, None, 1, -1]
    audited(project, rows, "one")
    assert len(judge.shown) == 4
    output, _ = audited(project, "clip,prompt,score\na.mp4,one,1\n", "one")
    assert "brighter compares two clips at once, and the file has scores of single clips" in output
