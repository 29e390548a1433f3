"""`vfrl check`: what is wrong with params.yaml is found before anything is computed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from commands.preset import PRESETS, layers, overlay, values_of
from data.prompts import load_prompts, write_prompts
from feedback.core.kinds import read_block, resolve
from feedback.core.rubric import load_rubric
from generators.families.wan import WanGenerator
from pipeline.advice import advice, otherwise_than_trained
from pipeline.check import check_params
from pipeline.configs import train_config
from pipeline.params import ParamsError
from pipeline.recipes import load_recipe
from pipeline.replicates import expanded
from pipeline.summary import summarise
from rl.objectives import OBJECTIVES
from tests.support.defaults import default_params
from tests.support.first_frames import shows_first_frame
from tests.support.lighter import save_taehv

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a params.yaml where `check_params` reads it, with our files beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data", "feedback", "models", "tabletop"):
        Path(name).symlink_to(ROOT / name)
    return lambda params: Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_no_test_reads_the_params_yaml_that_a_user_edits():
    """Tests read tests/support/params.yaml by `default_params`, so that they pass whatever a user sets."""
    tests = ROOT / "tests"
    assert [path for path in tests.rglob("*.py") if 'ROOT / "params' + '.yaml"' in path.read_text()] == []


def laid_over(*presets: str) -> dict:
    """The default params under these presets, the last one uppermost."""
    params = default_params()
    for path in layers(presets):
        overlay(params, values_of(path))
    return params


ALONE = [(path.stem,) for path in sorted(PRESETS.glob("*.yaml"))]
WAN = [("wan2.1",), ("wan2.1", "paper-values"), ("wan2.1", "rounds")]


@pytest.mark.parametrize("presets", [(), *ALONE, *WAN[1:]], ids=" ".join)
def test_params_fit_together_under_every_preset(presets, project, tiny_model):
    params = laid_over(*presets)
    folder = Path(params["generator"]["path"])
    if folder.parent == Path("models/tiny"):  # the preset says that vfrl tiny writes it
        params["generator"]["path"] = str(tiny_model(folder.name))
    project(params)

    check_params()


@pytest.mark.parametrize("presets", WAN, ids=" ".join)
def test_under_the_wan_preset_a_folder_of_its_layout_is_accepted_and_nothing_of_the_tabletop_is_left(
    presets, project, tiny_wan_with
):
    params = laid_over(*presets)
    assert params["generator"]["path"] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    del params["feedback"]["sources"]["physics"]  # nothing else names it
    assert "tabletop" not in yaml.safe_dump(params)
    params["generator"]["path"] = str(tiny_wan_with(rope_max_seq_len=1024))
    project(params)

    check_params()


def test_the_papers_values_over_wans_train_every_weight_in_the_memory_that_wans_preset_plans():
    train, paper = laid_over("wan2.1", "paper-values")["train"]["common"], laid_over("paper-values")["train"]["common"]
    memory = {"gradient_accumulation": 64, "gradient_checkpointing": True, "precision": "bf16"}
    assert {key: value for key, value in train.items() if value != paper[key]} == memory
    assert train["full"] is True


@pytest.mark.parametrize(
    ("name", "family", "clip", "judge"),
    [
        ("ask-a-video-i2v", "framepack_f1", (25, 480, 832), "Qwen/Qwen2.5-VL-7B-Instruct"),  # §4.1
        (
            "vlm-as-teacher",
            "wan",
            (121, 704, 1280),
            "Qwen/Qwen3-VL-4B-Instruct",
        ),  # the summary; its clips' size is Wan's
    ],
)
def test_presets_of_one_prompt_and_its_image_have_the_papers_generator_clips_and_judge(name, family, clip, judge):
    params = laid_over("wan2.1", f"one-prompt/{name}")  # over that of its generator, which lies in a folder too
    own, video = params["online"]["prompt"], params["video"]
    recipe = load_recipe(own["recipe"], own["changes"][name])

    assert (own["recipe"], params["generator"]["family"]) == (name, family)
    assert (video["num_frames"], video["height"], video["width"]) == clip
    assert params["feedback"]["sources"][own["judge"]]["path"] == judge
    assert recipe.questions.writer in ("rubric", own["judge"])
    for source in (own["judge"], own["held_out"]):
        read_block(source, params["feedback"]["sources"][source])


PAPER = {  # Furuta et al.: where it stands, and its value in params.yaml
    "generator.family": "unet3d",  # App. A
    "generator.max_prompt_tokens": 64,
    "video.num_frames": 16,
    "video.height": 24,
    "video.width": 40,
    "generate.samples_per_prompt": 128,
    "generate.split": "train",
    "train.common.full": True,
    "train.common.learning_rate": 1e-4,
    "train.common.warmup_steps": 10_000,
    "train.common.max_grad_norm": 1.0,
    "train.common.weight_decay": 0.0,
    "train.common.batch_size": 64,
    "train.common.steps": 10_000,
    "train.common.checkpoint_every": 500,
    "train.common.timesteps": {"name": "uniform"},  # Eq. 1
    "train.dpo.beta": 5000,
    "train.dpo.chosen_error_weight": 0.0,  # Eq. 7
    "select.keep": "best-of-last-5",
    "build.reward": "label",  # §3.3
    "build.shaping": "linear",  # Eq. 6
    "feedback.source": "gemini",
    "feedback.sources.gemini.mode": "text",  # App. D: a word
    "feedback.sources.gemini.clip": "frames",
    "evaluate.judges": ["gemini", "gpt"],  # Table 2
    "evaluate.generate.samples_per_prompt": 32,  # §4
    "evaluate.generate.split": "all",
    "evaluate.top_k": {"k": 8, "by": None},
}


def test_the_papers_preset_has_what_the_paper_states():
    params = laid_over("paper")

    for name, value in PAPER.items():
        assert value_at(params, name) == value, name
    assert load_rubric(Path(params["feedback"]["sources"]["gemini"]["rubric"])).frames == 8  # App. D
    for objective in ("sft", "rwr", "dpo"):
        own = params["train"][objective]
        for key in ("learning_rate", "steps", "batch_size"):  # which the tabletop's blocks change
            assert own[key] == params["train"]["common"][key], (objective, key)


def test_the_papers_preset_reports_the_best_of_the_last_five_checkpoints_of_every_policy():
    """App. A; and Fig. 5: the second round of an algorithm is of the clips of its first, and continues it."""
    params = laid_over("paper")
    policies, rounds = params["policies"], params["rounds"]

    assert {entry["objective"] for entry in policies.values()} == {"sft", "rwr", "dpo"}  # Table 2
    assert set(params["select"]["policies"]) == set(policies)
    assert params["evaluate"]["policies"] == ["base", *(f"{name}-selected" for name in policies)]
    for name, entry in policies.items():
        assert rounds[entry["round"]]["policy"] == entry["start"], name
        first = policies.get(entry["start"].removesuffix("-selected"))
        assert (first is None) == (entry["start"] == "base") and (first or entry)["objective"] == entry["objective"]
    steps, every = (params["train"]["common"][key] for key in ("steps", "checkpoint_every"))
    assert steps // every >= 5


def value_at(params: dict, name: str) -> Any:
    for key in name.split("."):
        params = params[key]
    return params


JUDGE = "feedback.sources.judge"
WRONG = {
    "generate.solver": ("heun", "generate.solver is 'heun', expected 'euler', 'unipc' or 'ddim'"),
    "evaluate.generate.split": ("val", "evaluate.generate.split is 'val', expected 'train', 'test' or 'all'"),
    "build.pairs": ("best", "build.pairs is 'best', expected 'all', 'balanced', 'margin', 'quantile' or 'preferred'"),
    "build.reward": ("accept", "build.reward is 'accept', expected 'label', 'p_accept' or 'score'"),
    "build.shift": (-1, "build.shift is -1, expected greater than or equal to 0"),
    "build.shaping": ("softmax", "build.shaping is 'softmax', expected 'linear', 'exponential' or 'group'"),
    "build.temperature": (0, "build.temperature is 0, expected greater than 0"),
    "build.sources.clip.scale": (0, "build.sources.clip.scale is 0, expected greater than 0"),
    "build.sources.clip.eta": (0.1, "build.sources.clip.eta (0.1) is unknown; known keys are reward, shaping"),
    "build.sources.klip": ({}, "build.sources.klip: no such source; feedback.sources has "),
    "train.rwr.steps": (0, "params.yaml: train.rwr.steps is 0, expected greater than or equal to 1; known keys are"),
    "train.common.full": ("no thanks", ".common.full is 'no thanks', expected true or false; known keys are full"),
    "train.rwr": (None, "train.rwr is None, expected a section"),
    "train.common.lora_targets": (
        ["attn9.to_q"],
        "'attn9.to_q' is the ending of no module of models/tabletop/generator",
    ),
    "feedback.source": (
        "flickering",
        "flickering measures clips and labels none, but its reward is label. Set build.sou",
    ),
    "feedback.sources.served.base_url": ("127.0.0.1:8000/v1", "served.base_url: '127.0.0.1:8000/v1' is no address"),
    f"{JUDGE}.dtype": ("int4", f"{JUDGE}.dtype is 'int4'"),
    f"{JUDGE}.threshold": (0.5, f"{JUDGE}.threshold (0.5) is unknown"),
    f"{JUDGE}.rubric": ("none.yaml", f"{JUDGE}.rubric: none.yaml: not read: No such file"),
    "feedback.sources.gpt.rubric": ("none.yaml", "feedback.sources.gpt.rubric: none.yaml: not read: No such file"),
    "feedback.sources.gpt.budget_usd": ("lots", "gpt.budget_usd is 'lots', expected a valid number"),
    "feedback.sources.gpt.batch": ("no", "gpt.batch is 'no', expected true or false"),
    "feedback.sources.gpt.price": ({"input": 0.1, "output": 0.5, "cached_input": 0.01}, "gpt.price.batch is missing"),
    "feedback.sources.gpt.model": ("gpt-4o-mini", "but price is of gpt-6-luna and model is gpt-4o-mini, so the budget"),
    "label.votes": (0, "label.votes is 0, expected greater than or equal to 1"),
    "label.batch_size": (0, "label.batch_size is 0, expected greater than or equal to 1"),
    "select.keep": ("best-of-last-0", "select: keep is 'best-of-last-0'; known are last, best, or best-of-last-N"),
    "generator.path": (
        "models/tabletop/judge",
        "generator.path: models/tabletop/judge is a transformers model (Qwen2_5",
    ),
    "generator.max_prompt_tokens": (512, "generator.max_prompt_tokens: 512, but the tokenizer of models/tabletop"),
    "video.num_frames": (16, "video.num_frames: 16 cannot be represented; it must be 10 k -1, nearest is 9 or 19"),
    "rounds": (None, "rounds is empty, expected a section ({} for none)"),
    "seeds": (None, "seeds is empty, expected a list of training seeds ([1] for one)"),
    "comparison": (
        {"rounds": [], "policies": {}},
        "comparison.sources is missing, expected a list ([] for none); beside",
    ),
    "evaluate.judges": ([], "evaluate.judges is empty, so nothing would be measured"),
    "audit.sources": (["jugde"], "audit.sources: 'jugde' is unknown"),
    "evaluate.judges ": (["physics", "jugde"], "evaluate.judges: 'jugde' is unknown; known are judge, second"),
    "evaluate.best_of": (
        {"judge": "flow", "n": 2},
        "evaluate: best_of.judge is 'flow', expected one of evaluate.judges",
    ),
    "select.generate.prompts": (0, "select.generate.prompts is 0, expected greater than or equal to 1"),
    "prompts.path": ("configs/prompt_sets/furuta.csv", "physics knows the tabletop world alone, and not 160 of"),
}


def test_a_wrong_value_is_named_before_anything_is_computed(project):
    for key, (value, message) in WRONG.items():
        params = default_params()
        *sections, last = key.strip().split(".")
        inner = params
        for name in sections:
            inner = inner[name]
        inner[last] = value
        project(params)
        with pytest.raises((ParamsError, ValueError)) as error:
            check_params()
        assert message in str(getattr(error.value, "message", error.value)), key


def test_rounds_without_a_prompt_of_their_split_are_refused(project):
    params = default_params()
    rows = (ROOT / "configs/prompt_sets/tabletop.csv").read_text().splitlines()
    Path("only_test.csv").write_text("\n".join(row for row in rows if ",train," not in row) + "\n")
    params["prompts"]["path"] = "only_test.csv"
    project(params)
    with pytest.raises(ParamsError, match=r"generate: no prompts in split 'train' among 18 of only_test.csv"):
        check_params()


def test_questions_of_other_prompts_are_refused_before_anything_runs_and_more_questions_are_a_note(project):
    params, rubric = default_params(), yaml.safe_load((ROOT / "tabletop/own-questions.yaml").read_text())
    header, *rows = (ROOT / "configs/questions/tabletop.csv").read_text().splitlines()
    Path("own.yaml").write_text(yaml.safe_dump(rubric | {"questions": "own.csv"}))
    params["feedback"]["sources"]["aspects"]["rubric"] = "own.yaml"
    first = "pushing green cube from left to right"
    project(params)
    Path("own.csv").write_text("\n".join([header, *(row for row in rows if "cube" not in row)]) + "\n")
    check_params()  # no stage uses it

    params["feedback"]["source"] = "aspects"
    project(params)
    without = sum("cube" in prompt.prompt for prompt in load_prompts(ROOT / "configs/prompt_sets/tabletop.csv"))
    said = (
        f"feedback.sources.aspects.rubric: own.yaml: own.csv has no question about {without} of 58 prompts, the first"
    )
    with pytest.raises(ParamsError, match=re.escape(f"{said} of them '{first}'")):
        check_params()

    Path("own.csv").write_text("\n".join([header, *rows, "a cup falls,object,is there a cup,Yes"]) + "\n")
    note = "own.csv has questions about prompts that the prompt set lacks: 1 of its 59 prompts, such as 'a cup falls'"
    assert note in check_params().notes

    params["online"]["policies"]["ask1"] = {
        "start": "base", "recipe": "ask-a-video", "judge": "second", "held_out": "judge",
        "changes": {"questions": {"rubric": "own.yaml"}},
    }  # fmt: skip
    params["feedback"]["source"] = "judge"
    Path("own.csv").write_text("\n".join([header, *(row for row in rows if "cube" not in row)]) + "\n")
    project(params)
    with pytest.raises(ParamsError, match="online.policies.ask1: own.csv has no question about"):
        check_params()


def test_what_is_no_error_and_probably_not_meant_is_a_note(project):
    params = default_params()
    params["policies"]["rwr3"] = {"start": "base", "round": "r1", "objective": "rwr"}
    params["evaluate"]["policies"].remove("rwr1")  # round r2 samples from it
    params["label"]["batch_size"] = 50
    params["lable"], params["train"]["ppo"] = {}, {}
    params["rounds"]["r3"] = {"policy": "rwr2"}
    params["pools"]["later"] = ["r1", "r2"]
    params["policies"]["dpo2"]["start"] = "base"
    project(params)
    *unread, off, unused, nothing, untrained, uneven = check_params().notes
    assert unread == ["nothing reads the section lable", "nothing reads the section train.ppo"]
    assert unused == "rwr3 is trained, but it is not in evaluate.policies and nothing else uses it"
    assert nothing == "rounds.r3 is sampled and judged, but no policy is trained on it"
    assert untrained == "pools.later: no policy is trained on it"
    assert off == "dpo2: the clips of r2 are off-policy: rwr1 sampled them, and training starts from base"
    assert "label.batch_size is 50, no multiple of feedback.sources.judge.batch_size (32)" in uneven


def lines_of(checked, seconds: float | None = None) -> dict[str, str]:
    """The summary by title."""
    return {words[0]: words[1].strip() for words in (line.split(" ", 1) for line in summarise(checked, seconds))}


def with_images(folder: Path, params: dict, images: dict[str, str]) -> None:
    """Name a set of the tabletop's first four prompts, the last one test. images: paths by prompt_id."""
    rows = [replace(one, split="train") for one in load_prompts(Path(params["prompts"]["path"]))[:4]]
    rows[3] = replace(rows[3], split="test")
    write_prompts(folder / "prompts.csv", [replace(row, image=images.get(row.prompt_id)) for row in rows])
    params["prompts"]["path"] = str(folder / "prompts.csv")


