"""Claims about DiffusionNFT on the clips of a round."""

import pytest
import torch

from data.records import Weighted
from rl.objectives import OBJECTIVES, Errors, nft_loss, optimality
from rl.objectives.nft import distances, self_normalised

NFT = OBJECTIVES["nft"]
PLAIN = {"beta": 1.0, "normalised": False, "reward_from": "reward", "advantage_clip": 1.0}


def clips(*values: float) -> torch.Tensor:
    """(1, 1, 1, 1, W) of these elements."""
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def test_distances_by_hand():
    """Policy off by (2, 0), reference by (1, -1), beta .5: v+ is off by (1.5, -.5), v- by (.5, -1.5).

    Means of squares (2.25 + .25) / 2 = 1.25 and (.25 + 2.25) / 2 = 1.25, of sizes 1 and 1.
    """
    found = distances(clips(2.0, 0.0), clips(1.0, -1.0), 0.5)
    assert [value.item() for value in found] == [1.25, 1.25, 1.0, 1.0]


def test_distances_are_those_that_the_errors_and_their_cross_term_give():
    """b^2 e + (1 - b)^2 e_ref + 2 b (1 - b) c of v+, and b^2 e + (1 + b)^2 e_ref - 2 b (1 + b) c of v-."""
    policy, reference = torch.randn(2, 3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    e, e_ref, c = ((x * y).flatten(1).mean(1) for x, y in
                   ((policy, policy), (reference, reference), (policy, reference)))  # fmt: skip
    for b in (0.1, 0.7, 1.0, 2.0):
        found = distances(policy, reference, b)
        torch.testing.assert_close(found.positive, b**2 * e + (1 - b) ** 2 * e_ref + 2 * b * (1 - b) * c)
        torch.testing.assert_close(found.negative, b**2 * e + (1 + b) ** 2 * e_ref - 2 * b * (1 + b) * c)


def test_nft_by_hand():
    """L+ 1, L- 3 at beta .5: r = 1 gives 2, r = 0 gives 6, r = .25 gives (.25 + 2.25) / .5 = 5."""
    loss = nft_loss(torch.ones(3), torch.full((3,), 3.0), torch.tensor([1.0, 0.0, 0.25]), 0.5)
    assert loss.tolist() == [2.0, 6.0, 5.0]


def test_the_self_normalised_form_by_hand():
    """Clean estimates off by t = .5 times (1, 3): mean of squares .25 * 5 = 1.25, over the mean size .5 * 2 = 1."""
    found = distances(clips(1.0, 3.0), clips(1.0, 3.0), 1.0)
    value = self_normalised(found.positive, found.positive_absolute, torch.tensor([0.5]))
    assert value.item() == pytest.approx(1.25)


def loss_of(policy: torch.Tensor, reference: torch.Tensor, r: torch.Tensor, to_clean: torch.Tensor, **settings):
    settings = PLAIN | settings
    errors = Errors(
        (policy.square().flatten(1).mean(1),), (reference.square().flatten(1).mean(1),), torch.ones(len(r)), r,
        to_clean=to_clean, measured=NFT.measure(policy, reference, settings),
    )  # fmt: skip
    return NFT.loss(errors, **settings)


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_at_the_start_the_gradient_is_2r_minus_1_times_that_of_the_error(beta):
    """Whatever beta is; of the self-normalised form besides times t over the mean size."""
    off = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    r, t = torch.tensor([0.0, 0.3, 0.5, 1.0]), torch.tensor([0.2, 0.4, 0.6, 0.8])
    of_error = 2 * off / off[0].numel()
    for normalised, scale in ((False, torch.ones(4)), (True, t / off.abs().flatten(1).mean(1))):
        policy = off.clone().requires_grad_()
        loss_of(policy, off, r, t, beta=beta, normalised=normalised).value.sum().backward()
        wanted = ((2 * r - 1) * scale).view(-1, 1, 1, 1, 1) * of_error
        torch.testing.assert_close(policy.grad, wanted, atol=1e-6, rtol=1e-4)


def test_the_optimum_of_a_rejected_clip_is_bounded():
    """v- = v, so the policy ends at v_old + (v_old - v) / beta, where a signed error would go on without end."""
    reference, policy = clips(1.0), clips(1.0).requires_grad_()
    for _ in range(200):
        value = loss_of(policy, reference, torch.zeros(1), torch.ones(1), beta=0.5).value
        (gradient,) = torch.autograd.grad(value.sum(), policy)
        policy = (policy - 0.1 * gradient).detach().requires_grad_()
    assert policy.item() == pytest.approx(3.0, abs=1e-3)


def test_the_facts_are_the_errors_and_their_change_where_clips_are_wanted_and_where_not():
    policy, reference = torch.full((3, 1, 1, 1, 1), 2.0), torch.ones(3, 1, 1, 1, 1)
    facts = loss_of(policy, reference, torch.tensor([1.0, 0.0, 0.5]), torch.ones(3)).facts
    error, of_reference, wanted, unwanted = (fact.nan_to_num(-1).tolist() for fact in facts)
    assert error == [4.0] * 3 and of_reference == [1.0] * 3
    assert wanted == [3.0, -1.0, -1.0] and unwanted == [-1.0, 3.0, -1.0]


def rows(*rewards: float, prompt: str = "p") -> list[Weighted]:
    return [Weighted(f"{prompt}{i}", prompt, reward, 1.0) for i, reward in enumerate(rewards)]


def test_an_advantage_is_measured_from_its_own_prompts_mean():
    """p: mean 4, so -2, 0, +2; at a clip of 4 that is 1/2 -+ 1/4. q: mean 100, so -+ 50, which are cut."""
    table = [*rows(2.0, 4.0, 6.0), *rows(50.0, 150.0, prompt="q")]
    assert optimality(table, "advantage", 4.0) == [0.25, 0.5, 0.75, 0.0, 1.0]


def test_a_reward_is_taken_as_it_stands_and_must_lie_between_0_and_1():
    assert optimality(rows(0.0, 0.4, 1.0), "reward", 1.0) == [0.0, 0.4, 1.0]
    with pytest.raises(ValueError, match=r"p1 has 7\.5: set train\.nft\.reward_from: advantage"):
        optimality(rows(0.4, 7.5), "reward", 1.0)
