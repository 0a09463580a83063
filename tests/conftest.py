"""What tests share: one CPU thread, a tiny generator of each family, and the rule for tests that need a GPU."""

from __future__ import annotations

import pytest
import torch

from align.generators import VAR, LlamaGen, LlamaGenConfig, VARConfig
from align.tokenizers import MultiscaleVQConfig, MultiscaleVQTokenizer, VQConfig, VQTokenizer

torch.set_num_threads(1)  # tiny models lose by threads, and sums keep one order


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; torch.cuda.is_available() is False here"))


def tiny_llamagen(
    *, grid: tuple[int, int] = (3, 2), dropout: float = 0.0, with_tokenizer: bool = True, seed: int = 0
) -> LlamaGen:
    """Random weights, 7 tokens' worth of everything: 3x2 tokens of 16 codes, 4 classes, 12x8 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = LlamaGenConfig(
            dim=16, num_layers=2, num_heads=2, hidden_dim=32, vocab_size=16, num_classes=4, grid=grid, dropout=dropout
        )
        tokenizer = VQTokenizer(
            VQConfig(
                channels=32,
                channel_multipliers=(1, 1, 1),
                num_res_blocks=1,
                z_channels=8,
                codebook_size=16,
                codebook_dim=4,
            )
        )
        generator = LlamaGen(sizes, tokenizer if with_tokenizer else None)
        for parameter in generator.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


def tiny_var(
    *,
    patch_nums: tuple[int, ...] = (1, 2, 3),
    dropout: float = 0.0,
    drop_path: float = 0.0,
    l2_norm: bool = True,
    shared_adaln: bool = False,
    with_tokenizer: bool = True,
    seed: int = 0,
) -> VAR:
    """Random weights: 14 tokens (1 + 4 + 9) of 16 codes, 4 classes, 12x12 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = VARConfig(
            dim=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=32,
            vocab_size=16,
            codebook_dim=4,
            num_classes=4,
            patch_nums=patch_nums,
            l2_norm=l2_norm,
            shared_adaln=shared_adaln,
            dropout=dropout,
            drop_path=drop_path,
        )
        tokenizer = MultiscaleVQTokenizer(
            MultiscaleVQConfig(
                patch_nums=patch_nums,
                channels=32,
                channel_multipliers=(1, 1, 1),
                num_res_blocks=1,
                codebook_size=16,
                codebook_dim=4,
            )
        )
        generator = VAR(sizes, tokenizer if with_tokenizer else None)
        for name, parameter in generator.named_parameters():
            if parameter.dim() >= 2 and "scale_mul" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


@pytest.fixture
def generator() -> LlamaGen:
    return tiny_llamagen()
