"""Training a tokenizer: it learns, it is deterministic, and no code stays dead."""

from __future__ import annotations

import pytest
import torch

from align.tokenizers import MultiscaleVQConfig, VQConfig
from align.training.tokenizer import train_tokenizer

SIZES: dict[str, VQConfig | MultiscaleVQConfig] = {
    "one grid": VQConfig(
        channels=32, channel_multipliers=(1, 1), num_res_blocks=1, z_channels=8, codebook_size=8, codebook_dim=4
    ),
    "scales": MultiscaleVQConfig(
        patch_nums=(1, 2, 4),
        channels=32,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        codebook_size=8,
        codebook_dim=4,
    ),
}


def stripes() -> torch.Tensor:
    """uint8 [8, 8, 8, 3]: rows or columns of light, at four phases."""
    phases = torch.arange(8).unsqueeze(0) + torch.arange(4).unsqueeze(1)
    rows = ((phases // 2 % 2) * 255).to(torch.uint8)
    vertical = rows[:, None, :].expand(4, 8, 8)
    return torch.cat([vertical, vertical.transpose(1, 2)]).unsqueeze(-1).repeat(1, 1, 1, 3)


SETTINGS = {"batch_size": 8, "learning_rate": 5e-3, "revive_every": 10}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_it_learns(sizes: VQConfig | MultiscaleVQConfig) -> None:
    losses: list[float] = []
    used: list[float] = []

    def watch(step: int, metrics: dict[str, float]) -> None:
        losses.append(metrics["reconstruction"])
        used.append(metrics["codes_used"])

    tokenizer = train_tokenizer(stripes(), sizes, steps=60, on_step=watch, **SETTINGS)
    assert losses[-1] < 0.3 * losses[0]
    assert max(used) >= 0.75
    if isinstance(sizes, MultiscaleVQConfig):
        # most vectors are of the finest scale; the coarse ones get codes all the same
        parts = tokenizer.encode_images(stripes()).split([side * side for side in sizes.patch_nums], dim=1)
        assert all(len(part.unique()) > 1 for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_it_is_deterministic(sizes: VQConfig | MultiscaleVQConfig) -> None:
    tokenizers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        tokenizers.append(train_tokenizer(stripes(), sizes, steps=12, **SETTINGS))
        assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random state is its own
    assert all(torch.equal(a, b) for a, b in zip(*(t.parameters() for t in tokenizers), strict=True))
