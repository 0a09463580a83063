"""Folders of a tiny Janus with random weights, as its two layouts are published: weights, settings, text tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from align import load_generator
from align.generators import Janus, JanusConfig
from align.generators.janus_keys import CONVERTED, ORIGINAL, published_name
from align.tokenizers import VQConfig, VQTokenizer

MARKS = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>", "<end_of_image>"),
    *("<image_placeholder>", "<|User|>", "<|Assistant|>"),
)
LAYOUTS = ("converted", "original")
BOS, EOS, PAD, BOI = range(4)
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
LANGUAGE = {
    "model_type": "llama",
    "vocab_size": len(MARKS) + len(LETTERS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
SIZES = JanusConfig(language=LANGUAGE, vocab_size=16, codebook_dim=4, aligner_layers=2, head_width=12, grid=(3, 3))
TOKENIZER = VQConfig(
    channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1, z_channels=8, codebook_size=16, codebook_dim=4
)
# what makes no images: of the tower the positions, whose number the grid is read from, stand for all
OTHERS = {
    CONVERTED: {
        "model.vision_model.embeddings.position_embedding.weight": (9, 8),
        "model.vision_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.aligner.fc1.weight": (16, 8),
    },
    ORIGINAL: {
        "vision_model.vision_tower.pos_embed": (1, 9, 8),
        "vision_model.vision_tower.blocks.0.attn.qkv.weight": (24, 8),
        "vision_model.vision_tower.attn_pool.latent": (1, 1, 8),
        "aligner.layers.0.weight": (16, 8),
        "language_model.lm_head.weight": (LANGUAGE["vocab_size"], 16),
    },
}
# LlamaGen's names of the image tokenizer's parts, and the converted layout's
PARTS = {
    "encoder.conv_blocks.": "encoder.down.",
    "decoder.conv_blocks.": "decoder.up.",
    ".res.": ".block.",
    ".mid.0.": ".mid.block_1.",
    ".mid.1.": ".mid.attn_1.",
    ".mid.2.": ".mid.block_2.",
}


def save_janus(
    folder: Path, layout: str = CONVERTED, *, shards: int = 1, dtype: torch.dtype = torch.float32, tower: bool = True
) -> Path:
    """The same random generator and image tokenizer in either layout."""
    folder.mkdir(parents=True)
    weights = {name: tensor.to(dtype) for name, tensor in _weights(layout, tower).items()}
    prefix, suffix = ("model", ".safetensors") if layout == CONVERTED else ("pytorch_model", ".bin")
    shard_of = {name: f"{prefix}-0000{1 + i % shards}-of-0000{shards}{suffix}" for i, name in enumerate(weights)}
    if shards == 1:
        shard_of = dict.fromkeys(weights, prefix + suffix)
    else:
        index = {"metadata": {"total_parameters": 7, "total_size": 9}, "weight_map": shard_of}
        (folder / f"{prefix}{suffix}.index.json").write_text(json.dumps(index))
    for shard in set(shard_of.values()):
        part = {name: tensor for name, tensor in weights.items() if shard_of[name] == shard}
        if layout == CONVERTED:
            save_file(part, folder / shard, {"format": "pt"})
        else:
            with (folder / shard).open("wb") as file:
                torch.save(part, file)
    settings: dict[str, Any] = {"model_type": "janus", "text_config": LANGUAGE}
    if layout == ORIGINAL:
        settings = {"model_type": "multi_modality", "language_config": LANGUAGE}
    else:
        (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": PAD, "guidance_scale": 5}))
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": MARKS[BOS], "pad_token": MARKS[PAD]}))
    text_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def text_tokenizer() -> Tokenizer:
    """Of bytes and marks, without merges."""
    vocabulary = {letter: index for index, letter in enumerate((*MARKS, *LETTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return tokenizer


def _weights(layout: str, tower: bool) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = {}
        for name, shape in SIZES.shapes().items():
            tensor = torch.randn(shape) * (0.3 if len(shape) > 1 else 0.1)
            found[published_name(name, layout)] = tensor + 1 if "norm" in name else tensor
        for name, tensor in VQTokenizer(TOKENIZER).state_dict().items():
            if layout == ORIGINAL:
                found[f"gen_vision_model.{name}"] = torch.ones_like(tensor) if "codebook_used" in name else tensor
            elif "codebook_used" not in name:
                for part, converted in PARTS.items():
                    name = name.replace(part, converted)
                found[f"model.vqmodel.{name}"] = tensor
        for name, shape in OTHERS[layout].items() if tower else ():
            found[name] = torch.randn(shape)
    return found


def load_janus(path: Path, **settings: Any) -> Janus:
    generator = load_generator("janus", path, **settings)
    assert isinstance(generator, Janus)
    return generator
