"""The pages, figures and tables that people read."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from data.first_frames import png_bytes
from data.manifest import write_manifest
from data.records import Asked, ClipDrift, ClipMotion, Label, PromptSpread, Sample, Verdict, write_rows
from data.video import read_video, write_video
from evaluation.accept import summarise
from evaluation.checkpoints import RATE, plot_rows
from evaluation.effects.figures import Figures
from evaluation.effects.rows import Effects
from evaluation.effects.summary import effects_of, effects_over_seeds
from evaluation.sets import EvaluationSet
from report.cost import Cost
from report.effects import drifts, effects_table, seeds_tables
from report.figures import held_out_rates
from report.gallery import as_script, rows_of, write_gallery
from report.lineage import layout
from report.methods import read_methods, tables
from report.over_seeds import over_seeds
from report.page import read_heatmaps, read_logs, read_measured, read_selected, read_trained, write_page
from report.playable import PlayableCopies, copy_playable
from report.table import (
    BETTER,
    OPEN,
    WORSE,
    accept_table,
    agreement_table,
    as_text,
    audit_table,
    findings,
    further_tables,
    overview,
    question_tables,
    select_table,
    verdict,
)
from report.turned import write_turned
from tests.support.browser import PHONE, wait_until

HOSTILE = '<script>alert("x")</script> & "quoted"'


def make_sets(folder, prompts=8, prompt=HOSTILE, colours=((0, 0, 0), (100, 100, 100))) -> dict[str, EvaluationSet]:
    """base and rwr1, rwr1 accepted everywhere and base nowhere by `judge`; `physics` knows nothing.

    Clip i is of one colour, its policy's plus i, and has a verdict by `judge`.
    """
    found = {}
    for policy, answer, colour in (("base", False, colours[0]), ("rwr1", True, colours[1])):
        home = folder / policy / "samples"
        (home / "videos").mkdir(parents=True)
        samples, verdicts, labels = [], [], {"judge": [], "physics": []}
        for i in range(prompts):
            name = f"eval-p{i}-000"
            split, category = ("train", "test")[i % 2], ("falling", "bouncing")[2 * i // prompts]
            frames = np.broadcast_to(np.uint8(colour) + np.uint8(i), (9, 32, 32, 3))
            write_video(home / "videos" / f"{name}.mp4", frames, 8.0)
            file_name = f"videos/{name}.mp4"
            samples.append(Sample(name, f"p{i}", prompt, category, split, policy, i, 9, 8.0, 32, 32, file_name))
            p = (1 + i) / (2 + prompts)
            labels["judge"].append(Label(name, "judge", answer, p, None, 1, 0, f"because {HOSTILE}"))
            labels["physics"].append(Label(name, "physics", None, None, None, 1, 1, None))
            words = {"reason": f"because {HOSTILE}", "raw": f"raw words {i} {HOSTILE}", "error": None}
            judge = {"model": "m", "model_version": "v1", "rubric_hash": "r", "frames": [0, 4, 8]}
            spent = {"tokens": 85, "cost": 0.25}
            verdicts.append(Verdict(name, "judge", "accept", 0, answer, p, None, **words, **judge, **spent))
        write_rows(home.parent / "labels/judge/verdicts.parquet", verdicts, Verdict)
        found[policy] = EvaluationSet(home, tuple(samples), {judge: tuple(of) for judge, of in labels.items()})
    return found


COUNTS = {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1}
TRAINED = {
    "base": dict.fromkeys(("start", "round", "objective", "source")),
    "rwr1": {"start": "base", "round": "r1", "objective": "rwr", "source": "judge"},
}


def summary_of(sets) -> dict:
    return summarise(sets, {"rwr1": "base"}, {"r1": COUNTS}, draws=50, seed=1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def summary(sets):
    return summary_of(sets)


ATTRIBUTES = {
    "lang", "charset", "name", "content", "class", "rel", "href", "id", "srcset", "media", "src", "alt",
}  # fmt: skip
LOGS = {"rwr1": [{"step": step, "loss": 1 / step} for step in range(1, 30)]}


@pytest.fixture(scope="module")
def page(sets, summary, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    write_page(summary | {"trained": TRAINED}, sets, LOGS, None, out)
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


def test_all_files_that_the_pages_refer_to_are_in_their_folder(page):
    for name in ("index.html", "gallery.html"):
        tags = Tags((page / name).read_text())
        files = [
            *(path for tag in ("img", "script") for path in tags.attributes(tag, "src")),
            *tags.attributes("source", "srcset"),
            *(path.split("#")[0] for path in tags.attributes("a", "href") if not path.startswith("#")),
            *(path for path in tags.attributes("link", "href") if path != "data:,"),
        ]

        assert all((page / path).is_file() for path in files), files
        assert len(files) >= 3
    figures = {"accept", "categories", "rounds", "lineage", "training"}
    assert {path.name for path in (page / "media").glob("*.svg")} == {
        f"{name}-{theme}.svg" for name in figures for theme in ("light", "dark")
    }


def test_prompts_and_judges_words_are_text_on_the_page(sets, summary, tmp_path):
    warned = summary | {"warnings": [HOSTILE]}
    write_page(warned, sets, {}, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()

    assert "Training" not in text  # there are no logs
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert {name for tag, attributes in Tags(text).found for name in attributes} <= ATTRIBUTES  # none sprang from words
    for path in (tmp_path / "out/data").iterdir():
        assert "<" not in path.read_text()


def test_what_is_written_into_a_script_can_end_neither_it_nor_its_line():
    written = as_script({"prompt": "</script><!-- \u2028 \u2029 & é"})

    assert not set("<>\u2028\u2029") & set(written)
    assert json.loads(written) == {"prompt": "</script><!-- \u2028 \u2029 & é"}


def test_the_gallery_holds_every_clip_of_every_policy(page):
    clips = json.loads((page / "data/clips.js").read_text().removeprefix("window.CLIPS = ").rstrip(";\n"))

    for policy in ("base", "rwr1"):
        assert sorted(path.name for path in (page / "clips" / policy).iterdir()) == clips["clips"][policy]["files"]
        assert len(clips["clips"][policy]["files"]) == 8
    assert clips["clips"]["rwr1"]["labels"] == {"judge": [True] * 8, "physics": [None] * 8}
    assert clips["clips"]["base"]["p"]["judge"][:2] == [0.1, 0.2]


def test_a_small_clip_becomes_one_that_phones_play_in_the_same_colours(tmp_path):
    left, right = np.uint8([200, 40, 60]), np.uint8([40, 90, 200])
    frames = np.broadcast_to(np.where(np.arange(32)[:, None] < 16, left, right), (9, 32, 32, 3)).astype(np.uint8)
    write_video(tmp_path / "stored.mp4", frames, 8.0)
    sample = Sample("s", "p", "a prompt", "c", "test", "base", 1, 9, 8.0, 32, 32, "stored.mp4")

    copy_playable(tmp_path / "stored.mp4", tmp_path / "copy.mp4", sample)
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"
    error = abs(read_video(tmp_path / "copy.mp4")[:, ::2, ::2].astype(int) - frames)

    assert error.shape == frames.shape
    assert error[:, :, :15].max() <= 4 and error[:, :, 17:].max() <= 4  # all but the two columns at the edge


def test_a_clip_is_encoded_once_and_its_encoding_kept_while_a_page_uses_it(tmp_path):
    write_video(tmp_path / "a.mp4", np.full((5, 32, 32, 3), 90, np.uint8), 8.0)
    write_video(tmp_path / "b.mp4", np.full((5, 32, 32, 3), 91, np.uint8), 8.0)
    sample = Sample("s", "p", "a prompt", "c", "test", "base", 1, 5, 8.0, 32, 32, "stored.mp4")
    copy_playable(tmp_path / "a.mp4", tmp_path / "plain.mp4", sample)

    first = PlayableCopies(tmp_path / "encoded")
    copy_playable(tmp_path / "a.mp4", tmp_path / "first.mp4", sample, first)
    second = PlayableCopies(tmp_path / "encoded")
    copy_playable(tmp_path / "a.mp4", tmp_path / "second.mp4", sample, second)
    copy_playable(tmp_path / "b.mp4", tmp_path / "other.mp4", sample, second)
    (kept,) = first._used

    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    assert (tmp_path / "second.mp4").samefile(kept)
    assert (tmp_path / "other.mp4").read_bytes() != kept.read_bytes()
    third = PlayableCopies(tmp_path / "encoded")
    copy_playable(tmp_path / "b.mp4", tmp_path / "third.mp4", sample, third)
    third.prune()
    assert [path.read_bytes() for path in (tmp_path / "encoded").iterdir()] == [(tmp_path / "other.mp4").read_bytes()]


def test_a_large_clip_is_linked_and_takes_no_disk(tmp_path):
    source = tmp_path / "stored.mp4"
    source.write_bytes(b"not read")
    sample = Sample("s", "p", "a prompt", "c", "test", "base", 1, 9, 8.0, 480, 832, "stored.mp4")

    copy_playable(source, tmp_path / "copy.mp4", sample)

    assert (tmp_path / "copy.mp4").stat().st_ino == source.stat().st_ino


def test_rows_join_policies_by_prompt_and_seed_and_keep_the_first_clips_of_each_prompt(sets):
    one = sets["base"]
    twice = [replace(sample, seed=100 + sample.seed, sample_id=f"{sample.sample_id}b") for sample in one.samples]
    longer = EvaluationSet(one.folder, (*one.samples, *twice), {})

    rows = rows_of({"base": one, "more": longer}, None)
    assert [row.places for row in rows[:2]] == [{"base": 0, "more": 0}, {"more": 8}]
    assert len(rows) == 16
    assert [row.sample.prompt_id for row in rows_of({"more": longer}, 1)] == [f"p{i}" for i in range(8)]


def test_equal_inputs_give_the_same_bytes(page, sets, summary, tmp_path):
    write_page(summary | {"trained": TRAINED}, sets, LOGS, None, tmp_path / "again")

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(page) == contents(tmp_path / "again")


def test_the_summary_lies_beside_the_page_with_all_that_it_says(page, summary):
    written = json.loads((page / "summary.json").read_text())

    turned = {"policy": "rwr1", "judge": "judge", "clips": 8, "gained": 8, "lost": 0}
    assert written == summary | {"trained": TRAINED, "turned": turned, "gallery": {"clips": 16}}
    assert "Look at all 16 clips" in (page / "index.html").read_text()


def test_what_else_changed_is_on_the_page_with_drift_drawn_against_accept_rates(sets, summary, tmp_path):
    def measured(one: EvaluationSet, moves: float, squared: float) -> Effects:
        clips = [ClipMotion(sample.sample_id, moves) for sample in one.samples]
        prompts = [PromptSpread(sample.prompt_id, 1, None, None) for sample in one.samples]
        return Effects(clips, prompts, [ClipDrift(sample.sample_id, 0.5, squared) for sample in one.samples])

    found = {"base": measured(sets["base"], 9.0, 0.0), "rwr1": measured(sets["rwr1"], 1.0, 0.25)}
    policies = {
        name: summary["policies"][name] | {"effects": effects}
        for name, effects in effects_of(Figures(sets, found, ["judge"], (1,)), 50, 1).items()
    }
    write_page(summary | {"policies": policies}, sets, {}, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()

    assert "What else changed" in text and "reasons of judge, clips" in text
    assert re.search(r'class="worse">1\.00 \(-8\.00\) ▼', text)  # it moves less
    assert HOSTILE not in text  # a judge's reason
    drawn = (tmp_path / "out/media/drift-light.svg").read_text()
    assert "rwr1" in drawn and "mean squared change" in drawn


def test_a_policy_trained_by_rewards_is_drawn_with_its_reward_among_the_online_ones(summary, sets, tmp_path):
    rows = [{"step": step, "loss": 0.0, "reward": 0.1 * step} for step in range(1, 5)]
    write_page(summary, sets, LOGS | {"grpo": rows}, None, tmp_path / "out")

    drawn = (tmp_path / "out/media/answers-light.svg").read_text()
    assert "grpo" in drawn and "reward of the rollouts" in drawn and "probability" not in drawn
    assert "grpo" not in (tmp_path / "out/media/training-light.svg").read_text()


def checked(*rates: float) -> list[dict]:
    """A log with a check every 10 updates, which is at update 0 a line of its own."""
    checks = [{"training": 0.5, "held_out": rate, "others": {}} for rate in rates]
    updates = [{"step": 10 * place, "loss": 0.0, "questions": {}} for place in range(len(rates))]
    both = [update | {"held_out": check} for update, check in zip(updates, checks, strict=True)]
    return [{"step": 0, "held_out": checks[0]}, *both[1:]]


def test_the_held_out_judge_s_rates_of_all_online_policies_are_drawn_together(summary, sets, tmp_path):
    logs = {
        "ask": checked(0.25, 0.5, 0.1), "drf": checked(0.25, 0.75), "grown": checked(0.3, 0.2),
        "scored": checked(7.0, 8.0),
    }  # fmt: skip
    judges = {"ask": "held", "drf": "held", "grown": "other", "scored": "clip"}
    policies = {name: {"held_out": judge, "config": {}} for name, judge in judges.items()}
    methods = {"generator": {}, "judges": {}, "policies": policies, "sampling": {}}
    starts = {name: dict.fromkeys(("round", "objective", "source"), None) | {"start": "base"} for name in logs}
    starts["grown"]["start"] = "ask"

    found = held_out_rates(LOGS | logs, {"methods": methods})
    write_page(summary | {"trained": TRAINED | starts, "methods": methods}, sets, LOGS | logs, None, tmp_path / "out")

    ask, drf = {0: 0.25, 10: 0.5, 20: 0.1}, {0: 0.25, 10: 0.75}
    assert found == {"held": {"ask": ask, "drf": drf}, "other": {"grown": {0: 0.3, 10: 0.2}}}  # scores are no rates
    drawn = (tmp_path / "out/media/dynamics-light.svg").read_text()
    assert [name for name in (*logs, "held", "other", "base") if f">{name}<" not in drawn] == ["scored"]
    assert drawn.count(">base<") == 1  # not in the panel whose policy starts from another
    assert "Online: training dynamics" in (tmp_path / "out/index.html").read_text()


def test_without_a_check_there_are_no_training_dynamics(page):
    assert not (page / "media/dynamics-light.svg").exists()
    assert "training dynamics" not in (page / "index.html").read_text()


def test_logs_are_read_for_the_policies_that_were_trained(tmp_path):
    (tmp_path / "rwr1").mkdir()
    (tmp_path / "rwr1" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')

    assert read_logs(tmp_path, ["base", "rwr1"]) == {"rwr1": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]}


def test_where_the_judge_looked_is_shown_of_the_start_and_of_the_update_kept(sets, summary, tmp_path):
    policies = tmp_path / "policies"
    for name, steps, kept in (("ask1", (0, 20, 40), 20), ("ask2", (0, 20), 0)):
        (policies / name / "heatmaps").mkdir(parents=True)
        (policies / name / "policy.json").write_text(json.dumps({"step": kept}))
        for step in steps:
            (policies / name / f"heatmaps/step-{step:06d}.png").write_bytes(f"{name} {step}".encode())
    (policies / "base").mkdir()

    found = read_heatmaps(policies, ["base", "ask1", "ask2"])
    assert {name: list(sheets) for name, sheets in found.items()} == {"ask1": [0, 20], "ask2": [0]}
    write_page(summary, sets, {}, None, tmp_path / "out", heatmaps=found)
    assert (tmp_path / "out/media/heatmap-ask1-20.png").read_bytes() == b"ask1 20"
    page = (tmp_path / "out/index.html").read_text()
    assert "where the judge looks" in page and "After update 20" in page
    assert set(re.findall(r"media/(heatmap-[^\"]+)", page)) == {
        path.name for path in tmp_path.glob("out/media/heatmap-*")
    }


def test_how_a_policy_was_trained_is_read_from_its_folder(tmp_path):
    for name, facts in (("base", {"family": "wan"}), ("rwr1", TRAINED["rwr1"] | {"rows": 3})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.json").write_text(json.dumps(facts))

    assert read_trained(tmp_path, ["base", "rwr1", "best-of-4"]) == TRAINED


def test_audits_and_curves_are_read_where_they_are_there(tmp_path):
    (tmp_path / "judge.json").write_text('{"auc": 0.9}')
    (tmp_path / "select").mkdir()
    known, unknown = dict(zip(RATE, (0.5, 0.4, 0.6, 8), strict=True)), dict.fromkeys(RATE)
    rows = plot_rows([{"step": 100, **known, "physics": unknown}], ["judge", "physics"])
    (tmp_path / "select/rwr1.json").write_text(
        json.dumps({"kept": 200, "measured": {"judge": False, "physics": True}, "curve": rows})
    )
    curve = [{"step": 100, **known, "others": {"physics": unknown}}]

    assert read_measured(tmp_path) == {"judge": {"auc": 0.9}}
    found = {"judge": "judge", "measured": ["physics"], "kept": 200, "curve": curve}
    assert read_selected(tmp_path / "select") == {"rwr1": found}
    assert read_measured(tmp_path / "nowhere") == read_selected(tmp_path / "nowhere") == {}


@pytest.fixture
def replicated(sets):
    """The summary of base and rwr1, whose second seed rejects half of what the first accepts."""
    one = sets["rwr1"]
    answers = [replace(label, label=bool(i % 2)) for i, label in enumerate(one.labels["judge"])]
    all_sets = {**sets, "rwr1-s2": replace(one, labels=one.labels | {"judge": tuple(answers)})}
    by_seed, chains = {"rwr1": {1: "rwr1", 2: "rwr1-s2"}}, {"rwr1": {"rwr1"}, "rwr1-s2": {"rwr1-s2"}}
    starts = {"rwr1": "base", "rwr1-s2": "base"}
    found = summarise(all_sets, starts, {"r1": COUNTS}, draws=50, seed=1, by_seed=by_seed, chains=chains)
    return all_sets, found | {"trained": TRAINED | {"rwr1-s2": TRAINED["rwr1"]}}


def test_a_policy_of_several_seeds_is_one_row_with_the_spread_and_each_seed_stands_below(replicated, tmp_path):
    all_sets, summary = replicated
    logs = dict.fromkeys(("rwr1", "rwr1-s2"), LOGS["rwr1"])
    write_page(summary, all_sets, logs, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    above, _, folded = text.partition("<details>")

    # 8 of 8 and 4 of 8: the mean 75 %, the standard deviation between them sqrt(2) / 4.
    (shown,) = [cells for cells in cells_of(above, "rwr1") if cells[-1] == "2"]
    assert shown[1].startswith("75.0 [") and shown[1].endswith(" ± 35.4")
    assert not cells_of(above, "rwr1-s2")
    assert cells_of(folded, "rwr1-s2")[0][1].startswith("50.0 [")
    assert [row.name for row in overview(over_seeds(summary)).rows] == ["base", "rwr1"]
    assert "± is the standard deviation between the seeds" in above
    assert "rwr1-s2" not in (tmp_path / "out/media/accept-light.svg").read_text()
    assert "rwr1-s2" not in (tmp_path / "out/media/lineage-light.svg").read_text()
    curves = (tmp_path / "out/media/training-light.svg").read_text()
    assert curves.count("rwr1, loss") == 1
    one = (tmp_path / "out/media/training-light.svg").read_text().count("<path")
    write_page(summary, all_sets, {"rwr1": LOGS["rwr1"]}, None, tmp_path / "alone")
    assert one == (tmp_path / "alone/media/training-light.svg").read_text().count("<path") + 1


def test_the_best_of_n_over_several_seeds_is_one_row_and_one_point_with_each_seed_below(replicated, tmp_path):
    all_sets, summary = replicated
    names = [f"{name} best of 2 by judge" for name in ("rwr1", "rwr1-s2")]
    made = dict.fromkeys(Cost._fields, 10)
    for name, of in zip(names, ("rwr1", "rwr1-s2"), strict=True):
        how = {"kind": "best_of", "of": of, "judge": "judge", "n": 2, "samples_per_clip": 2}
        summary["policies"][name] = summary["policies"][of] | {"baseline": how}
    summary["replicates"][names[0]] = summary["replicates"]["rwr1"] | {"policies": names}
    summary["costs"] = {
        name: {"making": made, "evaluation": made, "a_clip": {"forwards": 4, "judge_calls": 2}}
        for name in summary["policies"]
    }
    write_page(summary, all_sets, {}, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    above, _, folded = text.partition("<details>")

    (shown,) = [cells for cells in cells_of(above, names[0]) if cells[-1] == "2"]
    assert shown[1].startswith("75.0 [") and shown[1].endswith(" ± 35.4")
    assert f"{names[0]} is a baseline: of every 2 clips of rwr1 the one" in text and f"{names[1]} is a" not in text
    assert cells_of(folded, names[1])[0][1].startswith("50.0 [")
    for figure in ("accept", "categories", "cost"):
        drawn = (tmp_path / f"out/media/{figure}-light.svg").read_text()
        assert names[0] in drawn and "rwr1-s2" not in drawn, figure


def test_the_terminal_shows_the_seeds_as_one_row_and_each_below(replicated):
    lines = as_text(replicated[1]).splitlines()

    first = next(line for line in lines if line.startswith("rwr1 "))
    assert " ± 35.4" in first and any(line.startswith("rwr1-s2 ") for line in lines)
    assert sum("seeds" in line for line in lines) >= 2
    assert "cannot be told apart from base: rwr1 (+75.0)" in as_text(replicated[1])


def test_what_else_changed_has_a_row_over_the_seeds_first_and_each_seed_below_it(replicated, tmp_path):
    all_sets, summary = replicated

    def measured(one: EvaluationSet, moves: float, squared: float) -> Effects:
        clips = [ClipMotion(sample.sample_id, moves) for sample in one.samples]
        prompts = [PromptSpread(sample.prompt_id, 1, None, None) for sample in one.samples]
        return Effects(clips, prompts, [ClipDrift(sample.sample_id, 0.5, squared) for sample in one.samples])

    found = {name: measured(one, moves, squared) for (name, one), moves, squared in zip(
        all_sets.items(), (9.0, 1.0, 2.0), (0.0, 0.25, 0.75), strict=True
    )}  # fmt: skip
    figures = Figures(all_sets, found, ["judge"], (1,))
    effects = effects_of(figures, 50, 1)
    joined = effects_over_seeds(figures, effects, {"rwr1": {1: "rwr1", 2: "rwr1-s2"}}, 50, 1)
    summary = summary | {
        "policies": {name: one | {"effects": effects[name]} for name, one in summary["policies"].items()},
        "replicates": {name: one | {"effects": joined[name]} for name, one in summary["replicates"].items()},
    }
    write_page(summary, all_sets, {}, None, tmp_path / "out")
    section = (tmp_path / "out/index.html").read_text().partition('id="effects"')[2].partition("By category")[0]
    above, _, folded = section.partition("<details>")

    # motion 1 and 2: mean 1.5, standard deviation 0.71; 9 less is a fall, though two seeds say little of a third
    (shown,) = [cells for cells in cells_of(above, "rwr1") if "1.50 ± 0.71 (-7.50) ▼" in cells]
    assert shown[-1] == "2" and "75.0 ± 35.4 (+75.0)" in shown and "0.5 ± 0.4" in shown
    assert "6.0 / 0.0 / 2.0" in shown and "6.0 / 0.0" in shown  # seed 1 gains every prompt's clip, seed 2 half of them
    assert not cells_of(above, "rwr1-s2") and "<th>rwr1-s2</th>" not in above  # nor is it a column of the reasons
    assert "1.00 (-8.00) ▼" in cells_of(folded, "rwr1")[0] and "2.00 (-7.00) ▼" in cells_of(folded, "rwr1-s2")[0]
    assert "<th>rwr1-s2</th>" in folded
    drawn = (tmp_path / "out/media/drift-light.svg").read_text()
    assert "rwr1" in drawn and "rwr1-s2" not in drawn
    assert drifts(over_seeds(summary)) == {"base": 0.0, "rwr1": 0.5}
    shown_in_terminal = [table.title for table in [effects_table(over_seeds(summary)), *seeds_tables(summary)]]
    assert shown_in_terminal[:2] == ["What else changed", "Each training seed: what else changed"]


def test_replicated_settings_are_one_column_with_all_seeds():
    config = {"learning_rate": 0.002, "seed": 1}
    one = {"objective": "rwr", "start": "base", "config": config, "made_with": [MADE_WITH]}
    made = {
        "generator": {}, "judges": {}, "sampling": {},
        "policies": {"rwr1": one, "rwr1-s2": one | {"config": config | {"seed": 2}}},
    }  # fmt: skip
    _, settings, made_with = tables(made, {"rwr1": {"policies": ["rwr1", "rwr1-s2"], "seeds": [1, 2]}})

    assert settings.columns == ["rwr1"]
    assert [row.cells["rwr1"].text for row in settings.rows if row.name == "seed"] == ["1, 2"]
    assert made_with.columns == ["rwr1, rwr1-s2"]


BLOCK = {"model": "m", "model_versions": ["0123456789abcdef"], "rubric": "review", "rubric_hash": "beef", "votes": 1}
MADE_WITH = {
    "from_step": 0, "code": {"commit": "c" * 40, "changed": ["params.yaml"]}, "versions": {"torch": "2.15.0"},
    "device": {"type": "cpu", "name": "a CPU", "processes": 1, "threads": 2},
}  # fmt: skip


@pytest.fixture
def made(tmp_path) -> dict:
    """`read_methods` of base, rwr1, and dpo1, which was resumed on one thread and trained by another judge."""
    resumed = MADE_WITH | {"from_step": 100, "device": MADE_WITH["device"] | {"threads": 1}}
    config = {"learning_rate": 0.002, "seed": 1, "lora_targets": None, "full": False, "log_every": 5}
    trained = {"start": "base", "round": "r1", "config": config, "made_with": [MADE_WITH]}
    facts = {
        "base": {"family": "wan", "path": "models/g", "revision": None, "fingerprint": "f" * 64},
        "rwr1": trained | {"objective": "rwr", "source": "judge", "judge": BLOCK},
        "dpo1": trained | {"objective": "dpo", "source": "gpt", "judge": BLOCK | {"model": "gpt"}}
        | {"config": config | {"beta": 50.0}, "made_with": [MADE_WITH, resumed]},
    }  # fmt: skip
    for name, one in facts.items():
        (tmp_path / "policies" / name).mkdir(parents=True)
        (tmp_path / "policies" / name / "policy.json").write_text(json.dumps(one))
    labels = tmp_path / "sets/base/labels/judge"
    labels.mkdir(parents=True)
    write_manifest(labels, "labels", source="judge", accepted=3, **BLOCK)
    sampling = {"rounds": {"steps": 8, "guidance": 1.0}}
    return read_methods(tmp_path / "policies", tmp_path / "sets", facts, ["judge"], sampling)


def test_the_methods_name_generator_judges_settings_and_what_training_ran_with(made):
    assert made["generator"]["fingerprint"] == "f" * 64
    assert made["judges"] == {"judge": BLOCK, "gpt": BLOCK | {"model": "gpt"}}
    assert list(made["policies"]) == ["rwr1", "dpo1"]
    assert made["policies"]["dpo1"]["config"]["beta"] == 50.0 and len(made["policies"]["dpo1"]["made_with"]) == 2


def test_the_page_shows_the_methods_as_tables(made, sets, summary, tmp_path):
    write_page(summary | {"methods": made}, sets, {}, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    assert cells_of(text, "judge gpt") == [["judge gpt", "gpt", "0123456789ab", "review", "beef", "1"]]
    assert cells_of(text, "beta") == [["beta", "–", "50.0"]]
    assert cells_of(text, "full") == [["full", "no", "no"]]
    assert not cells_of(text, "lora_targets") and not cells_of(text, "log_every")
    assert cells_of(text, "threads") == [["threads", "2", "2", "1"]]  # of rwr1, of dpo1, of dpo1 from step 101
    assert "<th>dpo1 from step 101</th>" in text and cells_of(text, "commit")[0][1] == "c" * 12


def agreement(observed: float | None, kappa: float | None, clips: int, not_unanimous: int) -> dict:
    return {"label": {"clips": clips, "not_unanimous": not_unanimous, "observed": observed, "kappa": kappa}}


def cells_of(text: str, row: str) -> list[list[str]]:
    """Texts of the table rows of a page that begin with this cell."""
    lines = re.findall(r"<tr>.*?</tr>", text, re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL) for line in lines]
    return [cells for cells in found if cells and cells[0] == row]


def test_the_agreement_of_several_votes_is_on_the_page_and_in_the_summary(sets, tmp_path):
    judged = {
        "base": replace(sets["base"], agreement={"judge": agreement(0.875, 0.746, 8, 1)}),
        "rwr1": replace(sets["rwr1"], agreement={"judge": agreement(1.0, None, 8, 0)}),
    }
    counts = {"samples": 10, "accepted": 4, "rejected": 5, "unlabelled": 1}
    rounds = {"r1": counts | {"agreement": agreement(0.6, -0.1, 9, 4)}, "r2": counts}
    summary = summarise(judged, {"rwr1": "base"}, rounds, draws=50, seed=1)
    write_page(summary, judged, {}, None, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    written = json.loads((tmp_path / "out" / "summary.json").read_text())

    r1, r2 = cells_of(text, "r1") + cells_of(text, "r2")
    assert (r1[-2:], r2[-2:]) == (["60.0 (-0.10)", "4 of 9"], ["", ""])
    _, judge, physics, *_ = cells_of(text, "base")  # after the overview, and before other tables
    assert judge[-2:] == ["87.5 (0.75)", "1 of 8"]
    assert len(physics) == len(judge) - 2
    assert cells_of(text, "rwr1")[1][-2:] == ["100.0 (–)", "0 of 8"]
    assert "Votes agree:" in text
    assert written["rounds"]["r1"]["agreement"] == agreement(0.6, -0.1, 9, 4)
    assert written["policies"]["base"]["agreement"]["judge"] == agreement(0.875, 0.746, 8, 1)
    assert re.search(r"base .* 87\.5 \(0\.75\) +1 of 8", as_text(summary))


def test_a_single_vote_has_no_agreement_on_the_page(page):
    assert "otes agree" not in (page / "index.html").read_text()


# What training changed


def test_the_picture_shows_base_beside_the_best_policy_for_each_category(page):
    text = " ".join((page / "index.html").read_text().split())
    picture = np.asarray(Image.open(page / "media/turned.png").convert("RGB"))

    assert "For 8 of 8 clips, judge rejects the base's and accepts rwr1's; for 0 it is the other way round." in text
    for shade in (5, 105, 1, 101):  # p5 and p1, the first test prompts of bouncing and falling, of base and of rwr1
        assert (abs(picture.astype(int) - shade).max(-1) <= 1).sum() >= 5 * 90 * 90


def test_the_picture_names_a_prompt_that_its_font_cannot_write_by_its_id(tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr("report.turned.contact_sheet", lambda given, **_: rows.extend(given) or Image.new("L", (1, 1)))
    sets = make_sets(tmp_path, prompts=2, prompt="红球")
    write_turned(summary_of(sets), sets, tmp_path / "turned.png")
    assert [caption for caption, _ in rows if caption.startswith("rwr1")] == [
        "rwr1: accepted (p1)",
        "rwr1: accepted (p0)",
    ]


def test_where_nothing_was_gained_there_is_no_picture(sets, tmp_path):
    swapped = {"base": sets["rwr1"], "rwr1": sets["base"]}
    summary = summary_of(swapped)
    write_page(summary, swapped, LOGS, None, tmp_path / "out")

    assert not (tmp_path / "out/media/turned.png").exists()
    assert "training changed" not in (tmp_path / "out/index.html").read_text()


# Tables


def test_a_policy_is_better_or_worse_only_when_the_interval_is_clear_of_zero():
    intervals = [(0.01, 0.2, BETTER), (-0.2, -0.01, WORSE), (-0.01, 0.2, OPEN), (0.0, 0.2, OPEN), (None, None, OPEN)]
    for low, high, expected in intervals:
        assert verdict(low, high) == expected, (low, high)


def test_a_clear_gain_is_marked_and_the_unknown_is_not(summary):
    judged, unknown = (dict(accept_table(summary, judge).rows)["rwr1"] for judge in ("judge", "physics"))

    assert judged["− base"] == ("+100.0 [+49.0, +100.0]", BETTER)  # of few prompts
    assert unknown["− base"] == ("–", OPEN)
    assert unknown["all"].text == "–"


def test_a_sentence_says_which_policies_are_better_and_which_cannot_be_told_apart():
    def gap(low, diff, high):
        rate = {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}
        return {
            "accept": {"judge": {"all": rate}},
            "minus_base": {"judge": {"all": {"diff": diff, "low": low, "high": high}}},
        }

    base = {"accept": gap(0, 0, 0)["accept"]}
    policies = {"base": base, "a": gap(0.01, 0.1, 0.2), "b": gap(0.1, 0.2, 0.3), "c": gap(-0.2, -0.1, -0.01)}
    policies |= {"d": gap(-0.1, 0.0, 0.1), "e": gap(None, None, None)}

    assert findings({"policies": policies}) == [
        "judge: better than base: b (+20.0), a (+10.0); worse than base: c (-10.0); "
        "cannot be told apart from base: d (+0.0)."
    ]
    policies |= {"f": gap(None, 0.3, None)}
    assert findings({"policies": policies})[0].endswith("; too few prompts to compare with base: f (+30.0).")
    assert findings({"policies": {"base": base}}) == ["judge: no policy to compare with base."]


def test_the_best_is_called_better_than_the_second_only_by_the_interval_of_their_difference():
    policies = {"base": {"accept": {"judge": {}}}}
    for low, high, said in (
        (0.01, 0.09, "b is better than a, the second of the trained policies: +5.0 [+1.0, +9.0]."),
        (-0.01, 0.11, "The best of the trained, b, cannot be told apart from a: +5.0 [-1.0, +11.0]."),
        (None, None, "Too few prompts to compare b with a: +5.0 [–]."),
    ):
        best = {"judge": {"policy": "b", "over": "a", "diff": 0.05, "low": low, "high": high}}
        (found,) = findings({"policies": policies, "best": best})
        assert found == f"judge: no policy to compare with base. {said}"


def test_two_prompts_have_a_rate_and_no_interval_in_every_table_and_figure(sets, summary, tmp_path):
    select = {"rwr1": MEASURED["select"]["rwr1"] | {"curve": [POINT | {"step": 100, "rate": 0.4}]}}
    known = json.dumps(summary | {"select": select})
    bare = json.loads(known, object_hook=lambda found: found | dict.fromkeys(found.keys() & {"low", "high"}))
    trained = {"base": dict.fromkeys(("start", "round", "objective", "source"))}
    trained["rwr1"] = {"start": "base", "round": "r1", "objective": "rwr", "source": "judge"}
    write_page(bare | {"trained": trained}, sets, {}, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()

    assert cells_of(text, "rwr1")[0][1:3] == ["100.0 [–]", "+100.0 [–]"]
    assert "▲" not in re.sub("▲ better</span>", "", text) and "better than base" not in text
    assert "too few prompts to compare with base: rwr1 (+100.0)" in text
    assert texts(select_table(bare))[0]["last's"] == "40.0 [–]"


def test_a_baseline_stands_in_the_tables_without_clips_of_its_own(sets, summary, tmp_path):
    rate = {"rate": 0.25, "low": 0.125, "high": 0.5, "n": 8}
    how = {"kind": "best_of", "of": "base", "judge": "judge", "n": 4, "samples_per_clip": 4}
    best = {"start": None, "accept": {"judge": {"all": rate}}, "baseline": how}
    with_baseline = summary | {"policies": summary["policies"] | {"best-of-4": best}}
    write_page(with_baseline, sets, {}, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()

    assert cells_of(text, "best-of-4")[0] == ["best-of-4", "25.0 [12.5, 50.0]", "", "–", ""]
    assert "best-of-4 is a baseline: of every 4 clips of base the one that judge scores highest; each costs 4" in text
    assert dict(overview(with_baseline).rows)["best-of-4"]["physics"].text == "–"


AUDIT = {
    "clips": 100, "labelled": 98, "accuracy": 0.847, "low": 0.8, "high": 0.9, "auc": 0.912, "false_accepts": 7,
    "false_rejects": 8, "truth": f"known {HOSTILE}",
    "categories": {"falling": {"clips": 50, "accuracy": 0.8, "false_accept_rate": 0.1, "false_reject_rate": None}},
    "calibration": {"ece": 0.0412, "bins": [{"low": 0, "high": 1, "mean_p": 0.4, "accepted_by_truth": 0.5, "n": 98}]},
    "votes": None, "frames": {"changed": 0.031, "n": 98}, "human": None,
    "threshold": {"current": 0.5, "suggested": 0.55, "accuracy_now": 0.847, "accuracy_then": 0.853},
}  # fmt: skip
POINT = {"low": 0.3, "high": 0.5, "n": 8}
CURVE = [
    {"step": 100, "rate": 0.4, "others": {"physics": {"rate": 0.4, "low": 0.3, "high": 0.5}}} | POINT,
    {"step": 200, "rate": 0.45, "others": {"physics": {"rate": None, "low": None, "high": None}}} | POINT,
]
MEASURED = {
    "agreement": {
        "clips": {"judge|physics": {"kappa": 0.714, "agree": 0.855, "n": 16}},
        "policies": {"judge|physics": {"pearson": None, "p_value": None, "n": 2}},
        "prompts": {"judge|physics": {"pearson": 0.881, "p_value": 0.00001, "n": 16}},
    },
    "audit": {"judge": AUDIT},
    "select": {"rwr1": {"judge": "judge", "kept": 100, "curve": CURVE}},
}


def texts(table) -> list[dict[str, str]]:
    return [{title: cell.text for title, cell in row.cells.items()} for row in table.rows]


def test_audits_agreement_and_checkpoints_have_tables_and_figures(sets, summary, tmp_path):
    write_page(summary | MEASURED, sets, {}, None, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()

    assert {"reliability-light.svg", "select-dark.svg"} <= {path.name for path in (tmp_path / "out/media").iterdir()}
    assert "known &lt;script&gt;" in text
    assert cells_of(text, "judge")[0] == [
        "judge", "98", "84.7 [80.0, 90.0]", "0.91", "7", "8", "0.041", "3.1", "0.50 → 0.55", "84.7 → 85.3",
    ]  # fmt: skip
    assert cells_of(text, "falling") == [["falling", "50", "80.0", "10.0", "–"]]
    assert cells_of(text, "judge and physics") == [
        ["judge and physics", "16", "85.5", "0.71", "0.88 (n = 16)", "&lt; 0.001", "– (n = 2)", "–"]
    ]
    assert texts(select_table(MEASURED))[0]["its accept rate, % (or score)"] == "40.0 [30.0, 50.0]"
    (policy,) = MEASURED["select"]
    by_metric = MEASURED["select"][policy] | {"measured": [MEASURED["select"][policy]["judge"]]}
    by_score = select_table({"select": {policy: by_metric}})
    assert texts(by_score)[0]["its accept rate, % (or score)"] == "0.4 [0.3, 0.5]"
    assert json.loads((tmp_path / "out/summary.json").read_text())["audit"] == {"judge": AUDIT}
    printed = as_text(summary | MEASURED | {"warnings": ["judge left 6 % unlabelled"]})
    assert printed.rstrip().endswith("Warning: judge left 6 % unlabelled")


def test_what_was_not_measured_has_no_section(page, summary):
    text = (page / "index.html").read_text()
    unmeasured = {name: policy | {"scores": {}} for name, policy in summary["policies"].items()}
    bare = summary | {"agreement": {}, "policies": unmeasured}

    assert agreement_table(bare) is audit_table(bare) is select_table(bare) is None
    assert further_tables(bare) == []
    assert "Over-optimisation" not in text and "No judge was audited" in text


def test_scores_and_the_top_k_have_tables_of_their_own(summary):
    scored = json.loads(json.dumps(summary))
    for place, policy in enumerate(scored["policies"].values()):
        policy["scores"] = {"judge": {"all": {"mean": 0.5 + place, "low": 0.25, "high": 2.0, "n": 8}}}
        policy["top_k"] = {"judge": {"all": {"rate": 0.75, "low": 0.5, "high": 1.0, "n": 4}}}
    gap = {"judge": {"all": {"diff": 1.0, "low": 0.5, "high": 1.5}}}
    scored["policies"]["rwr1"]["score_minus_base"] = gap
    best, means = further_tables(scored)

    assert texts(best) == [{"all": "75.0 [50.0, 100.0]"}] * 2
    assert texts(means)[1] == {"all": "1.5 [0.25, 2]", "− base": "+1 [+0.5, +1.5]"}
    assert means.rows[1].cells["− base"].verdict == BETTER


def test_each_question_of_a_judge_has_a_row_with_the_rate_of_every_policy(summary, sets, tmp_path):
    asked = json.loads(json.dumps(summary))
    rate = {"rate": 0.25, "low": 0.125, "high": 0.5, "n": 8}
    unknown = {"rate": None, "low": None, "high": None, "n": 0}
    for policy in asked["policies"].values():
        policy["questions"] = {"judge": {"shape": {"all": rate}, "jump": {"all": unknown}}}
    gap = {"diff": -0.25, "low": -0.5, "high": -0.125}
    asked["policies"]["rwr1"]["questions_minus_base"] = {"judge": {"shape": {"all": gap}}}
    (table,) = question_tables(asked)

    assert (table.title, table.head) == ("wanted answers of judge, % [95 %]", "question")
    assert table.columns == ["base", "rwr1", "rwr1 − base"] and [row.name for row in table.rows] == ["shape", "jump"]
    shape = {"base": "25.0 [12.5, 50.0]", "rwr1": "25.0 [12.5, 50.0]", "rwr1 − base": "-25.0 [-50.0, -12.5]"}
    assert texts(table) == [shape, dict.fromkeys(shape, "–")]
    assert table.rows[0].cells["rwr1 − base"].verdict == WORSE
    assert "-25.0 [-50.0, -12.5] ▼" in as_text(asked)
    write_page(asked, sets, {}, None, tmp_path / "out")
    assert "Which aspect training moved" in (tmp_path / "out/index.html").read_text()
    assert question_tables(summary) == []


# The graph of rounds


def test_the_parent_of_a_policy_is_its_round_and_of_a_round_the_policy_that_made_it():
    def trained(start, round):
        return {"start": start, "round": round, "objective": "rwr", "source": "judge"}

    nodes = layout(
        {
            "base": trained(None, None),
            "rwr1": trained("base", "r1"),
            "dpo1": trained("base", "r1"),
            "rwr2": trained("rwr1", "r2"),
            "ask": trained("base", None),
        }
    )
    above = {node.name: nodes[node.parent].name if node.parent is not None else None for node in nodes}
    heights = {node.name: node.height for node in nodes}

    assert above == {"base": None, "r1": "base", "rwr1": "r1", "r2": "rwr1", "rwr2": "r2", "dpo1": "r1", "ask": "base"}
    assert [node.depth for node in nodes] == [0, 1, 2, 3, 4, 2, 1]
    assert heights["rwr2"] == heights["rwr1"] == 0 and heights["dpo1"] == 1 and heights["ask"] == 2
    assert heights["r1"] == 0.5 and heights["base"] == 1.25


def test_a_policy_of_several_rounds_has_an_arrow_from_each_and_stands_behind_one_that_its_start_sampled():
    """And where its start sampled none of them, an arrow from its start."""
    made = {"r1": "base", "r1b": "base", "r2": "rwr1"}

    def trained(start, *rounds):
        listed = [{"round": one, "policy": made[one]} for one in rounds]
        return {"start": start, "round": "a-pool", "rounds": listed}

    nodes = layout(
        {
            "base": {"start": None, "round": None},
            "rwr1": trained("base", "r1", "r1b"),
            "dpo2": trained("rwr1", "r1", "r2"),
            "off": trained("rwr1", "r1"),
        }
    )
    above = {node.name: nodes[node.parent].name if node.parent is not None else None for node in nodes}
    others = {node.name: [nodes[index].name for index in node.others] for node in nodes if node.others}

    assert above == {
        "base": None, "r1": "base", "rwr1": "r1", "r2": "rwr1", "dpo2": "r2", "off": "r1", "r1b": "base",
    }  # fmt: skip
    assert others == {"rwr1": ["r1b"], "dpo2": ["r1"], "off": ["rwr1"]}


def test_a_policy_whose_start_was_not_evaluated_still_has_its_place():
    names = [node.name for node in layout({"rwr2": {"start": "rwr1", "round": "r2", "objective": "rwr"}})]

    assert names == ["rwr1", "r2", "rwr2"]


# In a browser

RED, BLUE = (180, 20, 40), (20, 60, 190)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> str:
    """Address of a gallery whose base is red and whose rwr1 is blue."""
    home = tmp_path_factory.mktemp("gallery")
    found = make_sets(home, 12, colours=(RED, BLUE))
    torn = home / "rwr1/samples/videos/eval-p1-000.mp4"
    torn.write_bytes(bytes(torn.stat().st_size))
    (home / "rwr1/samples/videos/eval-p2-000.mp4").unlink()
    asked = Asked(HOSTILE, "accept", f"does it fall {HOSTILE}", "Accept", "Reject", False, True)
    write_rows(home / "rwr1/labels/judge/questions.parquet", [asked], Asked)
    write_page(summary_of(found), found, {}, None, home / "out")
    return (home / "out/gallery.html").as_uri()


def colour_of(film: Locator) -> np.ndarray:
    """Mean colour of what an element looks like, without its edge."""
    picture = Image.open(io.BytesIO(film.screenshot())).convert("RGB")
    return np.asarray(picture)[8:-8, 8:-8].mean((0, 1))


def film(tab: Page, policy: str, row: int) -> Locator:
    return tab.locator(f'[data-clip="{policy}/{row}"] .film')


def wait_until_playing(tab: Page, selector: str) -> None:
    wait_until(tab, f"document.querySelector('{selector} video')?.currentTime > 0")


def test_the_first_frame_stands_before_the_clips_of_its_prompt_where_there_is_one(chromium, tmp_path):
    sets = make_sets(tmp_path / "runs", prompts=2)
    (tmp_path / "none").mkdir()
    write_gallery(["judge"], sets, None, tmp_path / "none")
    assert not (tmp_path / "none/first").exists() and "first" not in (tmp_path / "none/data/clips.js").read_text()
    first = tmp_path / "runs/rwr1/samples/first/p1.png"
    first.parent.mkdir()
    first.write_bytes(png_bytes(np.full((32, 32, 3), (200, 0, 0), np.uint8)))
    (tmp_path / "out").mkdir()
    write_gallery(["judge"], sets, None, tmp_path / "out")
    assert (tmp_path / "out/first/p1.png").read_bytes() == first.read_bytes()

    tab = chromium.new_page()
    tab.goto((tmp_path / "out/gallery.html").as_uri())
    assert tab.locator("#head span").all_text_contents() == ["first frame", "base", "rwr1"]
    rows = tab.locator(".row")
    expect(rows.nth(0).locator(".film").first).to_have_text("no first frame")
    assert rows.nth(1).locator(".film img").evaluate("one => one.naturalWidth") == 32
    boxes = [rows.nth(1).locator(".film").nth(place).bounding_box() for place in range(3)]
    assert len({(box["width"], box["height"], box["y"]) for box in boxes}) == 1
    rows.nth(1).locator(".tile").first.click()
    expect(tab.locator("dialog .film img")).to_be_visible()


def test_clips_play_where_the_mouse_is_in_their_own_colours(chromium, gallery):
    tab = chromium.new_page()
    tab.goto(gallery)
    expect(film(tab, "rwr1", 0).locator("canvas")).to_have_attribute("width", "64")
    expect(tab.locator("video")).to_have_count(0)

    film(tab, "base", 0).hover()
    for policy, colour in (("base", RED), ("rwr1", BLUE)):
        wait_until_playing(tab, f'[data-clip="{policy}/0"]')
        assert abs(colour_of(film(tab, policy, 0)) - colour).max() < 8
    tab.hover("#count")
    expect(tab.locator("video")).to_have_count(0)
    assert abs(colour_of(film(tab, "rwr1", 0)) - BLUE).max() < 8  # its first frame stays


def test_filters_leave_what_fits_and_say_when_nothing_does(chromium, gallery):
    tab = chromium.new_page()
    tab.goto(gallery)
    count = tab.locator("#count")
    expect(count).to_have_text("24 of 24 clips")
    tab.select_option("[name=judge]", "judge")
    tab.select_option("[name=verdict]", "true")
    expect(count).to_have_text("12 of 24 clips")
    tab.select_option("[name=category]", "falling")
    tab.select_option("[name=split]", "test")
    expect(count).to_have_text("3 of 24 clips")
    tab.fill("[name=text]", "p3 ALERT")
    expect(count).to_have_text("1 of 24 clips")
    tab.uncheck('[name="policy:rwr1"]')
    expect(count).to_have_text("0 of 24 clips")
    expect(tab.locator("#clips")).to_contain_text("No clip fits these filters.")

    tab.goto(tab.url.replace("gallery.html", "gallery.html?again"))  # the address keeps them
    expect(count).to_have_text("0 of 24 clips")
    tab.click("#empty button")
    expect(count).to_have_text("24 of 24 clips")
    tab.select_option("[name=sort]", "down")
    expect(tab.locator(".row h3 span").first).to_have_text(re.compile("eval-p11-000$"))
    tab.check("[name=disagree]")
    expect(count).to_have_text("0 of 24 clips")  # physics labels nothing, so it contradicts no judge


def test_a_click_shows_the_judges_own_words_as_words(chromium, gallery):
    tab = chromium.new_page(viewport={"width": 1280, "height": 1600})
    alarms = []
    tab.on("dialog", lambda alert: alarms.append(alert.dismiss()))
    tab.goto(gallery)
    film(tab, "rwr1", 3).click()  # p11, after p0, p1 and p10
    dialog = tab.locator("dialog[open]")
    expect(dialog.locator("dl").first).to_be_visible()
    assert "raw words" not in dialog.inner_text()  # of several questions the answers come first
    dialog.locator("summary").click()
    text = dialog.inner_text()

    assert f"raw words 11 {HOSTILE}" in text
    assert f"because {HOSTILE}" in text
    for words in ("judge: accepted", "physics: unlabelled", "0.8571428571428571", "v1", "0, 4, 8", "85", "0.25"):
        assert words in text
    assert f"✗ Accept, p(Accept) 0.86: does it fall {HOSTILE}" in text  # Reject is wanted
    wait_until_playing(tab, "dialog")
    expect(tab.locator("script:not([src])")).to_have_count(0)
    assert not alarms
    assert tab.locator(".row h3").first.inner_text().startswith(HOSTILE)

    dialog.locator("button").first.click()
    expect(tab.locator("dialog[open]")).to_have_count(0)


def test_a_clip_that_cannot_be_played_says_so_and_leaves_the_others_alone(chromium, gallery):
    tab = chromium.new_page(viewport={"width": 1280, "height": 1600})
    tab.goto(gallery)
    for row in (1, 4):  # p1 is torn, p2 is missing: p10 and p11 stand between them
        expect(film(tab, "rwr1", row)).to_have_text("This clip cannot be played.")
    wait_until(tab, "[...document.querySelectorAll('.film:not(:has(em)) canvas')].every(canvas => canvas.width == 64)")
    expect(tab.locator(".film em")).to_have_count(2)
    film(tab, "base", 1).hover()
    wait_until_playing(tab, '[data-clip="base/1"]')


def fits(tab: Page) -> bool:
    """Whether the page is no wider than the window."""
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_a_phone_a_tap_plays_and_a_second_one_opens(chromium, gallery):
    tab = chromium.new_page(viewport=PHONE, has_touch=True)
    tab.goto(gallery)
    assert fits(tab)
    assert not tab.evaluate("document.getElementById('filters').open")
    film(tab, "base", 0).tap()
    wait_until_playing(tab, '[data-clip="base/0"]')
    expect(tab.locator("dialog[open]")).to_have_count(0)
    film(tab, "base", 0).tap()
    expect(tab.locator("dialog[open] dl").first).to_be_visible()


def test_the_report_fits_a_phone_in_both_themes(chromium, page):
    for theme in ("light", "dark"):
        tab = chromium.new_page(viewport=PHONE, color_scheme=theme)
        tab.goto((page / "index.html").as_uri())

        assert fits(tab)
        pictures = tab.evaluate(
            "[...document.querySelectorAll('picture img')].map(i => [i.currentSrc, i.naturalWidth])"
        )
        assert pictures and all(source.endswith(f"-{theme}.svg") and width > 0 for source, width in pictures)


def test_the_columns_of_a_text_table_end_below_their_titles(summary):
    *tables, found, warned = as_text(summary).split("\n\n")

    assert len(tables) == 4  # of two judges, of p_accept's means, of how far the judges agree
    titles, _, rwr1 = tables[0].split("\n")
    first = rwr1.index("100.0 [72.4, 100.0]") + len("100.0 [72.4, 100.0]")
    assert titles[:first].endswith(" all") and len(titles.split("−")[0]) < len(rwr1)
    assert re.search(r"rwr1 +100\.0 \[72\.4, 100\.0\].*\+100\.0 \[\+49\.0, \+100\.0\] ▲", tables[0])
    assert "better than base: rwr1" in found and warned.startswith("Warning: ")
