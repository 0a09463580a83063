"""A text-to-image LlamaGen that reads the features of tiny.py's T5, as files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from conftest import tiny_llamagen, tiny_llamagen_t2i
from data.pictures import tokenizer_file

from align.generators import LlamaGenT2I

CAPTION_TOKENS, CAPTION_DIM = 12, 16


def save_tiny_t2i(folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """checkpoint and tokenizer_checkpoint: captions of up to 12 features of 16 numbers, 3x3 tokens, 12x12 pixels."""
    sizes = replace(tiny_llamagen_t2i(grid=(3, 3)).sizes, caption_tokens=CAPTION_TOKENS, caption_dim=CAPTION_DIM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = LlamaGenT2I(sizes, tiny_llamagen(grid=(3, 3)).tokenizer)
        for parameter in [*generator.parameters(), *generator.buffers()]:
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    generator.save_published(folder / "t2i.pt")
    return {"checkpoint": folder / "t2i.pt", "tokenizer_checkpoint": tokenizer_file(folder / "vq.pt")}
