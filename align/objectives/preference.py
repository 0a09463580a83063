"""Objectives over pairs of images for one condition, one preferred to the other: DPO and its relatives.

Rows whose condition was dropped carry no preference. They train the unconditional model on the chosen image instead,
because guidance needs that model and a difference of two likelihoods does not hold it in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives.checks import check
from align.types import Average, LossOutput

LOSS_TYPES = ("sigmoid", "ipo", "hinge")


def dpo(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    dropped_B: Tensor,
    num_tokens: int,
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    length_normalized: bool = False,
    nll_weight: float = 0.0,
    null_weight: float = 1.0,
    normalizer: float | None = None,
) -> LossOutput:
    """Direct preference optimisation (arXiv 2305.18290), in the forms of TRL's DPOTrainer.

    With gaps g = log p_policy - log p_reference of whole images, d = g(chosen) - g(rejected), e = label_smoothing and
    l = log sigmoid, the loss is the mean over rows of

        sigmoid   -(1 - e) l(beta d) - e l(-beta d)
        ipo       (d / num_tokens - 1 / (2 beta))^2         (arXiv 2310.12036, averaged over tokens)
        hinge     max(0, 1 - beta d)

    plus nll_weight -log p_policy(chosen) / num_tokens. Where pairs follow a Bradley-Terry model of a reward r, the
    optimum of `sigmoid` is p_reference exp(r / beta), normalised. Only the difference d is held: both likelihoods may
    fall together (watch gap_chosen; nll_weight stops it).

    Args:
        policy_chosen_B, policy_rejected_B: log p of the whole image, nats, with gradient.
        reference_chosen_B, reference_rejected_B: the same under the frozen reference.
        dropped_B: bool, rows whose condition was replaced by the null condition: null_weight times the negative
            log-likelihood of a token of the chosen image, and nothing else.
        num_tokens: tokens in an image.
        beta: positive; larger stays nearer to the reference. In 1/nats: language models' 0.1 saturates on the sum
            over hundreds of tokens, 0.02 is CCA's value for 576. For `ipo` it is the paper's tau.
        loss_type: sigmoid, ipo or hinge.
        label_smoothing: share of pairs taken to be the wrong way round, in [0, 0.5), `sigmoid` only (TRL's DPOTrainer
            ignores it there; this is the form of its CPOTrainer).
        length_normalized: divide gaps by num_tokens, beta is then in tokens/nat (TRL's loss_type `sigmoid_norm`).
            `ipo` always does.
        nll_weight, null_weight: at least 0.
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Raises:
        ValueError: an unknown loss_type, a hyper-parameter out of its range or without effect on this loss_type.

    Metrics: gap_chosen, gap_rejected and margin, nats per image; accuracy (share of rows with the chosen image's gap
    the larger), all over conditional rows; nll_per_token of the chosen image (conditional rows) and nll_null_per_token
    (dropped rows), nats.
    """
    _check_dpo(beta, loss_type, label_smoothing, length_normalized)
    _check_weights(nll_weight, null_weight)
    gap_chosen_B = policy_chosen_B - reference_chosen_B
    gap_rejected_B = policy_rejected_B - reference_rejected_B
    difference_B = gap_chosen_B - gap_rejected_B
    if length_normalized or loss_type == "ipo":
        difference_B = difference_B / num_tokens
    if loss_type == "sigmoid":
        preference_B = _smoothed_logistic(beta * difference_B, label_smoothing)
    elif loss_type == "ipo":
        preference_B = (difference_B - 1 / (2 * beta)) ** 2
    else:
        preference_B = torch.relu(1 - beta * difference_B)

    nll_B = -policy_chosen_B / num_tokens
    loss = _mean_loss(preference_B, nll_B, dropped_B, nll_weight, null_weight, normalizer)
    return LossOutput(loss, gap_metrics(gap_chosen_B, gap_rejected_B, dropped_B) | nll_metrics(nll_B, dropped_B))


def spin(
    policy_positive_B: Tensor,
    policy_fake_B: Tensor,
    reference_positive_B: Tensor,
    reference_fake_B: Tensor,
    dropped_B: Tensor,
    num_tokens: int,
    *,
    beta: float,
    loss_type: str = "sigmoid",
    length_normalized: bool = False,
    nll_weight: float = 0.0,
    null_weight: float = 1.0,
    normalizer: float | None = None,
) -> LossOutput:
    """Self-play fine-tuning (SPIN, Chen et al. 2024, arXiv 2401.01335): DPO of real images over the reference's samples.

    With `sigmoid`, which of x and y is real has the log-odds of p_data / p_reference, so the optimum of one round is
    p_reference (p_data / p_reference)^(1/beta), normalised: p_data for beta = 1, and past it for beta < 1. DDO has the
    same optimum but must be told the normaliser (its alpha), which cancels here. Rounds make the policy the next
    reference and draw new fakes, without guidance or filters.

    Arguments, errors and metrics are those of `dpo`, with the real image as the chosen one and the fake as the rejected
    one; there is no label_smoothing, because which image is real is known.
    """
    return dpo(
        policy_positive_B,
        policy_fake_B,
        reference_positive_B,
        reference_fake_B,
        dropped_B,
        num_tokens,
        beta=beta,
        loss_type=loss_type,
        length_normalized=length_normalized,
        nll_weight=nll_weight,
        null_weight=null_weight,
        normalizer=normalizer,
    )


def simpo(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    dropped_B: Tensor,
    num_tokens: int,
    *,
    beta: float,
    simpo_gamma: float,
    nll_weight: float = 0.0,
    null_weight: float = 1.0,
    normalizer: float | None = None,
) -> LossOutput:
    """SimPO (arXiv 2405.14734): preference by the mean log-probability of a token, without a reference.

        loss = -1/N sum_i log sigmoid( beta (log p(chosen_i) - log p(rejected_i)) / num_tokens - simpo_gamma )

    The convention is TRL's CPOTrainer's: simpo_gamma is a margin of logits, after beta. Nothing holds the policy near
    to where it started but the learning rate and nll_weight.

    Args:
        policy_chosen_B, policy_rejected_B: log p of the whole image, nats, with gradient.
        dropped_B: bool, rows whose condition was replaced by the null condition: null_weight times the negative
            log-likelihood of a token of the chosen image, and nothing else.
        num_tokens: tokens in an image.
        beta: in tokens/nat, positive.
        simpo_gamma, nll_weight, null_weight: at least 0.
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Metrics: nll_per_token, nll_rejected_per_token, margin (their difference) and accuracy (share of rows with the chosen
    image the likelier), over conditional rows; nll_null_per_token (dropped rows); nats per token but accuracy.
    """
    check(
        beta=(beta, beta > 0, "positive"),
        simpo_gamma=(simpo_gamma, simpo_gamma >= 0, "at least 0"),
    )
    _check_weights(nll_weight, null_weight)
    nll_B, nll_rejected_B = -policy_chosen_B / num_tokens, -policy_rejected_B / num_tokens
    margin_B = nll_rejected_B - nll_B
    preference_B = _smoothed_logistic(beta * margin_B - simpo_gamma, 0.0)
    loss = _mean_loss(preference_B, nll_B, dropped_B, nll_weight, null_weight, normalizer)
    return LossOutput(
        loss,
        {
            **nll_metrics(nll_B, dropped_B),
            "nll_rejected_per_token": Average.of(nll_rejected_B, ~dropped_B),
            "margin": Average.of(margin_B, ~dropped_B),
            "accuracy": Average.of(margin_B > 0, ~dropped_B),
        },
    )


def gap_metrics(gap_chosen_B: Tensor, gap_rejected_B: Tensor, dropped_B: Tensor) -> dict[str, Average]:
    """Both gaps, their difference and its sign, over conditional rows."""
    margin_B = gap_chosen_B - gap_rejected_B
    return {
        "gap_chosen": Average.of(gap_chosen_B, ~dropped_B),
        "gap_rejected": Average.of(gap_rejected_B, ~dropped_B),
        "margin": Average.of(margin_B, ~dropped_B),
        "accuracy": Average.of(margin_B > 0, ~dropped_B),
    }


def nll_metrics(nll_B: Tensor, dropped_B: Tensor) -> dict[str, Average]:
    """Negative log-likelihood of a token, of the conditional and of the unconditional model."""
    return {"nll_per_token": Average.of(nll_B, ~dropped_B), "nll_null_per_token": Average.of(nll_B, dropped_B)}


def _smoothed_logistic(logit_B: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(logit_B) - label_smoothing * F.logsigmoid(-logit_B)


def _mean_loss(
    preference_B: Tensor,
    nll_B: Tensor,
    dropped_B: Tensor,
    nll_weight: float,
    null_weight: float,
    normalizer: float | None,
) -> Tensor:
    loss_B = torch.where(dropped_B, null_weight * nll_B, preference_B + nll_weight * nll_B)
    return loss_B.sum() / (len(loss_B) if normalizer is None else normalizer)


def _check_dpo(beta: float, loss_type: str, label_smoothing: float, length_normalized: bool) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; known: {', '.join(LOSS_TYPES)}")
    check(
        beta=(beta, beta > 0, "positive"),
        label_smoothing=(label_smoothing, 0 <= label_smoothing < 0.5, "in [0, 0.5)"),
    )
    if label_smoothing and loss_type != "sigmoid":
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but loss_type {loss_type!r} does not use it; set it to 0, or use loss_type='sigmoid'"
        )
    if length_normalized and loss_type == "ipo":
        raise ValueError("length_normalized is True, but loss_type 'ipo' is always per token; set it to False")


def _check_weights(nll_weight: float, null_weight: float) -> None:
    check(
        nll_weight=(nll_weight, nll_weight >= 0, "at least 0"),
        null_weight=(null_weight, null_weight >= 0, "at least 0"),
    )
