"""CCA against hand-derived values, its closed-form optimum, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from align.objectives import cca

NO = torch.zeros(1, dtype=torch.bool)


def run(
    gap_positive: float,
    gap_negative: float,
    *,
    dropped: bool = False,
    collision: bool = False,
    beta: float,
    lambda_: float,
):
    return cca(
        torch.tensor([gap_positive - 3.0]),
        torch.tensor([gap_negative - 5.0]),
        torch.tensor([-3.0]),
        torch.tensor([-5.0]),
        torch.tensor([dropped]),
        torch.tensor([collision]),
        beta=beta,
        lambda_=lambda_,
    )


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_loss_by_hand() -> None:
    """g+ = 2, g- = 1, beta = 0.5, lambda = 4: (softplus(-1) + 4 softplus(0.5)) / 4."""
    loss = run(2.0, 1.0, beta=0.5, lambda_=4.0).loss.item()
    assert loss == pytest.approx((softplus(-1.0) + 4 * softplus(0.5)) / 4)


@pytest.mark.parametrize("mask", ["dropped", "collision"])
def test_dropped_rows_and_collisions_are_positives_of_weight_one(mask: str) -> None:
    loss = run(2.0, 1.0, beta=0.5, lambda_=4.0, **{mask: True}).loss.item()
    assert loss == pytest.approx((softplus(-1.0) + softplus(-0.5)) / 4)


def test_a_lambda_below_one_divides_by_one() -> None:
    loss = run(2.0, 1.0, beta=0.5, lambda_=0.3).loss.item()
    assert loss == pytest.approx(softplus(-1.0) + 0.3 * softplus(0.5))


def test_policy_equal_to_reference_gives_the_known_constant() -> None:
    output = run(0.0, 0.0, beta=0.02, lambda_=3.0)
    assert output.loss.item() == pytest.approx((1 + 3) * math.log(2) / 3)


def test_metrics_say_which_rows_they_are_over() -> None:
    """Rows: contrast, dropped, collision."""
    output = cca(
        torch.tensor([1.0, 7.0, 2.0]),
        torch.tensor([-3.0, 7.0, 2.0]),
        torch.zeros(3),
        torch.zeros(3),
        torch.tensor([False, True, False]),
        torch.tensor([False, False, True]),
        beta=0.1,
        lambda_=2.0,
    )
    means = {name: (a.total / a.count).item() for name, a in output.metrics.items()}
    assert means == pytest.approx(
        {"gap_positive": 1.5, "gap_negative": -3.0, "gap_null": 7.0, "margin": 4.0, "accuracy": 1.0, "abs_gap": 10 / 3}
    )


def test_the_normalizer_makes_micro_batches_add_up() -> None:
    rng = torch.Generator().manual_seed(0)
    columns = [torch.randn(6, generator=rng) for _ in range(4)]
    masks = [torch.rand(6, generator=rng) < 0.3 for _ in range(2)]
    whole = cca(*columns, *masks, beta=0.3, lambda_=5.0).loss
    parts = [
        cca(*(c[i : i + 2] for c in columns), *(m[i : i + 2] for m in masks), beta=0.3, lambda_=5.0, normalizer=6).loss
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_gradient_by_finite_differences() -> None:
    rng = torch.Generator().manual_seed(0)
    policy = [torch.randn(4, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    reference = [torch.randn(4, generator=rng, dtype=torch.float64) for _ in range(2)]
    dropped, collision = torch.tensor([False, True, False, False]), torch.tensor([False, False, True, False])

    def loss(positive: Tensor, negative: Tensor) -> Tensor:
        return cca(positive, negative, *reference, dropped, collision, beta=0.7, lambda_=3.0).loss

    assert torch.autograd.gradcheck(loss, tuple(policy))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_optimum_is_the_guided_distribution(beta: float) -> None:
    """On a toy with known p(x|c), minimising the loss gives p(x|c) (p(x|c)/p(x))^(1/beta), normalised.

    4 images, 4 conditions, p(x|c) a shifted copy for each c: the normaliser Z of the optimum is then the same for all
    c, and lambda = Z^beta absorbs it exactly (the theorem's condition). Positives (x, c) ~ p(x, c); negatives pair x
    with every c' by p(c'). Expectations are exact: rows are repeated in proportion to 10 p(x, c).
    """
    tenths = torch.tensor([4, 3, 2, 1])
    p_xc = torch.stack([tenths.roll(c) for c in range(4)], dim=1).double() / 10  # p(x|c) [x, c]
    p_x = p_xc.mean(dim=1)
    target = p_xc * (p_xc / p_x[:, None]) ** (1 / beta)
    normaliser = target.sum(dim=0)
    assert torch.allclose(normaliser, normaliser[0].expand(4))

    rows = [
        (x, c, other)
        for x in range(4)
        for c in range(4)
        for other in range(4)
        for _ in range(int(10 * p_xc[x, c].round(decimals=1)))
    ]
    x, c, other = torch.tensor(rows).T
    theta = p_xc.log().clone().requires_grad_()
    never = torch.zeros(len(rows), dtype=torch.bool)
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        logp = theta.log_softmax(dim=0)
        reference = p_xc.log()
        loss = cca(
            logp[x, c],
            logp[x, other],
            reference[x, c],
            reference[x, other],
            never,
            never,  # the theorem has no collision rule: c' = c stays a negative
            beta=beta,
            lambda_=normaliser[0].item() ** beta,
        ).loss
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(theta.softmax(dim=0).detach(), target / normaliser, atol=1e-4, rtol=0)


def test_every_knob_is_alive() -> None:
    """A change of the reference, beta or lambda_ changes the gradient."""

    def gradient(reference: float = 0.0, beta: float = 0.1, lambda_: float = 2.0) -> list[float]:
        policy = torch.tensor([0.5, -0.5], requires_grad=True)
        cca(
            policy[:1], policy[1:], torch.tensor([reference]), torch.zeros(1), NO, NO, beta=beta, lambda_=lambda_
        ).loss.backward()
        assert policy.grad is not None
        return policy.grad.tolist()

    for change in ({"reference": 1.0}, {"beta": 0.2}, {"lambda_": 3.0}):
        assert gradient(**change) != gradient()
