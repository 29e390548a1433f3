"""Claims about the online loop on rewards and its settings, on tiny models of the real classes."""

import json
import math
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.config import ConfigError
from data.counts import Counts
from rl.online.guards import CurvePoint
from rl.online.policy_gradient import trained_steps
from rl.training.run import NonFiniteLossError
from rl.training.state import STATE_FILE
from tests.support.children import start
from tests.support.online import (
    adapter,
    grpo_config,
    load,
    log,
    probability,
    prompt_inputs,
    redness,
    run_by_rewards,
    run_by_slow_rewards,
)
from tests.support.training import write_base

FLOAT_ORDER = {"eps": 1e-2}  # Adam divides by the gradient's own size: see tests/rl/training/test_trainer.py


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What comes out


def test_the_clips_come_to_have_more_of_what_is_rewarded(tiny_wan, base, tmp_path):
    """No gradient passes the reward. On full samples by the ODE, of noise and prompts that were not trained on."""
    generator = load(tiny_wan)
    before = probability(generator, channel=0)
    changes = {"updates": 15, "checkpoint_every": 15, "batch_size": 16, "group_size": 8, "time_weight": 1.0}
    run_by_rewards(generator, base, tmp_path, kl_weight=0.0, **changes)
    assert probability(generator, channel=0) > before + 0.02
    rewards = [line["reward"] for line in log(tmp_path)]
    assert sum(rewards[-5:]) > sum(rewards[:5])


def test_a_line_of_the_log(tiny_wan, base, tmp_path):
    """Three steps, of which two have noise. At first the policy is the one that drew the steps, and its start."""
    report = run_by_rewards(tiny_wan, base, tmp_path, updates=3)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3] and report.last == lines[-1]
    assert set(lines[0]) == {
        "step", "loss", "kl", "velocity_distance", "ratio", "clipped", "reward", "reward_spread", "equal_groups",
        "unjudged", "gradient_by_t", "learning_rate", "gradient_norm",
    }  # fmt: skip
    first, last = lines[0], lines[-1]
    assert (first["kl"], first["velocity_distance"], first["clipped"], first["unjudged"]) == (0, 0, 0, 0)
    assert all(line["ratio"] < 1e-6 for line in lines)  # each update has a rollout of its own
    assert last["kl"] > 0 and last["velocity_distance"] > 0
    times, sizes = zip(*first["gradient_by_t"].items(), strict=True)
    assert list(map(float, times)) == sorted(map(float, times), reverse=True) and len(times) == 2
    assert all(size > 0 for size in sizes)
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert (policy["objective"], policy["judges"], policy["config"]["rollout"]) == ("online", {"red": 1.0}, "sde")
    assert policy["config"]["group_size"] == 2


def test_the_weight_of_time_changes_the_size_of_a_steps_gradient_and_no_clip(tiny_wan, base, tmp_path):
    """The norms by t of one rollout, of steps of a third each before the shift; weighted by s / sqrt(dt), a = 0.7."""
    norms = {}
    for power in (0.0, 1.0):
        run_by_rewards(tiny_wan, base, tmp_path / str(power), updates=1, kl_weight=0.0, time_weight=power)
        norms[power] = log(tmp_path / str(power))[0]["gradient_by_t"]
    (first, one), (second, other) = norms[0.0].items()
    # The shift is 3: t = 1, then 3 · (2/3) / (1 + 2 · (2/3)) = 6/7, then 3 · (1/3) / (1 + 2 · (1/3)) = 3/5
    assert (float(first), float(second)) == (1.0, pytest.approx(6 / 7, abs=1e-4))
    # s² / dt: 0.49 · 1 / (1/7) / (1/7); at 6/7 the step of 9/35 is longer than 1/7: 0.49 · (6/7) / (9/35) / (9/35)
    assert norms[1.0][first] / one == pytest.approx(0.7 * 7, rel=1e-3)
    assert norms[1.0][second] / other == pytest.approx(0.7 * math.sqrt(6 / 7) * 35 / 9, rel=1e-3)


def test_several_updates_share_a_rollout_and_the_ratio_leaves_one(tiny_wan, base, tmp_path):
    rollouts = []

    def rewards(number, clips):
        rollouts.append((number, len(clips)))
        return redness(number, clips)

    report = run_by_rewards(tiny_wan, base, tmp_path, rewards, updates=4, inner_epochs=2, ratio_clip=1e-5)
    assert rollouts == [(0, 4), (1, 4)]
    ratios, clipped, seen = zip(
        *[(line["ratio"], line["clipped"], line["reward"]) for line in log(tmp_path)], strict=True
    )
    assert ratios[0] < 1e-6 < ratios[1] and ratios[2] < 1e-6 < ratios[3]
    assert clipped[0] == clipped[2] == 0 and clipped[1] > 0
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert report.counts.clips == 8


