"""Where policy gradients end: exact ascent of a tabular policy on the images of two binary tokens, all enumerated.

The reward less c times KL(policy || reference) is greatest at p_reference exp(r / c) / Z.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives.toy import row_losses
from torch import Tensor

from align.objectives import exact_kl_penalty, group_advantages, kl_penalty, policy_gradient

IMAGES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
REWARD = torch.tensor([1.0, -0.5, 0.2, 0.6], dtype=torch.float64)
# logits of the first token, and of the second given the first
REFERENCE = (
    torch.tensor([0.3, -0.2], dtype=torch.float64),
    torch.tensor([[0.5, 0.0], [-0.4, 0.1]], dtype=torch.float64),
)
COEFFICIENT = 0.5
SETTINGS: dict[str, dict[str, Any]] = {"cispo": {"epsilon_high": 5.0}}


def score(logits: tuple[Tensor, Tensor]) -> Tensor:
    """log p of each image's tokens, [4, 2]."""
    first, second = logits[0].log_softmax(dim=-1), logits[1].log_softmax(dim=-1)
    return torch.stack([first[IMAGES[:, 0]], second[IMAGES[:, 0], IMAGES[:, 1]]], dim=1)


def tilted(reference_N: Tensor) -> Tensor:
    return (reference_N + REWARD / COEFFICIENT).softmax(dim=0)


def expected_loss(
    policy_NL: Tensor, reward_N: Tensor, *, estimator: str = "grpo", loss_type: str = "reinforce"
) -> Tensor:
    """The policy-gradient loss in expectation over the policy's own images.

    Rows count by their probability, put into the advantages. Baselines drop out of an expectation, so that one group of
    all images serves.
    """
    probability_N = policy_NL.detach().sum(dim=1).exp()
    scale = None if estimator == "rloo" else "none"
    found = group_advantages(reward_N[:, None], num_generations=4, estimator=estimator, scale_rewards=scale)
    advantages_NL = (probability_N * found.advantages_N)[:, None].expand_as(policy_NL)
    return policy_gradient(
        policy_NL,
        policy_NL.detach(),
        advantages_NL,
        found.kept_N,
        1.0,
        loss_type=loss_type,
        normalizer=1.0,
        **SETTINGS.get(loss_type, {}),
    ).loss


@pytest.mark.parametrize(
    ("loss_type", "estimator"),
    [
        ("reinforce", "rloo"),
        ("reinforce", "reinforce_pp"),
        ("grpo", "grpo"),
        ("dapo", "grpo"),
        ("gspo", "grpo"),
        ("cispo", "rloo"),
    ],
)
def test_kl_in_the_reward_ends_at_the_tilted_reference(loss_type: str, estimator: str) -> None:
    reference = score(REFERENCE).sum(dim=1)
    logits = tuple(part.clone().requires_grad_() for part in REFERENCE)
    optimiser = torch.optim.SGD(logits, lr=8.0)
    for _ in range(150):
        policy_NL = score(logits)
        k1_N = (policy_NL.sum(dim=1) - reference).detach()
        optimiser.zero_grad()
        expected_loss(policy_NL, REWARD - COEFFICIENT * k1_N, loss_type=loss_type, estimator=estimator).backward()
        optimiser.step()
    torch.testing.assert_close(score(logits).sum(dim=1).exp().detach(), tilted(reference), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("penalty", "ends_there"), [("k2", True), ("k3 with importance", True), ("exact", True), ("k3", False)]
)
def test_kl_in_the_loss_ends_there_for_a_single_token(penalty: str, ends_there: bool) -> None:
    """Images of one token with 4 values. k3 without importance holds back by the forward KL, and ends elsewhere."""
    reference = score(REFERENCE).sum(dim=1)
    logits = reference.clone().requires_grad_()
    optimiser = torch.optim.SGD([logits], lr=8.0)
    for _ in range(150):
        policy = logits.log_softmax(dim=0)
        optimiser.zero_grad()
        if penalty == "exact":
            penalty_loss = exact_kl_penalty(policy[None, None], reference[None, None], coefficient=COEFFICIENT).loss
        else:
            rows = {"policy_BL": policy[:, None], "reference_BL": reference[:, None]}
            settings = {"estimator": penalty[:2], "importance": "importance" in penalty}
            penalties_N = row_losses(kl_penalty, rows, coefficient=COEFFICIENT, **settings)
            penalty_loss = (policy.detach().exp() * penalties_N).sum()
        (expected_loss(policy[:, None], REWARD) + penalty_loss).backward()
        optimiser.step()
    distance = (logits.softmax(dim=0) - tilted(reference)).abs().max().item()
    assert distance < 1e-4 if ends_there else distance > 0.01


def test_a_penalty_on_tokens_ignores_what_they_do_to_later_ones() -> None:
    """At the optimum the gradient is 0 with KL in the reward. The penalty on tokens (k2) still pulls at the first token:
    it does not know that a first token may lead to a second one that costs more."""
    reference_NL = score(REFERENCE)
    optimum = tilted(reference_NL.sum(dim=1)).view(2, 2)
    logits = (optimum.sum(dim=1).log().requires_grad_(), optimum.log().requires_grad_())
    policy_NL = score(logits)
    k1_N = (policy_NL - reference_NL).sum(dim=1).detach()

    charged = expected_loss(policy_NL, REWARD - COEFFICIENT * k1_N)
    for gradient in torch.autograd.grad(charged, logits, retain_graph=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)

    penalties_N = row_losses(
        kl_penalty, {"policy_BL": policy_NL, "reference_BL": reference_NL}, coefficient=COEFFICIENT, estimator="k2"
    )
    penalised = expected_loss(policy_NL, REWARD) + (policy_NL.detach().sum(dim=1).exp() * penalties_N).sum()
    first, second = torch.autograd.grad(penalised, logits)
    assert first.abs().max() > 0.01
    torch.testing.assert_close(second, torch.zeros_like(second), atol=1e-7, rtol=0)
