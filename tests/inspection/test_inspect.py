"""Looking into labels and datasets from the shell."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from commands.inspect import main
from data.manifest import write_manifest
from data.pools import write_pool
from data.records import Sample, Weighted, read_rows, write_rows
from data.store import ClipSet
from data.video import prompt_caption
from inspection.difference import difference
from inspection.pictures import caption_of, write_clip_page, write_sheet
from inspection.view import CaptionedClip, captioned_clips, disagreeing, of_prompt, open_view, sort, where
from report.text import aligned, histogram
from tests.support.first_frames import with_first_frames
from tests.support.labelled import JUDGE, make_dense, make_labels, make_round, make_samples

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Path:
    """Do not write into it."""
    return make_round(tmp_path_factory.mktemp("runs") / "r1")


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """Do not write into it."""
    return make_dense(tmp_path_factory.mktemp("runs") / "d1")


@pytest.fixture(scope="module")
def judge(round_):
    return open_view(round_ / "labels/judge")


def ids(view) -> list[str]:
    return list(view.rows["sample_id"])


def run(*words) -> str:
    """What the command prints when it succeeds."""
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.output


def error_of(*words) -> str:
    """The error that a command ends with, in a line."""
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return result.output


def cells(text: str, first: str) -> list[str]:
    """The cells of the first line that begins with a word."""
    return next(line.split() for line in text.splitlines() if line.startswith(first))[1:]


# Filters


def test_a_condition_chooses_clips_by_any_column(judge):
    for condition, chosen in {
        "p_accept < 0.3": ["roll1", "drop2"],  # null is not below
        "category == 'drop' and label": ["drop0", "drop1"],
        "label == False": ["roll1", "drop2"],
        "not label": ["roll1", "drop2"],
        "label.isna()": ["roll2"],
        "split == 'test' or seed == 0": ["roll0", "drop0", "drop1", "drop2"],
        "prompt.str.contains('ball')": ["roll0", "roll1", "roll2"],
        "seed in [1, 2] and 0.9 <= p_accept <= 1": ["drop1"],
        "error.str.startswith('refused')": ["roll2"],  # a column of the verdicts
        "verdict_reason.notna() and question == 'fulfilled' and p_yes > 0.5": ["roll0", "drop0", "drop1"],
    }.items():
        assert ids(where(judge, condition)) == chosen, condition


def test_an_unknown_column_lists_those_there_are(judge):
    with pytest.raises(ValueError, match=r"--where: name 'accept' is not defined; columns are sample_id, .*p_yes"):
        where(judge, "accept > 0.5")


def test_what_is_no_condition_is_an_error(judge):
    for text in ("category = 'roll'", "p_accept", "p_accept >", "seed + 1", "label == 'yes' +", ""):
        with pytest.raises(ValueError, match="--where"):
            pytest.fail(f"{text!r} chose {ids(where(judge, text))}")


def test_a_condition_reaches_no_variable_of_ours(judge):
    with pytest.raises(ValueError, match="not defined"):
        where(judge, "@pd.isna(label)")


def test_an_empty_filter_says_so(judge):
    with pytest.raises(ValueError, match="none of 6 clips meet --where 'p_accept > 2'"):
        where(judge, "p_accept > 2")
    with pytest.raises(ValueError, match="none of 6 clips have the prompt id, or 'horse' in their prompt"):
        of_prompt(judge, "horse")


def test_a_prompt_is_found_by_its_id_or_its_words(judge):
    assert ids(of_prompt(judge, "p-roll")) == ids(of_prompt(judge, "BALL roll")) == ["roll0", "roll1", "roll2"]
    assert ids(of_prompt(judge, "<b>cup")) == ["drop0", "drop1", "drop2"]  # text, not a pattern


def test_sources_disagree_where_both_have_a_label_and_it_is_another(judge):
    found = disagreeing(judge, "judge", "gpt")  # roll2 and drop2 have one label each

    assert ids(found) == ["roll1", "drop0"]
    assert ids(where(found, "label_gpt")) == ["roll1"]


def test_a_source_without_labels_here_is_an_error_that_lists_those_with_labels(judge):
    with pytest.raises(ValueError, match="no labels by gemini; there are labels by gpt, judge"):
        disagreeing(judge, "judge", "gemini")


def test_rows_are_sorted_either_way_with_nulls_last(judge):
    assert ids(sort(judge, "p_accept")) == ["drop2", "roll1", "drop0", "roll0", "drop1", "roll2"]
    assert ids(sort(judge, "-p_accept")) == ["drop1", "roll0", "drop0", "roll1", "drop2", "roll2"]
    assert ids(sort(judge, "-prompt_id")) == ["roll0", "roll1", "roll2", "drop0", "drop1", "drop2"]


def test_rows_are_sorted_by_any_expression_of_columns(judge):
    for order, chosen in {
        "abs(p_accept - 0.5)": ["drop0", "roll1", "roll0", "drop1", "drop2", "roll2"],  # null last
        "-abs(p_accept - 0.45)": ["drop1", "roll0", "drop2", "roll1", "drop0", "roll2"],
        "(category == 'roll') * 10 - seed": ["drop2", "drop1", "drop0", "roll2", "roll1", "roll0"],
        "-seed * 1": ["roll2", "drop2", "roll1", "drop1", "roll0", "drop0"],  # equal ones in the order of the table
        "prompt.str.len()": ["roll0", "roll1", "roll2", "drop0", "drop1", "drop2"],
    }.items():
        assert ids(sort(judge, order)) == chosen, order


def test_a_wrong_order_lists_the_columns(judge):
    for order in ("p", "-p", "abs(p_accept", "prompt - 1", "@pd", "1 + 1", "", "p_yes"):
        with pytest.raises(ValueError, match="--sort.*columns are sample_id, .*p_accept"):
            pytest.fail(f"{order!r} gave {ids(sort(judge, order))}")


def test_a_pair_shows_its_chosen_clip_before_its_rejected_one(round_):
    rolls = where(open_view(round_ / "datasets/dpo"), "category == 'roll'")

    assert [(one.heading, one.outcome) for one in captioned_clips(rolls)] == [
        ("roll0, chosen", "margin 0.7"),
        ("roll1, rejected", "margin 0.7"),
    ]


# Folders that do not fit


def test_labels_of_other_clips_are_refused(round_, tmp_path):
    other = make_round(tmp_path / "r2")  # equal bytes but for the fact that is changed here
    manifest = other / "samples/manifest.json"
    manifest.write_text(manifest.read_text().replace('"set": "r1"', '"set": "r2"'))
    with pytest.raises(ValueError, match="labels are of another clip set than"):
        open_view(round_ / "labels/judge", other / "samples")
    with pytest.raises(ValueError, match="its 6 labels are not of the 3 clips beside them"):
        make_labels(tmp_path / "r3/labels/judge", "judge", JUDGE, other / "samples")
        shutil.copytree(other / "samples", tmp_path / "r3/samples")
        drop_rows(tmp_path / "r3/samples/metadata.parquet", "roll")
        open_view(tmp_path / "r3/labels/judge")


def drop_rows(path: Path, beginning: str) -> None:
    write_rows(path, [row for row in read_rows(path, Sample) if not row.sample_id.startswith(beginning)], Sample)


def test_the_first_frame_is_drawn_and_shown_beside_its_clip(round_, tmp_path):
    own = with_first_frames(ClipSet.open(round_ / "samples"), tmp_path / "samples").folder
    view, plain = (open_view(folder, None) for folder in (own, round_ / "samples"))
    page = write_clip_page(view.head(1), tmp_path / "page", "title").path
    assert 'src="media/p-roll.png"' in page.read_text() and (tmp_path / "page/media/p-roll.png").is_file()
    assert "<img" not in write_clip_page(plain.head(1), tmp_path / "other", "title").path.read_text()

    for name, one in (("with", view), ("without", plain)):
        write_sheet(captioned_clips(one.head(1)), tmp_path / f"{name}.png")
    wide, narrow = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("with", "without"))
    assert wide.shape[1] - narrow.shape[1] == 2 * 98  # the picture and a gap, of 96 pixels with 2 between
    assert tuple(wide[60, 40]) == (200, 0, 60) and tuple(wide[60, 150]) == (255, 255, 255)


def test_what_is_no_finished_folder_is_an_error(round_, tmp_path):
    assert "no such folder" in error_of(tmp_path / "none")
    assert f"within it there are {round_}/labels/judge" in error_of(round_ / "labels")
    assert "has no table of clips; within it there is dpo, rwr" in error_of(round_ / "datasets")
    (tmp_path / "alone").mkdir()
    shutil.copytree(round_ / "labels/judge", tmp_path / "alone/judge")
    assert "no clip set `samples` beside it or above it; name it with --set" in error_of(tmp_path / "alone/judge")
    assert "6 clips" in run(tmp_path / "alone/judge", "--set", round_ / "samples")


# What is printed


def test_the_composition_counts_labels_by_category_and_says_why_some_are_missing(round_):
    text = run(round_ / "labels/judge")

    assert "6 clips of" in text
    assert "labelled by judge (some-model, v1), rubric sheet 0123456789ab, votes: 1" in text
    assert cells(text, "roll") == ["3", "1", "1", "1", "50.0"]
    assert cells(text, "drop") == ["3", "2", "1", "0", "66.7"]
    assert cells(text, "all") == ["6", "3", "2", "1", "60.0"]
    assert "unlabelled, by reason\n1  refused" in text
    assert "1  every vote answered, and the rule decides nothing" in run(round_ / "compare/gpt/labels")
    # p_accept is 0.9, 0.2, null, 0.6, 0.95, 0.05
    bins = [int(line.split()[3]) for line in text.splitlines() if re.match(r" *[\d.]+  to", line)]
    assert bins == [1, 0, 1, 0, 0, 0, 1, 0, 0, 2]


def test_a_filter_is_counted_and_its_clips_are_listed(round_):
    text = run(round_ / "labels/judge", "--disagree", "judge", "gpt", "--where", "label_judge", "--sort", "-p_accept")

    assert "of these, 1 clips were chosen" in text
    assert "drop0  judge: accepted 0.60 (It shows: <drop0>); gpt: rejected 0.40 (It shows:…  a <b>cup" in text
    assert "roll1" not in text


def test_datasets_are_counted_by_weights_and_pairs(round_):
    rows, pairs = run(round_ / "datasets/rwr"), run(round_ / "datasets/dpo")

    assert cells(rows, "roll") == ["1", "1", "1", "1.0", "1.0"]
    assert "weight: 1 in all 1" in rows
    assert cells(pairs, "all") == ["2", "2", "2", "2", "0.8"]
    assert "prompts without a pair: 0 of 2" in pairs
    assert cells(run(round_ / "samples"), "all") == ["6", "2", "3", "3"]


def test_the_clips_that_weights_amount_to_are_shown_by_category(tmp_path):
    """roll: weights 3 and 1, (3 + 1)^2 / (9 + 1) = 1.6 of 2; all, with a prompt of one clip: 5^2 / 11 = 2.3 of 3."""
    root = make_round(tmp_path / "r1")
    rows = [Weighted("roll0", "p-roll", 1.0, 3.0), Weighted("roll1", "p-roll", 0.0, 1.0)]
    rows.append(Weighted("drop0", "p-drop", 0.0, 1.0))
    write_rows(root / "datasets/rwr/weighted.parquet", rows, Weighted)
    write_manifest(root / "datasets/rwr", "dataset", round="r1", source="judge", reward="label")
    text = run(root / "datasets/rwr")

    assert cells(text, "roll") == ["2", "2", "2", "1.6", "1.6"]
    assert cells(text, "all") == ["3", "3", "1.67", "2.3", "1.3"]


def test_prompts_without_an_accepted_clip_or_a_pair_are_listed_with_their_texts(tmp_path):
    root = make_round(tmp_path / "r1")
    assert "prompts without an accepted clip: 0 of 2" in run(root / "labels/judge")

    make_labels(root / "labels/strict", "strict", JUDGE | {"roll0": (False, 0.1, None)}, root / "samples")
    text = run(root / "labels/strict")
    assert "prompts without an accepted clip: 1 of 2\n  p-roll  2 rejected, 1 unlabelled  a ball rolls\n" in text
    assert "without an accepted" not in run(root / "labels/strict", "--where", "label == False")  # all would be listed

    counts = {
        "pairs_per_prompt": {"p-roll": 0, "p-drop": 0},
        "prompts_without_a_pair": {"p-roll": "all rejected", "p-drop": "all accepted"},
    }
    (root / "datasets/composition.json").write_text(json.dumps(counts))
    expected = (
        "without a pair: 2 of 2\n  p-roll  all rejected  a ball rolls\n  p-drop  all accepted  a <b>cup</b> drops"
    )
    assert expected in run(root / "datasets/dpo")
    shortened = run(root / "datasets/dpo", "--first", 1)
    assert "a ball rolls\n  … (--first 2 lists all)" in shortened


def test_a_histogram_puts_a_bound_into_the_upper_bin_and_shows_a_single_value_beside_many():
    lines = histogram("p", np.array([0.1] * 1000 + [0.2, 1.0]), 0.0, 1.0).splitlines()

    assert [line.split()[3] for line in lines[1:]] == ["0", "1000", "1", "0", "0", "0", "0", "0", "0", "1"]
    assert [line.count("█") for line in lines[1:]] == [0, 40, 1, 0, 0, 0, 0, 0, 0, 1]
    assert histogram("p", np.array([2.0, 2.0]), 2.0, 2.0) == "p: 2 in all 2"


def test_columns_are_flush_on_the_chosen_side():
    assert aligned([["a", "b"], ["cc", "dd"]], "lr") == "a    b\ncc  dd"


# Two label sets


def test_a_difference_is_counted_by_kind_and_category(round_):
    found = difference(round_ / "labels/judge", round_ / "compare/gpt/labels")
    text = run("diff", round_ / "labels/judge", round_ / "compare/gpt/labels", "--first", 1)

    assert list(found.changed["sample_id"]) == ["roll1", "roll2", "drop0", "drop2"]
    assert found.kappa == pytest.approx(-1 / 3)
    assert "4 of 6 labels differ" in text
    assert "Cohen's kappa -0.333" in text
    assert "category  clips  changed  accepted → rejected  rejected → accepted  rejected → unlabelled" in text
    assert cells(text, "all") == ["6", "4", "1", "1", "1", "1"]
    assert cells(text, "drop") == ["3", "2", "1", "0", "1", "0"]
    assert "rejected → accepted: 1\n  roll1" in text


def test_no_difference_and_what_cannot_be_compared(round_, tmp_path):
    judged = round_ / "labels/judge"
    assert "0 of 6 labels differ" in run("diff", judged, judged)
    assert "holds weighted; diff compares two folders of labels" in error_of("diff", judged, round_ / "datasets/rwr")
    other = make_round(tmp_path / "r2") / "samples/manifest.json"
    other.write_text(other.read_text().replace('"set": "r1"', '"set": "r2"'))
    make_labels(tmp_path / "r2/labels/judge", "judge", JUDGE, tmp_path / "r2/samples")
    assert "not the same clips" in error_of("diff", judged, tmp_path / "r2/labels/judge")


# Dense sets: two prompts of two pairs each, windows of 4 of 9 frames


def test_clips_with_one_start_name_it_and_the_other_clip_of_their_pair(dense):
    text = run(dense / "samples", "--where", "start == 'r1-roll2'")

    assert "made by base: 4 pairs, each from a clip of r1 with the last 6 solver steps (noise 0.75)" in text
    assert re.search(r"^roll2 +starts from r1-roll2, as roll3 +a ball rolls$", text, re.MULTILINE)
    assert re.search(r"^roll3 +starts from r1-roll2, as roll2 +a ball rolls$", text, re.MULTILINE)
    assert "the first 2 of 2" in text


def test_labels_of_windows_are_counted_by_category_and_by_window(dense):
    text = run(dense / "labels/physics")

    assert "16 windows (of 4 frames, the first of one more) of" in text
    assert "category  windows  accepted  rejected  unlabelled" in text
    assert cells(text, "roll") == ["8", "5", "3", "0", "62.5"]  # TT TF FT TF
    assert cells(text, "all") == ["16", "5", "9", "2", "35.7"]
    places = [line.split() for line in text.splitlines() if re.match(r" +\d +\d to", line)]
    assert places == [
        ["0", "0", "to", "4", "8", "3", "4", "1", "42.9"],  # T T F T, F null F F
        ["1", "5", "to", "8", "8", "2", "5", "1", "28.6"],  # T F T F, null F F F
    ]
    assert "p_accept: not known of any window" in text
    assert "prompts without an accepted window: 1 of 2\n  p-drop  6 rejected, 2 unlabelled" in text


def test_windows_are_chosen_by_their_clip_their_place_their_start_and_their_verdicts(dense):
    view = open_view(dense / "labels/physics")

    for condition, chosen in {
        "clip == 'roll1'": ["roll1-w0", "roll1-w1"],
        "window == 1 and label": ["roll0-w1", "roll2-w1"],
        "frames == '5 to 8' and label.isna()": ["drop0-w1"],
        "start == 'r1-drop0' and other == 'drop0' and num_frames == 5": ["drop1-w0"],
        "answer == False and prompt_id == 'p-roll'": ["roll1-w1", "roll2-w0", "roll3-w1"],
    }.items():
        assert ids(where(view, condition)) == chosen, condition
    assert re.search(
        r"^roll1-w1, frames 5 to 8 +physics: rejected \(It shows: <roll1-w1>\) +a ball rolls$",
        run(dense / "labels/physics", "--where", "clip == 'roll1'"),
        re.MULTILINE,
    )


def test_a_window_is_drawn_and_played_with_its_own_frames(dense, tmp_path):
    folder = dense / "labels/physics"
    assert "1 windows drawn" in run(folder, "--where", "clip == 'roll1' and window == 1", "--sheet", tmp_path / "w.png")
    picture = np.asarray(Image.open(tmp_path / "w.png").convert("RGB")).astype(int)
    for grey, frames in ((60, 0), (65, 4)):  # roll1's place is 1: 60 in frames 0 to 4, 65 in 5 to 8
        assert (np.abs(picture - grey).max(-1) <= 1).sum() // 96**2 == frames, grey

    page = write_clip_page(where(open_view(folder), "clip == 'roll1'"), tmp_path / "page", "title")
    shown = Page(page.path)
    assert page.clips == 2 and shown.videos == ["media/roll1-w0.mp4", "media/roll1-w1.mp4"]
    assert "roll1-w1, frames 5 to 8" in shown.text and "raw roll1-w1" in shown.text
    for name, frames in (("roll1-w0", 5), ("roll1-w1", 4)):
        with av.open(str(page.path.parent / f"media/{name}.mp4")) as container:
            assert len(list(container.decode(video=0))) == frames


def test_rows_of_dense_dpo_are_counted_by_category_and_by_latent_frame(dense):
    """Pair roll0, roll1: the first is better in frames 5 to 8. Pair roll2, roll3: the second in 0 to 4, then the first.
    5 latent frames: 0, 1 to 2, 3 to 4, 5 to 6, 7 to 8.
    """
    text = run(dense / "datasets/dense_dpo")

    assert "2 rows, dense, of round d1, source physics, reward label" in text
    assert cells(text, "roll") == ["2", "1", "10", "4", "3", "3"]
    places = [line.split() for line in text.splitlines() if re.match(r" +\d +\d", line)]
    assert places == [
        ["0", "0", "0", "1", "1"], ["1", "1", "to", "2", "0", "1", "1"], ["2", "3", "to", "4", "0", "1", "1"],
        ["3", "5", "to", "6", "2", "0", "0"], ["4", "7", "to", "8", "2", "0", "0"],
    ]  # fmt: skip
    assert (
        "pairs without a preference: 2 of 4: no latent frame differs (1), no latent frame has two labels (1)\n"
        "prompts without a pair: 1 of 2\n"
        "  p-drop  no latent frame differs (1), no latent frame has two labels (1)  a <b>cup</b> drops & breaks"
    ) in text


def test_rows_of_dense_dpo_are_chosen_by_their_latent_frames_and_drawn_pair_by_pair(dense, tmp_path):
    text = run(
        dense / "datasets/dense_dpo", "--where", "first_better > 0 and second_better > 0 and start == 'r1-roll2'",
        "--sheet", tmp_path / "pair.png",
    )  # fmt: skip

    assert re.search(r"^roll2 and roll3 +better, by latent frame: -1 -1 -1 1 1 +a ball rolls$", text, re.MULTILINE)
    assert "2 clips drawn" in text
    assert ids_of_pairs(sort(open_view(dense / "datasets/dense_dpo"), "-neither")) == ["roll0", "roll2"]
    headings = [one.heading for one in captioned_clips(open_view(dense / "datasets/dense_dpo").head(1))]
    assert headings == ["roll0, first", "roll1, second"]


def ids_of_pairs(view) -> list[str]:
    return list(view.rows["first"])


def test_windows_are_compared_with_the_same_windows_alone(dense, tmp_path):
    physics, gpt = dense / "labels/physics", dense / "labels/gpt"
    text = run("diff", physics, gpt)
    assert "1 of 16 labels differ" in text and "accepted → rejected: 1\n  roll0-w1" in text
    assert "category  windows  changed" in text
    assert ids(disagreeing(open_view(physics), "physics", "gpt")) == ["roll0-w1"]

    assert "physics is of windows of 4 frames, " in error_of(dense / "samples", "--disagree", "physics", "gpt")
    assert "--disagree is about clips, and this is a table of pairs" in error_of(
        dense / "datasets/dense_dpo", "--disagree", "physics", "gpt"
    )
    root = tmp_path / "d1"
    shutil.copytree(dense, root)
    answers = {f"{name}{clip}-w0": (True, None, None) for name in ("roll", "drop") for clip in range(4)}
    make_labels(root / "labels/long", "long", answers, root / "samples", window=8)
    assert "windows of 4 frames" in (message := error_of("diff", root / "labels/physics", root / "labels/long"))
    assert "windows of 8 frames: not the same" in message


# Other tools


def test_datasets_reads_clips_with_their_columns_by_the_recipe_though_their_names_hold_a_split(round_, tmp_path):
    from datasets import Video, load_dataset

    samples = [
        replace(one, sample_id=f"r1-train-{one.sample_id}", file_name=f"videos/r1-train-{one.sample_id}.mp4")
        for one in read_rows(round_ / "samples/metadata.parquet", Sample)
    ]
    write_rows(tmp_path / "samples/metadata.parquet", samples, Sample)
    (tmp_path / "samples/videos").mkdir()
    for one in samples:
        shutil.copyfile(round_ / "samples/videos/drop0.mp4", tmp_path / "samples" / one.file_name)

    files, cache = ["metadata.parquet", "videos/*.mp4"], str(tmp_path / "cache")
    clips = load_dataset(str(tmp_path / "samples"), data_files=files, split="train", cache_dir=cache)
    clips = clips.cast_column("video", Video(decode=False))
    assert clips["sample_id"][:] == [one.sample_id for one in samples]
    assert clips["split"][:] == ["train"] * 3 + ["test"] * 3
    assert clips[5]["video"]["path"].endswith("videos/r1-train-drop2.mp4")


# Pictures


def test_a_sheet_holds_the_chosen_clips(round_, tmp_path):
    text = run(round_ / "labels/judge", "--where", "label", "--sheet", tmp_path / "sheet.png")

    assert "3 clips drawn" in text
    run(round_ / "labels/judge", "--sort", "abs(p_accept - 0.5)", "--first", 1, "--sheet", tmp_path / "unsure.png")
    unsure = np.asarray(Image.open(tmp_path / "unsure.png")).astype(int)
    assert (np.abs(unsure - 100).max(-1) <= 1).sum() >= 9 * 96 * 96  # of drop0
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    # A clip is as grey as 40 + 20 times its place, give or take 1: roll0, drop0 and drop1 are at 0, 3 and 4.
    for value, there in ((40, True), (60, False), (80, False), (100, True), (120, True), (140, False)):
        assert ((np.abs(picture.astype(int) - value).max(-1) <= 1).sum() >= 9 * 96 * 96) == there, value
    assert "ends in .png" in error_of(round_ / "labels/judge", "--sheet", tmp_path / "sheet.pdf")


def test_a_prompt_that_the_font_cannot_write_is_named_by_its_id():
    for prompt, expected in {"a ball rolls → über α": "a ball rolls → über α", "红球": "p-roll"}.items():
        sample = replace(make_samples("roll")[0], prompt=prompt)
        assert prompt_caption(sample) == expected  # of previews and of the report's picture too
        assert caption_of(CaptionedClip(sample, Path("roll0.mp4"), "roll0", "")) == f"roll0 · {expected}"


def test_rows_of_a_pool_are_looked_at_round_by_round(tmp_path):
    both = tmp_path / "both"
    write_pool(both / "samples", [make_round(tmp_path / "r1") / "samples"], both / "samples")
    shutil.copytree(tmp_path / "r1/datasets", both / "datasets")

    assert "both/datasets/rwr: rows of a pool; look at those of its rounds, each by itself: r1" in error_of(
        both / "datasets/rwr"
    )


def torn(root: Path, clip: str) -> Path:
    """A round with a clip cut short."""
    video = make_round(root) / f"samples/videos/{clip}.mp4"
    video.write_bytes(video.read_bytes()[:200])
    return root


def test_a_corrupt_clip_is_named_and_does_not_stop(tmp_path, caplog):
    judged = torn(tmp_path / "r1", "roll1") / "labels/judge"

    assert "5 clips drawn" in run(judged, "--sheet", tmp_path / "sheet.png")
    assert "roll1 is left out" in caplog.text
    assert "roll1.mp4: not a readable video" in caplog.text
    assert "none of the clips can be decoded" in error_of(
        judged, "--where", "seed == 1 and category == 'roll'", "--sheet", "s.png"
    )


class Page(HTMLParser):
    """Sources of a page's videos, the tags in it and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.videos: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.videos += [dict(attrs)["src"]] if tag == "video" else []

    def handle_data(self, data):
        self.text += data


def test_open_writes_a_page_of_the_chosen_clips_and_opens_it_in_the_browser(tmp_path):
    judged = torn(tmp_path / "r1", "drop1") / "labels/judge"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/address\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "commands", "inspect", judged, "--prompt", "cup", "--sort", "-p_accept", "--open"]
    environment = os.environ | {"BROWSER": str(browser), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    index = Path((tmp_path / "address").read_text().strip().removeprefix("file://"))
    page = Page(index)
    assert str(index) in done.stdout
    assert "drop1 is left out" in done.stderr
    assert page.videos == ["media/drop0.mp4", "media/drop2.mp4"]
    with av.open(str(index.parent / "media/drop0.mp4")) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"  # as every browser plays it; the stored clip is yuv444p
    assert "judge: accepted 0.60 (It shows: <drop0>)" in page.text  # escaped, for it was read back as text
    assert "fulfilled, vote 0: yes, p 0.600" in page.text
    assert "raw drop0" in page.text
    assert "drop0" not in page.tags
