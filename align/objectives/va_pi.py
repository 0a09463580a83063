"""VA-π: a policy gradient on teacher-forced tokens whose reward is that they decode to the real pixels; and the
straight-through estimator that it is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives.checks import check
from align.objectives.policy_gradient import surrogate
from align.types import Average, LossOutput


def va_pi(
    policy_actions_BGL: Tensor,
    old_actions_BGL: Tensor,
    advantages_BG: Tensor,
    policy_real_BL: Tensor,
    *,
    epsilon: float = 0.2,
    ce_weight: float = 0.1,
    normalizer: float | None = None,
) -> LossOutput:
    """VA-π (arXiv 2512.19680), steps 4 and 5 of its released code:

        mean over images, actions and tokens of -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A)
        + ce_weight * mean over images and tokens of -log p(real token | noised context)

    An action is one token drawn at every position of a real image, given the same noised context of real tokens
    (`noised_context`) for all G actions of the image; nothing is rolled out.

    Args:
        policy_actions_BGL: log p of the actions, nats, with gradient.
        old_actions_BGL: the same when they were drawn, without gradient.
        advantages_BG: from `group_advantages` of `pixel_reward` with num_generations=G; the paper cuts them with clip=5.
        policy_real_BL: log p of the real tokens under the same logits, with gradient.
        epsilon: clip range of the ratio rho.
        ce_weight: weight of the real tokens' cross-entropy, which stands for the prior and needs no reference.
        normalizer: images of the whole optimiser step; the images given if None.

    Raises:
        ValueError: a clip range that is not positive, or a negative ce_weight.

    Metrics: those of `policy_gradient` without kept, and nll_per_token of the real tokens, nats.
    """
    check(ce_weight=(ce_weight, ce_weight >= 0, "at least 0"))
    images, group, length = policy_actions_BGL.shape
    token_loss_NL, metrics = surrogate(
        policy_actions_BGL.flatten(0, 1),
        old_actions_BGL.flatten(0, 1),
        advantages_BG.reshape(-1, 1).expand(-1, length),
        loss_type="grpo",
        epsilon=epsilon,
    )
    count = images if normalizer is None else normalizer
    loss = token_loss_NL.sum() / (count * group * length) - ce_weight * policy_real_BL.sum() / (count * length)
    return LossOutput(loss, {**metrics, "nll_per_token": Average.of(-policy_real_BL)})


def noised_context(tokens_BL: Tensor, uniforms_BL: Tensor, random_tokens_BL: Tensor, *, xi: float) -> Tensor:
    """int64 [B, L]: real tokens, each replaced by a random one with probability xi.

    One draw for an image, shared by all of its actions and by the update.

    Args:
        uniforms_BL: uniform on [0, 1).
        random_tokens_BL: uniform over the vocabulary.
        xi: in [0, 1]. Published: 0 for class-conditional LlamaGen, 0.5 for its text-conditional one, 1.0 for Janus-Pro.

    Raises:
        ValueError: xi out of range.
    """
    check(xi=(xi, 0 <= xi <= 1, "a probability, in [0, 1]"))
    return torch.where(uniforms_BL < xi, random_tokens_BL, tokens_BL)


def pixel_reward(
    decoded_BGCHW: Tensor,
    real_BCHW: Tensor,
    perceptual_BG: Tensor,
    *,
    mse_weight: float = 1.0,
    perceptual_weight: float = 1.0,
) -> Tensor:
    """[B, G]: -(mse_weight * mean squared error + perceptual_weight * perceptual distance) of each decoded action.

    Args:
        decoded_BGCHW, real_BCHW: float pixels in [-1, 1].
        perceptual_BG: distance of each decoded action from its real image (LPIPS in the paper).
    """
    mse_BG = (decoded_BGCHW - real_BCHW[:, None]).square().mean(dim=(-3, -2, -1))
    return -(mse_weight * mse_BG + perceptual_weight * perceptual_BG)


def straight_through(logits_BLV: Tensor, gumbel_BLV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """[B, L, V]: one-hot tokens with the gradient of the softmax (straight-through Gumbel-softmax).

    Args:
        logits_BLV: with gradient.
        gumbel_BLV: standard Gumbel noise, -log(-log u); the one-hot is then a sample of softmax(logits).
        temperature: of the backward pass only; smaller is less biased and noisier.

    Raises:
        ValueError: a temperature that is not positive.
    """
    check(temperature=(temperature, temperature > 0, "positive"))
    soft_BLV = ((logits_BLV + gumbel_BLV) / temperature).softmax(dim=-1)
    hard_BLV = F.one_hot(soft_BLV.argmax(dim=-1), soft_BLV.shape[-1]).to(soft_BLV.dtype)
    # the difference is exactly 0, so that the forward pass is exactly one-hot
    return hard_BLV + (soft_BLV - soft_BLV.detach())


def ste(
    decoded_BCHW: Tensor,
    real_BCHW: Tensor,
    perceptual_B: Tensor,
    policy_real_BL: Tensor,
    *,
    mse_weight: float,
    perceptual_weight: float,
    ce_weight: float,
    normalizer: float | None = None,
) -> LossOutput:
    """The baseline that VA-π is compared with: the pixel loss, differentiated through the decoder and
    `straight_through` tokens, so that its gradient is biased but needs no reward.

        mean over images of mse_weight * MSE + perceptual_weight * perceptual distance + ce_weight * NLL per token

    Args:
        decoded_BCHW: decoded straight-through tokens, in [-1, 1], with gradient.
        real_BCHW: real pixels in [-1, 1].
        perceptual_B: perceptual distance of each decoded image, with gradient.
        policy_real_BL: log p of the real tokens, nats, with gradient.
        normalizer: images of the whole optimiser step; the images given if None.

    Metrics: mse, perceptual and nll_per_token, unweighted.
    """
    mse_B = (decoded_BCHW - real_BCHW).square().mean(dim=(-3, -2, -1))
    nll_B = -policy_real_BL.mean(dim=1)
    loss_B = mse_weight * mse_B + perceptual_weight * perceptual_B + ce_weight * nll_B
    return LossOutput(
        loss_B.sum() / (len(loss_B) if normalizer is None else normalizer),
        {"mse": Average.of(mse_B), "perceptual": Average.of(perceptual_B), "nll_per_token": Average.of(nll_B)},
    )
