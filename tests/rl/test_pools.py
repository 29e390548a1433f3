"""The rows of several rounds as those of one."""

import json
import logging

import pytest

from data.manifest import read_manifest
from data.records import Pair, Sample, Weighted
from rl.objectives import OBJECTIVES, OF_ROUNDS
from rl.pools import composition_of_all, pool_tables
from rl.tables import read_table, write_tables

JUDGE = {"model": "m", "model_versions": ["v1"], "rubric": "sheet", "rubric_hash": "0f", "votes": 1}


def composition(name: str, pairs: dict[str, int], unpaired: dict[str, str], accepted: int) -> dict:
    counts = {"samples": 4, "accepted": accepted, "rejected": 4 - accepted, "unlabelled": 0, "without_reward": 0}
    return {
        "name": f"{name}/judge", "samples": 4, "weighted": 4, "pairs": sum(pairs.values()),
        "categories": {"roll": counts}, "pairs_per_prompt": pairs, "prompts_without_a_pair": unpaired,
        "reasons": {},
    }  # fmt: skip


R1 = composition("r1", {"a": 2, "b": 0, "c": 0}, {"b": "no accepted clip", "c": "no accepted clip"}, accepted=1)
R1B = composition("r1b", {"a": 1, "b": 3, "c": 0}, {"c": "no rejected clip"}, accepted=3)


@pytest.fixture
def datasets(tmp_path):
    """Writes a round's datasets, with these further facts of its labels; returns the folder."""

    def write(name: str, counts: dict = R1, scale: float = 1.0, **facts):
        ids = [f"{name}-{index}" for index in range(2)]
        samples = [Sample(i, "a", "x", "roll", "train", "base", 1, 5, 8.0, 16, 16, f"videos/{i}.mp4") for i in ids]
        weighted = [Weighted(ids[0], "a", 1.0, 1.0), Weighted(ids[1], "a", 0.0, 0.0)]
        labels = {"source": "judge", "judge": JUDGE, "reward": "label"} | facts
        folder = tmp_path / name / "datasets"
        made = {"round": name}
        write_tables(folder, samples, weighted, [Pair("a", *ids, 1.0)], counts, made, labels, {"scale": scale}, {})
        return folder

    return write


def test_rows_stand_one_round_after_the_other_and_pairs_stay_within_a_round(datasets, tmp_path):
    pool_tables(out := tmp_path / "both", "both", [datasets("r1"), datasets("r1b", R1B)])
    tables = {name: read_table(out / name, objective) for name, objective in OF_ROUNDS.items()}

    ids = ["r1-0", "r1-1", "r1b-0", "r1b-1"]
    assert [row.sample_id for row in tables["sft"].rows] == [row.sample_id for row in tables["rwr"].rows] == ids
    assert [row.weight for row in tables["rwr"].rows] == [1.0, 0.0, 1.0, 0.0]
    assert [(row.chosen, row.rejected) for row in tables["dpo"].rows] == [("r1-0", "r1-1"), ("r1b-0", "r1b-1")]
    assert tables["sft"].facts == {"round": "both"}  # it knows no judge, as a round's does not
    assert tables["rwr"].facts == {
        "round": "both", "source": "judge", "judge": JUDGE, "reward": "label", "build": {"scale": 1.0},
    }  # fmt: skip
    assert read_manifest(out, "datasets")["facts"]["source"] == "judge"


def test_the_composition_has_sums_and_the_counts_of_each_round(datasets, tmp_path):
    """b has pairs of r1b; c has none in either, for a reason each."""
    pool_tables(out := tmp_path / "both", "both", [datasets("r1"), datasets("r1b", R1B)])
    found = json.loads((out / "composition.json").read_text())

    assert (found["name"], found["samples"], found["weighted"], found["pairs"]) == ("both/judge", 8, 8, 6)
    assert found["categories"]["roll"] == {
        "samples": 8, "accepted": 4, "rejected": 4, "unlabelled": 0, "without_reward": 0,
    }  # fmt: skip
    assert found["pairs_per_prompt"] == {"a": 3, "b": 3, "c": 0}
    assert found["prompts_without_a_pair"] == {"c": "no accepted clip; no rejected clip"}
    assert found["reasons"] == {"no accepted clip; no rejected clip": 1}
    assert found["rounds"] == {
        "r1": {"samples": 4, "weighted": 4, "pairs": 2}, "r1b": {"samples": 4, "weighted": 4, "pairs": 4},
    }  # fmt: skip


def test_the_weights_of_a_pool_are_counted_over_the_clips_of_all_its_rounds(datasets, tmp_path):
    """Each round has one clip of weight 1 and one of 0, both of prompt a."""
    pool_tables(out := tmp_path / "both", "both", [datasets("r1"), datasets("r1b", R1B)])
    found = json.loads((out / "composition.json").read_text())

    assert found["weights"] == {"rwr": {"above_0": 2, "effective": 2.0, "effective_per_prompt": 2.0}}


def test_of_a_pool_in_a_pool_the_rounds_are_counted_by_themselves():
    both = composition_of_all("both", [R1, R1B])
    every = composition_of_all("all", [both, composition("r2", {"a": 5}, {}, accepted=2)])

    assert {name: counts["pairs"] for name, counts in every["rounds"].items()} == {"r1": 2, "r1b": 4, "r2": 5}
    assert (every["name"], every["pairs"], every["pairs_per_prompt"]["a"]) == ("all/judge", 11, 8)


def test_rows_that_were_made_otherwise_are_named_both(datasets, tmp_path):
    first = datasets("r1")
    for name, change, said in (
        ("gpt", {"source": "gpt"}, "source is judge and gpt"),
        ("soft", {"reward": "p_accept"}, "reward is label and p_accept"),
        ("scaled", {"scale": 0.5}, r"build is \{'scale': 1.0\} and \{'scale': 0.5\}"),
        ("asked", {"judge": JUDGE | {"rubric_hash": "1e"}}, "judge is .*0f.* and .*1e"),
    ):
        with pytest.raises(
            ValueError, match=rf"r1/datasets\S* and \S*{name}/datasets\S* cannot be .* together: {said}"
        ):
            pool_tables(tmp_path / "pool", "pool", [first, datasets(name, **change)])


def test_versions_of_a_judges_model_that_changed_between_rounds_are_a_warning(datasets, tmp_path, caplog):
    later = datasets("r1b", R1B, judge=JUDGE | {"model_versions": ["v2", "v1"]})
    with caplog.at_level(logging.WARNING):
        pool_tables(out := tmp_path / "both", "both", [datasets("r1"), later])

    assert read_table(out / "rwr", OBJECTIVES["rwr"]).facts["judge"]["model_versions"] == ["v1", "v2"]
    assert "were judged by several versions of the model: ['v1', 'v2']" in caplog.text
