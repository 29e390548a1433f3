"""What each policy took, from the figures of the stages."""

import json

import pytest

from report import figures
from report.cost import COST, UNKNOWN_COST, Cost, Entries, cost_of, costs_of, read_costs, stages_of, tables

ENTRIES = Entries(
    rounds={
        name: {"policy": by} for name, by in (("r1", "base"), ("r1b", "base"), ("r2", "rwr1"), ("r3", "rwr1-selected"))
    },
    dense={"d2": {"round": "r2", "policy": "rwr1"}},
    pools={"both": ["r1", "r1b"], "all": ["both", "r2"]},
    policies={
        "sft1": {"start": "base", "round": "r1", "objective": "sft"},
        "rwr1": {"start": "base", "round": "r1", "objective": "rwr"},
        "rwr2": {"start": "rwr1", "round": "r2", "objective": "rwr"},
        "dpo3": {"start": "rwr1", "round": "all", "objective": "dpo"},
        "rwr3": {"start": "rwr1-selected", "round": "r3", "objective": "rwr"},
        "dense2": {"start": "rwr1", "round": "d2", "objective": "dense_dpo"},
    },
    compared={"rwr1-physics": {"start": "base", "round": "r1", "objective": "rwr", "source": "physics"}},
    online={
        "ask1": {"start": "rwr1", "judge": "second", "held_out": "judge"},
        "bt1": {"start": "base", "judge": "bt", "held_out": "judge"},
    },
    selected=["rwr1"],
    select_judges=["judge", "physics"],
    extended={"rwr2-extended": {"policy": "rwr2"}},
    rewards={"bt": {"round": "both"}},
)  # fmt: skip
R1 = ["generate/r1", "label/r1"]
RWR1 = [*R1, "train/rwr1"]
CHAINS = {
    "base": [],
    "sft1": ["generate/r1", "train/sft1"],  # whose rows no judge decides
    "rwr1": RWR1,
    "rwr2": [*RWR1, "generate/r2", "label/r2", "train/rwr2"],
    # r1 is of the start and of the pool, and counts once
    "dpo3": [*RWR1, "generate/r1b", "label/r1b", "generate/r2", "label/r2", "train/dpo3"],
    "dense2": [*RWR1, "generate/r2", "generate-dense/d2", "label-dense/d2", "train/dense2"],  # r2 needs no labels
    "rwr1-physics": ["generate/r1", "label-compare/r1-physics", "train-compare/rwr1-physics"],
    "ask1": [*RWR1, "online/ask1"],
    "bt1": [*R1, "generate/r1b", "label/r1b", "reward/bt", "online/bt1"],
    "rwr1-selected": [*RWR1, "generate-select/rwr1", "label-select/rwr1-judge"],
    "rwr3": [
        *RWR1, "generate-select/rwr1", "label-select/rwr1-judge", "generate/r3", "label/r3", "train/rwr3",
    ],
    "rwr2-extended": [*RWR1, "generate/r2", "label/r2", "train/rwr2"],
}  # fmt: skip
COSTS = {
    "generate/r1": Cost(clips=10, forwards=80, decodes=10, seconds=5.0),
    "label/r1": Cost(judge_calls=20, usd=0.5, seconds=2.0),
    "train/rwr1": Cost(forwards=100, backwards=100, seconds=7.0, accelerator_seconds=14.0),
    "generate/r2": Cost(clips=10, forwards=80, decodes=10, seconds=5.0),
    "label/r2": Cost(judge_calls=20, usd=0.25, seconds=2.0),
    "train/rwr2": Cost(forwards=200, backwards=200, seconds=9.0, accelerator_seconds=9.0),
    "eval-generate/base": Cost(clips=4, forwards=64, decodes=4, seconds=1.0),
    "eval-label/base-judge": Cost(judge_calls=8, seconds=1.0),
    "eval-generate/rwr1": Cost(clips=4, forwards=64, decodes=4, seconds=1.0),
    "eval-label/rwr1-judge": Cost(judge_calls=8, seconds=3.0),
}


def test_a_policy_comes_from_its_whole_chain_and_from_each_stage_once():
    for policy, chain in CHAINS.items():
        assert stages_of(ENTRIES, policy) == chain, policy


def test_the_cost_of_two_rounds_by_hand():
    assert cost_of(ENTRIES, COSTS, "rwr2") == Cost(
        clips=10 + 10, judge_calls=20 + 20, usd=0.5 + 0.25, forwards=80 + 100 + 80 + 200, backwards=100 + 200,
        decodes=10 + 10, seconds=5.0 + 2 + 7 + 5 + 2 + 9, accelerator_seconds=14.0 + 9,
    )  # fmt: skip
    assert cost_of(ENTRIES, COSTS, "base") == Cost(0, 0, 0.0, 0, 0, 0, 0.0, 0.0)


def test_a_later_policy_took_no_less_than_its_start():
    for policy, entry in ENTRIES.policies.items():
        if all(stage in COSTS for stage in CHAINS[policy]):
            start, own = (cost_of(ENTRIES, COSTS, name) for name in (entry["start"], policy))
            assert all(mine >= before for mine, before in zip(own, start, strict=True)), policy


