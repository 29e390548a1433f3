"""The recipes of online training: what stands in the papers, and an entry's changes over it."""

import json
from pathlib import Path

import pytest
import yaml

from feedback.core.rubric import load_rubric
from feedback.differentiable.asks import asks_of_rubric
from feedback.questions.sheet import load_sheet
from pipeline.params import ParamsError
from pipeline.recipes import COMMON, FOLDER, Recipe, load_recipe, merged, sampled_as
from rl.online.config import GrpoConfig

NAMES = [
    "ask-a-video", "ask-a-video-i2v", "ask-a-video-test-time", "diffusion-drf", "flow-grpo", "raft", "reward-gradient",
    "vanilla-drf",
    "vlm-as-teacher",
]  # fmt: skip


def test_every_recipe_in_the_folder_loads():
    found = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != COMMON)

    assert set(NAMES) <= set(found)  # and a user's
    assert all(isinstance(load_recipe(name, {}), Recipe) for name in found)


# The papers' values


@pytest.mark.parametrize("name", ["ask-a-video", "ask-a-video-test-time", "ask-a-video-i2v"])
def test_ask_a_video_is_as_its_section_4_1_says(name):
    recipe = load_recipe(name, {})
    engine = recipe.engine

    assert (engine.rollout, engine.renoise, engine.solver, engine.steps) == ("random_step", "fresh", "unipc", 25)
    assert (engine.learning_rate, engine.weight_decay, engine.full) == (5e-5, 0.0, False)  # Adam, LoRA
    assert engine.lora_targets is None and engine.max_grad_norm > 0
    assert (recipe.judge.frames, recipe.judge.loss) == (4, "logit")
    if name == "ask-a-video-i2v":
        assert recipe.decoding.mode == "exact" and engine.guidance == 1.0  # FramePack's
    else:
        assert recipe.decoding.mode == "windowed" and recipe.decoding.overlap and recipe.decoding.tile_overlap


@pytest.mark.parametrize("name", ["vanilla-drf", "diffusion-drf"])
def test_diffusion_drf_is_as_its_section_4_1_and_appendix_say(name):
    recipe = load_recipe(name, {})
    engine = recipe.engine

    assert (engine.rollout, engine.gradient_steps, engine.steps) == ("last_steps", 4, 25)
    assert (engine.full, engine.learning_rate, engine.batch_size) == (True, 1e-5, 32)
    assert engine.weight_decay > 0  # AdamW
    assert (recipe.sampling.inference_steps, recipe.sampling.shift) == (30, 5.0)
    assert recipe.judge.frames == 10


def test_vanilla_drf_asks_one_question_and_diffusion_drf_many_with_explanations():
    vanilla, rich = (load_recipe(name, {}) for name in ("vanilla-drf", "diffusion-drf"))

    assert (vanilla.judge.loss, vanilla.questions.writer) == ("logprob", "rubric")
    (ask,) = asks_of_rubric(load_rubric(Path(vanilla.questions.rubric)), "a cup falls")
    assert ask.wanted == "Yes" and "a cup falls" in ask.text
    assert (rich.judge.loss, rich.judge.reference_frames) == ("sequence", 10)
    assert rich.questions.kinds == ("alignment", "physics", "quality")
    assert rich.questions.explanation == "short" and rich.questions.with_reference
    assert load_sheet(Path(rich.questions.rubric)).name == "diffusion-drf"


def test_vlm_as_teacher_is_as_its_summary_says():
    recipe = load_recipe("vlm-as-teacher", {})

    assert (recipe.engine.updates, recipe.engine.learning_rate, recipe.engine.stop_below) == (50, 5e-5, 0.1)
    assert recipe.judge.frames == 16 and recipe.engine.steps == 4 and not recipe.engine.full
    assert recipe.questions.kinds == ("process", "goal")
    assert load_sheet(Path(recipe.questions.rubric)).name == "vlm-as-teacher"


def test_a_metric_is_asked_nothing():
    recipe = load_recipe("reward-gradient", {})

    assert recipe.questions is None and recipe.judge.loss is None
    assert (recipe.engine.learning_rate, recipe.engine.lora_rank) == (2e-4, 16)


# Changes