def test_the_summary_says_how_many_prompts_have_a_first_frame(project, tmp_path, caplog):
    params = default_params()
    project(params)
    ids = [one.prompt_id for one in load_prompts(Path(params["prompts"]["path"]))[:4]]
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    with_images(tmp_path, params, {name: str(tmp_path / "wide.png") for name in ids})
    project(params)

    assert "4 (3 train, 1 test), 4 with a first frame; 1 categories" in lines_of(check_params())["prompts"]
    assert "wide.png (64x32 loses 50% of its width)" in caplog.text


def test_first_frames_that_cannot_be_used_are_found_before_anything_is_generated(project, tmp_path):
    params = default_params()
    project(params)
    ids = [one.prompt_id for one in load_prompts(Path(params["prompts"]["path"]))[:4]]
    Image.effect_noise((64, 64), 50).save(tmp_path / "noise.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:-99])
    for image, last, message in (
        ("cut.png", "cut.png", f"prompt {ids[0]}: .*cut.png: not a readable image"),
        ("noise.png", None, f"evaluate.generate: 1 of 4 prompts have no image and the others have one: {ids[3]}"),
    ):
        params = default_params()
        images = {name: str(tmp_path / image) for name in ids[:3]} | ({ids[3]: str(tmp_path / last)} if last else {})
        with_images(tmp_path, params, images)
        project(params)
        with pytest.raises((ParamsError, ValueError), match=message):
            check_params()


def test_a_generator_that_does_not_fit_prompts_solver_or_denoisers_is_refused(project, tmp_path):
    """The shipped image-to-video generator, a CogVideoX of v-prediction, under prompts without an image."""
    folder = "models/tabletop/first_frame_generator"
    size = {"num_frames": 9, "height": 32, "width": 32, "fps": 8}
    for changes, message in (
        ({"generator.path": folder}, f"generator.path: {folder} is a CogVideoXImageToVideoPipeline, and family wan"),
        ({"generator.family": "cogvideox", "generator.path": folder}, "give the prompt set a column image"),
        ({"generate.solver": "ddim"}, "generate: solver: ddim does not fit this generator, .* euler or unipc"),
        ({"train.common.denoisers": ["transformer_2"]}, "denoisers: found transformer_2; this generator has transf"),
        ({"video.num_frames": 10}, r"video.num_frames: 10 cannot be represented; .* nearest is 9 or 19"),
    ):
        params = default_params()
        params["video"] = size
        for key, value in changes.items():
            *sections, last = key.split(".")
            inner = params
            for section in sections:
                inner = inner[section]
            inner[last] = value
        project(params)
        with pytest.raises((ParamsError, ValueError), match=message):
            check_params()


def test_windowed_decoding_of_a_generator_that_needs_the_whole_clip_is_refused(project, monkeypatch):
    params = default_params()
    ask1 = {"start": "base", "recipe": "ask-a-video", "judge": "judge", "held_out": "judge"}
    params["online"]["policies"] = {"ask1": ask1}
    project(params)
    assert check_params().generator.windows
    monkeypatch.setattr(WanGenerator, "windows", False)
    with pytest.raises(ParamsError, match="^online.policies.ask1: decoding.mode is windowed, but the VAE of a wan"):
        check_params()


def test_a_policy_trained_by_rewards_needs_steps_with_a_probability_and_a_judge_that_gives_rewards(
    project, monkeypatch
):
    for entry, message in (
        ({"judge": "clip"}, "online.policies.grpo: judge: clip measures clips and labels none"),
        ({"references": "tabletop"}, "online.policies.grpo: references: a recipe by rewards does not read it"),
        ({"changes": {"engine": {"solver": "unipc"}}}, "solver must be euler"),
        ({}, "online.policies.grpo: engine.rollout sde samples whole clips, and wan samples a clip part by part"),
    ):
        params = default_params()
        grpo = {"start": "base", "recipe": "flow-grpo", "judge": "physics", "held_out": "judge"}
        params["online"]["policies"] = {"grpo": grpo | entry}
        project(params)
        with monkeypatch.context() as patch:
            if entry == {}:
                check_params()
                patch.setattr(WanGenerator, "num_parts", 2)
            with pytest.raises(ParamsError, match=message):
                check_params()


def test_a_lighter_decoder_that_does_not_fit_is_found_before_anything_is_loaded(project, tmp_path):
    params = default_params()
    ask1 = {"start": "base", "recipe": "ask-a-video", "judge": "judge", "held_out": "judge"}
    params["online"]["policies"] = {"ask1": ask1}
    vae, taehv = "models/tabletop/generator/vae", save_taehv(tmp_path / "tae.safetensors", 16)
    for place, message in (
        ({"kind": "diffusers", "path": vae}, None),
        ({"kind": "taehv", "path": str(taehv)}, "decoding.decoder: it takes latents of 16 channels, the generator's"),
        ({"kind": "diffusers"}, "decoding.decoder.path is missing"),
    ):
        ask1["changes"] = {"decoding": {"decoder": place}}
        project(params)
        if message is None:
            check_params()
        else:
            with pytest.raises(ParamsError, match=message):
                check_params()
    ask1["changes"] = {}
    decoding = params["online"]["prompt"]["changes"]["vlm-as-teacher"]["decoding"]
    decoding |= {"decoder": {"kind": "taehv", "path": str(taehv)}}
    project(params)
    with pytest.raises(
        ParamsError, match="^online.prompt, recipe vlm-as-teacher: decoding.decoder: it takes latents of 16 channels"
    ):
        check_params()


def test_a_recipe_whose_rubric_shows_first_frames_needs_images_and_a_generator_that_takes_them(project, tmp_path):
    params = default_params()
    shown = shows_first_frame(ROOT / "feedback/rubrics/match.yaml", tmp_path / "shown.yaml")
    changes = {"questions": {"rubric": str(shown)}}
    ask1 = {"start": "base", "recipe": "ask-a-video", "judge": "judge", "held_out": "judge", "changes": changes}
    params["online"]["policies"] = {"ask1": ask1}
    project(params)
    with pytest.raises(
        ParamsError, match="^online.policies.ask1: rubric: .*shows the first frame, but .* have no image"
    ):
        check_params()
    Image.new("RGB", (32, 32)).save(tmp_path / "square.png")
    ids = [one.prompt_id for one in load_prompts(Path(params["prompts"]["path"]))]
    with_images(tmp_path, params, {name: str(tmp_path / "square.png") for name in ids})
    project(params)
    with pytest.raises(ParamsError, match="^online.policies.ask1: questions.rubric: .*the generator .* takes none"):
        check_params()


def test_images_that_the_generator_does_not_take_are_a_note(project, tmp_path):
    params = default_params()
    project(params)
    ids = [one.prompt_id for one in load_prompts(Path(params["prompts"]["path"]))[:4]]
    Image.new("RGB", (32, 32)).save(tmp_path / "square.png")
    with_images(tmp_path, params, {name: str(tmp_path / "square.png") for name in ids})
    project(params)
    assert any("takes no first frame, so the images of the prompts are not used" in one for one in check_params().notes)


def test_a_rubric_that_shows_first_frames_needs_prompts_with_images(project, tmp_path):
    params = default_params()
    shown = shows_first_frame(ROOT / "tabletop/rubric.yaml", tmp_path / "shown.yaml")
    params["feedback"]["sources"]["judge"]["rubric"] = str(shown)
    project(params)
    said = r"judge.rubric: .*shown.yaml shows the first frame, but 58 of 58 prompts have no image, such as dm-train-01"
    with pytest.raises(ParamsError, match=said):
        check_params()


def test_the_summary_counts_what_the_run_makes_and_judges(project):
    """40 of 58 prompts are train: 2 rounds x 40 x 48 = 3,840; 6 policies x 58 x 16 = 5,568; together 9,408."""
    project(default_params())
    checked = check_params()
    lines = lines_of(checked)
    assert lines["generator"] == "wan, models/tabletop/generator, WanPipeline, 10.2 MB, float32"
    assert "58 (40 train, 18 test); 5 categories: directional_movement 14, " in lines["prompts"]
    assert lines["rounds"] == "r1 by base 1,920 clips; r2 by rwr1 1,920 clips"
    assert lines["policies"].endswith("dpo2 = dpo on r2 from rwr1")
    assert lines["evaluation"].startswith("6 policies x 58 prompts x 16 samples = 5,568 clips: base; ")
    assert lines["judges"] == (
        "judge 9,648 (rounds 3,840, evaluation 5,568, audit, about 240); physics 5,568 (evaluation 5,568)"
    )
    assert lines["sampling"].startswith("9,408 clips; sampling hours = clips x seconds a clip / 3600")
    assert lines_of(checked, 240)["sampling"] == "9,408 clips x 240 s / 3600 = 627.2 h on one device"
    assert len(summarise(checked, None)) <= 20


def test_the_summary_counts_the_clips_of_checkpoints_and_of_online_updates(project):
    """600 steps with a checkpoint every 200 are 3 checkpoints x 40 prompts x 4 clips = 480."""
    params = default_params()
    params["select"]["policies"] = ["rwr1"]
    changes = {"engine": {"updates": 7, "batch_size": 3}}
    ask1 = {"start": "base", "recipe": "ask-a-video", "judge": "judge", "held_out": "judge", "changes": changes}
    params["online"]["policies"] = {"ask1": ask1}
    project(params)
    lines = lines_of(check_params())
    assert lines["selection"] == "clips of checkpoints: rwr1 480"
    assert "selection 480" in lines["judges"]
    assert lines["online"] == "ask1 = ask-a-video from base, judge judge: 21 clips with gradient"
    by_rewards = {"engine": {"updates": 50, "inner_epochs": 2, "batch_size": 8}}
    params["online"]["policies"] = {"grpo": ask1 | {"recipe": "flow-grpo", "changes": by_rewards}}
    project(params)
    said = "grpo = flow-grpo from base, judge judge: 200 clips in groups of 4, each judged"
    lines = lines_of(check_params())
    assert lines["online"] == said and "rollouts 200" in lines["judges"]


def test_several_seeds_are_a_line_and_their_policies_are_named_once(project):
    project(expanded(default_params(), [1, 2, 3]))
    lines = lines_of(check_params())

    assert lines["seeds"] == "1, 2, 3: each policy is trained once with each"
    assert lines["policies"].endswith("dpo2 = dpo on r2 from rwr1") and "-s2" not in lines["policies"]
    assert lines["evaluation"].startswith("16 policies x 58 prompts")


def test_the_first_seed_is_the_one_that_entries_without_a_seed_are_trained_with(project):
    online = {"start": "base", "recipe": "ask-a-video", "judge": "judge", "held_out": "judge"}
    for change, message in (
        (lambda params: params["train"]["common"].update(seed=4), "sft1 is trained with seed 4 (in train.sft or"),
        (lambda params: params["train"]["dpo"].update(seed=4), "dpo1 is trained with seed 4 (in train.dpo or"),
        (
            lambda params: params["online"].update(policies={"ask1": online | {"changes": {"engine": {"seed": 4}}}}),
            "ask1 is trained with seed 4 (in its changes or recipe ask-a-video)",
        ),
    ):
        params = default_params()
        change(params)
        project(params)
        check_params()  # one seed: whatever it is
        project(expanded(params, [1, 2]))
        with pytest.raises(ParamsError, match=re.escape(f"seeds begins with 1, but {message}")):
            check_params()


def test_many_names_are_cut(project):
    params = default_params()
    params["policies"] |= {f"p{n}": {"start": "base", "round": "r1", "objective": "rwr"} for n in range(20)}
    params["evaluate"]["policies"] += [f"p{n}" for n in range(20)]
    project(params)
    lines = lines_of(check_params())
    assert lines["policies"].endswith("p2 = rwr on r1 from base; and 17 more")
    assert lines["evaluation"].endswith("; p1; and 18 more")


def test_a_policy_that_is_kept_at_its_end_alone_is_refused_for_selection(project):
    params = default_params()
    params["train"]["common"]["checkpoint_every"] = 300
    params["select"]["policies"] = ["rwr1"]
    project(params)
    check_params()  # rwr: 600 steps

    params["select"]["policies"] = ["rwr1", "sft1"]
    project(params)
    with pytest.raises(ParamsError, match="select.policies: sft1 is trained for 300 steps with a checkpoint every 300"):
        check_params()


def test_a_source_that_compares_stands_only_where_comparisons_are_of_use(project):
    entry = {"policy": "rwr1", "against": "base", "source": "pairs"}
    sources = default_params()["feedback"]["sources"]
    wrong = {
        "evaluate.judges: pairs compares two clips at once, so it cannot judge one alone": [
            ("evaluate", {"judges": ["physics", "judge", "pairs"]})
        ],
        "select.judges: pairs compares two clips at once": [("select", {"judges": ["pairs"]})],
        "audit.human.source: people compares two clips at once; wanted people who rate single clips": [
            ("audit", {"human": {"set": "runs/r1/samples", "source": "people"}}),
            (
                "feedback",
                {
                    "sources": sources
                    | {"people": sources["people"] | {"rubric": "feedback/rubrics/people-preference.yaml"}}
                },
            ),
        ],
        "pairs compares clips, so it labels none: no pairs: all, balanced and no reward: label, p_accept (found pairs: "
        "all, reward: label)": [("feedback", {"source": "pairs"}), ("build", {"sources": {}})],
        "pairs: preferred takes the preferences of a source that compares clips, but judge judges one clip at a time": [
            ("build", {"pairs": "preferred"})
        ],
        "preferences.one.source: judge judges one clip at a time": [
            ("preferences", {"one": entry | {"source": "judge"}})
        ],
        "preferences.one.policy: 'rwr9' has no evaluation clips": [
            ("preferences", {"one": entry | {"policy": "rwr9"}})
        ],
        "preferences.one: base cannot be compared with itself": [("preferences", {"one": entry | {"policy": "base"}})],
        "preferences.one.source: 'pears' is unknown": [("preferences", {"one": entry | {"source": "pears"}})],
        "preferences.one.clip (4) is unknown; known keys are policy, against, source, clips": [
            ("preferences", {"one": entry | {"clip": 4}})
        ],
    }
    for message, changes in wrong.items():
        params = default_params()
        for name, values in changes:
            params[name] |= values
        project(params)
        with pytest.raises((ParamsError, ValueError)) as error:
            check_params()
        assert message in str(getattr(error.value, "message", error.value)), message
    params = default_params()
    params["feedback"]["source"], params["preferences"] = "pairs", {"one": entry, "two": entry | {"clips": 4}}
    project(params)
    check_params()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "filmed up close"}, r"extend.more: template is 'filmed up close', expected a text with {prompt}"),
        ({"prompts": "configs/presets/smoke.csv"}, "extend.more: 52 of 58 prompts have no text to extend: "),
        ({"prompts": "none.csv"}, "extend.more: .*none.csv"),
        ({"policy": "rwr9"}, "extend.more.policy: 'rwr9' is unknown; known are base, "),
        ({"model": "gpt"}, r"extend.more.model \('gpt'\) is unknown; known keys are policy, prompts, template"),
    ],
)
def test_a_wrong_extension_is_named(change, message, project):
    params = default_params()
    more = {"policy": "base", "prompts": "configs/prompt_sets/tabletop.csv", "template": "{prompt}, up close"}
    params["extend"], params["evaluate"]["policies"] = {"more": more}, ["base", "more"]
    project(params)
    check_params()

    more |= change
    project(params)
    with pytest.raises(ParamsError, match=message):
        check_params()


