"""A tiny ImageReward."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.tiny.fill import fill

SIGNS = string.ascii_lowercase + string.digits
WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIGNS, *(f"##{sign}" for sign in SIGNS)]


@dataclass(frozen=True)
class Sizes:
    """An ImageReward's sizes; these are tiny, with 2 and 3 attention heads and images of 32 x 32 pixels."""

    vision_width: int = 128
    vision_layers: int = 2
    vision_hidden: int = 256
    patch: int = 16
    patches: int = 4
    text_width: int = 192
    text_layers: int = 2
    text_hidden: int = 384
    positions: int = 40
    word_pieces: int = len(WORD_PIECES)
    projection: int = 16
    head_widths: tuple[int, ...] = (24, 16, 12, 8, 1)


TINY = Sizes()
HEAD_PLACES = (0, 2, 4, 6, 7)


def make_image_reward(folder: Path) -> dict[str, Any]:
    """Write ImageReward.pt and vocab.txt into a folder; returns the settings with which `image-reward` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(fill(published_tensors(), seed=0), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n")
    return {
        "model": str(folder / "ImageReward.pt"),
        "tokenizer": str(folder / "vocab.txt"),
        "device": "cpu",
        "dtype": "float32",
    }


def published_tensors(sizes: Sizes = TINY) -> dict[str, Tensor]:
    """Empty tensors under the published checkpoint's names."""
    tensors: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = torch.empty(shape)

    def add_linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def add_norm(name: str, width: int) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    seeing, reading = sizes.vision_width, sizes.text_width
    vision = "blip.visual_encoder"
    add(f"{vision}.cls_token", 1, 1, seeing)
    add(f"{vision}.pos_embed", 1, sizes.patches + 1, seeing)
    add(f"{vision}.patch_embed.proj.weight", seeing, 3, sizes.patch, sizes.patch)
    add(f"{vision}.patch_embed.proj.bias", seeing)
    for index in range(sizes.vision_layers):
        block = f"{vision}.blocks.{index}"
        add_norm(f"{block}.norm1", seeing)
        add_linear(f"{block}.attn.qkv", seeing, 3 * seeing)
        add_linear(f"{block}.attn.proj", seeing, seeing)
        add_norm(f"{block}.norm2", seeing)
        add_linear(f"{block}.mlp.fc1", seeing, sizes.vision_hidden)
        add_linear(f"{block}.mlp.fc2", sizes.vision_hidden, seeing)
    add_norm(f"{vision}.norm", seeing)

    text = "blip.text_encoder"
    add(f"{text}.embeddings.word_embeddings.weight", sizes.word_pieces + 2, reading)
    add(f"{text}.embeddings.position_embeddings.weight", sizes.positions, reading)
    add_norm(f"{text}.embeddings.LayerNorm", reading)
    tensors[f"{text}.embeddings.position_ids"] = torch.arange(sizes.positions)[None]
    for index in range(sizes.text_layers):
        layer = f"{text}.encoder.layer.{index}"
        for attention, looks_at in (("attention", reading), ("crossattention", seeing)):
            add_linear(f"{layer}.{attention}.self.query", reading, reading)
            add_linear(f"{layer}.{attention}.self.key", looks_at, reading)
            add_linear(f"{layer}.{attention}.self.value", looks_at, reading)
            add_linear(f"{layer}.{attention}.output.dense", reading, reading)
            add_norm(f"{layer}.{attention}.output.LayerNorm", reading)
        add_linear(f"{layer}.intermediate.dense", reading, sizes.text_hidden)
        add_linear(f"{layer}.output.dense", sizes.text_hidden, reading)
        add_norm(f"{layer}.output.LayerNorm", reading)

    add_linear("blip.vision_proj", seeing, sizes.projection)
    add_linear("blip.text_proj", reading, sizes.projection)
    width = reading
    for place, narrower in zip(HEAD_PLACES, sizes.head_widths, strict=True):
        add_linear(f"mlp.layers.{place}", width, narrower)
        width = narrower
    return tensors
