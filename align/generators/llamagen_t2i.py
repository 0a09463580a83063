"""LlamaGen's text-to-image GPT: captions as T5 features before the image tokens, in its published file format.

Captions stand right-aligned: padding comes first, and no position attends to it (a padded position sees itself alone).
The null caption is a table of features, one for each position, under the caption's own padding. That table is a buffer:
it is never trained, but belongs to the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.generators.llamagen import LlamaGenConfig, LlamaGenDecoder
from align.tokenizers import VQTokenizer
from align.types import Condition


class CaptionFeatures(Protocol):
    """features_BTD: float [B, T, D], right-aligned, zeros for padding; mask_BT: bool [B, T], False for padding."""

    @property
    def features_BTD(self) -> Tensor: ...

    @property
    def mask_BT(self) -> Tensor: ...


class TextEncoder(Protocol):
    """Captions to features, as `align.text` makes them."""

    def encode(self, captions: Sequence[str]) -> CaptionFeatures: ...


class LlamaGenT2I(LlamaGenDecoder):
    """Its conditions hold {"caption": float [B, T, D], "mask": bool [B, T]}."""

    family = "llamagen-t2i"

    def __init__(self, config: LlamaGenConfig, tokenizer: VQTokenizer | None = None) -> None:
        super().__init__(config, _CaptionEmbedding(config), tokenizer)
        self.attach_text(None)

    def attach_text(self, encoder: TextEncoder | None) -> None:
        """Give it a text encoder, which is frozen and no part of the module."""
        self.__dict__["text_encoder"] = encoder

    def companions(self) -> list[Any]:
        encoder = self.__dict__["text_encoder"]
        return [*super().companions(), *([] if encoder is None else [encoder])]

    # --- conditions

    def encode_condition(self, raw: Sequence[str] | CaptionFeatures) -> Condition:  # type: ignore[override]
        """Captions, or the features of captions as a text encoder gives them.

        Raises:
            ValueError: captions but no text encoder, or features of another width or length than the model's.
        """
        found = self._read(raw) if isinstance(raw, Sequence) else raw
        features, mask = found.features_BTD.to(self.device), found.mask_BT.to(self.device)
        expected = [self.sizes.caption_tokens, self.sizes.caption_dim]
        if list(features.shape[1:]) != expected:
            raise ValueError(
                f"caption features are {list(features.shape[1:])}, and this generator reads {expected}: another text encoder, or another max_length"
            )
        return Condition({"caption": features, "mask": mask.bool()} | self.beta_tensors(len(features)))

    def _read(self, captions: Sequence[str]) -> CaptionFeatures:
        encoder: TextEncoder | None = self.__dict__["text_encoder"]
        if not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"captions must be a list of texts, got {captions!r:.80}")
        if encoder is None:
            raise ValueError(
                "this generator was loaded without a text encoder; pass text_encoder= (a folder with T5, or with the "
                "features of your captions) to load_generator"
            )
        return encoder.encode(list(captions))

    def null_condition(self, like: Condition) -> Condition:
        caption = like.tensors["caption"]
        null = self.get_buffer("cls_embedding.uncond_embedding").to(caption.dtype).expand_as(caption)
        beta = {name: torch.ones_like(tensor) for name, tensor in like.tensors.items() if name == "beta"}
        return Condition({"caption": null, "mask": like.tensors["mask"]} | beta)

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
