"""`vfrl online`: one prompt trained from the command line, and the options that are refused."""

import json
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from commands.online import main as online_command
from commands.online import one_prompt
from commands.online.one_prompt import with_changes
from data.prompts import Prompt
from data.video import read_video
from feedback.core.source import LabelError
from generators.core.size import VideoSize
from generators.core.solvers import solver_scheduler
from pipeline.identity import facts_of, identity
from pipeline.judges import check_references, members_of
from pipeline.params import ParamsError
from pipeline.recipes import load_recipe
from tabletop.references import real_clips
from tests.support.defaults import DEFAULTS
from tests.support.judges import WORDS
from tests.support.lighter import save_vae
from tests.support.reward_models import TEXT, build_base, build_videoreward
from tests.support.tiny import load_wan

ROOT = Path(__file__).parents[2]
FALL = "pushing red ball so that it falls off the table"
QUICK = (
    "engine.updates=2", "engine.batch_size=2", "engine.steps=2", "engine.held_out_every=1", "engine.checkpoint_every=1",
    "engine.guidance=1.0", "engine.gradient_steps=1", "engine.stop_right=null", "sampling.inference_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """The working folder: the default params and a random video reward model, beside our files."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "feedback", "models", "tabletop"):
        (folder / name).symlink_to(ROOT / name)
    build_videoreward(folder / "reward", build_base(folder / "base", [*WORDS, *FALL.split()]))
    (folder / "reward.txt").write_text(TEXT)
    params = YAML(typ="safe", pure=True).load(DEFAULTS)
    params["feedback"]["sources"]["reward"] = {
        "kind": "videoreward", "path": "reward", "text": "reward.txt", "score": "MQ", "dtype": "float32",
        "cache": "cache",
    }  # fmt: skip
    prompt = params["online"]["prompt"]
    prompt |= {"recipe": "vlm-as-teacher", "judge": "second", "held_out": "judge"}  # which answers questions
    prompt["changes"]["diffusion-drf"] = prompt["changes"]["vlm-as-teacher"]
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def run(*arguments: str):
    return CliRunner().invoke(online_command, arguments)


def quick(out: Path, *arguments: str):
    changes = [part for change in QUICK for part in ("--set", change)]
    return run("--prompt", FALL, *changes, "--out", str(out), *arguments)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """An optimised prompt with a question and a box of its own."""
    out = tmp_path_factory.mktemp("online") / "mine"
    asks = ("--ask", "does the red ball fall off the table=yes", "--ask", "is the red ball inside the rectangle=no")
    done = quick(out, *asks, "--box", "8,8,20,20@0-4", "--set", "engine.held_out_every=null", "--heatmap")
    assert done.exit_code == 0, done.output
    return out


def test_one_prompt_gets_its_clips_its_lora_its_curve_and_a_picture_of_the_overlay(mine):
    before, after = (read_video(mine / name) for name in ("before.mp4", "after.mp4"))
    assert before.shape == after.shape == (9, 64, 64, 3)  # as any browser plays them, twice as large
    with av.open(str(mine / "after.mp4")) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"
    assert (before != after).any()
    assert (mine / "pytorch_lora_weights.safetensors").is_file()
    assert (mine / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (mine / "curve.svg").read_text()


def test_each_question_of_the_command_line_is_logged_with_its_probability(mine):
    rows = [json.loads(line) for line in (mine / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert set(rows[-1]["questions"]) == {"second/ask_1", "second/ask_2"}
    assert all(0 < question["p"] < 1 for question in rows[-1]["questions"].values())
    asks = [json.loads(line) for line in (mine / "asks.jsonl").read_text().splitlines()]
    assert [(ask["text"], ask["wanted"], ask["author"]) for ask in asks] == [
        ("does the red ball fall off the table", "Yes", "own"),
        ("is the red ball inside the rectangle", "No", "own"),
    ]


def test_where_the_judge_looks_is_drawn_before_and_after_with_a_row_for_each_question(mine):
    before, after = (Image.open(mine / f"heatmap-{name}.png") for name in ("before", "after"))
    assert before.size == after.size and before.size[0] == 8 * (96 + 2) - 2 + 2 * 8  # the 8 frames that it sees
    assert before.size[1] > 3 * 96  # the frames and two questions
    assert before.tobytes() != after.tobytes()


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """An optimised prompt under the rule that ends it when the judges find it right, which they do not."""
    out = tmp_path_factory.mktemp("online") / "ruled"
    changes = ("--set", "engine.stop_right=0.999", "--set", "engine.guidance=[1.0, 2.0]")
    done = quick(out, *changes, "--set", "sampling.unconditional=base")
    assert done.exit_code == 0, done.output
    return out


def test_the_rule_that_ends_a_run_looks_at_the_clip_that_is_shown(ruled):
    """The checks' scores of the start and of the kept update are those of before.mp4 and after.mp4."""
    rows = [json.loads(line) for line in (ruled / "log.jsonl").read_text().splitlines()]
    points = {row["step"]: row["held_out"] for row in rows}
    outcome = json.loads((ruled / "outcome.json").read_text())
    assert list(points) == [0, 1, 2] and outcome["stopped"] is None and outcome["updates"] == 2
    for clip, step in (("before.mp4", 0), ("after.mp4", outcome["kept"])):
        said = outcome["clips"][clip]
        assert {name: one["role"] for name, one in said.items()} == {
            "second": "trained on", "judge": "held out", "physics": "also asked",
        }  # fmt: skip
        assert said["second"]["score"] == pytest.approx(points[step]["training"], abs=1e-4)
        assert min(said["second"]["answers"].values()) == pytest.approx(points[step]["least"], abs=1e-4)
        assert said["judge"]["score"] == pytest.approx(points[step]["held_out"], abs=1e-4)
        assert said["physics"]["right"] in (True, False) and said["physics"]["reason"]


def test_a_policy_says_how_it_is_to_be_sampled(ruled):
    """Its range of guidance, and whose branch is without the prompt."""
    sampling = json.loads((ruled / "policy.json").read_text())["sampling"]
    assert (sampling["guidance"], sampling["unconditional"]) == ([1.0, 2.0], "base")


@pytest.mark.ci  # 10 s
def test_one_prompt_without_a_real_clip_is_asked_by_diffusion_drf_about_alignment_alone(tmp_path):
    done = quick(tmp_path / "drf", "--recipe", "diffusion-drf", "--set", "engine.full=false")
    assert done.exit_code == 0, done.output
    asks = [json.loads(line) for line in (tmp_path / "drf/asks.jsonl").read_text().splitlines()]
    assert {ask["kind"] for ask in asks} == {"alignment"}
    assert all(ask["explanation"] is None and not ask["with_reference"] for ask in asks)
    drawn = sorted(path.name for path in (tmp_path / "drf/heatmaps").iterdir())
    assert drawn == ["step-000000.png", "step-000001.png", "step-000002.png"]  # at each check


BEST = (
    "engine.updates=2", "engine.batch_size=4", "engine.group_size=4", "engine.keep=1", "engine.inner_epochs=1",
    "engine.steps=2", "engine.held_out_every=1", "engine.checkpoint_every=1", "engine.guidance=1.0",
    "sampling.inference_steps=2",
)  # fmt: skip


def of_its_best(out: Path, *arguments: str):
    """By recipe raft, the default of params.yaml."""
    changes = [part for change in BEST for part in ("--set", change)]
    return run("--prompt", FALL, "--recipe", "raft", *changes, "--out", str(out), *arguments)


def test_one_prompt_is_trained_on_the_best_of_its_own_clips_by_the_judges_label(tmp_path):
    """The check looks at the clip that is shown, whose judges' scores are those of before.mp4 and after.mp4."""
    judges = ("--judge", "judge_and_clip", "--held-out", "second")
    done = of_its_best(tmp_path / "best", *judges, "--set", "engine.stop_right=0.999")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "best/log.jsonl").read_text().splitlines()]
    assert [row["kept"] for row in rows if "kept" in row] == [1, 1]
    points = {row["step"]: row["held_out"] for row in rows}
    outcome = json.loads((tmp_path / "best/outcome.json").read_text())
    assert list(points) == [0, 1, 2] and outcome["updates"] == 2
    for clip, step in (("before.mp4", 0), ("after.mp4", outcome["kept"])):
        said = outcome["clips"][clip]
        assert {name: one["role"] for name, one in said.items()} == {
            "judge_and_clip": "trained on", "second": "held out", "physics": "also asked",
        }  # fmt: skip
        assert said["judge_and_clip"]["score"] == pytest.approx(points[step]["training"], abs=1e-4)
        assert said["second"]["score"] == pytest.approx(points[step]["held_out"], abs=1e-4)
    assert not (tmp_path / "best/asks.jsonl").exists()


@pytest.mark.ci  # 15 s
def test_questions_of_the_command_line_give_the_rewards_of_its_own_clips(tmp_path):
    """By a judge that sees the overlay, and that can be drawn; without questions its rubric's is drawn."""
    asks = ("--ask", "is there a red ball=yes", "--ask", "is the red ball inside the rectangle=no")
    done = of_its_best(tmp_path / "asked", *asks, "--box", "8,8,20,20@0-4", "--heatmap")
    assert done.exit_code == 0, done.output
    outcome = json.loads((tmp_path / "asked/outcome.json").read_text())
    said = outcome["clips"]["after.mp4"]["second"]
    assert set(said["answers"]) == {"second/ask_1", "second/ask_2"}
    assert said["score"] == pytest.approx(sum(said["answers"].values()) / 2)
    assert {"asks.jsonl", "overlay.png", "heatmap-after.png"} <= {path.name for path in (tmp_path / "asked").iterdir()}
    refused = of_its_best(tmp_path / "marked", "--box", "8,8,20,20@0-4")
    assert refused.exit_code == 1
    assert "overlay: a recipe by rewards does not read it" in refused.output
    drawn = of_its_best(
        tmp_path / "drawn", "--heatmap", "--set", "engine.held_out_every=null", "--set", "engine.stop_right=null"
    )
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "drawn/heatmap-before.png").is_file()


@pytest.mark.ci  # 10 s
def test_the_lora_of_an_earlier_run_is_started_from(mine, tmp_path):
    done = quick(tmp_path / "more", "--lora", str(mine), "--ask", "is there a red ball=yes")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "more/policy.json").read_text())["start"] == "mine"


