"""What tests share: one CPU thread, a tiny generator of each family, and the rule for tests that need a GPU."""

from __future__ import annotations

import atexit
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_files import save_janus
from torch import Tensor

from align import load_generator
from align.generators import VAR, Infinity, InfinityConfig, Janus, LlamaGen, LlamaGenConfig, LlamaGenT2I, VARConfig
from align.tokenizers import BSQConfig, BSQTokenizer, MultiscaleVQConfig, MultiscaleVQTokenizer, VQConfig, VQTokenizer

torch.set_num_threads(1)  # tiny models lose by threads, and sums keep one order


@pytest.fixture(autouse=True)
def on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU too: the digits that tests hold are a CPU's. Only tests marked gpu use it."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that a test starts
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


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


@dataclass(frozen=True)
class CaptionFeatures:
    features_BTD: Tensor
    mask_BT: Tensor


@dataclass(frozen=True)
class Captions:
    """A text encoder whose features are random numbers of each word, right-aligned; longer captions are cut."""

    length: int
    width: int

    def encode(self, captions: Sequence[str]) -> CaptionFeatures:
        features = torch.zeros(len(captions), self.length, self.width)
        mask = torch.zeros(len(captions), self.length, dtype=torch.bool)
        for row, caption in enumerate(captions):
            words = [*caption.split(), "</s>"][: self.length]
            for position, word in enumerate(words, start=self.length - len(words)):
                stream = torch.Generator().manual_seed(zlib.crc32(word.encode()))
                features[row, position] = torch.randn(self.width, generator=stream)
                mask[row, position] = True
        return CaptionFeatures(features, mask)


def tiny_llamagen_t2i(*, grid: tuple[int, int] = (3, 2), with_tokenizer: bool = True, seed: int = 0) -> LlamaGenT2I:
    """Random weights: captions of up to 5 features of 6 numbers, 3x2 tokens of 16 codes, 12x8 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_llamagen(grid=grid, with_tokenizer=with_tokenizer).tokenizer
        sizes = LlamaGenConfig(
            dim=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=32,
            vocab_size=16,
            grid=grid,
            caption_tokens=5,
            caption_dim=6,
        )
        generator = LlamaGenT2I(sizes, tokenizer)
        generator.attach_text(Captions(length=5, width=6))
        for parameter in [*generator.parameters(), *generator.buffers()]:
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


def tiny_infinity(
    *,
    schedule: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (2, 2), (3, 2), (4, 3)),
    num_scales: int = 4,
    text_dim: int = 6,
    heads_last: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    with_tokenizer: bool = True,
    seed: int = 0,
) -> Infinity:
    """Random weights: captions of up to 5 features of 6 numbers, 52 bits (4 at 1 + 2 + 4 + 6 positions), 12x8 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = InfinityConfig(
            dim=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=32,
            codebook_dim=4,
            text_dim=text_dim,
            text_tokens=5,
            pool_heads=2,
            levels=5,
            chunks=2,
            schedule=schedule,
            num_scales=num_scales,
            heads_last=heads_last,
            dropout=dropout,
            drop_path=drop_path,
        )
        tokenizer = BSQTokenizer(
            BSQConfig(scales=sizes.scales, channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1, codebook_dim=4)
        )
        generator = Infinity(sizes, tokenizer if with_tokenizer else None)
        generator.attach_text(Captions(length=5, width=text_dim))
        for name, parameter in generator.named_parameters():
            if parameter.dim() >= 2 and "scale_mul" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


def tiny_janus(layout: str = "converted") -> Janus:
    """Random weights, from a folder of either layout: 3x3 tokens of 16 codes, 12x12 pixels, prompts in bytes."""
    generator = load_generator("janus", _janus_folder(layout))
    assert isinstance(generator, Janus)
    return generator


@lru_cache
def _janus_folder(layout: str) -> Path:
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    return save_janus(Path(temporary.name) / "janus", layout)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llamagen": tiny_llamagen,
    "llamagen-t2i": tiny_llamagen_t2i,
    "var": tiny_var,
    "infinity": tiny_infinity,
    "janus": tiny_janus,
}


@pytest.fixture
def generator() -> LlamaGen:
    return tiny_llamagen()
