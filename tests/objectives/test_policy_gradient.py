"""The policy-gradient family by hand: surrogates, clips, normalisers, metrics; and its gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives.toy import means
from torch import Tensor

from align.objectives import policy_gradient
from align.objectives.policy_gradient import LOSS_TYPES
from align.types import LossOutput

# what each loss type needs beside its name, and what it reads
SETTINGS: dict[str, dict[str, Any]] = {name: {"epsilon": 0.2, "epsilon_high": 0.3} for name in LOSS_TYPES}
SETTINGS["cispo"] = {"epsilon_high": 1.5}
SETTINGS["reinforce"] = {}
CLIPPED = ["grpo", "bnpo", "dr_grpo", "dapo"]


def run(ratios: list[list[float]], advantages: list[list[float]], kept: list[bool] | None = None, **settings: Any):
    """Old log-probs -1 throughout; all rows kept unless said otherwise. Returns the output and d loss / d log p."""
    old = torch.full((len(ratios), len(ratios[0])), -1.0)
    policy = (old + torch.tensor(ratios).log()).requires_grad_()
    kept_B = torch.tensor([True] * len(ratios) if kept is None else kept)
    output = policy_gradient(policy, old, torch.tensor(advantages), kept_B, float(kept_B.sum()), **settings)
    (gradient,) = torch.autograd.grad(output.loss, policy)
    return output, gradient


@pytest.mark.parametrize("loss_type", CLIPPED)
def test_clipped_surrogate_by_hand(loss_type: str) -> None:
    """-min(rho A, clip(rho, 0.8, 1.3) A); the gradient -rho A / 6 vanishes where the clip binds."""
    output, gradient = run(
        [[1.5, 0.5, 1.1], [1.5, 0.5, 0.9]],
        [[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]],
        loss_type=loss_type,
        epsilon=0.2,
        epsilon_high=0.3,
    )
    assert output.loss.item() == pytest.approx((-(2.6 + 1.0 + 2.2) + (1.5 + 0.8 + 0.9)) / 6)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -1.0, -2.2], [1.5, 0.0, 0.9]]) / 6)


def test_epsilon_high_is_epsilon_unless_given() -> None:
    output, _ = run([[1.5]], [[1.0]], epsilon=0.2)
    assert output.loss.item() == pytest.approx(-1.2)


def test_delta_bounds_the_ratio_of_bad_tokens() -> None:
    """Without delta a ratio of 8 and A = -1 cost 8, with a gradient of 8; with delta = 3 they cost 3, without any."""
    assert run([[8.0]], [[-1.0]])[0].loss.item() == pytest.approx(8.0)
    output, gradient = run([[8.0]], [[-1.0]], delta=3.0)
    assert (output.loss.item(), gradient.item()) == (3.0, 0.0)


def test_dapo_counts_kept_rows_only() -> None:
    """A row of an equal group does not dilute the others; with none kept the loss is 0."""
    ratios, advantages = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [5.0, 5.0], [-1.0, 0.0]]
    output, gradient = run(ratios, advantages, [True, False, True], loss_type="dapo", normalizer=3.0)
    assert output.loss.item() == pytest.approx(-(1 + 2 - 1) / (2 * 2))
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, -2.0], [0.0, 0.0], [1.0, 0.0]]) / 4)

    output, gradient = run(ratios, advantages, [False] * 3, loss_type="dapo")
    assert output.loss.item() == 0 and (gradient == 0).all()


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    """-min(rho, 2) A log p: every token's gradient is its capped weight times A, however large the ratio."""
    output, gradient = run([[4.0, 0.5]], [[1.0, -3.0]], loss_type="cispo", epsilon_high=2.0)
    torch.testing.assert_close(gradient, torch.tensor([[-2.0, 1.5]]) / 2)
    assert output.loss.item() == pytest.approx((-2.0 * (math.log(4) - 1) + 1.5 * (math.log(0.5) - 1)) / 2)
    assert means(output)["clip_high"] == 0.5