@pytest.mark.ci  # 32 s
def test_a_lighter_decoder_is_trained_through_and_measured_and_never_shown(tmp_path, caplog):
    """A decoder of random weights, so that a clip of it is nowhere near the real one."""
    caplog.set_level("INFO")
    place = f"decoding.decoder={{kind: diffusers, path: {save_vae(tmp_path / 'vae')}}}"
    asked = ("--ask", "is there a red ball=yes", "--set", place, "--set", "decoding.mode=exact")
    done = quick(tmp_path / "lighter", *asked)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "lighter/log.jsonl").read_text().splitlines()]
    measured = [line["held_out"]["others"]["decoder_psnr"] for line in lines if "held_out" in line]
    assert len(measured) == 3 and all(0 < one < 20 for one in measured)  # before, and after either update
    policy = json.loads((tmp_path / "lighter/policy.json").read_text())
    assert policy["decoder_psnr"] == measured[-1]
    assert policy["recipe"]["decoding"]["decoder"]["kind"] == "diffusers"
    assert f"update 2: the lighter decoder is {measured[-1]:.1f} dB from the VAE, 16 clips" in caplog.text
    plain = quick(tmp_path / "plain", "--ask", "is there a red ball=yes")
    assert plain.exit_code == 0, plain.output
    shown = [read_video(tmp_path / name / "before.mp4") for name in ("lighter", "plain")]
    assert (shown[0] == shown[1]).all()
    assert "decoder_psnr" not in json.loads((tmp_path / "plain/policy.json").read_text())


