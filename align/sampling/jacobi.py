"""Speculative Jacobi decoding of raster generators: fewer forwards an image, each over a window of drafts, and the same law.

Jacobi's iteration guesses the tokens that come next, asks the network for all of them at once, and goes on from its answers.
What makes it keep the distribution is how a draft x of law q becomes a token of law p, once the network has told p at its
place: it stays with probability min(1, p(x) / q(x)), and otherwise a token is drawn from max(0, p - q), normalised
(Teng et al. 2024, arXiv 2410.01699). There this is done up to the first draft that does not stay, and all behind it are drawn
anew from their p; here it is done to all drafts of the window, since two laws agree so as often as they can, and drafts that
stay let those behind them stay (maximal coupling: So et al. 2025, arXiv 2510.24211).

Why the images have the model's own law. Let H be all that ever stands at the places before i, in all rounds. H decides what q
and p are at i in each round, and when all before i is final: a place is final once it was drawn after nothing but final
tokens. The random numbers at i in a round are no part of H. So, given H, the draft at i has law q, in the first round as the
point mass that a guess is; a round makes of it a token of law p, which is the next round's q; and so does the round that is
the last for i, whose p is the model's own distribution after the final tokens. (A draft that is kept while its q is replaced
otherwise, or a draft drawn from p where max(0, p - q) is due, breaks the chain: its law is then neither q nor p.)
"""

from __future__ import annotations

import weakref
from functools import partial

import torch
from torch import Tensor

from align.generators.base import Generator
from align.sampling.graphs import BUCKET, Record, RecordedSampler, StaticSteps, Work
from align.sampling.logits import draw_weighted, guide, sampling_logprobs
from align.sampling.loop import block_scales, draw_tokens
from align.types import Condition, SamplingConfig

# drafts that a forward looks at: see benchmarks/jacobi.py
WINDOW = 16