def test_a_reward_model_is_checked_before_any_clip_is_sampled(project):
    params = default_params()
    params["feedback"]["sources"]["bt"] = {"kind": "reward_model", "path": "runs/rewards/bt"}
    params["reward"]["models"] = {"bt": {"round": "r1"}}
    entry, sources = params["reward"]["models"]["bt"], params["feedback"]["sources"]
    project(params)
    (note,) = [note for note in check_params().notes if "reward" in note]
    assert note == "reward.models.bt is trained, but no policy is trained on it and no judge is named so"

    params["online"]["policies"]["grown"] = {
        "start": "base", "recipe": "reward-gradient", "judge": "bt", "held_out": "judge",
    }  # fmt: skip
    params["evaluate"]["policies"].append("grown")
    project(params)
    checked = check_params()
    assert not [note for note in checked.notes if "reward" in note]
    (line,) = [line for line in summarise(checked, None) if line.startswith("rewards")]
    assert line.endswith("bt on r1, models/tabletop/second_judge with a LoRA")
    for change, message in (
        ({"rubric": "tabletop/pairs.yaml"}, "reward.models.bt: rubric: tabletop/pairs.yaml is not what a reward model"),
        ({"rubric": "feedback/rubrics/aspects.yaml"}, "expected one question, the same for every prompt"),
        ({"path": "models/none"}, None),
        ({"path": "none"}, "reward.models.bt: path: none is neither a folder nor a hub id"),
        ({"revision": "main"}, "reward.models.bt: revision is 'main', but models/tabletop/second_judge is a local"),
        ({"steps": 0}, "reward.settings.steps is 0"),
        ({"checkpoint_every": 7}, "checkpoint_every is 7, expected a multiple of log_every"),
        ({"lora": 8}, "reward.settings.lora (8) is unknown; known keys are "),
    ):
        entry["changes"] = change
        project(params)
        if message is None:  # it may be a hub id
            check_params()
            continue
        with pytest.raises((ParamsError, ValueError)) as error:
            check_params()
        assert message in str(getattr(error.value, "message", error.value)), message
    del entry["changes"]
    sources["bt"]["path"] = "models/bt"
    del params["reward"]["models"]["bt"]
    project(params)
    with pytest.raises(ValueError, match="path: models/bt is no folder of a trained reward model"):
        check_params()


