"""VA-π and its straight-through baseline by hand."""

from __future__ import annotations

import pytest
import torch
from objectives.toy import means
from torch import Tensor

from align.objectives import group_advantages, noised_context, pixel_reward, ste, straight_through, va_pi


def random_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """3 images, 2 actions, 4 tokens; mean log-ratios on both sides of the clip."""
    rng = torch.Generator().manual_seed(0)
    policy, noise = (torch.randn(3, 2, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    advantages = torch.tensor([[1.0, -1.0], [0.5, -0.5], [-2.0, 2.0]], dtype=torch.float64)
    real = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    return policy, policy - 0.3 * noise, advantages, real


def test_loss_by_hand() -> None:
    """One image, two actions of two tokens; ratios (1.5, 0.9) with A = 1 and (0.5, 1.5) with A = -2."""
    ratios = torch.tensor([[[1.5, 0.9], [0.5, 1.5]]])
    policy = ratios.log().requires_grad_()
    real = torch.tensor([[-3.0, -1.0]], requires_grad=True)
    output = va_pi(policy, torch.zeros(1, 2, 2), torch.tensor([[1.0, -2.0]]), real, epsilon=0.2, ce_weight=0.1)
    assert output.loss.item() == pytest.approx((-(1.2 + 0.9) + 2 * (0.8 + 1.5)) / 4 + 0.1 * 2.0)
    gradients = torch.autograd.grad(output.loss, (policy, real))
    torch.testing.assert_close(gradients[0], torch.tensor([[[0.0, -0.9], [0.0, 3.0]]]) / 4)
    torch.testing.assert_close(gradients[1], torch.tensor([[-0.05, -0.05]]))
    logged = means(output)
    assert (logged["clip_low"], logged["clip_high"], logged["nll_per_token"]) == (0.25, 0.25, 2.0)
    assert "kept" not in logged


def test_the_normalizer_makes_micro_batches_add_up() -> None:
    case = random_case()
    whole = va_pi(*case)
    parts = [va_pi(*(tensor[i : i + 1] for tensor in case), normalizer=3.0) for i in range(3)]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name, average in whole.metrics.items():
        merged = sum(part.metrics[name].total for part in parts) / sum(part.metrics[name].count for part in parts)
        torch.testing.assert_close(merged, average.total / average.count, msg=name)


def test_gradient_by_finite_differences() -> None:
    policy, old, advantages, real = random_case()
    assert torch.autograd.gradcheck(
        lambda policy, real: va_pi(policy, old, advantages, real).loss, (policy.requires_grad_(), real.requires_grad_())
    )


def test_every_knob_and_input_is_alive() -> None:
    policy, old, advantages, real = random_case()
    policy.requires_grad_(), real.requires_grad_()

    def gradient(old: Tensor = old, advantages: Tensor = advantages, **settings: float) -> Tensor:
        gradients = torch.autograd.grad(va_pi(policy, old, advantages, real, **settings).loss, (policy, real))
        return torch.cat([gradient.flatten() for gradient in gradients])

    changes = (
        {"epsilon": 0.05},
        {"ce_weight": 0.2},
        {"normalizer": 5.0},
        {"old": old - 0.1},
        {"advantages": -advantages},
    )
    for change in changes:
        assert not torch.allclose(gradient(), gradient(**change)), change


def test_noised_context_by_hand() -> None:
    tokens, noise = torch.tensor([[1, 2, 3]]), torch.tensor([[7, 8, 9]])
    uniforms = torch.tensor([[0.0, 0.6, 0.99]])
    found = {xi: noised_context(tokens, uniforms, noise, xi=xi).tolist()[0] for xi in (0.0, 0.5, 1.0)}
    assert found == {0.0: [1, 2, 3], 0.5: [7, 2, 3], 1.0: [7, 8, 9]}
    with pytest.raises(ValueError, match="xi is 1.5; it must be a probability"):
        noised_context(tokens, uniforms, noise, xi=1.5)


def test_pixel_reward_by_hand() -> None:
    """Errors of 1 and 2 in all pixels, perceptual distances 0.5 and 0.25."""
    real = torch.zeros(1, 3, 2, 2)
    decoded = torch.stack([torch.ones(1, 3, 2, 2), -2 * torch.ones(1, 3, 2, 2)], dim=1)
    perceptual = torch.tensor([[0.5, 0.25]])
    torch.testing.assert_close(pixel_reward(decoded, real, perceptual), torch.tensor([[-1.5, -4.25]]))
    weighted = pixel_reward(decoded, real, perceptual, mse_weight=2.0, perceptual_weight=4.0)
    torch.testing.assert_close(weighted, torch.tensor([[-4.0, -9.0]]))


def test_the_better_reconstruction_gains_probability() -> None:
    """Reward, advantage and loss in a row: two actions, the second decodes to the real image."""
    real = torch.zeros(1, 1, 2, 2)
    decoded = torch.stack([torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)], dim=1)
    rewards = pixel_reward(decoded, real, torch.zeros(1, 2))
    advantages = group_advantages(rewards.view(-1, 1), num_generations=2, clip=5.0).advantages_N.view(1, 2)
    policy = torch.full((1, 2, 3), -1.0, requires_grad=True)
    va_pi(policy, policy.detach(), advantages, torch.zeros(1, 3)).loss.backward()
    assert (policy.grad[0, 0] > 0).all() and (policy.grad[0, 1] < 0).all()


def test_straight_through_is_one_hot_forward_and_a_softmax_backward() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=rng, requires_grad=True)
    gumbel = -(-torch.rand(2, 3, 4, generator=rng).log()).log()
    weights = torch.randn(2, 3, 4, generator=rng)
    hard = straight_through(logits, gumbel, temperature=0.5)
    assert torch.equal(hard, torch.nn.functional.one_hot((logits + gumbel).argmax(dim=-1), 4).float())
    (found,) = torch.autograd.grad((hard * weights).sum(), logits)
    (expected,) = torch.autograd.grad((((logits + gumbel) / 0.5).softmax(dim=-1) * weights).sum(), logits)
    torch.testing.assert_close(found, expected)
    (warmer,) = torch.autograd.grad((straight_through(logits, gumbel) * weights).sum(), logits)
    assert not torch.allclose(warmer, found)
    with pytest.raises(ValueError, match="temperature is 0.0; it must be positive"):
        straight_through(logits, gumbel, temperature=0.0)


