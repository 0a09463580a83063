"""One sampling loop for every generator, and the scorer that gives its log-probs back by teacher forcing."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from align.generators.base import Generator, TokenLayout
from align.generators.deferred import DeferredLogits
from align.sampling.logits import draw, filter_logits, guide, sampling_logprobs
from align.types import Condition, Rollout, SamplingConfig


class Drawing:
    """Rows of tokens on their way, block by block: between two blocks rows may be dropped, repeated, or finished ahead.

    To be used within `evaluating(generator)`.

    Several rows of one sample are its candidates, each with random numbers of its own: those of candidate c depend on
    (seed, index, c) and on nothing else, and candidate 0's are those that `sample` gives the index.

    Args:
        index_B: as of `sample`, but for candidates, which share their sample's.
        candidate_B: int [B], which candidate of its sample a row is; all 0 if not given.
        uniforms_BL: the samples' random numbers where they are known already, as of `sample_uniforms`.

    Attributes:
        blocks: number of blocks drawn so far.
        rows_run: network evaluations so far, of all rows, that were dropped too, and of both branches under guidance.
    """

    def __init__(
        self,
        generator: Generator,
        condition: Condition,
        config: SamplingConfig,
        *,
        index_B: Tensor | None = None,
        candidate_B: Tensor | None = None,
        uniforms_BL: Tensor | None = None,
    ) -> None:
        batch = len(condition)
        self.generator, self.condition, self.config = generator, condition, config
        self.index_B = torch.arange(batch) if index_B is None else index_B.cpu()
        if len(self.index_B) != batch:
            raise ValueError(f"index_B has {len(self.index_B)} rows for a condition of {batch}")
        self._uniforms_BL = self._uniforms(candidate_B) if uniforms_BL is None else uniforms_BL
        self._scales = block_scales(config, len(generator.layout.block_sizes))
        # the null branch is needed up to the last guided block, through earlier ones of scale 1.0 too: its cache grows there
        self._last_guided = max((k for k, scale in enumerate(self._scales) if scale != 1.0), default=-1)
        self._branches = 2 if self._last_guided >= 0 else 1
        self._spans = list(generator.layout.spans())
        self._cache = generator.new_cache(self._branches * batch)
        self._tokens_BL = torch.empty(batch, generator.layout.length, dtype=torch.long, device=generator.device)
        self._logprobs_BL = torch.empty(batch, generator.layout.length, device=generator.device)
        self.blocks = self.rows_run = 0

    @property
    def done(self) -> bool:
        return self.blocks == len(self._spans)

    @property
    def tokens_Bl(self) -> Tensor:
        """int64 [B, l], the tokens of the blocks drawn so far."""
        return self._tokens_BL[:, : self._drawn]

    @property
    def logprobs_Bl(self) -> Tensor:
        """float32 [B, l], their log-probs under the distribution that they were drawn from."""
        return self._logprobs_BL[:, : self._drawn]

    @property
    def _drawn(self) -> int:
        return self._spans[self.blocks - 1][1] if self.blocks else 0

    def draw_block(self) -> None:
        """Draw the next block of every row."""
        start, end = self._spans[self.blocks]
        logits = self._next_logits()
        self.rows_run += len(logits)
        cond, null = logits[: len(self.index_B)], logits[len(self.index_B) :]
        scale = self._scales[self.blocks]
        guided = guide(cond, null, scale) if scale != 1.0 else cond
        drawn, logprobs = draw_tokens(guided, self.config, self._uniforms_BL[:, start:end])
        self._tokens_BL[:, start:end] = drawn
        self._logprobs_BL[:, start:end] = logprobs
        self.blocks += 1

    def _next_logits(self) -> Tensor:
        if self.blocks == 0:
            both = [self.condition, self.generator.null_condition(self.condition)] if self._branches == 2 else []
            return self.generator.start(Condition.cat(both) if both else self.condition, self._cache)
        if self._branches == 2 and self.blocks > self._last_guided:
            self._select_cached(torch.arange(len(self.index_B), device=self.generator.device))
            self._branches = 1
        start, end = self._spans[self.blocks - 1]
        return self.generator.step(self._tokens_BL[:, start:end].repeat(self._branches, 1), self._cache)

    def select(self, rows_B: Tensor, candidate_B: Tensor) -> None:
        """Go on with these rows, int64 [B], and draw from now on as these candidates of their samples, int [B].

        Rows may be repeated; repeated ones differ from here on if their candidate numbers do.
        """
        batch = len(self.index_B)
        self._select_cached(torch.cat([rows_B + branch * batch for branch in range(self._branches)]))
        here = rows_B.to(self._tokens_BL.device)
        self._tokens_BL, self._logprobs_BL = self._tokens_BL[here], self._logprobs_BL[here]
        self.condition, self.index_B = self.condition[here], self.index_B[rows_B]
        self._uniforms_BL = self._uniforms(candidate_B)

    def _select_cached(self, rows_B: Tensor) -> None:
        if 0 < self.blocks < len(self._spans):  # before, the cache has seen nothing; after, nobody reads it
            self.generator.select_rows(self._cache, rows_B.to(self.generator.device))

    def look_ahead(self) -> Tensor:
        """int64 [B, L]: the rows finished by the most likely tokens, on a copy of the cache; `rows_run` counts them."""
        ahead = copy.copy(self)
        ahead._cache = copy.deepcopy(self._cache)
        ahead._tokens_BL, ahead._logprobs_BL = self._tokens_BL.clone(), self._logprobs_BL.clone()
        ahead.config = replace(self.config, temperature=0)
        while not ahead.done:
            ahead.draw_block()
        self.rows_run = ahead.rows_run
        return ahead.tokens_Bl

    def rollout(self, forwards_per_image: float) -> Rollout:
        """What was drawn, at the cost that the caller counts for each of its images."""
        return Rollout(
            tokens_BL=self.tokens_Bl,
            logprobs_BL=self.logprobs_Bl,
            condition=self.condition,
            config=self.config,
            index_B=self.index_B,
            forwards_per_image=forwards_per_image,
        )

    def _uniforms(self, candidate_B: Tensor | None) -> Tensor:
        length, device = self.generator.layout.length, self.generator.device
        return sample_uniforms(self.config.seed, self.index_B, length, candidate_B).to(device)


def sample_uniforms(seed: int, index_B: Tensor, length: int, candidate_B: Tensor | None = None) -> Tensor:
    """float64 [B, length] in [0, 1): each sample's, or each candidate's of a sample, random numbers.

    Drawn on the CPU so that devices agree.
    """
    candidates = [0] * len(index_B) if candidate_B is None else candidate_B.tolist()
    numbers = [
        random_stream(seed, index, candidate=candidate).random(length)
        for index, candidate in zip(index_B.tolist(), candidates, strict=True)
    ]
    return torch.from_numpy(np.stack(numbers))


def draw_tokens(guided_BnV: Tensor, config: SamplingConfig, uniforms_Bn: Tensor) -> tuple[Tensor, Tensor]:
    """A block's tokens, int64 [B, n], and their log-probs, float32 [B, n], from guided logits."""
    if config.temperature == 0:  # a point mass needs no random numbers
        return guided_BnV.argmax(dim=-1), torch.zeros(guided_BnV.shape[:-1], device=guided_BnV.device)
    logits_BnV = filter_logits(guided_BnV, config)
    drawn_Bn = draw(logits_BnV, uniforms_Bn)
    chosen_Bn = logits_BnV.gather(-1, drawn_Bn.unsqueeze(-1)).squeeze(-1)
    return drawn_Bn, chosen_Bn - logits_BnV.logsumexp(dim=-1)