def test_updates_that_share_a_rollout_share_its_guidance(tiny_wan, base, tmp_path):
    run_by_rewards(tiny_wan, base, tmp_path, guidance=[1.5, 3.0], inner_epochs=2)
    drawn, ratios = ([line[key] for line in log(tmp_path)] for key in ("guidance", "ratio"))
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3] and all(1.5 <= one <= 3 for one in drawn)
    # The steps are trained at the guidance that they were drawn at.
    assert ratios[0] == ratios[2] == pytest.approx(0, abs=1e-6)


def test_groups_without_a_difference_teach_nothing(tiny_wan, base, tmp_path):
    run_by_rewards(
        tiny_wan, base, tmp_path, lambda _, clips: {clip.place: 1.0 for clip in clips}, updates=2, kl_weight=0.0
    )
    assert [line["equal_groups"] for line in log(tmp_path)] == [1.0, 1.0]
    assert all(line["gradient_norm"] == 0 for line in log(tmp_path))
    assert all(not value.any() for key, value in adapter(tmp_path).items() if ".lora_B." in key)


def test_a_clip_that_was_not_judged_counts_as_none_and_not_as_zero(tiny_wan, base, tmp_path):
    """Rewards of 1 and unknown ones: a 0 in the place of an unknown one would be a difference."""
    unknown = lambda _, clips: {clip.place: 1.0 if clip.place % 2 else None for clip in clips}  # noqa: E731
    run_by_rewards(tiny_wan, base, tmp_path, unknown, updates=1, kl_weight=0.0)
    (line,) = log(tmp_path)
    assert (line["reward"], line["unjudged"], line["gradient_norm"]) == (1.0, 2, 0.0)


def test_the_kl_divergence_holds_the_policy_near_its_start(tiny_wan, base, tmp_path):
    for name, weight in (("free", 0.0), ("held", 100.0)):
        run_by_rewards(tiny_wan, base, tmp_path / name, updates=6, kl_weight=weight, learning_rate=0.01)
    free, held = (log(tmp_path / name)[-1]["kl"] for name in ("free", "held"))
    assert held < 0.5 * free


# What is drawn


def test_the_starts_of_a_group_and_the_steps_that_are_trained(tiny_wan, base, tmp_path):
    """Next to no noise in the steps: clips of a group with the same start are then alike."""
    generator, spread = load(tiny_wan), {}
    for same in (True, False):
        seen = []

        def rewards(number, clips, seen=seen):
            seen += [clip.frames.astype(int) for clip in clips]
            return redness(number, clips)

        run_by_rewards(tiny_wan, base, tmp_path / str(same), rewards, updates=1, same_noise=same, noise_level=1e-4)
        spread[same] = (np.abs(seen[0] - seen[1]).max(), np.abs(seen[2] - seen[3]).max())
    assert max(spread[True]) <= 1 and min(spread[False]) > 10
    config = grpo_config(steps=9, timestep_fraction=0.5)
    drawn = [trained_steps(generator, config, rollout) for rollout in range(20)]
    assert all(len(set(steps)) == 4 and steps == sorted(steps) for steps in drawn)  # half of the 8 with noise
    assert {step for steps in drawn for step in steps} == set(range(8))
    assert trained_steps(generator, grpo_config(steps=9), 0) == list(range(8))


def test_micro_batches_change_the_adapter_by_float_order_alone(tiny_wan, base, tmp_path):
    for name, pieces in (("whole", 1), ("split", 3)):
        run_by_rewards(tiny_wan, base, tmp_path / name, gradient_accumulation=pieces, updates=2, **FLOAT_ORDER)
    whole, split = adapter(tmp_path / "whole"), adapter(tmp_path / "split")
    assert all(torch.allclose(whole[key], split[key], atol=1e-4) for key in whole)
    assert any(value.any() for key, value in whole.items() if ".lora_B." in key)


def test_in_bfloat16_a_step_has_the_ratio_one_at_first_as_well(tiny_wan, base, tmp_path):
    run_by_rewards(tiny_wan, base, tmp_path, precision="bf16", gradient_checkpointing=True, updates=2)
    assert all(line["ratio"] < 1e-6 and math.isfinite(line["kl"]) for line in log(tmp_path))


