"""A labelled set: labels in the order of their clips, and of these clips only."""

import shutil
from dataclasses import replace

import pytest

from data.labels import open_labels, read_samples
from data.manifest import StoreError, write_manifest
from data.records import Label, read_rows, write_rows
from tests.support.labelled import JUDGE, make_round


@pytest.fixture
def round_(tmp_path):
    return make_round(tmp_path / "r1")


def test_labels_come_in_the_order_of_the_clips_with_their_facts_and_verdicts(round_):
    samples = read_samples(round_ / "samples")[::-1]
    found = open_labels(round_ / "labels/judge", round_ / "samples", samples, verify=True)
    assert [label.sample_id for label in found.labels] == [sample.sample_id for sample in samples]
    assert found.by_id["drop0"].p_accept == 0.6 and found.source == "judge"
    assert [verdict.sample_id for verdict in found.verdicts()] == list(JUDGE)


def test_labels_that_are_not_exactly_of_the_clips_are_refused(round_):
    folder, clips = round_ / "labels/judge", round_ / "samples"
    labels = read_rows(folder / "labels.parquet", Label)
    for rows, message in (
        (labels[1:], r"labels/judge: its 5 labels are not of the 6 clips .* 1 clips without a label row \['roll0'\]"),
        ([*labels, replace(labels[0], sample_id="z")], r"its 7 labels .* 1 labels without a clip \['z'\]"),
        ([*labels, labels[0]], "labels/judge: 1 duplicate sample_id among 7 rows"),
    ):
        write_rows(folder / "labels.parquet", rows, Label)
        write_manifest(folder, "labels")
        with pytest.raises(ValueError, match=message):
            open_labels(folder, clips, read_samples(clips))
    with pytest.raises(ValueError, match="the clip set has no clip"):
        open_labels(folder, clips, [])


def test_labels_of_clips_with_the_same_ids_and_other_contents_are_refused(round_, tmp_path):
    shutil.copytree(round_ / "samples", tmp_path / "other")
    manifest = tmp_path / "other/manifest.json"
    manifest.write_text(manifest.read_text().replace('"set": "r1"', '"set": "r2"'))
    with pytest.raises(ValueError, match=r"its labels are of another clip set than .*other"):
        open_labels(round_ / "labels/judge", tmp_path / "other", read_samples(tmp_path / "other"))


def test_half_written_labels_are_refused(round_):
    (round_ / "labels/judge/manifest.json").unlink()
    with pytest.raises(StoreError, match=r"labels/judge: no manifest\.json"):
        open_labels(round_ / "labels/judge", round_ / "samples", read_samples(round_ / "samples"))