def with_panel(**changes) -> dict:
    """Our params with a panel of both sources, which is what labels."""
    params = default_params()
    panel = {"kind": "panel", "rule": "majority", "members": ["judge", "physics"]} | changes
    params["feedback"]["sources"]["panel"] = panel
    params["feedback"]["source"] = "panel"
    return params


def test_the_shipped_panel_lists_its_members_by_name(project):
    sources = default_params()["feedback"]["sources"]
    assert resolve("panel", sources)["members"] == {name: sources[name] for name in ("judge", "physics")}


def test_a_panels_members_are_checked_as_other_sources_are(project):
    wrong = {
        "feedback.sources.panel.rule is 'most'": with_panel(rule="most"),
        "feedback.sources.panel.members: 'gemni' is unknown; feedback.sources has ": with_panel(
            members=["judge", "gemni"]
        ),
        "feedback.sources.panel: members.panel.kind is 'panel'; a panel cannot be": with_panel(
            members=["judge", "panel"]
        ),
    }
    for message, params in wrong.items():
        project(params)
        with pytest.raises((ParamsError, ValueError)) as error:
            check_params()
        assert message in str(getattr(error.value, "message", error.value)), message


def test_what_a_panels_members_cannot_judge_is_refused_if_they_are_needed(project):
    params = with_panel() | {"prompts": {"path": "configs/prompt_sets/furuta.csv"}}
    params["evaluate"]["judges"], params["audit"]["sources"] = ["judge"], []  # which has no known answers there
    project(params)
    with pytest.raises(ValueError, match="physics knows the tabletop world alone"):
        check_params()

    params["feedback"]["source"] = "judge"
    project(params)
    check_params()


