"""params.yaml: how sections are read, whether its names fit together, and presets."""

import copy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dvc.utils.hydra import apply_overrides
from pydantic.dataclasses import dataclass

import pipeline.params
from commands.preset import PRESETS, main, overlay
from data.config import STRICT
from pipeline.graph import off_policy_rounds, rounds_of, validate_graph
from pipeline.params import ParamsError, aliases, block, load_params, section
from tests.support.defaults import DEFAULTS, default_params


@dataclass(frozen=True, config=STRICT)
class Oven:
    degrees: int
    hours: float


@pytest.fixture
def params_file(tmp_path):
    def write(text):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write


def test_numbers_in_scientific_notation_are_numbers_as_they_are_to_dvc(params_file):
    assert section("oven", Oven, params_file("oven: {degrees: 180, hours: 1e-4}")).hours == 0.0001


def values_below(where: str, values: dict) -> dict[str, Any]:
    """Texts and numbers by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = values_below(f"{where}.{key}", value) if isinstance(value, dict) else {f"{where}.{key}": value}
        found |= inner
    return found


def test_a_value_of_dvc_exp_run_s_is_taken_for_every_key_of_every_source_and_changes_no_other(params_file):
    path = params_file(DEFAULTS.read_text(encoding="utf-8"))
    before = values_below("feedback", load_params(path)["feedback"])
    asked = {
        key: "[second]" if isinstance(value, list) else "16" if isinstance(value, int) else "other"
        for key, value in before.items()
    }
    assert {"feedback.sources.judge.batch_size", "feedback.sources.panel.members"} < asked.keys()
    apply_overrides(path, [f"{key}={value}" for key, value in asked.items()])
    after = values_below("feedback", load_params(path)["feedback"])
    wanted = {
        key: ["second"] if value == "[second]" else 16 if value == "16" else value for key, value in asked.items()
    }
    assert after == before | wanted
    assert load_params(path)["train"] == default_params()["train"]


def test_an_alias_is_noted_since_dvc_loses_what_is_set_in_it(params_file):
    text = "a: &judge {batch: 8}\nb: *judge\nc: a * b\n"
    path = params_file(text)
    apply_overrides(path, ["a.batch=16"])
    assert load_params(path)["a"] == {"batch": 8}  # DVC's, not ours
    (note,) = aliases(params_file(text))
    assert "params.yaml, line 2: *judge repeats a block" in note
    assert aliases(params_file("a: {batch: 8}\nb: a * b\n")) == aliases(DEFAULTS) == []


def test_a_wrong_key_is_named_with_file_section_and_known_keys(params_file):
    path = params_file("oven: {degrees: warm, hours: 1}")

    with pytest.raises(ParamsError) as error:
        section("oven", Oven, path)
    wanted = f"{path}: oven.degrees is 'warm', expected a valid integer; known keys are degrees, hours"
    assert error.value.message == wanted


def test_a_file_is_parsed_once_and_again_after_a_change(params_file):
    path = params_file("oven: {degrees: 1, hours: 1}")
    before = pipeline.params._parsed.cache_info().misses
    load_params(path)["oven"]["degrees"] = 5  # in a copy
    assert block("oven.degrees", path) == 1
    assert pipeline.params._parsed.cache_info().misses == before + 1
    assert block("oven.degrees", params_file("oven: {degrees: 2, hours: 1}")) == 2


def test_a_missing_section_is_named_with_those_that_are_there(params_file):
    path = params_file("train: {common: {}, rwr: {}}")

    with pytest.raises(ParamsError, match=r"train\.grpo is missing; in train there is: common, rwr"):
        block("train.grpo", path)


def test_a_key_that_stands_twice_is_an_error(params_file):
    with pytest.raises(ParamsError, match="duplicate"):
        block("oven", params_file("oven: {a: 1}\noven: {a: 2}"))


# The graph

BT = {"kind": "reward_model", "path": "runs/rewards/bt"}
GOOD = {
    "seeds": [1],
    "rounds": {"r1": {"policy": "base"}, "r2": {"policy": "rwr1"}},
    "pools": {},
    "dense": {},
    "policies": {
        "rwr1": {"start": "base", "round": "r1", "objective": "rwr"},
        "dpo2": {"start": "rwr1", "round": "r2", "objective": "dpo"},
    },
    "comparison": {
        "rounds": ["r1"],
        "sources": ["physics"],
        "policies": {"rwr1-physics": {"start": "base", "round": "r1", "objective": "rwr", "source": "physics"}},
    },
    "feedback": {"source": "judge", "sources": {"judge": {"kind": "qwen"}, "physics": {"kind": "physics"}, "bt": BT}},
    "select": {"policies": ["rwr1"], "judges": ["judge", "physics"]},
    "online": {
        "policies": {"ask1": {"start": "rwr1", "recipe": "ask-a-video", "judge": "judge", "held_out": "physics"}},
        "prompt": {"recipe": "ask-a-video-test-time", "judge": "judge", "held_out": "physics"},
    },
    "extend": {"base-extended": {"policy": "base", "prompts": "set.csv", "template": "{prompt}"}},
    "reward": {"models": {"bt": {"round": "r1"}}, "settings": {}},
    "preferences": {"rwr1-base": {"policy": "rwr1", "against": "base", "source": "judge"}},
    "evaluate": {
        "policies": ["base", "rwr1", "rwr1-physics", "rwr1-selected", "base-extended"],
        "judges": ["judge", "physics"],
    },
}


def validate(change=None):
    params = copy.deepcopy(GOOD)
    if change:
        change(params)
    validate_graph(params, objectives=["sft", "rwr", "dpo"])


def test_a_graph_that_fits_is_accepted():
    validate()


MISFITS = [
    (lambda p: p["feedback"].update(source="gpt"), "feedback.source: 'gpt' is unknown; known are judge, physics"),
    (lambda p: p["feedback"]["sources"].update(judge=3), "feedback.sources.judge is 3, expected a section"),
    (lambda p: p["rounds"]["r2"].update(policy="ppo1"), "rounds.r2.policy: 'ppo1' is unknown; known are base,"),
    (lambda p: p["policies"]["rwr1"].update(round="r9"), "policies.rwr1.round: 'r9' is unknown; known are r1, r2"),
    (
        lambda p: p["policies"]["rwr1"].update(objective="grpo"),
        "policies.rwr1.objective: 'grpo' is unknown; known are sft, rwr, dpo",
    ),
    (lambda p: p["policies"]["rwr1"].update(beta=5), "policies.rwr1.beta (5) is unknown; known keys are start"),
    (lambda p: p["policies"]["rwr1"].pop("start"), "policies.rwr1.start is missing; known keys are start"),
    (lambda p: p["policies"].update(rwr1=None), "policies.rwr1 is None, expected a section"),
    (
        lambda p: p["policies"].update({"rwr1-physics": p["policies"]["rwr1"]}),
        "rwr1-physics is a name in policies and in comparison.policies",
    ),
    (lambda p: p["policies"].update({"RWR 1": p["policies"]["rwr1"]}), "policies.RWR 1: a name is made of a-z"),
    (
        lambda p: p["policies"].update(base=p["policies"]["rwr1"]),
        "policies.base: this name belongs to the untrained generator",
    ),
    (lambda p: p["rounds"].update(eval={"policy": "base"}), "rounds.eval: runs/eval/ is used otherwise"),
    (lambda p: p["comparison"].update(rounds=["r7"]), "comparison.rounds: 'r7' is unknown; known are r1, r2"),
    (lambda p: p["comparison"].update(sources=["clip"]), "comparison.sources: 'clip' is unknown; known are judge"),
    (
        lambda p: p["comparison"]["policies"]["rwr1-physics"].update(round="r2", start="rwr1"),
        "comparison.policies.rwr1-physics.round: 'r2' is unknown; known are r1",
    ),
    (lambda p: p["evaluate"].update(policies=["base", "dpo7"]), "evaluate.policies: 'dpo7' is unknown; known are"),
    (lambda p: p["evaluate"].update(judges=["gpt"]), "evaluate.judges: 'gpt' is unknown; known are judge, physics"),
    (lambda p: p["evaluate"].update(policies=["rwr1"]), "evaluate.policies lacks base"),
    (lambda p: p["evaluate"].update(judges=["judge", "judge"]), "evaluate: two stages would be named base-judge"),
    (lambda p: p["online"]["policies"]["ask1"].update(start="a"), "online.policies.ask1.start: 'a' is unknown"),
    (lambda p: p["online"]["policies"]["ask1"].update(judge="gpt"), "online.policies.ask1.judge: 'gpt' is unknown"),
    (lambda p: p["online"]["prompt"].update(held_out="gpt"), "online.prompt.held_out: 'gpt' is unknown"),
    (lambda p: p["online"]["prompt"].update(also=["gpt"]), "online.prompt.also: 'gpt' is unknown"),
    (lambda p: p["online"]["policies"]["ask1"].update(round="r1"), "online.policies.ask1.round ('r1') is unknown"),
    (lambda p: p["online"]["policies"]["ask1"].update(start="ask1"), "a cycle: ask1 starts from ask1"),
    (
        lambda p: p["online"]["policies"].update(rwr1=p["online"]["policies"]["ask1"]),
        "rwr1 is a name in policies and in online.policies",
    ),
    (lambda p: p["select"].update(policies=["base"]), "select.policies: 'base' is unknown; known are rwr1, dpo2"),
    (lambda p: p["select"].update(policies=[]), "evaluate.policies: 'rwr1-selected' is unknown; known are base"),
    (lambda p: p["select"].update(policies=["rwr1", "rwr1"]), "select.policies: rwr1 is listed twice"),
    (lambda p: p["select"].update(judges=["gpt"]), "select.judges: 'gpt' is unknown; known are judge, physics"),
    (lambda p: p["select"].update(judges=["judge", "judge"]), "select.judges: judge is listed twice"),
    (lambda p: p["select"].update(judges=[]), "select.judges is empty; the first of them chooses the checkpoint"),
    (
        lambda p: (p["feedback"]["sources"].update(rate={"kind": "physics"}), p["select"].update(judges=["rate"])),
        "select.judges: rate is also a column of the curve",
    ),
    (
        lambda p: p["policies"].update({"rwr1-selected": p["policies"]["rwr1"]}),
        "policies.rwr1-selected: select gives this name to a checkpoint",
    ),
    (
        lambda p: p["policies"]["rwr1"].update(round=["r1", "r1b"]),
        "policies.rwr1.round is ['r1', 'r1b'], expected a name, because DVC cannot loop over a list in deps: join the "
        "rounds in pools.<name>: ['r1', 'r1b'], and write round: <name>",
    ),
    (
        lambda p: p["pools"].update(both=["r1"]),
        "pools.both is ['r1'], expected two names, each of a round or of a pool",
    ),
    (lambda p: p["pools"].update(all=["r1", "r2", "r3"]), "join a third round in another pool: [all, r2]"),
    (lambda p: p["pools"].update(both=["r1", "r9"]), "pools.both: 'r9' is unknown; known are r1, r2, both"),
    (lambda p: p["pools"].update(both=["r1", "both"]), "pools.both: it is a part of itself"),
    (
        lambda p: p["pools"].update(both=["r1", "r2"], all=["both", "r2"]),
        "pools.all: r2 is in it twice",
    ),
    (lambda p: p["pools"].update(both=["r1", "r2"], all=["both", "both"]), "pools.all: r1 is in it twice"),
    (lambda p: p["pools"].update(r1=["r1", "r2"]), "r1 is a name in rounds and in pools"),
    (lambda p: p["pools"].update(eval=["r1", "r2"]), "pools.eval: runs/eval/ is used otherwise"),
    (lambda p: p["pools"].update({"R 1": ["r1", "r2"]}), "pools.R 1: a name is made of a-z"),
    (
        lambda p: (
            p["pools"].update(both=["r1", "r2"]),
            p["comparison"]["policies"]["rwr1-physics"].update(round="both"),
        ),
        "comparison.policies.rwr1-physics.round: 'both' is unknown; known are r1",
    ),
    (lambda p: p["extend"]["base-extended"].pop("template"), "extend.base-extended.template is missing"),
    (lambda p: p["rounds"]["r2"].update(policy="base-extended"), "rounds.r2.policy: 'base-extended' is unknown"),
    (lambda p: p["extend"].update(rwr1=p["extend"]["base-extended"]), "extend.rwr1: a policy has this name"),
    (
        lambda p: p["reward"]["models"]["bt"].update(round="r9"),
        "reward.models.bt.round: 'r9' is unknown; known are r1, r2",
    ),
    (lambda p: p["reward"]["models"]["bt"].pop("round"), "reward.models.bt.round is missing"),
    (
        lambda p: p["feedback"]["sources"].pop("bt"),
        "reward.models.bt: feedback.sources has no bt, which would read it; add "
        "bt: {kind: reward_model, path: runs/rewards/bt}",
    ),
    (
        lambda p: p["feedback"]["sources"].update(bt=BT | {"path": "models/bt"}),
        "feedback.sources.bt: stage reward trains a model of this name, so kind is reward_model and path "
        "runs/rewards/bt",
    ),
    (
        lambda p: p["reward"]["models"].clear(),
        "feedback.sources.bt.path: runs/rewards/bt is what stage reward writes, and reward.models has no bt",
    ),
    (
        lambda p: p["feedback"]["sources"].update(other=BT),
        "feedback.sources.other.path: runs/rewards/bt is what stage reward writes, and reward.models has no other",
    ),
    (lambda p: p["feedback"].update(source="bt"), "feedback.source: bt is trained by this run, on labels of"),
    (
        lambda p: p["feedback"]["sources"].update(panel={"kind": "panel", "members": ["bt", "judge"]}),
        "feedback.sources.panel.members: bt is trained by this run",
    ),
    (lambda p: p["rounds"].update(rewards={"policy": "base"}), "rounds.rewards: runs/rewards/ is used otherwise"),
    (lambda p: p["rounds"].update(select={"policy": "base"}), "rounds.select: runs/select/ is used otherwise"),
]


def test_what_does_not_fit_is_named_with_what_would():
    for number, (change, message) in enumerate(MISFITS):
        with pytest.raises(ParamsError) as error:
            validate(change)
        assert message in error.value.message, number


def test_a_cycle_is_named_by_its_policies():
    def close(params):
        params["rounds"]["r1"]["policy"] = "dpo2"
        params["policies"]["rwr1"]["start"] = "dpo2"

    with pytest.raises(ParamsError) as error:
        validate(close)

    message = "a cycle: rwr1 is trained on r1, which dpo2 samples; dpo2 is trained on r2, which rwr1 samples"
    assert str(error.value.message).count("a cycle") == 1
    assert message in error.value.message


def test_a_policy_cannot_be_trained_on_a_reward_model_that_learns_from_its_own_clips():
    def close(params):
        params["rounds"]["r3"] = {"policy": "ask1"}
        params["reward"]["models"]["bt"]["round"] = "r3"
        params["online"]["policies"]["ask1"]["judge"] = "bt"

    with pytest.raises(ParamsError) as error:
        validate(close)

    assert "a cycle: ask1 is trained on bt, which learns from r3 of ask1" in error.value.message


def test_a_cycle_through_a_pool_is_named_by_the_round_that_closes_it():
    def close(params):
        params["pools"]["both"] = ["r1", "r2"]
        params["policies"]["rwr1"]["round"] = "both"

    with pytest.raises(ParamsError) as error:
        validate(close)

    assert error.value.message.count("a cycle") == 1
    assert "a cycle: rwr1 is trained on r2, which rwr1 samples" in error.value.message


def test_a_pool_stands_for_its_rounds_and_those_of_its_pools():
    params = {"pools": {"both": ["r1", "r1b"], "all": ["both", "r2"]}}
    assert [rounds_of(params, name) for name in ("r2", "both", "all")] == [["r2"], ["r1", "r1b"], ["r1", "r1b", "r2"]]


def test_a_round_of_another_policy_than_the_start_is_accepted_and_named():
    params = copy.deepcopy(GOOD)
    params["pools"]["both"] = ["r1", "r2"]
    params["policies"]["dpo2"]["round"] = "both"
    params["comparison"]["policies"]["rwr1-physics"]["start"] = "dpo2"
    validate_graph(params, objectives=["rwr", "dpo"])

    assert list(off_policy_rounds(params)) == [
        "dpo2: the clips of r1 are off-policy: base sampled them, and training starts from rwr1",
        "rwr1-physics: the clips of r1 are off-policy: base sampled them, and training starts from dpo2",
    ]
    assert list(off_policy_rounds(GOOD)) == []


def test_a_cycle_through_a_selected_checkpoint_is_named():
    def close(params):
        params["rounds"]["r1"]["policy"] = params["policies"]["rwr1"]["start"] = "rwr1-selected"

    with pytest.raises(ParamsError, match="a cycle: rwr1 is trained on r1, which rwr1-selected samples"):
        validate(close)


def test_a_round_may_be_made_by_a_selected_checkpoint_and_a_policy_trained_on_from_it():
    def go_on(params):
        params["rounds"]["r2"]["policy"] = params["policies"]["dpo2"]["start"] = "rwr1-selected"

    validate(go_on)


def test_all_problems_are_listed_at_once():
    def break_two(params):
        params["feedback"]["source"] = "clip"
        params["evaluate"]["judges"] = ["gpt"]

    with pytest.raises(ParamsError, match=r"(?s)clip.*gpt"):
        validate(break_two)


# Presets


@pytest.fixture
def preset(tmp_path, monkeypatch):
    """Runs `vfrl preset` on the default params, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(DEFAULTS.read_text() + "# kept with a preset\n")
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_a_preset_replaces_what_it_says_and_leaves_the_rest():
    params = {"generate": {"steps": 12, "seed": 1}, "rounds": {"r1": {}, "r2": {}}, "train": {"dpo": {"beta": 1}}}

    overlay(params, {"generate": {"steps": 50}, "rounds": {"r1": {}}, "train": {"dpo": {"learning_rate": 0.1}}})

    assert params == {
        "generate": {"steps": 50, "seed": 1},
        "rounds": {"r1": {}},
        "train": {"dpo": {"learning_rate": 0.1}},  # else a rate of the default recipe would stay under the paper's
    }


