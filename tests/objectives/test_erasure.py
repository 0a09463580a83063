"""Erasure against hand-derived values, and its optimum."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.toy import means, minimise
from torch import Tensor

from align.objectives import erasure

# logits over two tokens, at one position of one image: the second token has 3/4, and 1/2
POSITIVE = torch.tensor([[[0.0, math.log(3)]]])
FLAT = torch.zeros(1, 1, 2)


def kl(target: float, policy: float) -> float:
    """Of two distributions over two tokens, given by the second one's probability."""
    return target * math.log(target / policy) + (1 - target) * math.log((1 - target) / (1 - policy))


def run(
    *, policy_negative: Tensor = FLAT, null: Tensor = FLAT, collision: bool = False, dropped: bool = False, **settings
):
    """The reference gives the second token 3/4 under the kept condition and 1/2 under the erased one; the policy 1/2."""
    return erasure(
        FLAT, policy_negative, POSITIVE, FLAT, null, torch.tensor([collision]), torch.tensor([dropped]), **settings
    )


@pytest.mark.parametrize(("eta", "target"), [(0.0, 3 / 4), (1.0, 9 / 10), (2.0, 27 / 28)])
def test_loss_by_hand(eta: float, target: float) -> None:
    """Target odds are 3 (3/1)^eta: the kept condition's, moved away from the erased one's."""
    output = run(eta=eta, keep_weight=2.0)
    assert output.loss.item() == pytest.approx(kl(target, 1 / 2) + 2 * kl(3 / 4, 1 / 2))
    assert means(output) == pytest.approx(
        {"erase_kl": kl(target, 1 / 2), "keep_kl": kl(3 / 4, 1 / 2), "active_windows": 1.0}
    )


def test_on_images_of_the_erased_class_the_null_condition_stands_in() -> None:
    """Null odds 2, erased odds 1: target odds 2 (2/1)^1 = 4. There is nothing to keep."""
    output = run(null=torch.tensor([[[0.0, math.log(2)]]]), collision=True, keep_weight=2.0)
    assert output.loss.item() == pytest.approx(kl(4 / 5, 1 / 2))
    assert output.metrics["keep_kl"].count.item() == 0


@pytest.mark.parametrize("collision", [False, True])
def test_dropped_rows_only_keep(collision: bool) -> None:
    output = run(dropped=True, collision=collision, keep_weight=2.0)
    assert output.loss.item() == pytest.approx(2 * kl(3 / 4, 1 / 2))
    assert output.metrics["erase_kl"].count.item() == output.metrics["active_windows"].count.item() == 0


@pytest.mark.parametrize(
    ("window", "threshold", "counted"),
    [
        (None, 0.0, [0, 1, 2, 3, 4]),
        (2, 0.0, [0, 1, 2, 3, 4]),
        (2, 0.05, [0, 1, 2, 3]),
        (2, 0.3, [0, 1]),
        (3, 0.05, [0, 1, 2]),
        (1, 0.05, [0, 1, 2]),
        (None, 0.3, [0, 1, 2, 3, 4]),
        (None, 2.0, []),
    ],
)
def test_windows_below_the_threshold_are_left_out(window: int | None, threshold: float, counted: list[int]) -> None:
    """Five tokens; eta = 0 and a flat policy, so that the erase loss of a token is KL(reference || flat). In windows of
    two: 2 x .368, .131 + 0 and, cut short, .005."""
    shares = [9 / 10, 9 / 10, 3 / 4, 1 / 2, 11 / 20]
    positive = torch.tensor([[[0.0, math.log(p / (1 - p))] for p in shares]])
    flat, no = torch.zeros(1, 5, 2), torch.tensor([False])
    settings = {"eta": 0.0, "keep_weight": 0.0, "window": window, "threshold": threshold}
    output = erasure(flat, flat, positive, flat, flat, no, no, **settings)
    losses = [kl(p, 1 / 2) for p in shares]
    assert output.loss.item() == pytest.approx(sum(losses[i] for i in counted) / 5, abs=1e-7)
    assert means(output)["erase_kl"] == pytest.approx(sum(losses) / 5)


def test_active_windows_are_counted() -> None:
    """Four windows of two tokens in two rows, of which the one with the large loss is above the threshold."""
    positive = torch.zeros(2, 4, 2)
    positive[1, 3, 1] = math.log(9)
    flat, no = torch.zeros(2, 4, 2), torch.tensor([False, False])
    output = erasure(flat, flat, positive, flat, flat, no, no, window=2, threshold=0.1)
    assert means(output)["active_windows"] == 1 / 4


def test_the_reference_with_its_target_met_has_no_loss() -> None:
    """The kept condition as in the reference and the erased one at its target: nothing left to train."""
    output = erasure(
        POSITIVE, 2 * POSITIVE, POSITIVE, FLAT, FLAT, torch.tensor([False]), torch.tensor([False]), eta=1.0
    )
    assert output.loss.item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": -1.0}, r"eta is -1.0; it must be at least 0"),
        ({"keep_weight": -1.0}, r"keep_weight is -1.0; it must be at least 0"),
        ({"window": 0}, r"window is 0; it must be None \(the whole image\) or at least 1 token"),
        ({"threshold": -0.1}, r"threshold is -0.1; it must be at least 0"),
    ],
)
def test_values_without_a_meaning_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_the_optimum_moves_the_erased_class_and_nothing_else() -> None:
    """Classes 0 and 1, class 2 to erase, 3 the null condition; two positions of four tokens; one row for each.

    Every condition's logits are free, so the erased class ends at the mean of its targets (the minimiser of a sum of
    KL(target || p) over p), one for each class that its images may come from, and the others end at the reference.
    """
    rng = torch.Generator().manual_seed(0)
    reference, start = torch.randn(2, 4, 2, 4, generator=rng, dtype=torch.float64)
    policy = start.clone().requires_grad_()
    eta = 0.7
    own = torch.tensor([0, 1, 2, 3])
    negative = torch.tensor([2, 2, 2, 3])  # all conditions of the dropped row are null
    collision, dropped = torch.tensor([False, False, True, True]), own == 3

    def loss() -> Tensor:
        return erasure(
            policy[own],
            policy[negative],
            reference[own],
            reference[negative],
            reference[3].expand(4, 2, 4),
            collision,
            dropped,
            eta=eta,
            keep_weight=0.5,
        ).loss

    minimise([policy], loss)
    found, kept = policy.detach().softmax(dim=-1), reference.softmax(dim=-1)
    for condition in (0, 1, 3):
        torch.testing.assert_close(found[condition], kept[condition], atol=1e-6, rtol=0)
    targets = [reference[k] - eta * (reference[2] - reference[k]) for k in (0, 1, 3)]
    expected = torch.stack([target.softmax(dim=-1) for target in targets]).mean(dim=0)
    torch.testing.assert_close(found[2], expected, atol=1e-6, rtol=0)