def test_an_entry_s_changes_come_before_the_settings_of_its_objective(project):
    params = default_params()
    params["policies"]["dpo1"]["changes"] = {"beta": 3.0, "steps": 7}
    project(params)
    check_params()
    dpo = OBJECTIVES["dpo"]

    assert train_config(dpo, "policies.dpo1") == replace(train_config(dpo), beta=3.0, steps=7)
    assert train_config(dpo, "policies.dpo2") == train_config(dpo)


WRONG_CHANGES = [
    ({"momentum": 3.0}, "policies.dpo1.changes.momentum (3.0) is unknown"),
    ({"steps": 0}, "policies.dpo1.changes.steps is 0, expected greater than or equal to 1"),
    ({"seed": 2}, "changes has a seed; write `seed` beside `changes`"),
    ({"lora_targets": ["attn9.to_q"]}, "policies.dpo1: lora_targets: 'attn9.to_q' is the ending of no module"),
]


@pytest.mark.parametrize("changes, message", WRONG_CHANGES)
def test_wrong_changes_of_an_entry_are_named_where_they_stand(changes, message, project):
    params = default_params()
    params["policies"]["dpo1"]["changes"] = changes
    project(params)

    with pytest.raises(ParamsError) as error:
        check_params()
    assert message in error.value.message


