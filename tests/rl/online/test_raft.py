"""Claims about the online loop on the best of the policy's own clips, on tiny models of the real classes."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from data.config import ConfigError
from data.counts import Counts
from rl.online.guards import CurvePoint
from rl.online.raft import best_places
from rl.online.rewarded import start_noise
from rl.online.trainer import fixed_noise
from rl.training.state import STATE_FILE
from tests.support.children import start
from tests.support.online import (
    adapter,
    load,
    log,
    probability,
    prompt_inputs,
    raft_config,
    redness,
    run_by_slow_rewards,
    run_on_best,
)
from tests.support.training import write_base

FLOAT_ORDER = {"eps": 1e-2}  # Adam divides by the gradient's own size: see tests/rl/training/test_trainer.py


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Which clips are trained on


def test_the_best_of_each_prompt_are_kept_of_those_above_its_mean():
    soft, hard = [0.1, 0.9, 0.6, 0.7], [0.2, 0.0, 0.1, 0.1]  # means 0.575 and 0.1
    assert best_places([soft, hard], 1) == [1, 4]  # the best of each, whatever the other prompt's
    assert best_places([soft, hard], 2) == [1, 3, 4]  # 0.1 is not above its mean
    assert best_places([soft], 4) == [1, 2, 3]


def test_of_equals_the_earlier_is_kept_and_a_group_of_equals_has_no_best():
    assert best_places([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], 2) == [0, 2]
    for reward in (0.1, 0.3, 0.7, 1.1):  # whose mean of three or six may be rounded below them
        assert best_places([[reward] * 3, [reward] * 3], 2) == best_places([[reward] * 6], 2) == []


def test_a_clip_without_a_reward_is_in_no_mean_and_never_kept():
    """Without it the mean is 0.6: were it a 0, the mean would be 0.4, and 0.5 above it."""
    assert best_places([[None, 0.5, 0.7], [None, None, None], [None, None, 1.0]], 3) == [2]


# What comes out


def test_the_clips_come_to_have_more_of_what_is_rewarded(tiny_wan, base, tmp_path):
    """On full samples of noise and prompts that were not trained on."""
    generator = load(tiny_wan)
    before = probability(generator, channel=0)
    changes = {"updates": 60, "checkpoint_every": 60, "batch_size": 32, "group_size": 32, "keep": 4, "inner_epochs": 5}
    run_on_best(generator, base, tmp_path, learning_rate=0.02, **changes)
    assert probability(generator, channel=0) > before + 0.02


def test_a_line_of_the_log(tiny_wan, base, tmp_path):
    report = run_on_best(tiny_wan, base, tmp_path, updates=2, guidance=[1.5, 3.0])
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2] and report.last == lines[-1]
    assert set(lines[0]) == {
        "step", "loss", "kept", "reward", "reward_spread", "equal_groups", "unjudged", "guidance", "learning_rate",
        "gradient_norm",
    }  # fmt: skip
    assert all(line["kept"] == 2 and line["loss"] > 0 and 1.5 <= line["guidance"] <= 3 for line in lines)
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert (policy["objective"], policy["judges"], policy["config"]["rollout"]) == ("online", {"red": 1.0}, "best")


def test_several_updates_share_a_rollout_and_each_has_noise_of_its_own(tiny_wan, base, tmp_path):
    rollouts = []

    def rewards(number, clips):
        rollouts.append((number, len(clips)))
        return redness(number, clips)

    report = run_on_best(tiny_wan, base, tmp_path, rewards, updates=4, inner_epochs=2, learning_rate=1e-9)
    assert rollouts == [(0, 4), (1, 4)] and report.counts.clips == 8
    first, second, *_ = (line["loss"] for line in log(tmp_path))
    assert first != pytest.approx(second, rel=1e-3)  # of the same clips and weights


def test_a_rollout_that_no_clip_of_could_be_judged_teaches_nothing(tiny_wan, base, tmp_path):
    run_on_best(tiny_wan, base, tmp_path, lambda _, clips: {clip.place: None for clip in clips}, updates=2)
    for line in log(tmp_path):
        assert (line["kept"], line["loss"], line["unjudged"], line["gradient_norm"]) == (0, 0, 4, 0)


def test_a_rollout_without_a_difference_teaches_nothing(tiny_wan, base, tmp_path):
    run_on_best(tiny_wan, base, tmp_path, lambda _, clips: {clip.place: 1.0 for clip in clips}, updates=2)
    for line in log(tmp_path):
        assert (line["kept"], line["loss"], line["equal_groups"], line["gradient_norm"]) == (0, 0, 1, 0)
    assert all(not value.any() for key, value in adapter(tmp_path).items() if ".lora_B." in key)


def test_fixed_noise_is_that_of_the_clip_that_a_run_for_one_prompt_shows(tiny_wan):
    generator, inputs = load(tiny_wan), prompt_inputs(1)
    config = raft_config(noise="fixed", batch_size=3, group_size=3)
    for rollout in (0, 1):
        noise = start_noise(generator, inputs, config, rollout, {0: 0, 2: 0})
        for row, place in enumerate((0, 2)):
            assert torch.equal(noise[row], fixed_noise(config.seed, "p0", place, generator.latent_shape))
    of_two_groups = start_noise(generator, inputs, raft_config(noise="fixed"), 0, dict.fromkeys(range(4), 0))
    for place in range(4):  # of 2 groups of 2, both of the one prompt
        assert torch.equal(of_two_groups[place], fixed_noise(config.seed, "p0", place, generator.latent_shape))
    fresh = [start_noise(generator, inputs, raft_config(), rollout, {0: 0, 1: 0}) for rollout in (0, 1)]
    assert not torch.equal(fresh[0], fresh[1]) and not torch.equal(fresh[0][0], fresh[0][1])


def test_given_first_frames_are_conditions_of_the_training_too(tiny_wan_with, base, tmp_path):
    first = torch.randn(3, 2 + 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    folder = tiny_wan_with(in_channels=4 + 2 + 4)
    for name, image in (("one", first), ("other", -first)):
        run_on_best(folder, base, tmp_path / name, given=prompt_inputs(image=image), updates=1, guidance=2.0)
    one, other = (log(tmp_path / name)[0] for name in ("one", "other"))
    assert one["reward"] != other["reward"] and one["loss"] != other["loss"]


def test_micro_batches_change_the_adapter_by_float_order_alone(tiny_wan, base, tmp_path):
    for name, pieces in (("whole", 1), ("split", 3)):
        run_on_best(tiny_wan, base, tmp_path / name, gradient_accumulation=pieces, updates=2, **FLOAT_ORDER)
    whole, split = adapter(tmp_path / "whole"), adapter(tmp_path / "split")
    assert all(torch.allclose(whole[key], split[key], atol=1e-4) for key in whole)
    assert any(value.any() for key, value in whole.items() if ".lora_B." in key)


def test_what_it_takes_is_counted(tiny_wan, base, tmp_path):
    """2 rollouts of 4 clips: 3 forwards to sample each; in each of 2 updates a rollout the best of 2 groups."""
    counts = run_on_best(tiny_wan, base, tmp_path, updates=4, inner_epochs=2).counts
    assert counts == Counts(clips=8, decodes=8, forwards=8 * 3 + 4 * 2, backwards=4 * 2)


# Guards, killed and started again


def test_the_held_out_judge_ends_the_run_and_the_best_checkpoint_is_kept(tiny_wan, base, tmp_path):
    points = iter([CurvePoint(0.5, 0.5), CurvePoint(0.6, 0.7), CurvePoint(0.8, 0.4)])
    report = run_on_best(
        tiny_wan, base, tmp_path, check=lambda _: next(points), held_out_every=2, updates=6, held_out_tolerance=0.1
    )
    assert (report.steps, report.kept) == (4, 2)


@pytest.mark.ci
def test_killed_and_started_again_it_ends_with_the_same_bytes(tiny_wan, base, tmp_path):
    """Two updates share a rollout, which is not kept: the run goes on at the next one."""
    changes = {"updates": 8, "checkpoint_every": 2, "inner_epochs": 2}
    run_on_best(tiny_wan, base, tmp_path / "whole", **changes)
    child = start(run_by_slow_rewards, tiny_wan, base, tmp_path / "killed", changes, 0.5, True)
    state = tmp_path / "killed" / "work" / STATE_FILE
    while not state.is_file():
        assert child.is_alive(), "ended before it wrote a state"
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "killed" / "out").exists()
    report = run_on_best(tiny_wan, base, tmp_path / "killed", **changes)
    assert report.steps < 8  # it did not start afresh
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_train_the_adapter_of_one(shard, tiny_wan, base, tmp_path):
    """A group of three on two processes, of which one clip is kept: one process has none to train on."""
    changes = {"updates": 2, "batch_size": 3, "group_size": 3, "checkpoint_every": 2, **FLOAT_ORDER}
    run_on_best(tiny_wan, base, tmp_path / "one", **changes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}
    given = (tiny_wan, base, tmp_path / "two", changes | {"shard": shard}, 0.0, True)
    children = [start(run_by_slow_rewards, *given, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)
    assert log(tmp_path / "two")[0]["loss"] == pytest.approx(log(tmp_path / "one")[0]["loss"], rel=1e-3)


def test_a_wrong_setting_is_named():
    for changes, error in (
        ({"rollout": "sde"}, "rollout must be best"),
        ({"keep": 2}, "keep must be below group_size (2), found 2"),
        ({"keep": 0}, "engine.keep is 0"),
        ({"velocity_weight": 0.1}, "velocity_weight must be 0"),
        ({"batch_size": 5}, "batch_size must be a multiple of group_size (2), found 5"),
        ({"inner_epochs": 4, "updates": 8}, "checkpoint_every must be a multiple of inner_epochs (4)"),
        ({"timesteps": {"name": "even"}}, "engine.timesteps"),
    ):
        with pytest.raises(ConfigError) as raised:
            raft_config(**changes)
        assert error in str(raised.value), changes
