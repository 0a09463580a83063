"""What the backward pass finds of a block's activations: all of them, its matrix products, or its input alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = bool | Literal["selective"]
CHOICES: tuple[Recompute, ...] = (False, "selective", True)

# what takes the time of a block; all else is cheap to do again
_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def run_block(mode: Recompute, block: Callable[..., Tensor], *inputs: Any, **settings: Any) -> Tensor:
    """block(*inputs, **settings).

    mode: False keeps every activation for the backward pass; "selective" the outputs of matrix products and of attention,
        and does the rest again; True nothing, and does the whole block again.
    """
    if mode is False or not torch.is_grad_enabled():
        return block(*inputs, **settings)
    again: Callable[..., Tensor] = partial(checkpoint, block, use_reentrant=False)
    if mode == "selective":
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _keep_products))
    return again(*inputs, **settings)


def _keep_products(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
