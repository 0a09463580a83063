"""The entropy bonus and its bounded controller, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.toy import means
from torch import Tensor

from align.objectives import entropy_bonus, entropy_coefficient, token_entropy


def test_bonus_by_hand() -> None:
    entropy = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    whole = entropy_bonus(entropy, coefficient=0.2)
    assert whole.loss.item() == pytest.approx(-0.2 * 2.5)
    assert means(whole) == {"entropy": 2.5}
    halves = [entropy_bonus(entropy[r], coefficient=0.2, normalizer=2.0).loss for r in (slice(1), slice(1, 2))]
    torch.testing.assert_close(sum(halves), whole.loss)


def test_bonus_flattens_the_policy() -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0]]], requires_grad=True)

    def gradient(**settings: float) -> Tensor:
        loss = entropy_bonus(token_entropy(logits), **{"coefficient": 1.0, **settings}).loss
        return torch.autograd.grad(loss, logits)[0]

    assert gradient()[0, 0, 0] > 0 and (gradient()[0, 0, 1:] < 0).all()  # descent lowers the likely token
    for change in ({"coefficient": 2.0}, {"normalizer": 2.0}):
        assert not torch.allclose(gradient(), gradient(**change))


def test_bonus_gradient_by_finite_differences() -> None:
    entropy = torch.rand(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda entropy: entropy_bonus(entropy, coefficient=0.3).loss, entropy)


@pytest.mark.parametrize(
    ("normalized_entropy", "settings", "expected"),
    [
        (0.5, {}, 1e-3),
        (0.45, {}, 1e-3),  # within the band
        (0.3, {}, 1e-3 * math.exp(0.4)),
        (0.7, {}, 1e-3 * math.exp(-0.4)),
        (0.45, {"band": 0.01}, 1e-3 * math.exp(0.1)),
        (0.3, {"gain": 5.0}, 1e-3 * math.exp(1.0)),
        (0.3, {"target": 0.6}, 1e-3 * math.exp(0.6)),
        (0.3, {"maximum": 1.2e-3}, 1.2e-3),
        (0.7, {"minimum": 9e-4}, 9e-4),
        (0.3, {"base": 2e-3}, 2e-3 * math.exp(0.4)),
    ],
)
def test_controller_by_hand(normalized_entropy: float, settings: dict[str, float], expected: float) -> None:
    settings = {"base": 1e-3, "target": 0.5, "band": 0.06, "gain": 2.0, **settings}
    assert entropy_coefficient(normalized_entropy, **settings) == pytest.approx(expected)


def test_a_negative_bonus_is_refused() -> None:
    with pytest.raises(ValueError, match="coefficient is -0.1; it must be at least 0"):
        entropy_bonus(torch.ones(1, 1), coefficient=-0.1)