def test_a_generator_that_takes_a_first_frame_is_given_its_prompts(tiny_wan_with, base, tmp_path):
    first = torch.randn(3, 2 + 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    folder = tiny_wan_with(in_channels=4 + 2 + 4)
    for name, image in (("one", first), ("other", -first)):
        run_by_rewards(folder, base, tmp_path / name, given=prompt_inputs(image=image), updates=1, guidance=2.0)
    assert log(tmp_path / "one")[0]["reward"] != log(tmp_path / "other")[0]["reward"]


def test_what_it_takes_is_counted(tiny_wan, base, tmp_path):
    """2 rollouts of 4 clips: 3 forwards to sample; in each of 2 trained steps one of the start, one with gradient."""
    counts = run_by_rewards(tiny_wan, base, tmp_path, updates=2).counts
    assert counts == Counts(clips=8, decodes=8, forwards=8 * (3 + 2 * 2), backwards=8 * 2)


# Guards, killed and started again


def test_the_held_out_judge_ends_the_run_and_the_best_checkpoint_is_kept(tiny_wan, base, tmp_path):
    points = iter([CurvePoint(0.5, 0.5), CurvePoint(0.6, 0.7), CurvePoint(0.8, 0.4)])
    report = run_by_rewards(
        tiny_wan, base, tmp_path, check=lambda _: next(points), held_out_every=2, updates=6, held_out_tolerance=0.1
    )
    assert (report.steps, report.kept) == (4, 2)
    assert report.stopped == "the held-out judge fell while the training judge rose"


@pytest.mark.ci
def test_killed_and_started_again_it_ends_with_the_same_bytes(tiny_wan, base, tmp_path):
    """Two updates share a rollout, which is not kept: the run goes on at the next one."""
    changes = {"updates": 8, "checkpoint_every": 2, "inner_epochs": 2}
    run_by_rewards(tiny_wan, base, tmp_path / "whole", **changes)
    child = start(run_by_slow_rewards, tiny_wan, base, tmp_path / "killed", changes, 0.5)
    state = tmp_path / "killed" / "work" / STATE_FILE
    while not state.is_file():
        assert child.is_alive(), "ended before it wrote a state"
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "killed" / "out").exists()
    report = run_by_rewards(tiny_wan, base, tmp_path / "killed", **changes)
    assert report.steps < 8  # it did not start afresh
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")


def test_two_processes_train_the_adapter_of_one(tiny_wan, base, tmp_path):
    """A group of three on two processes: one has two of its clips, the other one."""
    changes = {"updates": 2, "batch_size": 3, "group_size": 3, "checkpoint_every": 2, **FLOAT_ORDER}
    run_by_rewards(tiny_wan, base, tmp_path / "one", **changes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        start(run_by_slow_rewards, tiny_wan, base, tmp_path / "two", changes, 0.0, RANK=rank, LOCAL_RANK=rank, **group)
        for rank in "01"
    ]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)
    first, second = log(tmp_path / "one")[0], log(tmp_path / "two")[0]
    for key in ("reward", "reward_spread"):
        assert second[key] == pytest.approx(first[key], rel=1e-3)
    assert second["gradient_by_t"] == pytest.approx(first["gradient_by_t"], rel=1e-3)


def test_a_rollout_that_no_clip_of_could_be_judged_teaches_nothing(tiny_wan, base, tmp_path):
    def rewards(number, clips):
        return {clip.place: None for clip in clips} if number == 0 else redness(number, clips)

    run_by_rewards(tiny_wan, base, tmp_path, rewards, updates=2)
    first, second = log(tmp_path)
    assert (first["unjudged"], first["loss"], first["gradient_norm"]) == (4, 0, 0) and "reward" not in first
    assert (second["unjudged"], second["gradient_norm"] > 0) == (0, True) and "reward" in second


# Wrong input


def test_a_reward_that_is_not_finite_is_an_error(tiny_wan, base, tmp_path):
    with pytest.raises(ValueError, match="update 1: reward inf is not finite"):
        run_by_rewards(tiny_wan, base, tmp_path, lambda _, clips: {clip.place: math.inf for clip in clips})


def test_clips_that_are_not_finite_stop_before_the_update(tiny_wan, base, tmp_path, monkeypatch):
    generator, decode, calls = load(tiny_wan), type(load(tiny_wan)).decode, []

    def broken(self, latents):
        calls.append(1)
        return decode(self, latents * (math.nan if len(calls) == 3 else 1))

    monkeypatch.setattr(type(generator), "decode", broken)
    with pytest.raises(
        NonFiniteLossError, match=r"update 3: latents of clips 0, .*not applied, the last good checkpoint"
    ):
        run_by_rewards(generator, base, tmp_path)


def test_a_wrong_setting_is_named():
    for changes, error in (
        ({"rollout": "last_steps", "gradient_steps": 2}, "rollout must be sde"),
        ({"solver": "unipc"}, "solver must be euler, since the steps of rollout sde are at its times; found 'unipc'"),
        ({"velocity_weight": 0.1}, "velocity_weight must be 0, since rollout sde has no such penalty; found 0.1"),
        ({"stop_below": 0.1}, "stop_below must be None"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"batch_size": 5}, "batch_size must be a multiple of group_size (2), found 5"),
        ({"inner_epochs": 4, "updates": 8}, "checkpoint_every must be a multiple of inner_epochs (4)"),
        ({"inner_epochs": 2, "updates": 3}, "updates must be a multiple of inner_epochs (2)"),
        ({"group_size": 1}, "engine.group_size is 1, expected greater than or equal to 2"),
        ({"noise_level": 0.0}, "engine.noise_level is 0.0, expected greater than 0"),
        ({"reward": "likes"}, "engine.reward is 'likes'"),
    ):
        with pytest.raises(ConfigError) as raised:
            grpo_config(**changes)
        assert error in str(raised.value), changes
