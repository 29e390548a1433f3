"""Entries of further training seeds: what is repeated, what is shared, and what a check says of them."""

import copy

import pytest

from pipeline.graph import validate_graph
from pipeline.params import ParamsError
from pipeline.replicates import chains, check_seeds, expanded, originals, policies_by_seed
from rl.objectives import OBJECTIVES
from tests.support.defaults import default_params


@pytest.fixture
def params():
    """The default run with a pool, a comparison on round 2, a selected, an online and an extended policy."""
    found = default_params()
    found["rounds"] |= {"r1b": {"policy": "base"}, "r3": {"policy": "rwr1-selected"}}
    found["pools"] = {"both": ["r1", "r1b"], "later": ["both", "r2"], "all": ["later", "r3"]}
    sampled = {"noise": 0.6, "pairs_per_prompt": 2, "window": 4}
    found["dense"] = {
        "d1": {"round": "r1", "policy": "base"} | sampled,
        "d2": {"round": "r2", "policy": "rwr1"} | sampled,
    }
    found["policies"]["dense2"] = {"start": "rwr1", "round": "d2", "objective": "dense_dpo"}
    found["policies"]["rwr3"] = {"start": "rwr1-selected", "round": "all", "objective": "rwr"}
    found["policies"]["dpo1b"] = {"start": "base", "round": "both", "objective": "dpo"}
    compared = {"rwr2-physics": {"start": "rwr1", "round": "r2", "objective": "rwr", "source": "physics"}}
    found["comparison"] = {"rounds": ["r1", "r2"], "sources": ["physics"], "policies": compared}
    online = {"start": "rwr1", "recipe": "ask-a-video", "judge": "second", "held_out": "judge"}
    found["online"]["policies"] = {"ask1": online}
    text = {"prompts": "configs/prompt_sets/tabletop.csv", "template": "{prompt}"}
    found["extend"] = {"base-long": {"policy": "base", **text}, "rwr2-long": {"policy": "rwr2", **text}}
    found["select"]["policies"] = ["rwr1"]
    found["evaluate"]["policies"] = ["base", "rwr1", "rwr1-selected", "rwr3", "ask1", "base-long", "rwr2-long"]
    return found


def test_a_chain_is_repeated_as_a_whole_and_what_base_made_is_shared(params):
    found = expanded(params, [1, 2])

    assert found["policies"]["rwr1-s2"] == {"start": "base", "round": "r1", "objective": "rwr", "seed": 2, "of": "rwr1"}
    assert found["rounds"]["r2-s2"] == {"policy": "rwr1-s2", "of": "r2"}
    assert found["policies"]["rwr2-s2"] == (
        {"start": "rwr1-s2", "round": "r2-s2", "objective": "rwr", "seed": 2, "of": "rwr2"}
    )
    assert not {"r1-s2", "r1b-s2"} & found["rounds"].keys() and "d1-s2" not in found["dense"]
    assert found["dense"]["d2-s2"] == params["dense"]["d2"] | {"round": "r2-s2", "policy": "rwr1-s2", "of": "d2"}
    assert found["policies"]["dense2-s2"]["round"] == "d2-s2"
    assert found["pools"].keys() - params["pools"].keys() == {"later-s2", "all-s2"}
    assert found["pools"]["all-s2"] == ["later-s2", "r3-s2"] and found["pools"]["later-s2"] == ["both", "r2-s2"]
    assert found["policies"]["dpo1b-s2"]["round"] == "both"


def test_what_is_made_of_a_repeated_policy_is_repeated_too(params):
    found = expanded(params, [1, 2])

    compared, online = found["comparison"]["policies"]["rwr2-physics-s2"], found["online"]["policies"]["ask1-s2"]
    assert (compared["start"], compared["round"], compared["source"]) == ("rwr1-s2", "r2-s2", "physics")
    assert (online["start"], online["seed"], online["recipe"]) == ("rwr1-s2", 2, "ask-a-video")
    assert found["comparison"]["rounds"] == ["r1", "r2", "r2-s2"]
    assert found["select"]["policies"] == ["rwr1", "rwr1-s2"]
    assert found["rounds"]["r3-s2"]["policy"] == "rwr1-s2-selected"
    assert found["policies"]["rwr3-s2"]["start"] == "rwr1-s2-selected"
    assert found["extend"].keys() == {"base-long", "rwr2-long", "rwr2-long-s2"}
    assert found["evaluate"]["policies"] == [
        "base", "rwr1", "rwr1-s2", "rwr1-selected", "rwr1-s2-selected", "rwr3", "rwr3-s2", "ask1", "ask1-s2",
        "base-long", "rwr2-long", "rwr2-long-s2",
    ]  # fmt: skip
    validate_graph(found, OBJECTIVES)


