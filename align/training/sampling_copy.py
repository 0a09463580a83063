"""The policy as rollouts are drawn from it: in the precision that it is trained in."""

from __future__ import annotations

import copy

import torch

from align.generators.base import Generator


class SamplingCopy:
    """A copy of the weights in bfloat16, filled anew in its place before rollouts are drawn.

    A step of sampling takes as long as reading the weights: half as long as in the float32 that an optimiser needs. Its
    log-probs differ from the update's by rounding, which the trainer logs as `mismatch`.
    """

    def __init__(self) -> None:
        self._copy: Generator | None = None

    def of(self, policy: Generator) -> Generator:
        """The copy of this policy as it is now, in eval mode; always the same tensors, as recorded graphs need."""
        if self._copy is None:
            shared = {id(part): part for part in policy.companions()}
            self._copy = copy.deepcopy(policy, shared).eval().requires_grad_(False).to(torch.bfloat16)
        own = self._copy.state_dict()
        for name, tensor in policy.state_dict().items():
            own[name].copy_(tensor)
        return self._copy
