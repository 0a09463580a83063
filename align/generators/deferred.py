"""Logits that are computed where they are read, some positions at a time, so that they never lie in memory whole.

At 16,384 codes the logits of one image are 38 MB in float32, and a loss that takes their log-softmax holds several such
tensors for the backward pass: more than all else that the last layer needs. What an objective takes of them is a number
a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 128 * 2**20  # of the float32 logits that are read at once

# logits [B, n, V] of a span of the tokens, and that span -> tensors [..., n] by name
Reader = Callable[[Tensor, slice], dict[str, Tensor]]


@dataclass(frozen=True)
class DeferredLogits:
    """Logits [B, L, V] before the output layer.

    hidden_BPC: what that layer reads, at each of P positions.
    head: any [B, n, C] of them to float32 logits [B, n L/P, V].
    vocab_size: V. tokens_each: tokens of a position, L/P: 1, or the bits of a code.
    """

    hidden_BPC: Tensor
    head: Callable[[Tensor], Tensor]
    vocab_size: int
    tokens_each: int = 1

    def whole(self) -> Tensor:
        return self.head(self.hidden_BPC)

    def part(self, span: slice) -> Tensor:
        """Logits of a span of the tokens, as `read` gives them."""
        return self.head(self.hidden_BPC[:, span.start // self.tokens_each : span.stop // self.tokens_each])

    def read(self, reader: Reader) -> dict[str, Tensor]:
        """What the reader makes of the logits, joined along the tokens.

        Chunks are of all rows, and of CHUNK_BYTES at most (or of one position). Where there are several, the backward
        pass computes each of them again, and holds one at a time as the forward pass does.
        """
        rows, positions, _ = self.hidden_BPC.shape
        size = max(CHUNK_BYTES // (4 * rows * self.tokens_each * self.vocab_size), 1)
        if size >= positions:
            return reader(self.whole(), slice(0, positions * self.tokens_each))
        parts, start = [], 0
        for hidden_BnC in self.hidden_BPC.split(size, dim=1):
            span = slice(start, start + hidden_BnC.shape[1] * self.tokens_each)
            if torch.is_grad_enabled():
                # heads draw no random numbers
                read = partial(checkpoint, self._read, use_reentrant=False, preserve_rng_state=False)
                parts.append(read(reader, hidden_BnC, span))
            else:
                parts.append(self._read(reader, hidden_BnC, span))
            start = span.stop
        return {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}

    def _read(self, reader: Reader, hidden_BnC: Tensor, span: slice) -> dict[str, Tensor]:
        return reader(self.head(hidden_BnC), span)
