"""A tiny ImageReward."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.tiny.fill import fill

VISION_WIDTH, TEXT_WIDTH, LAYERS, PATCH, PATCHES = 128, 192, 2, 16, 4  # 2 and 3 attention heads; 32 x 32 pixels
HEAD_WIDTHS = {0: 24, 2: 16, 4: 12, 6: 8, 7: 1}  # of each layer of the head, by its place
SIGNS = string.ascii_lowercase + string.digits
WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIGNS, *(f"##{sign}" for sign in SIGNS)]


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


def published_tensors() -> dict[str, Tensor]:
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

    vision = "blip.visual_encoder"
    add(f"{vision}.cls_token", 1, 1, VISION_WIDTH)
    add(f"{vision}.pos_embed", 1, PATCHES + 1, VISION_WIDTH)
    add(f"{vision}.patch_embed.proj.weight", VISION_WIDTH, 3, PATCH, PATCH)
    add(f"{vision}.patch_embed.proj.bias", VISION_WIDTH)
    for index in range(LAYERS):
        block = f"{vision}.blocks.{index}"
        add_norm(f"{block}.norm1", VISION_WIDTH)
        add_linear(f"{block}.attn.qkv", VISION_WIDTH, 3 * VISION_WIDTH)
        add_linear(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        add_norm(f"{block}.norm2", VISION_WIDTH)
        add_linear(f"{block}.mlp.fc1", VISION_WIDTH, 2 * VISION_WIDTH)
        add_linear(f"{block}.mlp.fc2", 2 * VISION_WIDTH, VISION_WIDTH)
    add_norm(f"{vision}.norm", VISION_WIDTH)

    text = "blip.text_encoder"
    add(f"{text}.embeddings.word_embeddings.weight", len(WORD_PIECES) + 2, TEXT_WIDTH)
    add(f"{text}.embeddings.position_embeddings.weight", 40, TEXT_WIDTH)
    add_norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    tensors[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    for index in range(LAYERS):
        layer = f"{text}.encoder.layer.{index}"
        for attention, looks_at in (("attention", TEXT_WIDTH), ("crossattention", VISION_WIDTH)):
            add_linear(f"{layer}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            add_linear(f"{layer}.{attention}.self.key", looks_at, TEXT_WIDTH)
            add_linear(f"{layer}.{attention}.self.value", looks_at, TEXT_WIDTH)
            add_linear(f"{layer}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            add_norm(f"{layer}.{attention}.output.LayerNorm", TEXT_WIDTH)
        add_linear(f"{layer}.intermediate.dense", TEXT_WIDTH, 2 * TEXT_WIDTH)
        add_linear(f"{layer}.output.dense", 2 * TEXT_WIDTH, TEXT_WIDTH)
        add_norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)

    add_linear("blip.vision_proj", VISION_WIDTH, 16)
    add_linear("blip.text_proj", TEXT_WIDTH, 16)
    width = TEXT_WIDTH
    for place, narrower in HEAD_WIDTHS.items():
        add_linear(f"mlp.layers.{place}", width, narrower)
        width = narrower
    return tensors
