"""The optima of preference objectives on a toy with four images and one condition, in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives.toy import minimise, row_losses
from torch import Tensor

from align.objectives import dpo, kto, simpo, spin

TOKENS = 3
P_REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARD = torch.tensor([-0.5, 0.1, 0.4, 0.2], dtype=torch.float64)
PAIRS = torch.tensor([(x, y) for x in range(4) for y in range(4) if x != y])


def pair_rows(logp: Tensor, first: Tensor, second: Tensor, *, views: tuple[str, str], reference: bool = True) -> Any:
    rows = {f"policy_{views[0]}_B": logp[first], f"policy_{views[1]}_B": logp[second]}
    if reference:
        rows |= {
            f"reference_{views[0]}_B": P_REFERENCE.log()[first],
            f"reference_{views[1]}_B": P_REFERENCE.log()[second],
        }
    return rows | {"dropped_B": torch.zeros(len(first), dtype=torch.bool)}


def optimum(objective: Any, weight_N: Tensor, pairs: Tensor, views: tuple[str, str], **settings: Any) -> Tensor:
    """The distribution over four images that minimises the expected loss, started off the reference."""
    theta = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        rows = pair_rows(theta.log_softmax(dim=0), *pairs.T, views=views, reference=objective is not simpo)
        return (weight_N * row_losses(objective, rows, num_tokens=TOKENS, **settings)).sum()

    minimise([theta], loss)
    return theta.detach().softmax(dim=0)


def normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("settings", "strength"),
    [({"beta": 0.5}, 1 / 0.5), ({"beta": 2.0}, 1 / 2.0), ({"beta": 2.0, "length_normalized": True}, TOKENS / 2.0)],
)
def test_dpo_finds_the_reward_of_a_bradley_terry_model(settings: dict[str, Any], strength: float) -> None:
    """Preference sigmoid(r_x - r_y): the optimum is p_ref exp(r / beta), normalised."""
    x, y = PAIRS.T
    found = optimum(dpo, torch.sigmoid(REWARD[x] - REWARD[y]), PAIRS, ("chosen", "rejected"), **settings)
    torch.testing.assert_close(found, normalised(P_REFERENCE * (strength * REWARD).exp()), atol=1e-6, rtol=0)


def test_ipo_finds_a_linear_preference() -> None:
    """Preference 1/2 + (r_x - r_y)/2: the regression gives (g_x - g_y) / T = (r_x - r_y) / (2 beta)."""
    x, y = PAIRS.T
    found = optimum(dpo, 0.5 + (REWARD[x] - REWARD[y]) / 2, PAIRS, ("chosen", "rejected"), beta=0.8, loss_type="ipo")
    expected = normalised(P_REFERENCE * (TOKENS * REWARD / (2 * 0.8)).exp())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_label_smoothing_bounds_the_margin() -> None:
    """One pair that is never contradicted: beta d ends at log((1 - e) / e), where without smoothing it would not end."""
    found = optimum(dpo, torch.ones(1), torch.tensor([[2, 1]]), ("chosen", "rejected"), beta=0.5, label_smoothing=0.1)
    ratio = found / P_REFERENCE
    assert 0.5 * math.log(ratio[2] / ratio[1]) == pytest.approx(math.log(0.9 / 0.1), abs=1e-6)


def test_hinge_stops_at_its_margin() -> None:
    """One pair: the loss is zero, and without gradient, as soon as beta d reaches 1."""
    found = optimum(dpo, torch.ones(1), torch.tensor([[2, 1]]), ("chosen", "rejected"), beta=0.5, loss_type="hinge")
    ratio = found / P_REFERENCE
    assert 0.5 * math.log(ratio[2] / ratio[1]) >= 1 - 1e-9
    logp = found.log().requires_grad_()
    rows = pair_rows(logp, torch.tensor([2]), torch.tensor([1]), views=("chosen", "rejected"))
    (gradient,) = torch.autograd.grad(dpo(**rows, num_tokens=TOKENS, beta=0.501, loss_type="hinge").loss, logp)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_one_round_of_spin_tilts_the_reference_towards_the_data(beta: float) -> None:
    """Real x ~ p_data, fake y ~ p_ref: p_ref (p_data / p_ref)^(1/beta), normalised; the data itself for beta = 1."""
    p_data = torch.tensor([0.1, 0.35, 0.3, 0.25], dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    weight = p_data[pairs[:, 0]] * P_REFERENCE[pairs[:, 1]]
    found = optimum(spin, weight, pairs, ("positive", "fake"), beta=beta)
    torch.testing.assert_close(found, normalised(P_REFERENCE * (p_data / P_REFERENCE) ** (1 / beta)), atol=1e-6, rtol=0)


def test_simpo_without_a_margin_finds_the_reward_and_forgets_where_it_started() -> None:
    """beta (S_x - S_y) / T = r_x - r_y: exp(T r / beta), normalised, whatever the reference was."""
    x, y = PAIRS.T
    weight = torch.sigmoid(REWARD[x] - REWARD[y])
    found = optimum(simpo, weight, PAIRS, ("chosen", "rejected"), beta=2.0, simpo_gamma=0.0)
    torch.testing.assert_close(found, normalised((TOKENS * REWARD / 2.0).exp()), atol=1e-6, rtol=0)


def test_the_margin_of_simpo_exaggerates_the_preference() -> None:
    """One pair preferred with probability p: with a = exp(beta d / T), G = exp(gamma), setting the derivative
    -p / (1 + a/G) + (1 - p) a G / (1 + a G) to zero gives (1 - p) a^2 + (1 - 2p) G a - p = 0."""
    p, gamma, beta = 0.7, 0.6, 2.0
    growth = math.exp(gamma)
    b = (2 * p - 1) * growth
    expected = (b + math.sqrt(b**2 + 4 * p * (1 - p))) / (2 * (1 - p))
    both = torch.tensor([[2, 1], [1, 2]])
    found = optimum(simpo, torch.tensor([p, 1 - p]), both, ("chosen", "rejected"), beta=beta, simpo_gamma=gamma)
    assert (found[2] / found[1]).item() ** (beta / TOKENS) == pytest.approx(expected, rel=1e-6)
    assert expected > p / (1 - p)


def test_kto_pulls_hardest_at_its_zero_point_and_not_at_all_far_from_it() -> None:
    """d loss / d g(chosen) = -desirable_weight beta s (1 - s) / 2 with s = sigmoid(beta g - z): at most beta / 8."""
    gap = torch.tensor([4.0, 90.0, -90.0], dtype=torch.float64, requires_grad=True)
    zero, mismatched = torch.zeros(3, dtype=torch.float64), torch.tensor(4.0)
    never = torch.zeros(3, dtype=torch.bool)
    kto(gap, zero, zero, zero, mismatched, never, TOKENS, beta=0.5, normalizer=1).loss.backward()
    assert gap.grad is not None
    torch.testing.assert_close(gap.grad, torch.tensor([-0.5 / 8, 0.0, 0.0], dtype=torch.float64), atol=1e-15, rtol=0)


@pytest.mark.parametrize(("undesirable_weight", "winner"), [(1.0, 0), (3.0, 1)])
def test_kto_raises_what_is_desirable_on_balance(undesirable_weight: float, winner: int) -> None:
    """Of 10 desirable examples 8 are image 0 and 2 image 1; of 10 undesirable ones 4 are image 0 and 6 image 3.
    The loss is linear in sigmoid(beta g - z) with slope undesirable_weight p_bad - p_good, so what is desirable on
    balance is raised: image 0 while weights are equal (8 > 4), image 1 when bad examples count three times (8 < 12)."""
    good = torch.tensor([0] * 8 + [1] * 2)
    bad = torch.tensor([0] * 4 + [3] * 6)
    theta = P_REFERENCE.log().clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=0.3)
    for _ in range(150):
        optimiser.zero_grad()
        rows = pair_rows(theta.log_softmax(dim=0), good, bad, views=("chosen", "rejected"))
        settings = {"num_tokens": TOKENS, "beta": 1.0, "undesirable_weight": undesirable_weight}
        kto(**rows, mismatched_gap=torch.tensor(0.0), **settings).loss.backward()
        optimiser.step()
    found = theta.detach().softmax(dim=0)
    assert found.argmax().item() == winner
    assert found[3] < 0.01
    assert (found[0] < 0.01) == (winner == 1)
