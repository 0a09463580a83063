"""One sampling loop for every generator, and the scorer that gives its log-probs back by teacher forcing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from align.generators.base import Generator, TokenLayout, evaluating
from align.sampling.logits import draw, guide, sampling_logprobs
from align.types import Condition, Rollout, SamplingConfig


def sample(
    generator: Generator, condition: Condition, config: SamplingConfig | None = None, *, index_B: Tensor | None = None
) -> Rollout:
    """Draw one image (as tokens) per row of `condition`.

    Sample i's random numbers depend on (config.seed, index_B[i]) alone: batch size and order never change a sample.
    With guidance_scale 1.0 the null branch is not computed.

    Args:
        index_B: int [B] sample indices, 0..B-1 if not given; give distinct ones to batches of one set of samples.
    """
    config = config or SamplingConfig()
    batch = len(condition)
    index_B = torch.arange(batch) if index_B is None else index_B.cpu()
    if len(index_B) != batch:
        raise ValueError(f"index_B has {len(index_B)} rows for a condition of {batch}")
    layout = generator.layout
    uniforms_BL = _uniforms(config.seed, index_B, layout.length).to(generator.device)
    scales = block_scales(config, len(layout.block_sizes))
    # the null branch is needed up to the last guided block, through earlier ones of scale 1.0 too: its cache grows there
    last_guided = max((k for k, scale in enumerate(scales) if scale != 1.0), default=-1)

    tokens, logprobs, rows_run = [], [], 0
    with evaluating(generator):
        rows = Condition.cat([condition, generator.null_condition(condition)]) if last_guided >= 0 else condition
        cache = generator.new_cache(len(rows))
        logits = generator.start(rows, cache)
        for block, (start, end) in enumerate(layout.spans()):
            rows_run += len(logits)
            cond, null = logits[:batch], logits[batch:]
            logits = guide(cond, null, scales[block]) if scales[block] != 1.0 else cond
            block_logprobs = sampling_logprobs(logits, config)
            drawn = draw(block_logprobs, uniforms_BL[:, start:end])
            tokens.append(drawn)
            logprobs.append(block_logprobs.gather(-1, drawn.unsqueeze(-1)).squeeze(-1))
            if end == layout.length:
                break
            if block == last_guided:
                generator.keep_rows(cache, batch)
            logits = generator.step(drawn.repeat(2, 1) if block < last_guided else drawn, cache)
    return Rollout(
        tokens_BL=torch.cat(tokens, dim=1),
        logprobs_BL=torch.cat(logprobs, dim=1),
        condition=condition,
        config=config,
        index_B=index_B,
        forwards_per_image=rows_run / batch,
    )


def score(generator: Generator, tokens_BL: Tensor, condition: Condition, config: SamplingConfig) -> Tensor:
    """float32 [B, L]: log-probs of given tokens under the distribution that `config` samples from, by teacher forcing.

    Differentiable. For a rollout's own tokens and config these are its behaviour log-probs; -inf where a filter would
    have excluded the token.
    """
    null_BLV = None
    if is_guided(config, generator.layout):
        null_BLV = generator(tokens_BL, generator.null_condition(condition))
    logprobs_BLV = distribution(generator(tokens_BL, condition), null_BLV, generator.layout, config)
    return logprobs_BLV.gather(-1, tokens_BL.unsqueeze(-1)).squeeze(-1)


def distribution(cond_BLV: Tensor, null_BLV: Tensor | None, layout: TokenLayout, config: SamplingConfig) -> Tensor:
    """float32 [B, L, V]: log-probabilities that `config` samples from, given the raw logits of both branches.

    `null_BLV` may be None where nothing is guided.
    """
    if null_BLV is not None:
        sizes = torch.tensor(layout.block_sizes, device=cond_BLV.device)
        scales = torch.tensor(block_scales(config, len(layout.block_sizes)), device=cond_BLV.device)
        scale_L1 = scales.repeat_interleave(sizes).unsqueeze(-1)
        # where guidance is off the conditional logits stay as they are, to the last bit
        cond_BLV = torch.where(scale_L1 == 1.0, cond_BLV, guide(cond_BLV, null_BLV, scale_L1))
    return sampling_logprobs(cond_BLV, config)


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


def _uniforms(seed: int, index_B: Tensor, length: int) -> Tensor:
    """float64 [B, L] in [0, 1), a stream of its own per (seed, index); drawn on the CPU so that devices agree."""
    streams = [np.random.Generator(np.random.Philox(key=[seed, int(index)])) for index in index_B]
    return torch.from_numpy(np.stack([stream.random(length) for stream in streams]))
