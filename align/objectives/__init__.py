"""Objectives: pure functions from log-probabilities to a loss and the averages to log."""

from align.objectives.advantages import Advantages, group_advantages
from align.objectives.cca import cca
from align.objectives.ddo import ddo
from align.objectives.entropy import entropy_bonus, entropy_coefficient
from align.objectives.erasure import erasure
from align.objectives.gft import gft, gft_sampled
from align.objectives.kl import adapt_coefficient, exact_kl, exact_kl_penalty, kl_estimate, kl_penalty
from align.objectives.kto import kto
from align.objectives.logprobs import token_entropy, token_logprobs
from align.objectives.policy_gradient import policy_gradient
from align.objectives.preference import dpo, simpo, spin
from align.objectives.sft import best_of_n, sft
from align.objectives.token_credit import (
    block_area_weights,
    critical_token_weights,
    guidance_contrastive_weights,
    prefix_weights,
    raster_grid,
)
from align.objectives.unpaired import unpaired_logistic
from align.objectives.va_pi import noised_context, pixel_reward, ste, straight_through, va_pi

__all__ = [
    "Advantages",
    "adapt_coefficient",
    "best_of_n",
    "block_area_weights",
    "cca",
    "critical_token_weights",
    "ddo",
    "dpo",
    "entropy_bonus",
    "entropy_coefficient",
    "erasure",
    "exact_kl",
    "exact_kl_penalty",
    "gft",
    "gft_sampled",
    "group_advantages",
    "guidance_contrastive_weights",
    "kl_estimate",
    "kl_penalty",
    "kto",
    "noised_context",
    "pixel_reward",
    "policy_gradient",
    "prefix_weights",
    "raster_grid",
    "sft",
    "simpo",
    "spin",
    "ste",
    "straight_through",
    "token_entropy",
    "token_logprobs",
    "unpaired_logistic",
    "va_pi",
]