def test_flow_grpo_is_as_the_published_config_for_wan_says():
    """general_ocr_wan2_1 of yifan123/flow_grpo."""
    engine = load_recipe("flow-grpo", {}).engine

    assert isinstance(engine, GrpoConfig)
    assert (engine.steps, engine.guidance, engine.group_size, engine.batch_size) == (20, 4.5, 4, 16)
    assert (engine.learning_rate, engine.weight_decay, engine.lora_rank, engine.lora_alpha) == (1e-4, 1e-4, 32, 64)
    assert (engine.ratio_clip, engine.advantage_clip, engine.kl_weight) == (1e-3, 5.0, 0.004)
    assert (engine.advantage_spread, engine.time_weight, engine.inner_epochs) == ("group", 1.0, 1)


def test_a_recipe_has_the_settings_of_its_rollout_alone():
    taehv = {"kind": "taehv", "path": "taew2_1.safetensors"}
    own = {"writer": "template", "rubric": None, "kinds": None, "explanation": False, "with_reference": False}
    for recipe, changes, message in (
        ("flow-grpo", {"engine": {"grop_size": 4}}, "changes.engine.grop_size is unknown; known are "),
        ("ask-a-video", {"engine": {"group_size": 4}}, "changes.engine.group_size is unknown; known are "),
        ("ask-a-video", {"engine": {"rollout": "sde"}}, "engine.group_size is missing"),
        ("flow-grpo", {"questions": own}, "questions must be null with engine.rollout sde"),
        ("flow-grpo", {"augment": {"crop": 0.1}}, "0 wanted with engine.rollout sde"),
        ("flow-grpo", {"decoding": {"decoder": taehv}}, "decoding.decoder must be null with engine.rollout sde"),
    ):
        with pytest.raises(ParamsError) as error:
            load_recipe(recipe, changes)
        assert message in error.value.message, changes


def test_an_entrys_changes_go_before_the_paper_and_the_paper_before_what_is_common():
    changes = {"engine": {"updates": 40, "velocity_weight": 1}, "questions": {"kinds": ["alignment"]}}
    recipe = load_recipe("diffusion-drf", changes | {"decoding": {"mode": "plain"}})

    assert (recipe.engine.updates, recipe.engine.velocity_weight, recipe.engine.gradient_steps) == (40, 1.0, 4)
    assert recipe.questions.kinds == ("alignment",) and recipe.questions.explanation == "short"
    assert (recipe.decoding.mode, recipe.decoding.straight_through) == ("plain", True)


def test_merging_leaves_what_it_merges_as_it_was():
    below, above = {"a": {"x": 1, "y": 2}, "b": {"z": 3}}, {"a": {"y": 4}, "b": None}

    assert merged(below, above) == {"a": {"x": 1, "y": 4}, "b": None}
    assert below == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engin": {"updates": 1}}, "changes.engin is unknown; known are engine, judge, questions"),
        ({"engine": {"update": 1}}, "changes.engine.update is unknown; known are "),
        ({"engine": 5}, "changes.engine is 5, expected keys of that section"),
        ({"engine": {"updates": "many"}}, "engine.updates is 'many', expected a valid integer"),
        ({"engine": {"updates": 0}}, "engine.updates is 0, expected greater than or equal to 1"),
        ({"engine": {"gradient_steps": 26}}, "gradient_steps must be at most steps"),
        ({"decoding": {"mode": "fast"}}, "decoding.mode is 'fast', expected 'plain', 'windowed' or 'exact'"),
        ({"augment": {"crop": 0.5}}, "augment.crop is 0.5, expected less than 0.5"),
        ({"judge": {"loss": "hinge"}}, "judge.loss is 'hinge'; known are logit, logit_difference, logprob"),
        ({"judge": {"frames": 0}}, "judge.frames is 0, expected greater than or equal to 1"),
        ({"judge": {"ask_template": "Well?"}}, "judge.ask_template is 'Well?', expected a text with {question} in it"),
        ({"judge": {"reference_frames": None}}, "questions.with_reference is true, but judge.reference_frames is null"),
        ({"questions": None}, "judge.loss and questions are null together"),
    ],
)
def test_a_wrong_change_is_named(changes, message):
    with pytest.raises(ParamsError) as error:
        load_recipe("diffusion-drf", changes)
    assert message in error.value.message