def score(generator: Generator, tokens_BL: Tensor, condition: Condition, config: SamplingConfig) -> Tensor:
    """float32 [B, L]: log-probs of given tokens under the distribution that `config` samples from, by teacher forcing.

    Differentiable. For a rollout's own tokens and config these are its behaviour log-probs; -inf where a filter would
    have excluded the token.
    """
    null: DeferredLogits | None = None
    if is_guided(config, generator.layout):
        null = generator(tokens_BL, generator.null_condition(condition), readout=lambda logits: logits)

    def read(cond_BnV: Tensor, span: slice) -> dict[str, Tensor]:
        null_BnV = None if null is None else null.part(span)
        logprobs_BnV = distribution(cond_BnV, null_BnV, generator.layout, config, span)
        return {"logprobs": logprobs_BnV.gather(-1, tokens_BL[:, span].unsqueeze(-1)).squeeze(-1)}

    return generator(tokens_BL, condition, readout=lambda logits: logits.read(read))["logprobs"]


def distribution(
    cond_BnV: Tensor, null_BnV: Tensor | None, layout: TokenLayout, config: SamplingConfig, span: slice = slice(None)
) -> Tensor:
    """float32 [B, n, V]: log-probabilities that `config` samples from, given the raw logits of both branches.

    `null_BnV` may be None where nothing is guided. `span`: which tokens of the image these are; all of them if not given.
    """
    if null_BnV is not None:
        sizes = torch.tensor(layout.block_sizes, device=cond_BnV.device)
        scales = torch.tensor(block_scales(config, len(layout.block_sizes)), device=cond_BnV.device)
        scale_n1 = scales.repeat_interleave(sizes)[span].unsqueeze(-1)
        # where guidance is off the conditional logits stay as they are, to the last bit
        cond_BnV = torch.where(scale_n1 == 1.0, cond_BnV, guide(cond_BnV, null_BnV, scale_n1))
    return sampling_logprobs(cond_BnV, config)


def is_guided(config: SamplingConfig, layout: TokenLayout) -> bool:
    """Whether any block needs the null branch."""
    return any(scale != 1.0 for scale in block_scales(config, len(layout.block_sizes)))


def block_scales(config: SamplingConfig, blocks: int) -> list[float]:
    """The guidance scale s of every block, in our convention: null + s (cond - null), 1.0 is off.

    `linear` is VAR's ramp. With its number t = s - 1, VAR guides block k of K by (1 + t_k) cond - t_k null, where
    t_k = t k / (K - 1); that is ours with s_k = 1 + (s - 1) k / (K - 1). VAR's cfg=1.5 is guidance_scale=2.5 here.
    """
    guided = blocks if config.guided_blocks is None else min(config.guided_blocks, blocks)
    scales = [config.guidance_scale] * guided
    if config.guidance_schedule == "linear" and blocks > 1:
        scales = [1 + (config.guidance_scale - 1) * k / (blocks - 1) for k in range(guided)]
    return scales + [1.0] * (blocks - guided)


def random_stream(seed: int, index: int, *, candidate: int = 0, selection: int = 0) -> np.random.Generator:
    """A sample's own random numbers: of one of its candidates, or of a selection among them (1, 2, ...).

    Philox keyed by (seed, index), its counter set far enough apart for each: no two streams ever meet.
    """
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, selection, candidate]))
