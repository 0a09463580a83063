"""KL estimators and penalties against exact sums over a small vocabulary: what they estimate, and what their gradients are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from objectives.toy import means, row_losses
from torch import Tensor

from align.objectives import adapt_coefficient, exact_kl, exact_kl_penalty, kl_estimate, kl_penalty

RNG = torch.Generator().manual_seed(0)
POLICY, REFERENCE = (torch.randn(5, generator=RNG, dtype=torch.float64).log_softmax(dim=0) for _ in range(2))


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


def gradient_of(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """With respect to the policy's logits."""
    logits = POLICY.clone().requires_grad_()
    return torch.autograd.grad(loss(logits.log_softmax(dim=0)), logits)[0]


def expected_penalty(logprobs: Tensor, estimator: str, importance: bool) -> Tensor:
    """The penalty of each token on its own, weighted by the probability that the policy samples it."""
    losses = row_losses(
        kl_penalty,
        {"policy_BL": logprobs[:, None], "reference_BL": REFERENCE[:, None]},
        coefficient=1.0,
        estimator=estimator,
        importance=importance,
    )
    return (logprobs.detach().exp() * losses).sum()


def test_estimators_by_hand() -> None:
    """log p = -1 against -3: d = -2."""
    found = [kl_estimate(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), name).item() for name in ("k1", "k2", "k3")]
    assert found == pytest.approx([2.0, 2.0, math.exp(-2) + 2 - 1])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: str) -> None:
    estimates = kl_estimate(POLICY[None], REFERENCE[None], estimator)[0]
    torch.testing.assert_close((POLICY.exp() * estimates).sum(), divergence(POLICY, REFERENCE))


def test_k2_is_not() -> None:
    estimate = (POLICY.exp() * kl_estimate(POLICY[None], REFERENCE[None], "k2")[0]).sum()
    assert abs(estimate - divergence(POLICY, REFERENCE)) > 0.05


@pytest.mark.parametrize(("estimator", "importance"), [("k2", False), ("k1", True), ("k3", True)])
def test_penalties_whose_gradient_is_the_reverse_kls(estimator: str, importance: bool) -> None:
    expected = gradient_of(lambda logprobs: divergence(logprobs, REFERENCE))
    torch.testing.assert_close(gradient_of(lambda lp: expected_penalty(lp, estimator, importance)), expected)


def test_k3_without_importance_pulls_by_the_forward_kl() -> None:
    """Its value estimates the reverse KL, its gradient is the forward KL's."""
    found = gradient_of(lambda logprobs: expected_penalty(logprobs, "k3", False))
    torch.testing.assert_close(found, gradient_of(lambda logprobs: divergence(REFERENCE, logprobs)))
    assert not torch.allclose(found, gradient_of(lambda logprobs: divergence(logprobs, REFERENCE)), atol=0.05)


def test_k2_with_importance_pulls_by_its_own_expectation() -> None:
    found = gradient_of(lambda logprobs: expected_penalty(logprobs, "k2", True))
    expected = gradient_of(lambda lp: (lp.exp() * (lp - REFERENCE).square() / 2).sum())
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, gradient_of(lambda logprobs: divergence(logprobs, REFERENCE)), atol=0.05)


def test_k1_in_the_loss_pulls_nowhere_and_is_refused() -> None:
    found = gradient_of(lambda lp: (lp.detach().exp() * kl_estimate(lp[None], REFERENCE[None], "k1")[0]).sum())
    torch.testing.assert_close(found, torch.zeros_like(found))
    with pytest.raises(ValueError, match="use estimator=k2, or importance=true"):
        kl_penalty(POLICY[None], REFERENCE[None], coefficient=0.1, estimator="k1")