def test_full_fine_tuning_in_bfloat16_is_refused(project):
    params = default_params()
    params["train"]["common"]["full"], params["generator"]["dtype"] = True, "bfloat16"
    project(params)

    with pytest.raises(ParamsError, match="full fine-tuning needs generator.dtype: float32"):
        check_params()


def test_an_online_policy_that_trains_all_weights_is_refused_in_bfloat16(project):
    params = default_params()
    params["generator"]["dtype"] = "bfloat16"
    full = {"start": "base", "recipe": "vanilla-drf", "judge": "judge", "held_out": "physics"}
    params["online"]["policies"]["drf1"] = full
    project(params)

    with pytest.raises(ParamsError, match="online.policies.drf1: full fine-tuning needs generator.dtype: float32"):
        check_params()


def test_a_key_that_the_run_needs_and_frames_that_no_clip_has_are_warnings(project, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    params = with_panel(members=["gpt", "judge"])
    project(params)
    assert advice(params) == ["feedback.sources.panel.members.gpt needs the environment variable OPENAI_API_KEY, "
                              "which is not set"]  # and gemini, which is not used, needs none  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-this-test")
    assert advice(params) == []

    sheet = yaml.safe_load((ROOT / "tabletop/rubric.yaml").read_text()) | {"frames": 200}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(sheet))
    params["feedback"]["sources"]["judge"]["rubric"] = "many.yaml"
    assert "feedback.sources.judge: frames is 200 in many.yaml, but clips have 9, so it sees all of them" in advice(
        params
    )


