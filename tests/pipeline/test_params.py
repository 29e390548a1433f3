"""params.yaml: sections into dataclasses, and whether its names fit together."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

import commands.preset
from commands.preset import overlay
from pipeline.graph import validate_graph
from pipeline.params import ParamsError, block, section

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Oven:
    degrees: int
    hours: float
    tin: str | None
    racks: tuple[str, ...]
    fan: bool = True


OVEN = "oven: {degrees: 180, hours: 1, tin: null, racks: [low, high]}"


@pytest.fixture
def params_file(tmp_path):
    def write(text):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write


def test_a_section_becomes_the_dataclass_with_its_types(params_file):
    oven = section("oven", Oven, params_file(OVEN))

    assert oven == Oven(degrees=180, hours=1.0, tin=None, racks=("low", "high"), fan=True)
    assert isinstance(oven.hours, float)


def test_numbers_in_scientific_notation_are_numbers_as_they_are_to_dvc(params_file):
    assert section("oven", Oven, params_file(OVEN.replace("hours: 1", "hours: 1e-4"))).hours == 0.0001


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("degrees: 180", "degrees: warm"), r"oven\.degrees is 'warm', expected int; known keys are degrees, hours"),
        (("degrees: 180", "degrees: 180.5"), r"oven\.degrees is 180\.5, expected int"),
        (("degrees: 180", "degrees: true"), r"oven\.degrees is True, expected int"),
        (("degrees: 180", "degrees: null"), r"oven\.degrees is None, expected int"),
        (("tin: null", "tin: 3"), r"oven\.tin is 3, expected str \| null"),
        (("racks: [low, high]", "racks: low"), r"oven\.racks is 'low', expected tuple\[str, \.\.\.\]"),
        (("racks: [low, high]", "racks: [1]"), r"oven\.racks is \[1\]"),
        (("hours: 1, ", ""), r"oven\.hours is missing; known keys are degrees, hours, tin, racks, fan"),
        (("hours: 1", "hours: 1, houres: 2"), r"oven\.houres \(2\) is unknown; known keys are degrees, hours"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_known_keys(params_file, change, told):
    with pytest.raises(ParamsError, match=told):
        section("oven", Oven, params_file(OVEN.replace(*change)))


def test_a_section_may_hold_sections(params_file):
    @dataclass(frozen=True)
    class Kitchen:
        oven: Oven

    kitchen = f"kitchen:\n  {OVEN}"

    assert section("kitchen", Kitchen, params_file(kitchen)).oven.degrees == 180
    with pytest.raises(ParamsError, match=r"kitchen\.oven\.degrees is 'warm', expected int"):
        section("kitchen", Kitchen, params_file(kitchen.replace("180", "warm")))
    with pytest.raises(ParamsError, match=r"kitchen\.oven is 3, expected a section with the keys degrees"):
        section("kitchen", Kitchen, params_file("kitchen: {oven: 3}"))


def test_a_missing_section_is_named_with_those_that_are_there(params_file):
    path = params_file("train: {common: {}, rwr: {}}")

    with pytest.raises(ParamsError, match=r"train\.grpo is missing; in train there is: common, rwr"):
        block("train.grpo", path)


def test_a_key_that_stands_twice_is_an_error(params_file):
    with pytest.raises(ParamsError, match="duplicate"):
        block("oven", params_file("oven: {a: 1}\noven: {a: 2}"))


def test_the_check_of_a_dataclass_on_its_own_values_names_the_section(params_file):
    from generators.core.rollout import Sampling

    text = "generate: {steps: 0, guidance: 1, solver: euler, samples_per_prompt: 1, batch_size: 1, split: all, seed: 1}"

    with pytest.raises(ParamsError, match=r"generate: steps is 0, expected at least 1"):
        section("generate", Sampling, params_file(text))


# The graph

GOOD = {
    "generator": {"family": "wan"},
    "rounds": {"r1": {"policy": "base"}, "r2": {"policy": "rwr1"}},
    "policies": {
        "rwr1": {"start": "base", "round": "r1", "objective": "rwr"},
        "dpo2": {"start": "rwr1", "round": "r2", "objective": "dpo"},
    },
    "comparison": {
        "rounds": ["r1"],
        "sources": ["physics"],
        "policies": {"rwr1-physics": {"start": "base", "round": "r1", "objective": "rwr", "source": "physics"}},
    },
    "feedback": {"source": "judge", "sources": {"judge": {"kind": "qwen"}, "physics": {"kind": "physics"}}},
    "select": {"policies": ["rwr1"], "judges": ["judge", "physics"]},
    "online": {
        "policies": {"ask1": {"start": "rwr1", "recipe": "ask-a-video", "judge": "judge", "held_out": "physics"}},
        "prompt": {"recipe": "ask-a-video-test-time", "judge": "judge", "held_out": "physics"},
    },
    "extend": {"base-extended": {"policy": "base", "prompts": "set.csv", "template": "{prompt}"}},
    "evaluate": {
        "policies": ["base", "rwr1", "rwr1-physics", "rwr1-selected", "base-extended"],
        "judges": ["judge", "physics"],
    },
}


def validate(change=None):
    params = copy.deepcopy(GOOD)
    if change:
        change(params)
    validate_graph(params, families=["wan"], kinds=["qwen", "physics"], objectives=["sft", "rwr", "dpo"])


def test_a_graph_that_fits_is_accepted():
    validate()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: p["generator"].update(family="sora"), "generator.family: 'sora' is unknown; known are wan"),
        (lambda p: p["feedback"].update(source="gpt"), "feedback.source: 'gpt' is unknown; known are judge, physics"),
        (
            lambda p: p["feedback"]["sources"]["judge"].update(kind="gemni"),
            "feedback.sources.judge.kind: 'gemni' is unknown; known are qwen, physics",
        ),
        (lambda p: p["rounds"]["r2"].update(policy="ppo1"), "rounds.r2.policy: 'ppo1' is unknown; known are base,"),
        (lambda p: p["policies"]["rwr1"].update(round="r9"), "policies.rwr1.round: 'r9' is unknown; known are r1, r2"),
        (
            lambda p: p["policies"]["rwr1"].update(objective="grpo"),
            "policies.rwr1.objective: 'grpo' is unknown; known are sft, rwr, dpo",
        ),
        (
            lambda p: p["policies"]["dpo2"].update(start="base"),
            "policies.dpo2.start is base, but rwr1 made its round r2: start from rwr1",
        ),
        (lambda p: p["policies"]["rwr1"].update(beta=5), r"policies.rwr1.beta \(5\) is unknown; known keys are start"),
        (lambda p: p["policies"]["rwr1"].pop("start"), "policies.rwr1.start is None, expected a name"),
        (lambda p: p["policies"].update(rwr1=None), "policies.rwr1.start is None, expected a name"),
        (
            lambda p: p["policies"].update({"rwr1-physics": p["policies"]["rwr1"]}),
            "rwr1-physics stands in policies and in comparison.policies",
        ),
        (lambda p: p["policies"].update({"RWR 1": p["policies"]["rwr1"]}), "policies.RWR 1: a name is made of a-z"),
        (lambda p: p["policies"].update(base=p["policies"]["rwr1"]), "this name is the untrained generator's"),
        (lambda p: p["rounds"].update(eval={"policy": "base"}), "rounds.eval: runs/eval/ is no round's"),
        (lambda p: p["comparison"].update(rounds=["r7"]), "comparison.rounds: 'r7' is unknown; known are r1, r2"),
        (lambda p: p["comparison"].update(sources=["clip"]), "comparison.sources: 'clip' is unknown; known are judge"),
        (
            lambda p: p["comparison"]["policies"]["rwr1-physics"].update(round="r2", start="rwr1"),
            "comparison.policies.rwr1-physics.round: 'r2' is unknown; known are r1",
        ),
        (lambda p: p["evaluate"].update(policies=["base", "dpo7"]), "evaluate.policies: 'dpo7' is unknown; known are"),
        (lambda p: p["evaluate"].update(judges=["gpt"]), "evaluate.judges: 'gpt' is unknown; known are judge, physics"),
        (lambda p: p["evaluate"].update(policies=["rwr1"]), "evaluate.policies lacks base"),
        (lambda p: p["evaluate"].update(judges=["judge", "judge"]), "evaluate: base-judge would name two stages"),
        (lambda p: p["online"]["policies"]["ask1"].update(start="a"), "online.policies.ask1.start: 'a' is unknown"),
        (lambda p: p["online"]["policies"]["ask1"].update(judge="gpt"), "online.policies.ask1.judge: 'gpt' is unknown"),
        (lambda p: p["online"]["prompt"].update(held_out="gpt"), "online.prompt.held_out: 'gpt' is unknown"),
        (lambda p: p["online"]["policies"]["ask1"].update(round="r1"), "online.policies.ask1.round .* is unknown"),
        (lambda p: p["online"]["policies"]["ask1"].update(start="ask1"), "a cycle: ask1 starts from ask1"),
        (
            lambda p: p["online"]["policies"].update(rwr1=p["online"]["policies"]["ask1"]),
            "rwr1 stands in policies and in online.policies",
        ),
        (lambda p: p["select"].update(policies=["base"]), "select.policies: 'base' is unknown; known are rwr1, dpo2"),
        (lambda p: p["select"].update(policies=[]), "evaluate.policies: 'rwr1-selected' is unknown; known are base"),
        (lambda p: p["select"].update(policies=["rwr1", "rwr1"]), "select.policies: rwr1 stands there twice"),
        (lambda p: p["select"].update(judges=["gpt"]), "select.judges: 'gpt' is unknown; known are judge, physics"),
        (lambda p: p["select"].update(judges=["judge", "judge"]), "select.judges: judge stands there twice"),
        (lambda p: p["select"].update(judges=[]), "select.judges is empty; the first of them chooses the checkpoint"),
        (
            lambda p: (p["feedback"]["sources"].update(rate={"kind": "physics"}), p["select"].update(judges=["rate"])),
            "select.judges: rate is a name that the curve has for something else",
        ),
        (
            lambda p: p["policies"].update({"rwr1-selected": p["policies"]["rwr1"]}),
            "rwr1-selected stands in policies, but is the name that select gives to a checkpoint",
        ),
        (lambda p: p["extend"]["base-extended"].pop("template"), "extend.base-extended.template is None, expected"),
        (lambda p: p["rounds"]["r2"].update(policy="base-extended"), "rounds.r2.policy: 'base-extended' is unknown"),
        (lambda p: p["extend"].update(rwr1=p["extend"]["base-extended"]), "extend.rwr1: there is a policy of this"),
        (lambda p: p["rounds"].update(select={"policy": "base"}), "rounds.select: runs/select/ is no round's"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(change, told):
    with pytest.raises(ParamsError, match=told):
        validate(change)


def test_a_cycle_is_told_by_the_names_in_it():
    def close(params):
        params["rounds"]["r1"]["policy"] = "dpo2"
        params["policies"]["rwr1"]["start"] = "dpo2"

    with pytest.raises(ParamsError) as error:
        validate(close)

    told = "a cycle: rwr1 is trained on r1, which dpo2 makes; dpo2 is trained on r2, which rwr1 makes"
    assert str(error.value.message).count("a cycle") == 1
    assert told in error.value.message


def test_a_cycle_through_a_selected_checkpoint_is_told():
    def close(params):
        params["rounds"]["r1"]["policy"] = params["policies"]["rwr1"]["start"] = "rwr1-selected"

    with pytest.raises(ParamsError, match="a cycle: rwr1 is trained on r1, which rwr1-selected makes"):
        validate(close)


def test_a_round_may_be_made_by_a_selected_checkpoint_and_a_policy_trained_on_from_it():
    def go_on(params):
        params["rounds"]["r2"]["policy"] = params["policies"]["dpo2"]["start"] = "rwr1-selected"

    validate(go_on)


def test_all_problems_are_told_at_once():
    def break_two(params):
        params["generator"]["family"] = "sora"
        params["evaluate"]["judges"] = ["gpt"]

    with pytest.raises(ParamsError, match=r"(?s)sora.*gpt"):
        validate(break_two)


# Presets


def test_a_preset_replaces_what_it_says_and_leaves_the_rest():
    params = {"generate": {"steps": 12, "seed": 1}, "rounds": {"r1": {}, "r2": {}}, "train": {"dpo": {"beta": 1}}}

    overlay(params, {"generate": {"steps": 50}, "rounds": {"r1": {}}, "train": {"dpo": {"learning_rate": 0.1}}})

    assert params == {
        "generate": {"steps": 50, "seed": 1},
        "rounds": {"r1": {}},
        "train": {"dpo": {"learning_rate": 0.1}},  # else a rate of the default recipe would stay under the paper's
    }


def test_a_preset_keeps_the_anchors_that_a_panel_may_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    done = CliRunner().invoke(commands.preset.main, ["smoke"])
    assert done.exit_code == 0, done.output
    text = Path("params.yaml").read_text()
    assert all(f"{name}: &{name}\n" in text for name in ("judge", "physics", "gpt", "gemini", "served", "people"))


def test_a_preset_cannot_invent_a_section():
    with pytest.raises(ParamsError, match="no generate.stepps"):
        overlay({"generate": {"steps": 12}}, {"generate": {"stepps": 50}})