def test_another_models_components_and_guidance_do_not_stay_under_a_preset_of_a_generator():
    params = default_params()
    overlay(params, load_params(PRESETS / "generators/framepack.yaml"))
    assert params["generator"]["components"] and params["generator"]["embedded_guidance"] == 9.0
    overlay(params, {"generator": {"dtype": "float32"}})
    assert params["generator"]["components"]
    overlay(params, load_params(PRESETS / "generators/ltx-video.yaml"))
    assert params["generator"]["components"] is params["generator"]["embedded_guidance"] is None


def test_a_preset_cannot_invent_a_section():
    with pytest.raises(ParamsError, match="no generate.stepps"):
        overlay({"generate": {"steps": 12}}, {"generate": {"stepps": 50}})


def test_a_later_preset_overrides_an_earlier_one_and_each_change_is_printed(preset):
    done = preset("wan2.1", "paper-values")

    assert done.exit_code == 0, done.output
    wan, paper = done.output.split("paper-values: ")
    assert "generator.dtype: float32 -> bfloat16\n" in wan and "generator.dtype: bfloat16 -> float32\n" in paper
    assert "policies.dpo2: {start: rwr1, round: r2, objective: dpo} -> absent\n" in paper
    assert "train.common.gradient_accumulation" in wan and "train.common.gradient_accumulation" not in paper
    params = load_params()
    assert params["generator"]["path"].startswith("Wan-AI/")
    assert params["train"]["common"]["full"] is True and params["train"]["common"]["precision"] == "bf16"
    assert "# kept with a preset" in Path("params.yaml").read_text()


