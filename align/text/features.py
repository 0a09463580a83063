"""Captions and their features, as encoders and stores hand them over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.text.clean import clean_caption


@dataclass(frozen=True)
class CaptionFeatures:
    """features_BTD: float [B, T, D], right-aligned, zeros for padding; mask_BT: bool [B, T], False for padding."""

    features_BTD: Tensor
    mask_BT: Tensor

    @staticmethod
    def of(rows: Sequence[Tensor], length: int) -> CaptionFeatures:
        """From the features [n, D] of each caption, n at most `length`: padding first, as LlamaGen reads them."""
        features = rows[0].new_zeros(len(rows), length, rows[0].shape[1])
        mask = torch.zeros(len(rows), length, dtype=torch.bool, device=features.device)
        for row, valid_ND in enumerate(rows):
            features[row, length - len(valid_ND) :] = valid_ND
            mask[row, length - len(valid_ND) :] = True
        return CaptionFeatures(features, mask)


@dataclass(frozen=True)
class EncoderFacts:
    """What the features of a caption depend on beside the caption.

    encoder: sha256 of the encoder's weights, settings and vocabulary.
    max_length: tokens that a caption is cut to; clean: whether it is cleaned first.
    width, dtype: D of the features and their number format.
    """

    encoder: str
    max_length: int
    clean: bool
    width: int
    dtype: str


def prepare_captions(captions: Sequence[str], *, clean: bool) -> list[str]:
    """Captions as an encoder reads them.

    Raises:
        ValueError: none at all, or one that is no text.
    """
    if not captions:
        raise ValueError("there are no captions to encode")
    for caption in captions:
        if not isinstance(caption, str):
            raise ValueError(f"captions must be texts, got {caption!r:.80}")
        if any("\ud800" <= letter <= "\udfff" for letter in caption):
            raise ValueError(f"the caption {caption!r:.80} holds half a character (a lone surrogate); mend its file")
    return [clean_caption(caption) for caption in captions] if clean else list(captions)
