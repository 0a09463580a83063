"""A T5 of a few thousand random weights with a tokenizer of letters and some words, saved as a real one is."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

WORDS = ("cat", "dog", "red", "blue", "photo")


def save_tiny_t5(folder: Path, *, seed: int = 0) -> Path:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyzABC.,"] + [(f"▁{word}", -1.0) for word in WORDS]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=2)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
