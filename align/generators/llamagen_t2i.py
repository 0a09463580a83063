"""LlamaGen's text-to-image GPT: captions as T5 features before the image tokens, in its published file format.

Captions stand right-aligned: padding comes first, and no position attends to it (a padded position sees itself alone).
The null caption is a table of features, one for each position, under the caption's own padding. That table is a buffer:
it is never trained, but belongs to the file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.generators.captions import CaptionConditional, CaptionFeatures, null_beta
from align.generators.llamagen import LlamaGenConfig, LlamaGenDecoder
from align.tokenizers import VQTokenizer
from align.types import Condition


class LlamaGenT2I(CaptionConditional[VQTokenizer], LlamaGenDecoder):
    """Its conditions hold {"caption": float [B, T, D], "mask": bool [B, T]}."""

    family = "llamagen-t2i"

    def __init__(self, config: LlamaGenConfig, tokenizer: VQTokenizer | None = None) -> None:
        super().__init__(config, _CaptionEmbedding(config), tokenizer)

    @property
    def caption_shape(self) -> tuple[int, int]:
        return self.sizes.caption_tokens, self.sizes.caption_dim

    def encode_condition(self, raw: Sequence[str] | CaptionFeatures) -> Condition:
        """Captions, or the features of captions as a text encoder gives them.

        Raises:
            ValueError: captions but no text encoder, or features of another width or length than the model's.
        """
        features, mask = self.read_captions(raw)
        if features.shape[1:] != self.caption_shape:
            raise ValueError(
                f"caption features are {list(features.shape[1:])}, and this generator reads {list(self.caption_shape)}: another text encoder, or another max_length"
            )
        return Condition({"caption": features, "mask": mask} | self.beta_tensors(len(features)))

    def null_condition(self, like: Condition) -> Condition:
        caption = like.tensors["caption"]
        null = self.get_buffer("cls_embedding.uncond_embedding").to(caption.dtype).expand_as(caption)
        return Condition({"caption": null, "mask": like.tensors["mask"]} | null_beta(like))

    def prefix(self, condition: Condition) -> tuple[Tensor, Tensor]:
        embedded = self.cls_embedding(condition.tensors["caption"])
        return self.with_beta(embedded, condition), condition.tensors["mask"]


class _CaptionEmbedding(nn.Module):
    uncond_embedding: Tensor

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.register_buffer("uncond_embedding", torch.zeros(config.caption_tokens, config.caption_dim))
        self.cap_proj = _Projection(config.caption_dim, config.dim)

    def forward(self, caption_BTD: Tensor) -> Tensor:
        return self.cap_proj(caption_BTD.to(self.cap_proj.fc1.weight.dtype))


class _Projection(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
