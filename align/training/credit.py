"""Token credit: which tokens of a rollout its advantage goes to. The weights are pure functions of
`align.objectives.token_credit`; here they get what they look at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from align.generators.base import Generator
from align.objectives import (
    block_area_weights,
    critical_token_weights,
    guidance_contrastive_weights,
    prefix_weights,
    raster_grid,
)
from align.training.inputs import Needs, Scoring, conditions, model_inputs

Batch = Mapping[str, Any]
# a batch with its rollouts and the policy that drew them -> weights [B, L] of mean 1
TokenCredit = Callable[[Batch, Generator], Tensor]


def make_credit(kind: str, generator: Generator, *, num_generations: int, rows: int, **settings: Any) -> TokenCredit:
    """The credit of that name for this generator.

    Args:
        kind: guidance_contrastive, critical, block_area or prefix.
        rows: of a micro-batch; critical tokens compare a group's rollouts, which must then lie in one.
        settings: keywords of the weight function.

    Raises:
        ValueError: an unknown kind or setting, or one that does not fit the generator's token layout.
    """
    sizes = generator.layout.block_sizes
    try:
        if kind == "guidance_contrastive":
            inspect.signature(guidance_contrastive_weights).bind_partial(**settings)
            return lambda batch, policy: guidance_contrastive_weights(*_contrast(batch, policy), **settings)
        if kind in ("block_area", "prefix"):
            function: Callable[..., Tensor] = block_area_weights if kind == "block_area" else prefix_weights
            weights_L = function(sizes, **settings)
            return lambda batch, policy: weights_L.to(batch["rollout"].device).expand(batch["rollout"].shape)
        if kind == "critical":
            if rows % num_generations:
                raise ValueError(
                    f"critical tokens compare the rollouts of a group: per_device_train_batch_size={rows} must be a multiple of num_generations={num_generations}"
                )
            grid = raster_grid(sizes)
            inspect.signature(critical_token_weights).bind_partial(**settings)
            return lambda batch, policy: critical_token_weights(
                *_entropy_and_codes(batch, policy), grid=grid, num_generations=num_generations, **settings
            )
    except TypeError as error:
        raise ValueError(f"rollout.credit={kind}: {error}") from error
    raise ValueError(
        f"unknown token credit {kind!r}; known: guidance_contrastive, critical, block_area, prefix, or null"
    )


def _contrast(batch: Batch, policy: Generator) -> tuple[Tensor, Tensor]:
    found = _score(batch, policy, ("policy_rollout_BL", "policy_unconditional_BL"))
    return found["policy_rollout_BL"], found["policy_unconditional_BL"]


def _entropy_and_codes(batch: Batch, policy: Generator) -> tuple[Tensor, Tensor]:
    found = _score(batch, policy, ("policy_rollout_entropy_BL",))
    return found["policy_rollout_entropy_BL"], policy.embed_tokens(batch["rollout"])


def _score(batch: Batch, policy: Generator, names: tuple[str, ...]) -> dict[str, Tensor]:
    given, _ = conditions(policy, batch)
    with torch.no_grad():
        return model_inputs(policy, policy, batch, given, Needs(names).of_model("policy"), Scoring())