def test_without_a_check_the_lighter_decoder_is_measured_on_one_clip(tmp_path, caplog):
    caplog.set_level("INFO")
    place = "decoding.decoder={kind: diffusers, path: models/tabletop/generator/vae}"
    asked = ("--ask", "is there a red ball=yes", "--set", place, "--set", "engine.held_out_every=null")
    done = quick(tmp_path / "own", *asked)
    assert done.exit_code == 0, done.output
    assert "the lighter decoder is 99.0 dB from the VAE on a clip of the generator" in caplog.text


@pytest.mark.ci  # 11 s
def test_a_video_reward_model_is_trained_on_by_the_measure_that_its_block_names(tmp_path, caplog):
    caplog.set_level("INFO")
    done = quick(tmp_path / "reward", "--recipe", "reward-gradient", "--judge", "reward", "--held-out", "physics")
    assert done.exit_code == 0, done.output
    assert "trained on reward: VideoReward" in caplog.text and ": MQ." in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "reward/log.jsonl").read_text().splitlines()]
    assert {name for row in rows if "questions" in row for name in row["questions"]} == {"reward/MQ"}
    assert "reward/MQ" in (tmp_path / "reward/curve.svg").read_text()


def test_wrong_options_are_errors_before_anything_is_written(tmp_path):
    for *options, message in (
        ("--judge", "gemini", "--ask", "is there a red ball=yes", "weights are in this process, kind qwen"),
        ("--judge", "nobody", "judge 'nobody' is unknown"),
        ("--ask", "is there a red ball", "names no wanted answer"),
        ("--ask", "is there a red ball=maybe", "the wanted answer 'maybe' is unknown"),
        ("--ask", "is there a purple ball=yes", "purple"),
        ("--box", "8,8,20,20", "no frames; end it in @"),
        ("--box", "8,8,20,40@0", "outside the picture"),
        ("--box", "8,8,20,20@9", "frames [9] of a clip of 9"),
        ("--set", "judge.frames=10", "frames is 10, expected 1 to 9"),
        (
            "--set",
            "decoding.decoder={kind: taehv, path: gone}",
            "the recipe: decoding.decoder: gone: 0 safetensors files",
        ),
        ("--set", "engine.updats=3", "engine.updats"),
        ("--set", "updates=3", "write section.key=value"),
        ("--recipe", "asking", "recipe 'asking' is unknown"),
        ("--recipe", "reward-gradient", "--judge", "clip", "--ask", "is it red=yes", "has no questions"),
    ):
        done = quick(tmp_path / "out", *options)
        assert done.exit_code == 1, options
        assert message in done.output, options
        assert not (tmp_path / "out").exists(), options


