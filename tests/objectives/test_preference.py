"""DPO, SPIN, SimPO and KTO against hand-derived values. Their optima are in test_preference_limits.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives.toy import means

from align.objectives import dpo, kto, simpo, spin

TOKENS = 4


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def run_dpo(*, dropped: bool = False, **settings: Any):
    """One pair with gaps 3 and 1; log p(chosen) = -8, that is 2 nats a token."""
    return dpo(
        torch.tensor([-8.0]),
        torch.tensor([-9.0]),
        torch.tensor([-11.0]),
        torch.tensor([-10.0]),
        torch.tensor([dropped]),
        TOKENS,
        **settings,
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 0.5}, softplus(-1.0)),
        ({"beta": 0.5, "label_smoothing": 0.25}, 0.75 * softplus(-1.0) + 0.25 * softplus(1.0)),
        ({"beta": 0.5, "length_normalized": True}, softplus(-0.25)),
        ({"beta": 0.5, "loss_type": "ipo"}, (2 / TOKENS - 1.0) ** 2),
        ({"beta": 0.25, "loss_type": "hinge"}, 0.5),
        ({"beta": 0.25, "loss_type": "hinge", "length_normalized": True}, 1 - 0.125),
        ({"beta": 1.0, "loss_type": "hinge"}, 0.0),
        ({"beta": 0.5, "nll_weight": 0.1}, softplus(-1.0) + 0.2),
        ({"beta": 0.5, "null_weight": 7.0}, softplus(-1.0)),
    ],
)
def test_dpo_by_hand(settings: dict[str, Any], expected: float) -> None:
    """d = 3 - 1 = 2."""
    assert run_dpo(**settings).loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_dropped_rows_are_likelihood_of_the_chosen_image_and_nothing_else(loss_type: str) -> None:
    output = run_dpo(dropped=True, beta=0.5, loss_type=loss_type, nll_weight=5.0, null_weight=0.5)
    assert output.loss.item() == pytest.approx(0.5 * 2.0)


def test_dpo_at_the_reference_is_log_2() -> None:
    same = torch.tensor([-3.0])
    output = dpo(same, same, same, same, torch.tensor([False]), TOKENS, beta=0.02)
    assert output.loss.item() == pytest.approx(math.log(2))


def test_metrics_are_over_conditional_rows_and_show_both_gaps() -> None:
    """Rows: right by 2, wrong by 4, dropped."""
    output = dpo(
        torch.tensor([-8.0, -4.0, -20.0]),
        torch.tensor([-9.0, -4.0, -1.0]),
        torch.tensor([-11.0, -4.0, 0.0]),
        torch.tensor([-10.0, -8.0, 0.0]),
        torch.tensor([False, False, True]),
        TOKENS,
        beta=0.1,
        length_normalized=True,
    )
    assert means(output) == pytest.approx(
        {
            "gap_chosen": 1.5,
            "gap_rejected": 2.5,
            "margin": -1.0,
            "accuracy": 0.5,
            "nll_per_token": 1.5,
            "nll_null_per_token": 5.0,
        }
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.5},
        {"beta": 0.5, "loss_type": "ipo"},
        {"beta": 0.1, "loss_type": "hinge"},
        {"beta": 0.5, "length_normalized": True, "nll_weight": 0.3, "null_weight": 2.0, "normalizer": 5.0},
    ],
)
def test_spin_is_dpo_with_the_real_image_chosen(settings: dict[str, Any]) -> None:
    columns = torch.tensor([[-8.0, -3.0], [-9.0, -2.0], [-11.0, -4.0], [-10.0, -1.0]])
    dropped = torch.tensor([False, True])
    of_spin, of_dpo = spin(*columns, dropped, TOKENS, **settings), dpo(*columns, dropped, TOKENS, **settings)
    assert of_spin.loss.item() == of_dpo.loss.item()
    assert means(of_spin) == means(of_dpo)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"simpo_gamma": 0.3}, softplus(-(2.0 * 0.25 - 0.3))),
        ({"simpo_gamma": 0.3, "nll_weight": 0.1}, softplus(-(2.0 * 0.25 - 0.3)) + 0.2),
        ({"simpo_gamma": 0.3, "dropped": True, "null_weight": 0.5}, 1.0),
    ],
)
def test_simpo_by_hand(settings: dict[str, Any], expected: float) -> None:
    """2 nats a token against 2.25, beta = 2."""
    dropped = torch.tensor([settings.pop("dropped", False)])
    output = simpo(torch.tensor([-8.0]), torch.tensor([-9.0]), dropped, TOKENS, beta=2.0, **settings)
    assert output.loss.item() == pytest.approx(expected)


def test_simpo_metrics_are_per_token() -> None:
    output = simpo(
        torch.tensor([-8.0, -4.0, -20.0]),
        torch.tensor([-12.0, -2.0, -1.0]),
        torch.tensor([False, False, True]),
        TOKENS,
        beta=2.0,
        simpo_gamma=0.5,
    )
    assert means(output) == pytest.approx(
        {
            "nll_per_token": 1.5,
            "nll_rejected_per_token": 1.75,
            "nll_null_per_token": 5.0,
            "margin": 0.25,
            "accuracy": 0.5,
        }
    )


def run_kto(mismatched_gap: float, *, dropped: bool = False, **settings: Any):
    return kto(
        torch.tensor([-8.0]),
        torch.tensor([-9.0]),
        torch.tensor([-11.0]),
        torch.tensor([-10.0]),
        torch.tensor(mismatched_gap),
        torch.tensor([dropped]),
        TOKENS,
        **settings,
    )


@pytest.mark.parametrize(
    ("mismatched_gap", "settings", "expected"),
    [
        (0.0, {}, (1 - sigmoid(1.5) + 1 - sigmoid(-0.5)) / 2),
        (2.0, {}, (1 - sigmoid(0.5) + 1 - sigmoid(0.5)) / 2),
        (-2.0, {}, (1 - sigmoid(1.5) + 1 - sigmoid(-0.5)) / 2),
        (
            2.0,
            {"desirable_weight": 3.0, "undesirable_weight": 5.0},
            (3 * (1 - sigmoid(0.5)) + 5 * (1 - sigmoid(0.5))) / 2,
        ),
        (2.0, {"dropped": True, "null_weight": 0.5}, 1.0),
    ],
)
def test_kto_by_hand(mismatched_gap: float, settings: dict[str, Any], expected: float) -> None:
    """Gaps 3 and 1, beta = 0.5; a negative zero point counts as zero."""
    assert run_kto(mismatched_gap, beta=0.5, **settings).loss.item() == pytest.approx(expected)


def test_kto_metrics_show_the_zero_point() -> None:
    assert means(run_kto(2.0, beta=0.5)) == pytest.approx(
        {
            "gap_chosen": 3.0,
            "gap_rejected": 1.0,
            "margin": 2.0,
            "accuracy": 1.0,
            "nll_per_token": 2.0,
            "nll_null_per_token": math.nan,
            "gap_mismatched": 2.0,
        },
        nan_ok=True,
    )


def test_no_gradient_flows_through_the_zero_point() -> None:
    gap = torch.tensor(2.0, requires_grad=True)
    policy = torch.tensor([-8.0], requires_grad=True)
    kto(policy, policy, policy.detach(), policy.detach(), gap, torch.tensor([False]), TOKENS, beta=0.5).loss.backward()
    assert gap.grad is None


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        (run_dpo, {"beta": 0.1, "loss_type": "exo"}, r"loss_type is 'exo'; known: sigmoid, ipo, hinge"),
        (run_dpo, {"beta": 0.0}, r"beta is 0.0; it must be positive"),
        (run_dpo, {"beta": 0.1, "label_smoothing": 0.5}, r"label_smoothing is 0.5; it must be in \[0, 0.5\)"),
        (run_dpo, {"beta": 0.1, "label_smoothing": 0.1, "loss_type": "hinge"}, r"'hinge' does not use it; set it to 0"),
        (run_dpo, {"beta": 0.1, "length_normalized": True, "loss_type": "ipo"}, r"'ipo' is always per token"),
        (run_dpo, {"beta": 0.1, "nll_weight": -1.0}, r"nll_weight is -1.0; it must be at least 0"),
        (run_dpo, {"beta": 0.1, "null_weight": -1.0}, r"null_weight is -1.0; it must be at least 0"),
        (run_kto, {"mismatched_gap": 0.0, "beta": -1.0}, r"beta is -1.0; it must be positive"),
        (run_kto, {"mismatched_gap": 0.0, "beta": 1.0, "desirable_weight": -1.0}, r"desirable_weight is -1.0"),
        (run_kto, {"mismatched_gap": 0.0, "beta": 1.0, "undesirable_weight": -1.0}, r"undesirable_weight is -1.0"),
        (run_kto, {"mismatched_gap": 0.0, "beta": 1.0, "null_weight": -1.0}, r"null_weight is -1.0"),
    ],
)
def test_values_without_a_meaning_are_refused(run: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**settings)


@pytest.mark.parametrize("settings", [{"beta": 0.0, "simpo_gamma": 0.5}, {"beta": 2.0, "simpo_gamma": -0.5}])
def test_simpo_refuses_values_without_a_meaning(settings: dict[str, float]) -> None:
    one = torch.tensor([-1.0])
    with pytest.raises(ValueError, match=r"it must be"):
        simpo(one, one, torch.tensor([False]), TOKENS, **settings)
