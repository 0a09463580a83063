"""Training a small VQ tokenizer from nothing: straight-through reconstruction with a unit-norm codebook."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from align.tokenizers import VQConfig, VQTokenizer


def train_tokenizer(
    images_NHWC: Tensor,
    config: VQConfig,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    commitment: float = 0.25,
    revive_every: int = 50,
    seed: int = 0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> VQTokenizer:
    """Fit reconstruction + codebook + commitment losses (van den Oord et al. 2017; unit-norm codes as in LlamaGen).

    Codes unused for `revive_every` steps restart at a random latent of the batch, in the first three quarters.

    Args:
        images_NHWC: uint8 [N, H, W, 3].
        on_step: called with (step, {"reconstruction": MSE on [-1, 1], "codes_used": share of the codebook}).
    """
    rng = np.random.default_rng([seed, 0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = VQTokenizer(config)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    used = torch.zeros(config.codebook_size)
    tokenizer.train()
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(len(images_NHWC), size=batch_size))
        images = images_NHWC[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = F.normalize(tokenizer.latents(images), dim=1)
        tokens = tokenizer.quantize.nearest(latents)
        codes = tokenizer.quantize.lookup(tokens).movedim(-1, 1)
        # straight through: the decoder sees the codes, the encoder gets the decoder's gradient
        output = tokenizer.decode_latents(latents + (codes - latents).detach())
        reconstruction = F.mse_loss(output, images)
        quantisation = F.mse_loss(codes, latents.detach()) + commitment * F.mse_loss(latents, codes.detach())
        optimizer.zero_grad()
        (reconstruction + quantisation).backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        used += torch.bincount(tokens.flatten(), minlength=config.codebook_size)
        if on_step:
            on_step(step + 1, {"reconstruction": reconstruction.item(), "codes_used": (used > 0).float().mean().item()})
        if (step + 1) % revive_every == 0 and step + 1 <= 0.75 * steps:
            _revive(tokenizer, latents.detach(), used, rng)
            used.zero_()
    return tokenizer.eval()


def _revive(tokenizer: VQTokenizer, latents_BDhw: Tensor, used_V: Tensor, rng: np.random.Generator) -> None:
    dead = torch.nonzero(used_V == 0).flatten()
    candidates = latents_BDhw.movedim(1, -1).flatten(0, 2)
    chosen = torch.from_numpy(rng.integers(len(candidates), size=len(dead)))
    with torch.no_grad():
        tokenizer.quantize.embedding.weight[dead] = candidates[chosen]