def test_a_key_in_params_is_refused_without_printing_it(project):
    secret = "sk-proj-0123456789abcdefghij"
    for source, change, where, cure in (
        ("gpt", {"api_key": "short"}, "gpt.api_key", "variable OPENAI_API_KEY"),
        ("gpt", {"key": secret}, "gpt.key", "variable OPENAI_API_KEY"),
        ("gemini", {"token": "AIza" + 35 * "x"}, "gemini.token", "variable GEMINI_API_KEY"),
        ("served", {"apiKey": secret}, "served.apiKey", "and give the variable's name as key_variable"),
        ("gpt", {"key_variable": secret}, "gpt.key_variable", "variable OPENAI_API_KEY"),
        ("gpt", {"parameters": {"extra_headers": {"Authorization": f"Bearer {secret}"}}}, "Authorization", "variable"),
        ("judge", {"revision": "hf_" + 34 * "x"}, "judge.revision", "an environment variable"),
    ):
        params = default_params()
        params["feedback"]["sources"][source] |= change
        project(params)
        with pytest.raises(ValueError) as error:
            check_params()
        message = str(error.value)
        assert f"{where} holds a key" in message and cure in message, message
        assert not any(str(value) in message for value in (secret, "short", 34 * "x")), where
    params = default_params()
    params["feedback"]["sources"]["gpt"]["parameters"] = {"prompt_cache_key": "judge"}  # a parameter of OpenAI's
    project(params)
    check_params()