class Jacobi(RecordedSampler):
    """Every row has a window of its own, from its first token that is not final, and so a pace of its own.

    What enters a window is guessed to be as its left neighbour. At the image's end windows stand still, and what is final in
    them is looked at again without being changed; so do rows that are finished, until all are.

    Args:
        record: None: nothing is recorded.
        window: how many tokens a forward looks at, at least 1; up to all but the first of an image.
    """

    def __init__(
        self,
        generator: Generator,
        condition: Condition,
        config: SamplingConfig,
        record: Record | None,
        *,
        window: int = WINDOW,
    ) -> None:
        self.window = min(window, generator.layout.length - 1)
        self.record = record
        super().__init__(generator, condition, config, record or _as_it_is)

    def _numbers(self, generator: Generator) -> int:
        """One for the first token, and the window's for each round, of which each makes one token final or more."""
        return 1 + (generator.layout.length - 1) * self.window

    def _record(self, generator: Generator, record: Record) -> list[Work]:
        assert isinstance(generator, StaticSteps)
        rows, length, device = len(self.condition), generator.layout.length, generator.device
        # samplers are kept for as long as their generator lives, so they must not keep it alive
        self.generator = weakref.proxy(generator)
        self.rounds: dict[tuple[int, bool], Work] = {}
        scales = block_scales(self.config, length)
        # so many tokens have a null branch
        self.guided = 1 + max((k for k, scale in enumerate(scales) if scale != 1.0), default=-1)
        self.scales_L = torch.tensor(scales, device=device)
        self.cache = generator.new_cache(2 * rows if self.guided else rows)
        self.offsets_W = torch.arange(self.window, device=device)
        # q of the drafts in the window
        self.laws_BWV = torch.zeros(rows, self.window, generator.vocab_size, device=device)
        self.final_B = torch.zeros(rows, dtype=torch.long, device=device)  # how many tokens are final
        self.first_B = torch.zeros_like(self.final_B)  # where the window begins
        self.used_1 = torch.zeros(1, dtype=torch.long, device=device)  # random numbers
        return [record(self._first)]  # which rounds there are is seen as images are drawn

    def _draw_images(self) -> None:
        rows, length = self.tokens_BL.shape
        rows_run = 2 * rows if self.guided else rows
        super()._draw_images()
        while True:
            lowest, highest = torch.stack([self.final_B.min(), self.first_B.max()]).tolist()
            if lowest == length:
                break
            end = self.cache.position + highest + self.window - 1
            read = min(-(-end // BUCKET) * BUCKET, self.cache.position + length - 1)
            guided = lowest < self.guided
            self._run_round(read, guided)
            rows_run += 2 * rows if guided else rows
        self.forwards_per_image = rows_run / rows

    def _run_round(self, length: int, guided: bool) -> None:
        key = (length, guided)
        if self.record is None:
            self._round(*key)
        elif key in self.rounds:
            self.rounds[key]()
        else:  # recording does it once
            self.rounds[key] = self.record(partial(self._round, *key))

    def _first(self) -> None:
        self.cache.position = 0
        both = [self.condition, self.generator.null_condition(self.condition)] if self.guided else [self.condition]
        logits = self.generator.start(Condition.cat(both), self.cache)
        logits = self._guided(logits, torch.zeros_like(self.first_B[:, None]))
        token_B1, logprob_B1 = draw_tokens(logits, self.config, self.uniforms_Bn[:, :1])
        self.tokens_BL.copy_(token_B1.expand_as(self.tokens_BL))
        self.logprobs_BL[:, :1] = logprob_B1
        self.laws_BWV.copy_(_point_masses(token_B1.expand(-1, self.window), self.laws_BWV))
        for counter in (self.final_B, self.first_B, self.used_1):
            counter.fill_(1)

    def _round(self, length: int, guided: bool) -> None:
        rows, window = len(self.condition), self.window
        places_BW = self.first_B[:, None] + self.offsets_W
        drafts_BW = self.tokens_BL.gather(1, places_BW)
        logprobs_BWV = sampling_logprobs(self._logits(places_BW, length, guided), self.config)
        p_BWV = logprobs_BWV.exp()
        uniforms_BW = self.uniforms_Bn.index_select(1, self.used_1 + self.offsets_W)
        kept_BW, new_BW = couple(drafts_BW, self.laws_BWV, p_BWV, uniforms_BW)

        settled_BW = places_BW < self.final_B[:, None]
        kept_BW, new_BW = kept_BW | settled_BW, torch.where(settled_BW, drafts_BW, new_BW)
        chosen_BW = logprobs_BWV.gather(-1, new_BW.unsqueeze(-1)).squeeze(-1)
        before_BW = self.logprobs_BL.gather(1, places_BW)
        self.logprobs_BL.scatter_(1, places_BW, torch.where(settled_BW, before_BW, chosen_BW))
        self.tokens_BL.scatter_(1, places_BW, new_BW)
        # the first that was not kept was drawn after final tokens, too
        final_B = self.first_B + (1 + kept_BW.long().cumprod(dim=1).sum(dim=1)).clamp(max=window)

        # the window moves on; what enters it is guessed
        first_B = final_B.clamp(max=self.tokens_BL.shape[1] - window)
        source_BW = (first_B - self.first_B)[:, None] + self.offsets_W
        enters_BW, source_BW = source_BW >= window, source_BW.clamp(max=window - 1)
        moved_BW = new_BW.gather(1, source_BW)
        self.tokens_BL.scatter_(1, first_B[:, None] + self.offsets_W, moved_BW)
        moved_BWV = p_BWV[torch.arange(rows, device=first_B.device)[:, None], source_BW]
        self.laws_BWV.copy_(torch.where(enters_BW.unsqueeze(-1), _point_masses(moved_BW, moved_BWV), moved_BWV))
        self.final_B.copy_(final_B)
        self.first_B.copy_(first_B)
        self.used_1 += window

    def _logits(self, places_BW: Tensor, length: int, guided: bool) -> Tensor:
        """float32 [B, W, V], after the tokens left of these places."""
        rows, branches = len(self.condition), 2 if guided else 1
        cache = self.cache if guided or not self.guided else self.generator.first_rows(self.cache, rows)
        before_BW = self.tokens_BL.gather(1, places_BW - 1)
        cells_BW = self.cache.position + places_BW - 1
        fed, cells = before_BW.repeat(branches, 1), cells_BW.repeat(branches, 1)
        return self._guided(self.generator.static_step(fed, cache, cells, length), places_BW)

    def _guided(self, logits: Tensor, places_Bn: Tensor) -> Tensor:
        rows = len(self.condition)
        if len(logits) == rows:
            return logits
        scale, cond, null = self.scales_L[places_Bn].unsqueeze(-1), logits[:rows], logits[rows:]
        return torch.where(scale == 1.0, cond, guide(cond, null, scale))


def couple(drafts_Bn: Tensor, q_BnV: Tensor, p_BnV: Tensor, uniforms_Bn: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of law p, int64 [B, n], that are the drafts, of law q, as often as can be; and where they are, bool [B, n].

    Args:
        uniforms_Bn: float64 in [0, 1), one a token: it decides whether the draft stays and, stretched, what is drawn instead.
    """
    p_Bn, q_Bn = (law.gather(-1, drafts_Bn.unsqueeze(-1)).squeeze(-1).double() for law in (p_BnV, q_BnV))
    stays_Bn = p_Bn / q_Bn
    rest_BnV = (p_BnV - q_BnV).clamp(min=0)
    # nothing is left where p is q but for rounding
    kept_Bn = (uniforms_Bn < stays_Bn) | (rest_BnV.sum(dim=-1) == 0)
    drawn_Bn = draw_weighted(rest_BnV, torch.where(kept_Bn, 0.0, (uniforms_Bn - stays_Bn) / (1 - stays_Bn)))
    return kept_Bn, torch.where(kept_Bn, drafts_Bn, drawn_Bn)


def _point_masses(tokens_Bn: Tensor, like_BnV: Tensor) -> Tensor:
    return torch.zeros_like(like_BnV).scatter_(-1, tokens_Bn.unsqueeze(-1), 1.0)


def _as_it_is(work: Work) -> Work:
    return work