def test_exact_kl_is_the_sum_over_the_vocabulary() -> None:
    """From logits, whatever constant they carry; its penalty's gradient is the reverse KL's."""
    logits = torch.stack([POLICY + 3.0, REFERENCE])[None]
    reference = torch.stack([REFERENCE - 1.0, REFERENCE])[None]
    torch.testing.assert_close(
        exact_kl(logits, reference)[0], torch.stack([divergence(POLICY, REFERENCE), POLICY.new_zeros(())])
    )
    found = gradient_of(lambda lp: exact_kl_penalty(lp[None, None], REFERENCE[None, None], coefficient=2.0).loss)
    torch.testing.assert_close(found, 2 * gradient_of(lambda lp: divergence(lp, REFERENCE)))
    assert exact_kl(logits.bfloat16(), reference.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("importance", [False, True])
def test_a_penalty_is_a_mean_over_rows_and_tokens(importance: bool) -> None:
    """k2 of d = 1, 2, 3, 4: mean 30 / 8. Importance moves the gradient, not the value."""
    policy = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    reference = policy + torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    settings = {"coefficient": 0.1, "estimator": "k2", "importance": importance}
    whole = kl_penalty(policy, reference, **settings)
    assert whole.loss.item() == pytest.approx(0.1 * 30 / 8)
    assert means(whole) == {"kl": 30 / 8}
    halves = [kl_penalty(policy[r], reference[r], **settings, normalizer=2.0).loss for r in (slice(1), slice(1, 2))]
    torch.testing.assert_close(sum(halves), whole.loss)


def test_gradients_by_finite_differences() -> None:
    policy, reference = (torch.randn(2, 3, generator=RNG, dtype=torch.float64) for _ in range(2))
    for estimator in ("k2", "k3"):
        assert torch.autograd.gradcheck(
            lambda policy, name=estimator: kl_penalty(policy, reference, coefficient=0.3, estimator=name).loss,
            policy.requires_grad_(),
        )
    logits, other = (torch.randn(2, 3, 4, generator=RNG, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: exact_kl_penalty(x, other, coefficient=0.3).loss, logits.requires_grad_())


@pytest.mark.parametrize(
    "change",
    [
        {"coefficient": 0.2},
        {"estimator": "k2"},
        {"importance": True},
        {"normalizer": 3.0},
        {"reference_BL": 0.5 * torch.ones(2, 3)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_knob_is_alive(change: dict) -> None:
    policy = torch.randn(2, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def gradient(**settings) -> Tensor:
        settings = {"reference_BL": torch.zeros(2, 3), "coefficient": 0.1, **settings}
        return torch.autograd.grad(kl_penalty(policy, **settings).loss, policy)[0]

    assert not torch.allclose(gradient(), gradient(**change))


@pytest.mark.parametrize(
    "change",
    [{"coefficient": 0.2}, {"normalizer": 3.0}, {"reference_BLV": torch.eye(3)[None]}],
    ids=lambda change: next(iter(change)),
)
def test_every_knob_of_the_exact_penalty_is_alive(change: dict) -> None:
    policy = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def gradient(**settings) -> Tensor:
        settings = {"reference_BLV": torch.zeros(1, 3, 3), "coefficient": 0.1, **settings}
        return torch.autograd.grad(exact_kl_penalty(policy, **settings).loss, policy)[0]

    assert not torch.allclose(gradient(), gradient(**change))


@pytest.mark.parametrize(
    ("value", "settings", "expected"),
    [
        (6.0, {}, 0.5),  # on target
        (6.6, {}, 0.5 * 1.01),  # 10 % above: 10 % of the gain
        (60.0, {}, 0.5 * 1.02),  # the error is cut at 20 %
        (0.0, {}, 0.5 * 0.98),
        (6.6, {"gain": 0.5}, 0.5 * 1.05),
        (60.0, {"maximum": 0.505}, 0.505),
        (0.0, {"minimum": 0.495}, 0.495),
    ],
)
def test_the_adaptive_coefficient_by_hand(value: float, settings: dict, expected: float) -> None:
    assert adapt_coefficient(0.5, value, 6.0, **settings) == pytest.approx(expected)


def test_the_adaptive_coefficient_settles_on_target() -> None:
    """Where the KL that training gives is inversely proportional to the coefficient."""
    coefficient = 5.0
    for _ in range(400):
        coefficient = adapt_coefficient(coefficient, 1 / coefficient, 2.0)
    assert 1 / coefficient == pytest.approx(2.0, rel=1e-3)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown estimator 'k4'; known: k1, k2, k3"):
        kl_estimate(POLICY, REFERENCE, "k4")
    for penalty in (kl_penalty, exact_kl_penalty):
        with pytest.raises(ValueError, match="coefficient is -1.0; it must be at least 0"):
            penalty(POLICY[None], REFERENCE[None], coefficient=-1.0)
    with pytest.raises(ValueError, match="target is 0.0; it must be positive"):
        adapt_coefficient(0.1, 1.0, 0.0)
