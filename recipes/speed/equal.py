"""Whether others draw what ours draws: no time is compared before that is so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align.generators import Generator
from align.generators.base import evaluating
from align.sampling import block_scales, guide, is_guided, sample
from align.types import Condition, SamplingConfig
from recipes.speed.plain import Watch

Draw = Callable[[Condition, SamplingConfig, Watch | None], Tensor]
TOLERANCE = 1e-4  # of raw logits in float32, which are within about ten
# of the first block's raw logits in bfloat16, in units of their standard deviation; XXL's 48 layers give .12
BFLOAT16_TOLERANCE = 0.2


@dataclass(frozen=True)
class Agreement:
    """logits: the largest difference of a raw logit, as far as the rows agree; tokens: the share that is the same."""

    logits: float
    tokens: float


class Expected:
    """Our greedy images, and the raw logits that teacher forcing gives for them.

    In float32 another one must give the same logits, and the same tokens up to where a row comes to a tie: two tokens
    whose guided logits differ by rounding. In bfloat16 rounding alone makes rows part; there the first block's logits
    are compared.
    """

    def __init__(self, generator: Generator, condition: Condition, sampling: SamplingConfig) -> None:
        self.sampling = replace(sampling, temperature=0, top_k=0, top_p=1.0)
        self.condition, self.spans = condition, list(generator.layout.spans())
        self.exact = next(generator.parameters()).dtype == torch.float32
        with evaluating(generator):
            self.tokens_BL = sample(generator, condition, self.sampling).tokens_BL
            self.cond_BLV = generator(self.tokens_BL, condition)
            self.null_BLV = None
            if is_guided(sampling, generator.layout):
                self.null_BLV = generator(self.tokens_BL, generator.null_condition(condition))

    def check(self, name: str, draw: Draw, *, watched: bool = True) -> Agreement:
        """Raises ValueError where the other one does not draw what ours draws.

        Args:
            watched: it shows its logits; of another engine of ours, which does not, the tokens alone are compared.
        """
        found: list[Tensor] = []

        def watch(logits: Tensor) -> None:
            start, end = self.spans[len(found)]
            found.append(self._differences(logits.float(), start, end))

        tokens_BL = draw(self.condition, self.sampling, watch if watched else None)
        if not watched:
            found = [torch.zeros(len(tokens_BL), device=tokens_BL.device) for _ in self.spans]
        differ_BL = tokens_BL != self.tokens_BL
        if not self.exact:
            first = slice(*self.spans[0])
            error, allowed = found[0].max().item(), BFLOAT16_TOLERANCE * self.cond_BLV[:, first].std().item()
            self._refuse(name, error, allowed)
            return Agreement(error, 1 - differ_BL.float().mean().item())
        errors_BK = torch.stack(found, dim=1)
        # blocks up to the first one that differs are drawn from the same tokens
        blocks_BK = torch.stack([differ_BL[:, start:end].any(dim=1) for start, end in self.spans], dim=1)
        before_BK = blocks_BK.cumsum(dim=1) - blocks_BK.long() == 0
        error = errors_BK.masked_fill(~before_BK, 0.0).max().item()
        self._refuse(name, error, TOLERANCE)
        for row, block in (blocks_BK & before_BK).nonzero().tolist():
            start, end = self.spans[block]
            places = differ_BL[row, start:end].nonzero().flatten() + start
            self._refuse_unless_tied(name, row, places, tokens_BL, block)
        return Agreement(error, 1 - differ_BL.float().mean().item())

    def _differences(self, logits: Tensor, start: int, end: int) -> Tensor:
        """float32 [B]: the largest of each row, of both branches where ours has both."""
        rows = len(self.tokens_BL)
        found_B = (logits[:rows] - self.cond_BLV[:, start:end]).abs().amax(dim=(1, 2))
        if self.null_BLV is not None:
            null_B = (logits[rows:] - self.null_BLV[:, start:end]).abs().amax(dim=(1, 2))
            found_B = torch.maximum(found_B, null_B)
        return found_B

    def _refuse(self, name: str, error: float, allowed: float) -> None:
        if not error <= allowed:
            raise ValueError(
                f"{name} does not compute what ours does: a logit differs by {error:.3g}, and {allowed:.1g} is allowed. "
                "Its time would say nothing, so no ratio is given; are the weights and the code of one version?"
            )

    def _refuse_unless_tied(self, name: str, row: int, places: Tensor, tokens_BL: Tensor, block: int) -> None:
        scale = block_scales(self.sampling, len(self.spans))[block]
        logits = self.cond_BLV[row, places]
        if self.null_BLV is not None:
            logits = guide(logits, self.null_BLV[row, places], scale)
        ours, theirs = (t[row, places].unsqueeze(-1) for t in (self.tokens_BL, tokens_BL))
        gap = (logits.gather(-1, ours) - logits.gather(-1, theirs)).max().item()
        if gap > TOLERANCE * (1 + 2 * abs(scale)):
            raise ValueError(
                f"{name} does not draw what ours draws: image {row} has another token at {places[0].item()}, whose logit is "
                f"{gap:.3g} below that of ours. Its time would say nothing, so no ratio is given"
            )
