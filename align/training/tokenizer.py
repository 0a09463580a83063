"""Training a small tokenizer from nothing: straight-through reconstruction through a codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from align.tokenizers import MultiscaleVQConfig, MultiscaleVQTokenizer, VQConfig, VQTokenizer
from align.tokenizers.multiscale_vq import shrink

_RAREST = 1e-3  # share of a code below which it costs no more
_NEXT = 0.1  # squared distance of unit vectors below which two codes say the same
_SETTLED = 0.9  # of the steps
_DECAY = 0.99  # of the running shares


def train_tokenizer(
    images_NHWC: Tensor,
    config: VQConfig | MultiscaleVQConfig,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    commitment: float = 0.25,
    rate: float = 0.0,
    revive_every: int = 50,
    seed: int = 0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> VQTokenizer | MultiscaleVQTokenizer:
    """Fit reconstruction + codebook + commitment losses (van den Oord et al. 2017).

    A VQTokenizer's codes are unit vectors (as in LlamaGen); a MultiscaleVQTokenizer's approximate the latents scale by
    scale, with both losses after every scale, averaged (as in VAR). Codes unused for `revive_every` steps restart at
    random vectors that the quantiser was given in that batch, in the first three quarters.

    Args:
        images_NHWC: uint8 [N, H, W, 3].
        rate: of a VQTokenizer, squared distance that a code may be farther away for each nat that it is commoner
            (entropy-constrained quantisation, Chou et al. 1989); codes that end up side by side are merged. An encoder
            that sees the whole image writes some of it into every token; at a price, what looks alike gets like tokens,
            which a generator learns far sooner.
        on_step: called with (step, {"reconstruction": MSE on [-1, 1], "codes_used": share of the codebook}).

    Raises:
        ValueError: a rate for a MultiscaleVQTokenizer.
    """
    rng = np.random.default_rng([seed, 0])
    if rate > 0 and not isinstance(config, VQConfig):
        raise ValueError(
            f"rate={rate} is a price on the codes of a VQConfig; a {type(config).__name__} has none, set 0"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = VQTokenizer(config) if isinstance(config, VQConfig) else MultiscaleVQTokenizer(config)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    used = torch.zeros(config.codebook_size)
    shares_V = torch.full((config.codebook_size,), 1 / config.codebook_size)
    tokenizer.train()
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(len(images_NHWC), size=batch_size))
        images = images_NHWC[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        # towards the end codes are chosen as they will be, by distance alone
        priced = rate > 0 and step < int(_SETTLED * steps)
        if rate > 0 and step == int(_SETTLED * steps):
            _merge(tokenizer.quantize.embedding.weight, shares_V)
        price_V = -rate * shares_V.clamp(min=_RAREST).log() if priced else None
        quantised = _quantise(tokenizer, tokenizer.latents(images), commitment, price_V)
        reconstruction = F.mse_loss(tokenizer.decode_latents(quantised.latents), images)
        optimizer.zero_grad()
        (reconstruction + quantised.loss).backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        counts_V = torch.bincount(quantised.tokens, minlength=config.codebook_size)
        used += counts_V
        shares_V = _DECAY * shares_V + (1 - _DECAY) * counts_V / counts_V.sum()
        if on_step:
            on_step(step + 1, {"reconstruction": reconstruction.item(), "codes_used": (used > 0).float().mean().item()})
        if (step + 1) % revive_every == 0 and step + 1 <= 0.75 * steps:
            _revive(tokenizer.quantize.embedding.weight, used, quantised.seen, rng)
            used.zero_()
    if rate > 0:
        _merge(tokenizer.quantize.embedding.weight, shares_V)  # copies that their original has moved away from
    return tokenizer.eval()


@dataclass(frozen=True)
class _Quantised:
    """latents: as the decoder sees them; the encoder gets the decoder's gradient as if they were its own
    (straight through). tokens: int64 [N], chosen for the vectors `seen` [n, D] of each scale, N in all. loss: codebook
    and commitment."""

    latents: Tensor
    tokens: Tensor
    seen: list[Tensor]
    loss: Tensor


def _quantise(
    tokenizer: VQTokenizer | MultiscaleVQTokenizer, latents: Tensor, commitment: float, price_V: Tensor | None
) -> _Quantised:
    if isinstance(tokenizer, MultiscaleVQTokenizer):
        return _quantise_scales(tokenizer, latents, commitment)
    latents = F.normalize(latents, dim=1)
    if price_V is None:
        tokens = tokenizer.quantize.nearest(latents)
    else:  # between unit vectors the squared distance is 2 - 2 cos
        tokens = (2 * latents.movedim(1, -1) @ tokenizer.quantize.codes.T - price_V).argmax(dim=-1)
    codes = tokenizer.quantize.lookup(tokens).movedim(-1, 1)
    return _Quantised(
        latents + (codes - latents).detach(),
        tokens.flatten(),
        [latents.detach().movedim(1, -1).flatten(0, 2)],
        _distance(codes, latents, commitment),
    )


def _quantise_scales(tokenizer: MultiscaleVQTokenizer, latents: Tensor, commitment: float) -> _Quantised:
    f_hat, loss = torch.zeros_like(latents), latents.new_zeros(())
    tokens, seen = [], []
    steps = tokenizer.quantize.residual_steps(latents)
    for side, (chosen, step) in zip(tokenizer.config.patch_nums, steps, strict=True):
        seen.append(shrink((latents - f_hat).detach(), side).flatten(0, 1))
        tokens.append(chosen.flatten())
        f_hat = f_hat + step
        loss = loss + _distance(f_hat, latents, commitment) / len(tokenizer.config.patch_nums)
    return _Quantised(latents + (f_hat - latents).detach(), torch.cat(tokens), seen, loss)


def _distance(codes: Tensor, latents: Tensor, commitment: float) -> Tensor:
    return F.mse_loss(codes, latents.detach()) + commitment * F.mse_loss(latents, codes.detach())


def _revive(codes_VD: Tensor, used_V: Tensor, seen: list[Tensor], rng: np.random.Generator) -> None:
    """Dead codes are shared out evenly among the scales: the coarse ones see few vectors, and would get no code."""
    dead = np.array_split(np.flatnonzero(used_V == 0), len(seen))
    with torch.no_grad():
        for rows, vectors in zip(dead, seen, strict=True):
            codes_VD[torch.from_numpy(rows)] = vectors[torch.from_numpy(rng.integers(len(vectors), size=len(rows)))]


def _merge(codes_VD: Tensor, shares_V: Tensor) -> None:
    """Codes next to a commoner one become copies of it; of equal codes the first is chosen, so that these fall silent."""
    with torch.no_grad():
        codes_VD.copy_(F.normalize(codes_VD, dim=-1))
        kept: list[int] = []
        for code in shares_V.argsort(descending=True).tolist():
            near = [other for other in kept if (codes_VD[code] - codes_VD[other]).square().sum() < _NEXT]
            if near:
                codes_VD[code] = codes_VD[near[0]]
            else:
                kept.append(code)