def test_a_preset_of_ones_own_is_named_by_its_path_and_a_dry_run_writes_nothing(preset):
    before = Path("params.yaml").read_text()
    Path("mine.yaml").write_text("generate: {steps: 3}")

    done = preset("mine.yaml", "--dry-run")
    assert "mine: 1 values of params.yaml change\n  generate.steps: 8 -> 3\n" in done.output
    assert Path("params.yaml").read_text() == before

    preset("mine.yaml")
    assert load_params()["generate"]["steps"] == 3


def test_a_wrong_preset_is_named_and_nothing_is_written(preset):
    wrong = {
        "steps: 3": "mine.yaml: steps is 3, expected a section",
        "generate: 3": "mine.yaml: generate is 3, expected a section",
        "generates: {steps: 3}": "mine.yaml: params.yaml has no generates; its sections are prompts, generator,",
        "generate: {step: 3}": "mine.yaml: params.yaml has no generate.step; in generate are steps, guidance",
        "feedback: {sources: 3}": "mine.yaml: feedback.sources is 3; in params.yaml it is a section",
        "generate: [": "mine.yaml: not readable",
        "": "mine.yaml: holds None, expected sections",
    }
    before = Path("params.yaml").read_text()
    for text, message in wrong.items():
        Path("mine.yaml").write_text(text)
        done = preset("mine.yaml")
        assert done.exit_code == 1 and message in done.output, (text, done.output)
    for names, message in (
        (("wan",), "preset 'wan' is unknown; known are "),
        (("smoke", "smoke"), "preset smoke is named twice"),
    ):
        done = preset(*names)
        assert done.exit_code == 1 and message in done.output, (names, done.output)
    assert Path("params.yaml").read_text() == before


def test_a_params_yaml_that_cannot_take_a_preset_is_named(preset):
    wrong = {
        "generate: [": "params.yaml: not readable",
        "generate: {steps: 3}": "smoke.yaml: params.yaml has no prompts; its sections are generate",
        "prompts:\ngenerate: {steps: 3}": "params.yaml: prompts is None, expected a section",
    }
    for text, message in wrong.items():
        Path("params.yaml").write_text(text)
        done = preset("smoke")
        assert done.exit_code == 1 and message in done.output, (text, done.output)
        assert Path("params.yaml").read_text() == text