def test_without_its_replicates_every_params_is_as_before(params):
    given = copy.deepcopy(params)
    for seeds in ([1], [1, 2], [7, 0, 3]):
        assert originals(expanded(params, seeds)) == given | {"seeds": seeds}
    assert expanded(params, [1]) == given and params == given


def test_a_policy_with_a_seed_of_its_own_is_one_policy(params):
    """And what is made from it is made from it alone, as from base."""
    params["policies"]["rwr1"]["seed"] = 5
    found = expanded(params, [1, 2])

    assert "rwr1-s2" not in found["policies"] and "r2-s2" not in found["rounds"]
    assert found["policies"]["rwr2-s2"] | {} == (
        {"start": "rwr1", "round": "r2", "objective": "rwr", "seed": 2, "of": "rwr2"}
    )


def test_entries_of_one_s_own_may_be_named_like_replicates(params):
    params["policies"]["rwr1-s9"] = {"start": "base", "round": "both", "objective": "rwr"}
    params["pools"]["both-s9"] = ["r1b", "r1"]

    assert originals(params) == params
    with pytest.raises(ParamsError, match="policies.rwr1-s9 is an entry of your own"):
        expanded(params, [1, 9])


def test_seeds_are_different_whole_numbers():
    assert check_seeds([3, 0]) == [3, 0]
    for wrong in ([], [1, 1], [True], ["2"], [1.0], [-1], 3, None):
        with pytest.raises(ParamsError, match="expected different whole numbers"):
            check_seeds(wrong)


def test_entries_that_are_not_those_of_the_seeds_are_refused(params):
    def edited(change) -> dict:
        found = expanded(params, [1, 2])
        change(found)
        return found

    for change, named in (
        (lambda found: found.update(seeds=[1]), "rounds.r2-s2"),
        (lambda found: found.update(seeds=[1, 2, 3]), "rounds.r2-s3"),
        (lambda found: found["policies"].pop("rwr2-s2"), "policies.rwr2-s2; run"),
        (lambda found: found["policies"]["rwr2"].update(objective="sft"), "policies.rwr2-s2; run"),
        (lambda found: found["policies"]["rwr2-s2"].update(seed=4), "policies.rwr2-s2; run"),
        (lambda found: found["pools"]["all-s2"].reverse(), "pools.all-s2; run"),
        (lambda found: found["evaluate"]["policies"].remove("rwr3-s2"), "evaluate.policies: rwr3-s2; run"),
        (lambda found: found["policies"].pop("sft1"), "policies.sft1-s2; run"),
    ):
        with pytest.raises(ParamsError, match=named) as refused:
            validate_graph(edited(change), OBJECTIVES)
        assert refused.value.message.endswith("run vfrl seeds"), refused.value.message
    validate_graph(edited(lambda found: found["evaluate"]["policies"].reverse()), OBJECTIVES)
    with pytest.raises(ParamsError, match=r"\['rwr1'\] is unknown"):
        validate_graph(edited(lambda found: found["evaluate"]["policies"].append(["rwr1"])), OBJECTIVES)


def in_parts(params: dict) -> tuple:
    trained = params["policies"] | params["comparison"]["policies"] | params["online"]["policies"]
    return trained, params["extend"], params["select"]["policies"]


def test_evaluated_policies_are_grouped_by_seed(params):
    found = expanded(params, [1, 2, 3])
    grouped = policies_by_seed(found["evaluate"]["policies"], *in_parts(found), found["seeds"])

    assert list(grouped) == ["rwr1", "rwr1-selected", "rwr3", "ask1", "rwr2-long"]
    assert grouped["rwr3"] == {1: "rwr3", 2: "rwr3-s2", 3: "rwr3-s3"}
    assert grouped["rwr1-selected"] == {1: "rwr1-selected", 2: "rwr1-s2-selected", 3: "rwr1-s3-selected"}
    assert policies_by_seed(params["evaluate"]["policies"], *in_parts(params), [1]) == {}


def test_a_policy_comes_from_its_starts_and_from_what_sampled_its_rounds(params):
    params["policies"]["off"] = {"start": "base", "round": "later", "objective": "rwr"}
    found = expanded(params, [1, 2])
    made_from = chains(*in_parts(found), found["rounds"], found["dense"], found["pools"])

    assert made_from["rwr2-s2"] == {"rwr2-s2", "rwr1-s2", "base"}
    assert made_from["off-s2"] == {"off-s2", "rwr1-s2", "base"}  # by way of later-s2 and r2-s2
    assert made_from["dense2-s2"] == {"dense2-s2", "rwr1-s2", "base"}
    assert made_from["rwr3"] == {"rwr3", "rwr1-selected", "rwr1", "base"}
    assert made_from["rwr2-long"] == {"rwr2-long", "rwr2", "rwr1", "base"}
