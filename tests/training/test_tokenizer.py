"""Training a tokenizer: it learns, it is deterministic, and no code stays dead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from align.tokenizers import MultiscaleVQConfig, VQConfig, VQTokenizer
from align.training.tokenizer import _merge, train_tokenizer

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


def test_neighbouring_codes_fall_silent() -> None:
    """A code within a squared distance of .1 of a commoner one becomes its copy; lengths do not matter."""
    angles = torch.tensor([0.0, 0.3, 0.6, 2.0, 2.1])  # squared distances: .09 between the first two, .09 to the third
    codes = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.2], [1.0], [3.0]])
    _merge(codes, torch.tensor([0.1, 0.5, 0.2, 0.05, 0.15]))
    unit = torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(codes, unit[[1, 1, 1, 4, 4]])


@pytest.mark.slow
def test_with_a_price_on_rare_codes_equal_patches_get_equal_tokens() -> None:
    """Dots on a plain ground: fewer codes stand for the ground than without a price, and images are as good."""
    rng = np.random.default_rng(0)
    images = np.full((64, 8, 8, 3), 230, np.uint8)
    for image, (row, column, tone) in zip(images, rng.integers((4, 4, 2), size=(64, 3)), strict=True):
        image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 40 + 80 * tone
    sizes = replace(SIZES["one grid"], codebook_size=32)
    assert isinstance(sizes, VQConfig)
    pixels = torch.from_numpy(images)
    ground = (pixels == 230).reshape(64, 4, 2, 4, 2, 3).all(dim=5).all(dim=4).all(dim=2).reshape(64, 16)
    codes, errors = {}, {}
    for rate in (0.0, 0.05):
        tokenizer = train_tokenizer(pixels, sizes, steps=100, rate=rate, batch_size=32, learning_rate=5e-3)
        assert isinstance(tokenizer, VQTokenizer)
        tokens = tokenizer.encode_images(pixels)
        codes[rate] = len(tokens[ground].unique())
        errors[rate] = (tokenizer.decode_images(tokens, (4, 4)).float() - pixels).abs().mean()
    assert codes[0.05] < codes[0.0] / 2
    assert errors[0.05] < 2 * errors[0.0] + 1  # of 255


def test_scales_have_no_price() -> None:
    with pytest.raises(
        ValueError, match=r"rate=0.1 is a price on the codes of a VQConfig; a MultiscaleVQConfig has none"
    ):
        train_tokenizer(stripes(), SIZES["scales"], steps=1, rate=0.1, batch_size=8, learning_rate=5e-3)
