"""What a stage takes before it runs: of judges over the network, calls, tokens and dollars."""

from pathlib import Path

import pytest
import yaml

from data.prompts import load_prompts
from pipeline.rates import Command, Rate
from pipeline.takes import Planner
from pipeline.work import work_of
from tests.support.defaults import DEFAULTS
from tests.support.network import make_clips, use_ledger

WINDOWS = Command("label", {"set": "runs/d1/samples", "source": "gpt", "window": "4"})
CLIPS = Command("label", {"set": "runs/r1/samples", "source": "gpt"})
PAIRS = Command("generate", {"set": "d1", "out": "runs/d1/samples", "sampling": "generate", "noise": "0.75"})


@pytest.fixture
def planner(tmp_path, monkeypatch) -> Planner:
    """Of the default params.yaml with two pairs a prompt, in an empty project; sampling takes 1 s a forward."""
    use_ledger(tmp_path / "ledger.sqlite", monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("tabletop", "feedback", "configs", "models"):
        (tmp_path / name).symlink_to(DEFAULTS.parents[2] / name)
    params = yaml.safe_load(DEFAULTS.read_text())
    params["dense"] = {"d1": {"round": "r1", "policy": "base", "noise": 0.75, "pairs_per_prompt": 2, "window": 4}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    rates = {"sample models/tabletop/generator 32x32x9": Rate("clips", 1.0, 0.0)}
    return Planner(params, load_prompts(Path(params["prompts"]["path"])), None, rates)


def test_a_reward_model_takes_its_steps_of_pairs(planner):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["reward"]["models"] = {"bt": {"round": "r1", "changes": {"steps": 30, "batch_size": 4}}}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    work = work_of(Command("reward", {"name": "bt"}), params, planner.prompts)

    assert (work.unit.name, work.amount, work.steps) == ("rows", 120, 30)
    assert work.unit.rate == "reward models/tabletop/second_judge 32x32x9"


def test_windows_cost_the_frames_of_each_window(planner):
    """40 train prompts x 2 pairs x 2 clips = 160 clips, each a window of 5 frames and one of 4; a clip shows 8 of 9.

    A frame of 32 x 32 pixels is one patch, so 2 tokens. The rest of a call, its text and the answer, is the same.
    """
    price = planner.params["feedback"]["sources"]["gpt"]["price"]
    whole, windows = planner.takes(CLIPS, False, 0), planner.takes(WINDOWS, False, 0)
    rest = whole.tokens / whole.calls - 8 * 2

    assert windows.calls == 160 * 2
    assert windows.tokens == 160 * (5 + 4) * 2 + 320 * rest
    answers = 320 * price["output_tokens"]
    sent = windows.tokens - answers
    assert windows.dollars == pytest.approx((sent * price["input"] + answers * price["output"]) / 1e6)
    assert windows.dollars < 320 / whole.calls * whole.dollars


def test_of_clips_that_are_there_their_windows_are_counted(planner, tmp_path):
    make_clips(tmp_path / "runs/d1/samples", 3)

    assert planner.takes(WINDOWS, True, 0).calls == 6
    assert planner.takes(WINDOWS, False, 0).calls == 320  # they will be made again


def test_a_judge_in_this_process_answers_about_windows(planner):
    found = planner.takes(WINDOWS._replace(options=WINDOWS.options | {"source": "physics"}), False, 0)

    assert (found.answers, found.calls, found.dollars) == (320, 0, 0)


def test_pairs_with_one_start_take_the_steps_that_are_run(planner):
    """160 clips of 0.75 x 8 = 6 steps, a forward each."""
    found = planner.takes(PAIRS, False, 0)

    assert (found.clips, found.seconds) == (160, 160 * 6)


def test_a_run_on_rewards_asks_its_judge_about_every_rollout_and_every_check(planner):
    """100 updates, two on a rollout of 16 clips: 800 clips; checks at updates 0, 50 and 100 of 24 x 2 clips."""
    engine = {"updates": 100, "inner_epochs": 2, "batch_size": 16, "held_out_every": 50}
    entry = {
        "start": "base",
        "recipe": "flow-grpo",
        "judge": "gpt",
        "held_out": "physics",
        "changes": {"engine": engine},
    }
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["online"]["policies"] = {"grpo": entry | {"changes": {"engine": engine}}}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    work = work_of(Command("online", {"entry": "grpo"}), params, planner.prompts)

    assert {one.source: one.amount for one in work.asked} == {"gpt": 800 + 3 * 48, "physics": 3 * 48}
    assert work.steps == 100