def test_a_recipe_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ParamsError) as error:
        load_recipe("common", {})
    assert error.value.message.startswith("recipe 'common' is unknown; known are ask-a-video, ")


def test_a_recipe_of_ones_own_is_named_by_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((FOLDER / "ask-a-video.yaml").read_text().replace("updates: ", "updates: 1"))

    mine, shipped = (load_recipe(name, {}).engine.updates for name in (str(path), "ask-a-video"))
    assert mine == int(f"1{shipped}")


def test_a_recipe_of_ones_own_is_read_beside_the_common_values(tmp_path):
    (tmp_path / "common.yaml").write_text((FOLDER / "common.yaml").read_text())
    mine = yaml.safe_load((FOLDER / "vanilla-drf.yaml").read_text())
    mine["engine"] = {**mine["engine"], "learning_rate": 0.003, "full": False}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))

    engine = load_recipe("mine", {}, tmp_path).engine

    assert (engine.learning_rate, engine.full, engine.lora_rank) == (0.003, False, 16)
    del mine["engine"]["steps"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(ParamsError) as error:
        load_recipe("mine", {}, tmp_path)
    assert f"{tmp_path / 'mine.yaml'}: engine.steps is missing" in error.value.message


def test_how_updates_are_sampled_is_told_with_the_recipes_shift_before_the_starts(tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"sampling": {"shift": 7.0}}))
    drf, ask = load_recipe("diffusion-drf", {}), load_recipe("ask-a-video", {"engine": {"negative_prompt": "blurred"}})
    assert sampled_as(drf, tmp_path) == {
        "shift": 5.0, "unconditional": None, "unconditional_scale": None, "steps": 25, "inference_steps": 30,
        "guidance": 5.0, "solver": "euler", "negative_prompt": None,
    }  # fmt: skip
    assert sampled_as(ask, tmp_path) == {
        "shift": 7.0, "unconditional": None, "unconditional_scale": None, "steps": 25, "inference_steps": 25,
        "guidance": 5.0, "solver": "unipc", "negative_prompt": "blurred",
    }  # fmt: skip
    (tmp_path / "policy.json").write_text("{}")
    assert sampled_as(ask, tmp_path)["shift"] is None


def test_the_branch_without_the_prompt_is_the_recipes_before_the_starts(tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"sampling": {"unconditional": "base"}}))
    for own, expected in ((None, "base"), ("policy", "policy"), ("base", "base")):
        recipe = load_recipe("ask-a-video", {"sampling": {"unconditional": own}})
        assert sampled_as(recipe, tmp_path)["unconditional"] == expected
    with pytest.raises(ParamsError, match=r"unconditional is base, which switches a LoRA off, so engine\.full must be"):
        load_recipe("ask-a-video", {"sampling": {"unconditional": "base"}, "engine": {"full": True}})


def test_a_run_that_ends_when_its_answers_are_right_has_a_check_and_a_judge_that_answers():
    checked = {"stop_right": 0.8, "held_out_every": 50}
    assert load_recipe("ask-a-video", {"engine": checked}).engine.stop_right == 0.8
    assert load_recipe("flow-grpo", {"engine": checked}).engine.stop_right == 0.8
    for name, engine, message in (
        ("ask-a-video", {"stop_right": 0.8}, "stop_right: the check decides, so held_out_every must be set"),
        ("reward-gradient", checked, r"engine\.stop_right is a probability, and a metric has none"),
    ):
        with pytest.raises(ParamsError, match=message):
            load_recipe(name, {"engine": engine})


def test_a_guidance_that_is_drawn_has_a_middle_and_must_rise():
    engine = load_recipe("ask-a-video", {"engine": {"guidance": [1.0, 2.0]}}).engine
    assert (engine.guidance, engine.full_guidance) == ((1.0, 2.0), 1.5)
    assert load_recipe("ask-a-video", {}).engine.full_guidance == 5.0
    for guidance in ([2.0, 1.0], [0.5, 2.0], 0.5):
        with pytest.raises(ParamsError, match=r"engine\.guidance: .*expected a number from 1 on"):
            load_recipe("ask-a-video", {"engine": {"guidance": guidance}})
    with pytest.raises(ParamsError, match="step_from must be all, being read by rollout random_step alone"):
        load_recipe("vanilla-drf", {"engine": {"step_from": "first_half"}})
