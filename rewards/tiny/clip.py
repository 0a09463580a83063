"""Tiny CLIP models in the formats of transformers and open_clip, and the rewards that are made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.clip.open_clip_files import import_open_clip
from rewards.tiny.fill import fill

WIDTH, IMAGE_SIZE, PATCH, CONTEXT = 16, 28, 14, 77
ON_THE_CPU = {"device": "cpu", "dtype": "float32"}
SCALE = math.log(100)  # exp of it multiplies cosines; most published models have ended at this upper bound
START, END = "<|startoftext|>", "<|endoftext|>"
OPEN_CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": PATCH, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def make_clip_score(folder: Path) -> dict[str, Any]:
    """Write a folder of transformers, as openai/clip-vit-large-patch14 is one; returns the settings of `clip-score`."""
    save_transformers_clip(folder, activation="quick_gelu", seed=0)
    return {"model": str(folder), **ON_THE_CPU}


def make_pickscore(folder: Path) -> dict[str, Any]:
    """Write a folder of transformers, as yuvalkirstain/PickScore_v1 is one; returns the settings of `pickscore`."""
    save_transformers_clip(folder, activation="gelu", seed=1)
    return {"model": str(folder), **ON_THE_CPU}


def make_hpsv2(folder: Path) -> dict[str, Any]:
    """Write HPS_v2.1_compressed.pt and its architecture; returns the settings of `hpsv2`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.json").write_text(json.dumps(OPEN_CLIP))
    torch.save({"epoch": 0, "state_dict": open_clip_tensors(seed=2)}, folder / "HPS_v2.1_compressed.pt")
    return {"model": str(folder), "architecture": str(folder / "architecture.json"), **ON_THE_CPU}


def make_aesthetic(folder: Path) -> dict[str, Any]:
    """Write a CLIP folder and the second predictor, of fewer numbers a layer; returns the settings of `aesthetic`."""
    save_transformers_clip(folder, activation="quick_gelu", seed=0)
    torch.save(aesthetic_tensors(seed=3), folder / "head.pth")
    return {"model": str(folder), "head": str(folder / "head.pth"), **ON_THE_CPU}


def save_transformers_clip(folder: Path, *, activation: str, seed: int) -> None:
    """Write config.json, model.safetensors and a tokenizer whose tokens are bytes."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": activation}
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": vocabulary[START],
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[END],
    }
    vision = {"hidden_size": 32, "intermediate_size": 128, "image_size": IMAGE_SIZE, "patch_size": PATCH}
    model = CLIPModel(
        CLIPConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision}, projection_dim=WIDTH)
    )
    fill(model, seed)
    torch.nn.init.constant_(model.logit_scale, SCALE)
    model.save_pretrained(folder)


def open_clip_tensors(seed: int) -> dict[str, Tensor]:
    """The state of the model that OPEN_CLIP describes."""
    with torch.device("meta"):
        model = import_open_clip().CLIP(**OPEN_CLIP)
    tensors = fill({name: torch.empty(tensor.shape) for name, tensor in model.state_dict().items()}, seed)
    tensors["logit_scale"].fill_(SCALE)
    return tensors


def aesthetic_tensors(seed: int) -> dict[str, Tensor]:
    """The state of LAION's second predictor for embeddings of WIDTH numbers, around 5 points."""
    widths = (WIDTH, 12, 10, 8, 4, 1)
    tensors = {}
    for index, inputs, outputs in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        tensors[f"layers.{index}.weight"] = torch.empty(outputs, inputs)
        tensors[f"layers.{index}.bias"] = torch.empty(outputs)
    fill(tensors, seed)["layers.7.bias"].add_(5)
    return tensors


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """CLIP's two files of a vocabulary without merges: each byte alone and at a word's end, and the two signs."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary
