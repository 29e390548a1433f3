"""DenseDPO: a preference in each latent frame, from labels of windows to the loss."""

import math

import pytest
import torch
from torch import Tensor

from data.dense import pairs_of_starts, window_samples
from data.labels import LabelSet
from data.records import DensePair, Label
from data.store import ClipSet
from rl.dense import EQUAL, UNKNOWN, build_dense, write_dense
from rl.objectives import Errors, dense_dpo_loss, dense_reward, dpo_loss, get_objective, per_frame_error
from rl.tables import read_composition, read_table
from tests.support.training import write_clip_set

BETA = 2.0


# The loss


def test_the_loss_is_the_mean_over_the_frames_with_a_preference():
    # Two latent frames, beta 2. Errors minus the reference's: first clip 0.5 and -1, second 0 and 0.
    # Frame 0: the first is better and its error rose by 0.5: -log sigmoid(-1 * 2 * 0.5) = log(1 + e)
    # Frame 1: the second is better, the first's error fell by 1: -log sigmoid(1 * 2 * -1) = log(1 + e^2)
    margin = torch.tensor([[0.5, -1.0]])
    frame_0, frame_1 = math.log(1 + math.e), math.log(1 + math.e**2)

    assert float(dense_dpo_loss(margin, torch.tensor([[1, -1]]), BETA)) == pytest.approx((frame_0 + frame_1) / 2)
    assert float(dense_dpo_loss(margin, torch.tensor([[1, 0]]), BETA)) == pytest.approx(frame_0)
    assert float(dense_dpo_loss(margin, torch.tensor([[0, -1]]), BETA)) == pytest.approx(frame_1)
    assert float(dense_dpo_loss(margin, torch.tensor([[0, 0]]), BETA)) == 0


def drawn() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """Errors of policy and reference, and which clip is better, of 8 pairs of 5 latent frames."""
    draws = torch.Generator().manual_seed(0)
    errors = torch.rand(4, 8, 5, generator=draws)
    return (errors[0], errors[1]), (errors[2], errors[3]), torch.randint(-1, 2, (8, 5), generator=draws)


def test_swapping_the_clips_and_the_preferences_changes_nothing():
    policy, reference, better = drawn()
    objective = get_objective("dense_dpo")

    def loss(policy, reference, better):
        return objective.loss(Errors(policy, reference, torch.ones(8), better), beta=BETA)

    one, other = loss(policy, reference, better), loss(policy[::-1], reference[::-1], -better)
    torch.testing.assert_close(one.value, other.value)
    for fact, swapped in zip(one.facts, other.facts, strict=True):
        torch.testing.assert_close(fact, swapped)


def test_with_one_preference_for_all_frames_the_loss_is_above_that_of_the_mean_margin_and_equal_for_equal_margins():
    policy, reference, _ = drawn()
    margin, first = (policy[0] - reference[0]) - (policy[1] - reference[1]), torch.ones(8, 5)

    assert (dense_dpo_loss(margin, first, BETA) > dpo_loss(margin.mean(1), BETA)).all()
    same = margin[:, :1].expand(8, 5)
    torch.testing.assert_close(dense_dpo_loss(same, first, BETA), dpo_loss(same[:, 0], BETA))


def test_a_frame_without_a_preference_gets_no_gradient():
    margin = torch.tensor([[0.5, -1.0, 2.0]], requires_grad=True)
    dense_dpo_loss(margin, torch.tensor([[1, 0, -1]]), BETA).sum().backward()

    assert margin.grad[0, 1] == 0 and margin.grad[0, 0] > 0 and margin.grad[0, 2] < 0


def test_the_log_holds_how_far_the_better_clip_is_preferred():
    # frame 0: the first is better, its error fell by 1: difference 2 > 0. frame 1: the second is, and is behind by 0.5
    policy = (torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[1.0, 1.5, 9.0]]))
    reference = (torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    found = dense_reward(policy, reference, torch.tensor([[1, -1, 0]]), BETA)

    assert float(found.margin) == pytest.approx((2.0 - 1.0) / 2)
    assert float(found.accuracy) == 0.5
    assert float(found.better_error_change) == pytest.approx((-1.0 + 0.5) / 2)


def test_the_error_of_a_latent_frame_is_the_mean_over_its_elements():
    target = torch.zeros(1, 2, 3, 1, 2)
    prediction = target.clone()
    prediction[0, 0, 1] = 2.0  # one of two channels of latent frame 1
    prediction[0, :, 2] = 1.0

    assert per_frame_error(prediction, target).tolist() == [[0.0, 2.0, 1.0]]


def test_latent_frames_that_are_given_have_no_preference():
    """Of five preferences and four errors, the first preference is of the frame that is given."""
    policy, reference, better = drawn()
    cut = [tuple(one[:, 1:] for one in of) for of in (policy, reference)]
    found = get_objective("dense_dpo").loss(Errors(*cut, torch.ones(8), better), beta=BETA)
    margin = (cut[0][0] - cut[1][0]) - (cut[0][1] - cut[1][1])

    torch.testing.assert_close(found.value, dense_dpo_loss(margin, better[:, 1:], BETA))


# The rows: clips of 5 frames and 3 latent frames of 1, 2 and 2 frames; windows of 2: frames 0-2 and 3-4


@pytest.fixture
def dense_set(tmp_path):
    facts = {"set": "d1", "starts": {"latent_frames": 3}}
    return write_clip_set(tmp_path / "samples", prompts=1, clips=8, facts=facts)


def labelled(clip_set: ClipSet, answers: dict[str, bool | None], **chances: float) -> LabelSet:
    """Labels of windows; those that are not in `answers` are accepted."""
    labels = [
        Label(
            window.sample_id,
            "physics",
            answers.get(window.sample_id, True),
            chances.get(window.sample_id),
            None,
            1,
            0,
            None,
        )
        for window in window_samples(clip_set.samples, 2)
    ]
    return LabelSet(clip_set.folder, {"source": "physics", "window": 2}, labels)


def test_a_latent_frame_has_the_preference_of_its_window_and_pairs_without_any_are_counted(dense_set):
    starts = pairs_of_starts(dense_set.samples, dense_set.samples, 4)
    answers = {
        "p0-0-w1": False,  # pair 0: the second is better in frames 3 and 4, latent frame 2
        "p0-3-w0": False, "p0-2-w1": False,  # pair 1: the first in latent frames 0 and 1, the second in 2
        "p0-4-w0": None, "p0-5-w1": None,  # pair 2: no window has both labels
    }  # fmt: skip
    found = build_dense(dense_set, starts, labelled(dense_set, answers), "d1/physics", "label", 0.0)

    assert found.pairs == [
        DensePair("p0", "p0-0", "p0-1", [0, 0, -1]),
        DensePair("p0", "p0-2", "p0-3", [1, 1, -1]),
    ]
    assert found.composition["pairs_left_out"] == {"p0-4": UNKNOWN, "p0-6": EQUAL}
    assert found.composition["better"] == {"1": 2, "-1": 2, "0": 2}
    assert (found.composition["pairs"], found.composition["pairs_per_prompt"]) == (2, {"p0": 2})


def test_rewards_that_differ_by_little_are_no_preference(dense_set):
    starts = pairs_of_starts(dense_set.samples, dense_set.samples, 4)
    chances = {f"p0-{clip}-w{window}": 0.5 for clip in range(8) for window in range(2)} | {
        "p0-0-w0": 0.9,
        "p0-2-w0": 0.6,
    }
    labels = labelled(dense_set, {}, **chances)

    assert len(build_dense(dense_set, starts, labels, "d1/judge", "p_accept", 0.0).pairs) == 2
    assert [row.first for row in build_dense(dense_set, starts, labels, "d1/judge", "p_accept", 0.2).pairs] == ["p0-0"]
    with pytest.raises(ValueError, match="d1/judge: no preference in any of 4 pairs: {'no latent frame differs': 4}"):
        build_dense(dense_set, starts, labels, "d1/judge", "p_accept", 0.5)


def test_rows_are_read_as_they_were_written(dense_set, tmp_path):
    starts = pairs_of_starts(dense_set.samples, dense_set.samples, 4)
    rows = build_dense(dense_set, starts, labelled(dense_set, {"p0-1-w0": False}), "d1/physics", "label", 0.0)
    write_dense(tmp_path / "datasets", rows, {"round": "d1"}, {"source": "physics"}, 0.0)
    table = read_table(tmp_path / "datasets/dense_dpo", get_objective("dense_dpo"))

    assert table.rows == rows.pairs == [DensePair("p0", "p0-0", "p0-1", [1, 1, 0])]
    assert table.facts == {"round": "d1", "source": "physics", "build": {"min_margin": 0.0}}
    assert read_composition(tmp_path / "datasets") == rows.composition
