"""Sizes of a Janus: what a file's shapes tell, and what the settings beside it tell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from align.generators.janus_keys import (
    CONVERTED,
    count_aligner_layers,
    count_layers,
    layout_of,
    patches,
    published_name,
)

# the published sizes by model width: name, layers, and heads, which shapes cannot tell
PUBLISHED = {2048: ("1B", 24, 16), 4096: ("7B", 30, 32)}
GRID = (24, 24)  # of every published one: 384 px
MAX_POSITIONS = 16384  # of every published one: text and image tokens together
# the language model's settings that shapes do not tell
_UNTOLD = (
    *("head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias"),
    *("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
)
# transformers' defaults, which settings of either layout leave out
_DEFAULTS = {"num_attention_heads": 32, "max_position_embeddings": 2048}


@dataclass(frozen=True)
class JanusConfig:
    """Sizes of a Janus.

    language: settings of transformers' LlamaConfig.
    vocab_size, codebook_dim: of the image tokens' embeddings.
    aligner_layers: linear layers from these embeddings to the language model's; head_width: of the head's hidden layer.
    grid: (rows, columns) of tokens.
    pad_id: the text token that the null condition consists of; None where the text tokenizer tells.
    key_layout: of the file, `converted` or `original`.
    dropout: of the language model's attention, in train mode only (the only one that it has).
    """

    language: Mapping[str, Any]
    vocab_size: int
    codebook_dim: int
    aligner_layers: int
    head_width: int
    grid: tuple[int, int]
    pad_id: int | None = None
    key_layout: str = CONVERTED
    dropout: float = 0.0

    @property
    def dim(self) -> int:
        return int(self.language["hidden_size"])

    @property
    def num_layers(self) -> int:
        return int(self.language["num_hidden_layers"])

    @property
    def num_heads(self) -> int:
        return int(self.language["num_attention_heads"])

    @property
    def text_vocab_size(self) -> int:
        return int(self.language["vocab_size"])

    @property
    def max_prompt_tokens(self) -> int:
        """What the language model's positions leave room for beside the image; its last token is never read."""
        return int(self.language["max_position_embeddings"]) - self.grid[0] * self.grid[1] + 1

    @property
    def size_name(self) -> str | None:
        name, *sizes = PUBLISHED.get(self.dim, (None,))
        return name if sizes == [self.num_layers, self.num_heads] else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of the generator's tensors, by the name in its file."""
        dim, hidden_dim = self.dim, int(self.language["intermediate_size"])
        head_dim = int(self.language.get("head_dim") or dim // self.num_heads)
        query_dim, key_dim = self.num_heads * head_dim, int(self.language["num_key_value_heads"]) * head_dim
        found: dict[str, tuple[int, ...]] = {}

        def linear(name: str, width: int, into: int, bias: bool = True) -> None:
            found[f"{name}.weight"] = (into, width)
            if bias:
                found[f"{name}.bias"] = (into,)

        found["model.generation_embeddings.weight"] = (self.vocab_size, self.codebook_dim)
        linear("model.generation_aligner.fc1", self.codebook_dim, dim)
        for index in range(self.aligner_layers - 1):
            linear(f"model.generation_aligner.hidden_layers.{index}", dim, dim)
        linear("model.generation_head.proj_out", dim, self.head_width)
        linear("model.generation_head.vision_head", self.head_width, self.vocab_size)
        found["model.language_model.embed_tokens.weight"] = (self.text_vocab_size, dim)
        for index in range(self.num_layers):
            layer = f"model.language_model.layers.{index}"
            for name, into in (("q_proj", query_dim), ("k_proj", key_dim), ("v_proj", key_dim)):
                linear(f"{layer}.self_attn.{name}", dim, into, self.language.get("attention_bias", False))
            linear(f"{layer}.self_attn.o_proj", query_dim, dim, self.language.get("attention_bias", False))
            for name in ("gate_proj", "up_proj"):
                linear(f"{layer}.mlp.{name}", dim, hidden_dim, self.language.get("mlp_bias", False))
            linear(f"{layer}.mlp.down_proj", hidden_dim, dim, self.language.get("mlp_bias", False))
            found[f"{layer}.input_layernorm.weight"] = found[f"{layer}.post_attention_layernorm.weight"] = (dim,)
        found["model.language_model.norm.weight"] = (dim,)
        return {published_name(name, self.key_layout): shape for name, shape in found.items()}

    @staticmethod
    def infer(
        tensors: Mapping[str, Tensor],
        *,
        settings: Mapping[str, Any] | None = None,
        grid: tuple[int, int] | None = None,
        num_heads: int | None = None,
        pad_id: int | None = None,
        dropout: float = 0.0,
    ) -> JanusConfig:
        """Read the sizes off a checkpoint of either layout.

        Args:
            tensors: all of the file's; the grid is also told by its SigLIP tower, which sees images of the same size.
            settings: what `read_settings` found.

        Raises:
            ValueError: no Janus, `num_heads` is needed and not given, or it contradicts the shapes.
        """
        layout, settings = layout_of(tensors), settings or {}
        told: Mapping[str, Any] = settings.get("language") or {}

        def shape(name: str) -> tuple[int, ...]:
            return tuple(tensors[published_name(name, layout)].shape)

        try:
            vocab_size, codebook_dim = shape("model.generation_embeddings.weight")
            text_vocab, dim = shape("model.language_model.embed_tokens.weight")
            hidden_dim = shape("model.language_model.layers.0.mlp.gate_proj.weight")[0]
            key_dim = shape("model.language_model.layers.0.self_attn.k_proj.weight")[0]
            head_width = shape("model.generation_head.proj_out.weight")[0]
        except KeyError as error:
            raise ValueError(f"this Janus file is not whole: it has no tensor {error}") from error
        heads = num_heads or told.get("num_attention_heads") or PUBLISHED.get(dim, (None, None, None))[2]
        if heads is None:
            raise ValueError(
                f"no published Janus is {dim} wide, and shapes do not tell the heads; pass num_heads=, or put the model's "
                "config.json beside its weights"
            )
        head_dim = told.get("head_dim") or dim // heads
        if dim % heads or key_dim % head_dim:
            raise ValueError(
                f"num_heads={heads} does not divide the model's width of {dim}, or its keys' of {key_dim}, into equal heads"
            )
        told_patches = patches(tensors) or GRID[0] * GRID[1]
        side = math.isqrt(told_patches)
        if grid is None and side * side != told_patches:
            raise ValueError(
                f"its images are cut into {told_patches} patches, which make no square; pass grid=(rows, columns)"
            )
        return JanusConfig(
            language={
                "max_position_embeddings": MAX_POSITIONS,
                **{name: told[name] for name in _UNTOLD if told.get(name) is not None},
                "vocab_size": text_vocab,
                "hidden_size": dim,
                "intermediate_size": hidden_dim,
                "num_hidden_layers": count_layers(tensors, "mlp.gate_proj.weight"),
                "num_attention_heads": heads,
                "num_key_value_heads": key_dim // head_dim,
            },
            vocab_size=vocab_size,
            codebook_dim=codebook_dim,
            aligner_layers=count_aligner_layers(tensors),
            head_width=head_width,
            grid=(side, side) if grid is None else (int(grid[0]), int(grid[1])),
            pad_id=settings.get("pad_id") if pad_id is None else pad_id,
            key_layout=layout,
            dropout=dropout,
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """What config.json and generation_config.json in a checkpoint's folder tell beyond shapes; empty without them.

    {"language": settings of transformers' LlamaConfig, "pad_id": of the null condition}

    Raises:
        ValueError: a damaged file.
    """
    model, generation = _read(folder / "config.json"), _read(folder / "generation_config.json")
    language = model.get("text_config") or model.get("language_config")
    if not isinstance(language, Mapping):
        return {}  # none, or another model's
    return {"language": {**_DEFAULTS, **language}, "pad_id": generation.get("pad_token_id")}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    return found if isinstance(found, dict) else {}
