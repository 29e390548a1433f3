"""How far a policy's predictions are from the base's."""

from functools import partial

import pytest
import torch

from cluster.pool import Here
from generators.core import lora
from generators.core.lora import apply_policy
from rl.drift import drift, middles
from tests.support.tiny import load_wan
from tests.support.training import run, write_base, write_clip_set


def loading(generator, policy, parts):
    loaded = load_wan(generator, max_prompt_tokens=6, parts=parts)
    apply_policy(loaded, policy)
    return loaded


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clip_set(tmp_path_factory.mktemp("drift") / "clips", prompts=2, clips=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


def drift_of(generator, base, policy, clips, times=2, batch_size=4, seed=1):
    of_base, own = (partial(loading, generator, folder) for folder in (base, policy))
    return drift(of_base, own, clips, clips.samples, times, batch_size, seed, Here())


def test_a_prediction_that_is_moved_by_a_half_everywhere_has_drifted_by_a_quarter(tiny_wan, base, clips, tmp_path):
    module = load_wan(tiny_wan, parts=("denoiser",)).component("transformer")
    with torch.no_grad():
        module.proj_out.bias += 0.5
    policy = write_base(tmp_path / "moved")
    lora.save_full(module, policy, "transformer")

    rows = drift_of(tiny_wan, base, policy, clips)

    assert [row.squared for row in rows] == pytest.approx([0.25] * 12, rel=1e-4)
    assert {row.sample_id for row in rows} == {sample.sample_id for sample in clips.samples}
    assert {row.t for row in rows} == {0.25, 0.75}


@pytest.mark.ci
def test_a_policy_drifts_further_the_longer_it_is_trained(tiny_wan, base, clips, tmp_path):
    def mean(steps):
        run("dpo", tiny_wan, clips, base, tmp_path / str(steps), steps=steps, learning_rate=0.02)
        rows = drift_of(tiny_wan, base, tmp_path / str(steps) / "out", clips)
        return sum(row.squared for row in rows) / len(rows)

    assert drift_of(tiny_wan, base, base, clips)[0].squared == 0.0
    assert 0 < mean(2) < mean(20)


@pytest.mark.ci
def test_the_noise_of_a_clip_depends_on_neither_its_batch_nor_the_other_times(tiny_wan, base, clips, tmp_path):
    run("rwr", tiny_wan, clips, base, tmp_path)
    policy = tmp_path / "out"
    found = {
        size: {(row.sample_id, row.t): row.squared for row in drift_of(tiny_wan, base, policy, clips, 2, size)}
        for size in (1, 6)
    }

    assert found[1] == pytest.approx(found[6], rel=1e-4)
    other = drift_of(tiny_wan, base, policy, clips, seed=2)
    assert other[0].squared != pytest.approx(found[6][other[0].sample_id, other[0].t], rel=1e-4)


def test_times_are_the_middles_of_equal_parts():
    assert middles(4) == [0.125, 0.375, 0.625, 0.875]
