"""One sampling loop for every generator, and the scorer that gives its log-probs back by teacher forcing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from align.generators.base import Generator, evaluating
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
    # guidance is only ever switched off, never on again, so the null branch is needed up to its last guided block
    last_guided = max((k for k, scale in enumerate(scales) if scale != 1.0), default=-1)

    tokens, logprobs, rows_run = [], [], 0
    with evaluating(generator):
        rows = Condition.cat([condition, generator.null_condition(condition)]) if last_guided >= 0 else condition
        cache = generator.new_cache(len(rows))
        logits = generator.start(rows, cache)
        for block, (start, end) in enumerate(layout.spans()):
            rows_run += len(logits)
            if len(logits) > batch:
                logits = guide(logits[:batch], logits[batch:], scales[block])
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
    logits_BLV = generator(tokens_BL, condition)
    scales = block_scales(config, len(generator.layout.block_sizes))
    if any(scale != 1.0 for scale in scales):
        null_BLV = generator(tokens_BL, generator.null_condition(condition))
        parts = [
            guide(logits_BLV[:, start:end], null_BLV[:, start:end], scale) if scale != 1.0 else logits_BLV[:, start:end]
            for scale, (start, end) in zip(scales, generator.layout.spans(), strict=True)
        ]
        logits_BLV = torch.cat(parts, dim=1)
    return sampling_logprobs(logits_BLV, config).gather(-1, tokens_BL.unsqueeze(-1)).squeeze(-1)


def block_scales(config: SamplingConfig, blocks: int) -> list[float]:
    """The guidance scale of every block."""
    guided = blocks if config.guided_blocks is None else min(config.guided_blocks, blocks)
    return [config.guidance_scale] * guided + [1.0] * (blocks - guided)


def _uniforms(seed: int, index_B: Tensor, length: int) -> Tensor:
    """float64 [B, L] in [0, 1), a stream of its own per (seed, index); drawn on the CPU so that devices agree."""
    streams = [np.random.Generator(np.random.Philox(key=[seed, int(index)])) for index in index_B]
    return torch.from_numpy(np.stack([stream.random(length) for stream in streams]))