WEIGHTS = {"mse_weight": 2.0, "perceptual_weight": 3.0, "ce_weight": 0.5}


def test_ste_by_hand() -> None:
    """Two images: errors 1 and 2, distances 0.1 and 0.2, real tokens of log p (-1, -3) and (-2, -2)."""
    decoded = torch.stack([torch.ones(3, 2, 2), 2 * torch.ones(3, 2, 2)])
    inputs = (decoded, torch.zeros(2, 3, 2, 2), torch.tensor([0.1, 0.2]), torch.tensor([[-1.0, -3.0], [-2.0, -2.0]]))
    output = ste(*inputs, **WEIGHTS)
    assert output.loss.item() == pytest.approx(2 * (1 + 4) / 2 + 3 * 0.15 + 0.5 * 2)
    assert means(output) == pytest.approx({"mse": 2.5, "perceptual": 0.15, "nll_per_token": 2.0})
    parts = [ste(*(tensor[i : i + 1] for tensor in inputs), **WEIGHTS, normalizer=2.0).loss for i in range(2)]
    torch.testing.assert_close(sum(parts), output.loss)


def test_ste_gradient_and_knobs() -> None:
    rng = torch.Generator().manual_seed(0)
    decoded, real = (torch.randn(2, 1, 2, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    leaves = (
        decoded.requires_grad_(),
        torch.rand(2, generator=rng, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, generator=rng, dtype=torch.float64, requires_grad=True),
    )

    def loss(decoded: Tensor, perceptual: Tensor, logprobs: Tensor) -> Tensor:
        return ste(decoded, real, perceptual, logprobs, **WEIGHTS).loss

    assert torch.autograd.gradcheck(loss, leaves)

    def gradient(real: Tensor = real, **settings: float) -> Tensor:
        output = ste(leaves[0], real, *leaves[1:], **{**WEIGHTS, **settings})
        return torch.cat([g.flatten() for g in torch.autograd.grad(output.loss, leaves)])

    for change in (*({name: 7.0} for name in WEIGHTS), {"normalizer": 3.0}, {"real": -real}):
        assert not torch.allclose(gradient(), gradient(**change)), change


def test_what_has_no_meaning_is_refused() -> None:
    case = random_case()
    with pytest.raises(ValueError, match="epsilon is 0.0; it must be positive"):
        va_pi(*case, epsilon=0.0)
    with pytest.raises(ValueError, match="ce_weight is -0.1; it must be at least 0"):
        va_pi(*case, ce_weight=-0.1)