def test_what_fails_after_the_training_does_not_cost_the_training_again(tmp_path, monkeypatch, caplog):
    options = ("--judge", "judge", "--set", "engine.stop_right=0.999")

    def failing(*_):
        raise LabelError("the held-out judge's server is gone")

    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(one_prompt, "opinions_of", failing)
        assert of_its_best(tmp_path / "out", *options).exit_code == 1
        assert "2 updates with batches of 4; 0 are done" in caplog.text
    with caplog.at_level("INFO"):
        done = of_its_best(tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert "2 updates with batches of 4; 2 are done" in caplog.text
    assert json.loads((tmp_path / "out/outcome.json").read_text())["updates"] == 2


def test_a_judge_without_a_gradient_to_draw_is_refused_before_the_training(tmp_path):
    for judge, message in (
        ("physics", "judge physics has no rubric, so no question that a gradient could be drawn of"),
        ("gpt", "feedback.sources.gpt is of kind gpt, whose answers have no gradient"),
    ):
        done = of_its_best(tmp_path / "out", "--judge", judge, "--heatmap")
        assert done.exit_code == 1 and message in done.output, judge
        assert not (tmp_path / "out").exists(), judge


def test_a_killed_run_goes_on_with_another_budget_and_not_with_other_questions(tmp_path, monkeypatch):
    """By the facts of the run's resume state."""
    found: list[str] = []

    class Reached(Exception):
        """Ends the command where it would begin to work."""

    def state(stage, out, params, inputs):
        found.append(identity(facts_of(stage, params, inputs)))
        raise Reached

    monkeypatch.setattr(one_prompt, "stage_state", state)
    rubric, written = tmp_path / "rubric.yaml", Path("params.yaml").read_text()
    rubric.write_text(Path("feedback/rubrics/review.yaml").read_text())
    params = YAML(typ="safe", pure=True).load(written)

    def run_again(**changes) -> str:
        params["feedback"]["sources"]["gpt"] |= {"rubric": str(rubric), **changes}
        with Path("params.yaml").open("w") as file:
            YAML().dump(params, file)
        done = of_its_best(tmp_path / "out", "--judge", "gpt")
        assert isinstance(done.exception, Reached), done.output
        return found[-1]

    try:
        first = run_again()
        assert run_again(budget_usd=99.0, concurrency=1) == first
        assert run_again(picture="png") != first
        rubric.write_text(rubric.read_text().replace("video", "clip"))
        assert run_again(picture="jpeg") != first
    finally:
        Path("params.yaml").write_text(written)


def test_changes_of_the_command_line_go_over_those_of_params():
    below = {"engine": {"updates": 60, "steps": 8}, "judge": {"frames": 8}}
    changed = with_changes(below, ["engine.updates=3", "augment.crop=0.1", "questions.kinds=[alignment]"])
    assert changed == {
        "engine": {"updates": 3, "steps": 8}, "judge": {"frames": 8}, "augment": {"crop": 0.1},
        "questions": {"kinds": ["alignment"]},
    }  # fmt: skip
    assert below["engine"]["updates"] == 60


def test_a_panel_of_rule_mean_is_its_members_and_another_rule_is_refused():
    blocks = {"a": {"kind": "qwen", "path": "x"}, "b": {"kind": "qwen", "path": "y"}}
    sources = {"both": {"kind": "panel", "rule": "mean", "members": blocks}, **blocks}
    assert members_of("both", sources) == blocks
    assert members_of("a", sources) == {"a": blocks["a"]}
    with pytest.raises(ValueError, match="losses can be averaged: rule mean"):
        members_of("both", sources | {"both": sources["both"] | {"rule": "all"}})


def test_an_entry_names_where_real_clips_come_from():
    for name in (None, "tabletop", "prompts", "my_lab.clips"):
        check_references(name)
    with pytest.raises(ValueError, match="references is 'disk'; known are tabletop, prompts"):
        check_references("disk")


def test_a_rendered_reference_is_the_same_every_time_and_another_for_another_prompt():
    texts = {"a": FALL, "b": "lifting red ball up"}
    prompts = [Prompt(name, text, "x", "train", None, None) for name, text in texts.items()]
    once, again = real_clips(prompts, 8, 8.0), real_clips(prompts[:1], 8, 8.0)
    assert (once["a"].frames == again["a"].frames).all()
    assert (once["a"].frames != once["b"].frames).any()
    assert once["a"].frames.shape == (8, 32, 32, 3)


def test_a_recipe_takes_an_entrys_changes_over_the_papers_values():
    recipe = load_recipe("ask-a-video", {"engine": {"updates": 7}})
    assert (recipe.engine.updates, recipe.engine.steps) == (7, 25)
    with pytest.raises(ParamsError, match="engine.steps is 'many'"):
        load_recipe("ask-a-video", {"engine": {"steps": "many"}})


TABLETOP = VideoSize(num_frames=9, height=32, width=32, fps=8.0)


def test_a_flow_shift_changes_the_schedule_and_no_module():
    generator = load_wan("models/tabletop/generator", TABLETOP, max_prompt_tokens=16, parts=("denoiser",))
    before = generator.process.shift
    shifted = generator.with_shift(5.0)
    assert shifted.process.shift == 5.0 != before == generator.process.shift
    assert shifted.component("transformer") is generator.component("transformer")
    times = [solver_scheduler(one.scheduler_config, "euler") for one in (generator, shifted)]
    for scheduler in times:
        scheduler.set_timesteps(4)
    assert times[1].timesteps[1] > times[0].timesteps[1]  # nearer to noise
