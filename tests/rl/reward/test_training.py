"""Training a reward model, here a linear one whose scores are known."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from data.records import Pair
from rl.reward.config import RewardTraining
from rl.reward.training import split_pairs, train_reward
from rl.training.run import NonFiniteLossError
from tests.support.refusals import assert_refused

CONFIG = RewardTraining(
    learning_rate=0.1, warmup_steps=2, weight_decay=0.0, max_grad_norm=10.0, steps=12, batch_size=6, forward_size=12,
    held_out=0.2, checkpoint_every=4, log_every=2, seed=1,
)  # fmt: skip
PROMPTS, CLIPS = 10, 4  # CLIPS of each prompt; the later ones are better
PAIRS = [
    Pair(f"p{prompt}", f"p{prompt}-{better}", f"p{prompt}-{worse}", 1.0)
    for prompt in range(PROMPTS)
    for better in range(CLIPS)
    for worse in range(better)
]


class Linear:
    """Scores w x of clips whose first feature is their rank, the second one noise."""

    def __init__(self) -> None:
        self.weights = Parameter(torch.zeros(2))
        self.asked: list[str] = []

    def __call__(self, clips: list[str]) -> torch.Tensor:
        self.asked += clips
        noise = [(7 * int(clip[1:].replace("-", "")) % 5) / 25 for clip in clips]
        rank = [int(clip[-1]) / CLIPS for clip in clips]
        return torch.tensor([rank, noise]).T @ self.weights


def trained(tmp_path, config: RewardTraining = CONFIG, model: Linear | None = None) -> SimpleNamespace:
    model = model or Linear()
    report = train_reward(PAIRS, model, {"w": model.weights}, config, tmp_path, tmp_path / "reward")
    log = (tmp_path / "reward/log.jsonl").read_bytes()
    return SimpleNamespace(report=report, weights=model.weights.detach().clone(), log=log, model=model)


def test_it_learns_what_orders_the_pairs_and_is_measured_on_prompts_that_it_was_not_trained_on(tmp_path):
    found = trained(tmp_path)

    assert found.report.held_out_accuracy == 1.0
    assert found.weights[0] > abs(found.weights[1])
    assert (found.report.prompts, found.report.held_out_prompts) == (8, 2)
    assert (found.report.pairs, found.report.held_out_pairs) == (48, 12)
    first = json.loads(found.log.splitlines()[0])
    assert first["step"] == 2 and first["loss"] < 0.6932 and 0 <= first["accuracy"] <= 1


def test_no_clip_of_a_held_out_prompt_is_trained_on():
    split = split_pairs(PAIRS, 0.3, seed=5)

    assert sorted(split.train + split.held_out, key=str) == sorted(PAIRS, key=str)
    prompts = [{pair.prompt_id for pair in part} for part in split]
    assert not prompts[0] & prompts[1] and len(prompts[1]) == 3
    assert split_pairs(PAIRS, 0.3, seed=6).held_out != split.held_out
    assert split_pairs(PAIRS, 0.0, seed=5).held_out == []


def test_without_held_out_prompts_there_is_no_accuracy(tmp_path):
    report = trained(tmp_path, replace(CONFIG, held_out=0.0)).report
    assert (report.pairs, report.held_out_loss, report.held_out_accuracy) == (60, None, None)


def test_fewer_clips_a_forward_train_the_same(tmp_path):
    whole, pieces = trained(tmp_path / "a"), trained(tmp_path / "b", replace(CONFIG, forward_size=3))
    assert torch.allclose(whole.weights, pieces.weights, atol=1e-6)


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path):
    class Killed(Exception):
        pass

    class Dies(Linear):
        def __call__(self, clips: list[str]) -> torch.Tensor:
            if len(self.asked) >= 7 * 12:  # in step 8, after the checkpoint of step 4
                raise Killed
            return super().__call__(clips)

    whole = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "killed", model=Dies())
    again = trained(tmp_path / "killed")

    assert torch.equal(again.weights, whole.weights) and again.log == whole.log and again.report == whole.report
    assert len(again.model.asked) < len(whole.model.asked)


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_no_weight(tmp_path):
    model = Linear()
    model.weights.data.fill_(torch.inf)
    with pytest.raises(NonFiniteLossError, match="step 1: loss nan"):
        trained(tmp_path, model=model)


def test_what_cannot_be_split_or_resumed_is_refused(tmp_path):
    one = [pair for pair in PAIRS if pair.prompt_id == "p1"]
    assert_refused(
        lambda pairs: split_pairs(pairs, 0.2, 1),
        [([], "0 prompts have pairs, and 0 of them are held out"), (one, "1 prompts have pairs, and 1 of them")],
    )
    trained(tmp_path)
    with pytest.raises(ValueError, match="steps was 12 when this state was written and is 16 now"):
        trained(tmp_path, replace(CONFIG, steps=16))
    with pytest.raises(ValueError, match=r"checkpoint_every is 3, expected a multiple of log_every \(2\)"):
        replace(CONFIG, checkpoint_every=3)