def test_gspo_has_one_ratio_for_the_image() -> None:
    """Ratios 4 and 1/4 cancel to 1: nothing is clipped. Ratios 4 and 1 have the geometric mean 2: all is."""
    settings = {"loss_type": "gspo", "epsilon": 0.2, "epsilon_high": 0.2}
    output, gradient = run([[4.0, 0.25]], [[3.0, 3.0]], **settings)
    assert output.loss.item() == pytest.approx(-3.0) and means(output)["clip_high"] == 0
    torch.testing.assert_close(gradient, torch.tensor([[-1.5, -1.5]]))

    output, gradient = run([[4.0, 1.0]], [[3.0, 3.0]], **settings)
    assert output.loss.item() == pytest.approx(-3.6) and means(output)["clip_high"] == 1
    assert (gradient == 0).all()


def test_gspo_is_the_sequence_form_for_one_advantage_and_lets_token_credit_through() -> None:
    policy = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.1, -2.0, -0.5]], dtype=torch.float64)
    one = torch.full((1, 3), 2.0, dtype=torch.float64)
    settings = {"loss_type": "gspo", "epsilon": 0.2}

    def gradient(advantages: Tensor) -> Tensor:
        output = policy_gradient(policy, old, advantages, torch.tensor([True]), 1.0, **settings)
        return torch.autograd.grad(output.loss, policy)[0]

    sequence = -2.0 * (policy - old).mean().exp()
    torch.testing.assert_close(gradient(one), torch.autograd.grad(sequence, policy)[0])
    ratio = math.exp(0.1 / 3)
    torch.testing.assert_close(gradient(one * torch.tensor([[3.0, 0.0, 0.0]])).tolist(), [[-6 * ratio / 3, 0.0, 0.0]])


def test_reinforce_weighs_log_probabilities_by_advantages() -> None:
    output, gradient = run([[1.0, 2.0]], [[3.0, -1.0]], loss_type="reinforce")
    torch.testing.assert_close(gradient, torch.tensor([[-1.5, 0.5]]))
    assert output.loss.item() == pytest.approx((3.0 + (math.log(2) - 1)) / 2)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_one_update_for_each_rollout_is_reinforce(loss_type: str) -> None:
    """With the detached policy as old, the ratio is exactly 1 and the gradient -A / (N L), whatever the loss."""
    policy = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    advantages = torch.tensor([[1.0, 2.0, 0.5], [-2.0, 0.0, -1.0]])
    settings = SETTINGS[loss_type]
    output = policy_gradient(
        policy, policy.detach(), advantages, torch.tensor([True, True]), 2.0, loss_type=loss_type, **settings
    )
    torch.testing.assert_close(torch.autograd.grad(output.loss, policy)[0], -advantages / 6)
    logged = means(output)
    assert (logged["ratio_mean"], logged["ratio_max"], logged["approx_kl"]) == (1.0, 1.0, 0.0)


def test_metrics_by_hand() -> None:
    output, _ = run(
        [[1.5, 0.5], [1.5, 0.5]],
        [[2.0, 2.0], [-1.0, -1.0]],
        [True, False],
        epsilon=0.2,
    )
    assert means(output) == pytest.approx(
        {
            "ratio_mean": 1.0,
            "ratio_max": 1.5,
            "clip_low": 0.25,  # ratio 0.5 with A < 0
            "clip_high": 0.25,  # ratio 1.5 with A > 0
            "advantage_abs": 1.5,
            "approx_kl": (0.5 - math.log(1.5) + math.log(2) - 0.5) / 2,
            "kept": 0.5,
        }
    )