def test_every_split_that_is_sampled_needs_first_frames_where_the_generator_does(project, tmp_path):
    params = default_params()
    params["generator"] |= {"family": "cogvideox", "path": "models/tabletop/first_frame_generator"}
    for how in (params["generate"], params["evaluate"]["generate"], params["select"]["generate"]):
        how["solver"] = "ddim"
    params["evaluate"]["generate"]["split"] = "test"
    project(params)
    ids = [one.prompt_id for one in load_prompts(Path(params["prompts"]["path"]))[:3]]  # the fourth is of split test
    Image.new("RGB", (32, 32)).save(tmp_path / "square.png")
    with_images(tmp_path, params, {name: str(tmp_path / "square.png") for name in ids})
    project(params)
    with pytest.raises(ParamsError, match="give the prompt set a column image"):
        check_params()


def test_a_rubric_that_shows_first_frames_needs_a_generator_that_takes_them(project, tmp_path):
    params = default_params()
    shown = shows_first_frame(ROOT / "tabletop/rubric.yaml", tmp_path / "shown.yaml")
    params["feedback"]["sources"]["judge"]["rubric"] = str(shown)
    project(params)
    ids = [one.prompt_id for one in load_prompts(Path(params["prompts"]["path"]))[:4]]
    Image.new("RGB", (32, 32)).save(tmp_path / "square.png")
    with_images(tmp_path, params, {name: str(tmp_path / "square.png") for name in ids})
    project(params)
    with pytest.raises(ParamsError, match="shows the first frame, and the generator .* takes none"):
        check_params()


DENSE = {"round": "r1", "policy": "base", "noise": 0.75, "pairs_per_prompt": 4, "window": 4}


def dense_params(**changes) -> dict:
    """Params with a set of pairs, and a policy that is trained on it."""
    params = default_params()
    params["dense"] = {"d1": DENSE | changes}
    params["policies"]["dpo-dense"] = {"start": "base", "round": "d1", "objective": "dense_dpo"}
    params["evaluate"]["policies"] += ["dpo-dense"]
    return params


def test_a_set_of_pairs_is_counted_among_the_clips_and_its_windows_among_those_that_are_judged(project):
    project(dense_params())
    lines = {line.split()[0]: line for line in summarise(check_params(), None)}

    assert "dense       d1 by base from r1 " in lines["dense"] and lines["dense"].endswith(" pairs, window 4")
    pairs = int(re.search(r"r1 ([\d,]+) pairs", lines["dense"])[1].replace(",", ""))
    assert f"dense, windows {2 * 2 * pairs:,}" in lines["judges"]  # two clips a pair, two windows a clip of 9 frames


def test_what_a_set_of_pairs_cannot_be_is_said_before_anything_is_sampled(project):
    wrong = {
        "noise": (1.0, "dense.d1.noise is 1.0, expected less than 1"),
        "pairs_per_prompt": (49, "dense.d1.pairs_per_prompt is 49, but each starts from another clip"),
        "window": (3, "dense.d1: window is 3, so frames 3 to 4 of 9, which are one latent frame, lie in two windows"),
        "round": ("r9", "dense.d1.round: 'r9' is unknown; known are r1, r2"),
        "policy": ("rwr9", "dense.d1.policy: 'rwr9' is unknown"),
    }
    for key, (value, message) in wrong.items():
        project(dense_params(**{key: value}))
        with pytest.raises((ParamsError, ValueError), match=re.escape(message)):
            check_params()
    project(dense_params(noise=0.05))
    with pytest.raises(ParamsError, match=re.escape("dense.d1.noise: 0.05 of 8 solver steps are 0; wanted are 1 to 7")):
        check_params()
    for source in ("people", "pairs"):
        params = dense_params()
        params["feedback"]["source"] = source
        project(params)
        with pytest.raises(ParamsError, match=f"dense.d1: feedback.source is {source}, which compares clips or asks"):
            check_params()


def test_pairs_with_one_start_are_for_dense_dpo_and_rounds_are_not(project):
    for entry in ({"round": "r1", "objective": "dense_dpo"}, {"round": "d1", "objective": "dpo"}):
        params = dense_params()
        params["policies"]["dpo-dense"] |= entry
        project(params)
        with pytest.raises(ParamsError, match=re.escape(f"policies.dpo-dense.round: '{entry['round']}' is unknown")):
            check_params()


def test_a_policy_comes_after_the_one_whose_round_its_pairs_start_from(project):
    params = dense_params(round="r2")
    params["rounds"]["r2"]["policy"] = "dpo-dense"
    project(params)
    with pytest.raises(ParamsError, match="a cycle: d1 starts from clips of r2, which dpo-dense samples"):
        check_params()


def test_an_online_policy_that_is_sampled_otherwise_than_it_was_trained_is_a_note(project):
    """ask1 and ask2 train without guidance; ask3 is as evaluation is, but for the clips of its checkpoints."""
    params = default_params()
    entry = {"start": "base", "recipe": "ask-a-video", "judge": "second", "held_out": "judge"}
    without = {"engine": {"steps": 8, "guidance": 1.0}, "sampling": {"inference_steps": 8}}
    alike = {"engine": {"steps": 8, "guidance": 1.5, "checkpoint_every": 10}, "sampling": {"shift": 5.0}}
    params["online"]["policies"] = {
        "ask1": entry | {"changes": without}, "ask2": entry | {"changes": without}, "ask3": entry | {"changes": alike},
    }  # fmt: skip
    params["extend"] = {"longer": {"policy": "ask3", "prompts": params["prompts"]["path"], "template": "{prompt}"}}
    params["evaluate"]["policies"] += ["ask1", "ask2", "ask3", "ask3-selected", "longer"]
    params["select"] |= {"policies": ["ask3"], "generate": params["select"]["generate"] | {"steps": 4}}
    params["rounds"]["r9"] = {"policy": "ask1"}  # generate has guidance 1 and 8 steps
    project(params)

    assert otherwise_than_trained(params) == [
        "select.generate samples ask3 with 4 steps (in training 8 or 25): what was learned may not show",
        "evaluate.generate samples ask1, ask2 with guidance 1.5 (in training 1): what was learned may not show",
    ]
    assert set(otherwise_than_trained(params)) <= set(check_params().notes)
