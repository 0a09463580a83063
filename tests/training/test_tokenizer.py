"""Training a tokenizer: it learns, it is deterministic, and no code stays dead."""

from __future__ import annotations

import torch

from align.tokenizers import VQConfig
from align.training.tokenizer import train_tokenizer

SIZES = VQConfig(
    channels=32, channel_multipliers=(1, 1), num_res_blocks=1, z_channels=8, codebook_size=8, codebook_dim=4
)


def stripes() -> torch.Tensor:
    """uint8 [8, 8, 8, 3]: rows or columns of light, at four phases."""
    phases = torch.arange(8).unsqueeze(0) + torch.arange(4).unsqueeze(1)
    rows = ((phases // 2 % 2) * 255).to(torch.uint8)
    vertical = rows[:, None, :].expand(4, 8, 8)
    return torch.cat([vertical, vertical.transpose(1, 2)]).unsqueeze(-1).repeat(1, 1, 1, 3)


def test_it_learns_and_is_deterministic() -> None:
    losses: list[float] = []
    used: list[float] = []

    def watch(step: int, metrics: dict[str, float]) -> None:
        losses.append(metrics["reconstruction"])
        used.append(metrics["codes_used"])

    settings = {"steps": 60, "batch_size": 8, "learning_rate": 5e-3, "revive_every": 10}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    tokenizer = train_tokenizer(stripes(), SIZES, on_step=watch, **settings)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random state is its own
    assert losses[-1] < 0.3 * losses[0]
    assert max(used) >= 0.75
    torch.manual_seed(2)
    again = train_tokenizer(stripes(), SIZES, **settings)
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.parameters(), again.parameters(), strict=True))