def test_what_is_not_known_is_none_and_never_0():
    unpriced = COSTS | {"label/r2": COSTS["label/r2"]._replace(usd=None)}
    assert cost_of(ENTRIES, unpriced, "rwr2") == cost_of(ENTRIES, COSTS, "rwr2")._replace(usd=None)
    assert cost_of(ENTRIES, unpriced, "rwr1").usd == 0.5
    assert cost_of(ENTRIES, COSTS, "dpo3") == UNKNOWN_COST  # r1b has no figures


def test_stages_of_an_older_version_have_no_cost(tmp_path):
    for name, document in {
        "generate/r1": {"clips": 10},
        "label/r1": {"samples": 10, COST: {"judge_calls": 10, "usd": None, "seconds": 1.5}},
        "build/r1": [1],
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "evaluate.json").write_text("{}")
    assert read_costs(tmp_path) == {"label/r1": UNKNOWN_COST._replace(judge_calls=10, seconds=1.5)}


GAP = {"diff": 0.125, "low": 0.05, "high": 0.2}
POLICIES = {
    "base": {"accept": {"judge": {}}},
    "rwr1": {"accept": {"judge": {}}, "minus_base": {"judge": {"all": GAP}}},
    "dpo3": {"accept": {"judge": {}}, "minus_base": {"judge": {"all": GAP}}},
    "base best of 4 by judge": {
        "accept": {"judge": {}},
        "minus_base": {"judge": {"all": GAP | {"low": -0.05}}},
        "baseline": {"kind": "best_of", "of": "base", "judge": "judge", "n": 4, "samples_per_clip": 4},
    },
}


@pytest.fixture
def summary():
    return {"policies": POLICIES, "costs": costs_of(ENTRIES, COSTS, POLICIES, ["judge"])}


def test_making_evaluation_and_a_clip_are_apart_and_best_of_n_pays_for_each_clip(summary):
    costs = summary["costs"]
    assert costs["rwr1"]["making"] == cost_of(ENTRIES, COSTS, "rwr1")._asdict()
    assert costs["rwr1"]["evaluation"] == Cost(clips=4, judge_calls=8, forwards=64, decodes=4, seconds=4.0)._asdict()
    assert costs["rwr1"]["a_clip"] == {"forwards": 16, "judge_calls": 0}  # 64 forwards of 4 clips
    best = costs["base best of 4 by judge"]
    assert best["making"] == Cost()._asdict() == best["evaluation"]
    assert best["a_clip"] == {"forwards": 4 * 16, "judge_calls": 4 * 2}
    assert costs["dpo3"]["a_clip"] == {"forwards": None, "judge_calls": 0}


def test_the_best_of_n_of_a_trained_policy_took_what_the_policy_took_and_a_clip_n_times_as_much():
    how = {"kind": "best_of", "of": "rwr1", "judge": "judge", "n": 4, "samples_per_clip": 4}
    policies = POLICIES | {"rwr1 best of 4 by judge": POLICIES["rwr1"] | {"baseline": how}}
    best = costs_of(ENTRIES, COSTS, policies, ["judge"])["rwr1 best of 4 by judge"]

    assert best["making"] == cost_of(ENTRIES, COSTS, "rwr1")._asdict()
    assert best["evaluation"] == Cost()._asdict()
    assert best["a_clip"] == {"forwards": 4 * 16, "judge_calls": 4 * 2}


def test_the_table_has_units_the_gain_and_a_dash_for_the_unknown(summary):
    made, evaluated = tables(summary)
    rows = {row.name: {column: cell.text for column, cell in row.cells.items()} for row in made.rows}
    assert rows["rwr1"] == {
        "clips sampled": "10", "judge calls": "20", "paid, $": "0.50", "forwards": "180", "backwards": "100",
        "VAE decodes": "10", "time, s": "14", "accelerators, s": "14", "judge − base": "+12.5",
        "forwards a clip": "16", "judge calls a clip": "0",
    }  # fmt: skip
    assert rows["dpo3"]["forwards"] == "–" and rows["dpo3"]["judge − base"] == "+12.5"
    assert rows["base"]["forwards"] == "0" and made.columns[0] == "judge − base"
    verdicts = {row.name: row.cells["judge − base"].verdict for row in made.rows if "judge − base" in row.cells}
    assert verdicts == {"rwr1": "better", "dpo3": "better", "base best of 4 by judge": "open"}
    assert [row.name for row in evaluated.rows] == ["base", "rwr1"]


def test_a_run_without_any_cost_has_no_table_and_no_figure(summary):
    unknown = {"policies": POLICIES, "costs": costs_of(ENTRIES, {}, {"rwr1": POLICIES["rwr1"]}, ["judge"])}
    assert tables(unknown) == tables({"policies": POLICIES}) == []
    assert not figures.has_costs(unknown) and figures.has_costs(summary)


def test_the_figure_names_the_policies_whose_forwards_are_known(summary):
    for theme in figures.THEMES:
        svg = figures.gain_by_cost(summary, theme)
        assert "rwr1" in svg and "best of 4" in svg and "dpo3" not in svg