def random_case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """6 rows of 4 tokens, ratios on both sides of every clip, two rows without a signal."""
    rng = torch.Generator().manual_seed(1)
    policy, noise, credit = (torch.randn(6, 4, generator=rng, dtype=dtype) for _ in range(3))
    advantages = torch.tensor([1.0, -2.0, 0.0, 0.5, -1.0, 0.0], dtype=dtype)[:, None] * credit.abs()
    # mean log-ratios: slightly above, far above, 1, far above, slightly below, slightly above
    shift = torch.tensor([0.15, 0.6, 0.0, 0.5, -0.1, 0.1], dtype=dtype)[:, None]
    log_ratio = shift + 0.2 * (noise - noise.mean(dim=1, keepdim=True))
    return policy, policy - log_ratio, advantages, advantages[:, 0] != 0, 4.0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_normalizers_make_micro_batches_add_up(loss_type: str) -> None:
    policy, old, advantages, kept, num_kept = random_case()
    settings = {"loss_type": loss_type, **SETTINGS[loss_type]}
    whole = policy_gradient(policy, old, advantages, kept, num_kept, **settings)
    parts = [
        policy_gradient(policy[r], old[r], advantages[r], kept[r], torch.tensor(num_kept), **settings, normalizer=6.0)
        for r in (slice(0, 1), slice(1, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name, average in whole.metrics.items():
        merged = sum(part.metrics[name].total for part in parts) / sum(part.metrics[name].count for part in parts)
        torch.testing.assert_close(merged, average.total / average.count, msg=name)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "cispo"])
def test_gradient_by_finite_differences(loss_type: str) -> None:
    """CISPO's weight carries no gradient by definition. GSPO has one advantage for each image here."""
    policy, old, advantages, kept, num_kept = random_case()
    if loss_type == "gspo":
        advantages = advantages.mean(dim=1, keepdim=True).expand_as(advantages)

    def loss(policy: Tensor) -> Tensor:
        return policy_gradient(policy, old, advantages, kept, num_kept, loss_type=loss_type, **SETTINGS[loss_type]).loss

    assert torch.autograd.gradcheck(loss, policy.requires_grad_())


@pytest.mark.parametrize(
    ("loss_type", "knob", "value"),
    [
        *((name, knob, value) for name in (*CLIPPED, "gspo") for knob, value in [("epsilon", 0.01), ("delta", 1.4)]),
        *((name, "epsilon_high", 0.05) for name in (*CLIPPED, "gspo", "cispo")),
        *((name, "normalizer", 7.0) for name in LOSS_TYPES if name != "dapo"),
    ],
)
def test_every_knob_is_alive(loss_type: str, knob: str, value: float) -> None:
    policy, old, advantages, kept, num_kept = random_case()
    policy.requires_grad_()

    def gradient(**change: float) -> Tensor:
        settings = {"loss_type": loss_type, **SETTINGS[loss_type], **change}
        return torch.autograd.grad(policy_gradient(policy, old, advantages, kept, num_kept, **settings).loss, policy)[0]

    assert not torch.allclose(gradient(), gradient(**{knob: value}))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_input_is_alive(loss_type: str) -> None:
    inputs = dict(zip(("policy", "old", "advantages", "kept", "num_kept"), random_case(), strict=True))

    def run_on(**change: Any) -> tuple[LossOutput, Tensor]:
        policy, *rest = {**inputs, **change}.values()
        policy = policy.clone().requires_grad_()
        output = policy_gradient(policy, *rest, loss_type=loss_type, **SETTINGS[loss_type])
        return output, torch.autograd.grad(output.loss, policy)[0]

    output, gradient = run_on()
    assert not torch.allclose(run_on(advantages=-inputs["advantages"])[1], gradient)
    # REINFORCE takes the rollout as it is: old only tells how far it is off-policy
    moved, moved_gradient = run_on(old=inputs["old"] - 0.5)
    assert torch.allclose(moved_gradient, gradient) == (loss_type == "reinforce")
    assert means(moved)["ratio_mean"] != means(output)["ratio_mean"]
    fewer, fewer_gradient = run_on(kept=~inputs["kept"], num_kept=2.0)
    assert torch.allclose(fewer_gradient, gradient) == (loss_type != "dapo")
    assert means(fewer)["kept"] != means(output)["kept"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "ppo"}, "unknown loss_type 'ppo'; known: bnpo, cispo, dapo"),
        ({"loss_type": "cispo"}, "cispo needs epsilon_high"),
        ({"loss_type": "reinforce", "delta": 2.0}, "delta=2.0 has no effect on loss_type=reinforce"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be positive"),
        ({"epsilon_high": -0.1}, "epsilon_high is -0.1"),
        ({"delta": 0.9}, "delta is 0.9; it must be above 1"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([[1.0]], [[1.0]], **settings)
