"""DDO against hand-derived values. Its optima and self-play are in test_ddo_exact.py."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.toy import means

from align.objectives import ddo


def run(gap_real: float, gap_fake: float, *, dropped: bool = False, beta: float, alpha: float):
    return ddo(
        torch.tensor([gap_real - 3.0]),
        torch.tensor([gap_fake - 5.0]),
        torch.tensor([-3.0]),
        torch.tensor([-5.0]),
        torch.tensor([dropped]),
        beta=beta,
        alpha=alpha,
    )


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("dropped", [False, True])
def test_loss_by_hand(dropped: bool) -> None:
    """g(real) = 2, g(fake) = 1, beta = 0.5, alpha = 4: (softplus(-1) + 4 softplus(0.5)) / 4, dropped or not."""
    loss = run(2.0, 1.0, beta=0.5, alpha=4.0, dropped=dropped).loss.item()
    assert loss == pytest.approx((softplus(-1.0) + 4 * softplus(0.5)) / 4)


def test_an_alpha_below_one_divides_by_one() -> None:
    loss = run(2.0, 1.0, beta=0.5, alpha=0.3).loss.item()
    assert loss == pytest.approx(softplus(-1.0) + 0.3 * softplus(0.5))


def test_policy_equal_to_reference_gives_the_known_constant() -> None:
    assert run(0.0, 0.0, beta=0.02, alpha=30.0).loss.item() == pytest.approx((1 + 30) * math.log(2) / 30)


def test_metrics_say_which_rows_they_are_over() -> None:
    """Rows: both right, both wrong, dropped with a tie and a right fake."""
    output = ddo(
        torch.tensor([1.0, -2.0, 0.0]),
        torch.tensor([-3.0, 5.0, -6.0]),
        torch.zeros(3),
        torch.zeros(3),
        torch.tensor([False, False, True]),
        beta=0.1,
        alpha=2.0,
    )
    assert means(output) == pytest.approx(
        {
            "gap_real": -0.5,
            "gap_fake": 1.0,
            "gap_null_real": 0.0,
            "gap_null_fake": -6.0,
            "accuracy": 3 / 6,
            "abs_gap": 1.0,
        }
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0, "alpha": 1.0}, r"beta is 0.0; it must be positive"),
        ({"beta": 1.0, "alpha": -1.0}, r"alpha is -1.0; it must be at least 0"),
    ],
)
def test_values_without_a_meaning_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(0.0, 0.0, **settings)
