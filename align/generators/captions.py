"""Captions as conditions, read by a frozen text encoder that stands beside the generator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from align.generators.base import Generator
from align.generators.published import PublishedGenerator, Tokenizer
from align.text import load_text_encoder
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


class CaptionConditional(PublishedGenerator[Tokenizer]):
    """A generator that reads captions as a text encoder's features."""

    text_encoder: TextEncoder | None = None
    clean_captions: bool = True  # whether it was trained on captions as `align.text.clean` leaves them

    @property
    @abstractmethod
    def caption_shape(self) -> tuple[int, int]:
        """(T, D): the features that a caption has at most, and their width."""

    def attach_text(self, encoder: TextEncoder | None) -> None:
        """Give it a text encoder, which is frozen and no part of the module."""
        self.__dict__["text_encoder"] = encoder

    def companions(self) -> list[Any]:
        return [*super().companions(), *([] if self.text_encoder is None else [self.text_encoder])]

    def read_captions(self, raw: Sequence[str] | CaptionFeatures) -> tuple[Tensor, Tensor]:
        """Features [B, T, D] and their mask [B, T] on the generator's device, of captions or of features made before.

        Raises:
            ValueError: captions but no text encoder, or what are no captions.
        """
        found = self._encode(raw) if isinstance(raw, Sequence) else raw
        return found.features_BTD.to(self.device), found.mask_BT.to(self.device, torch.bool)

    def _encode(self, captions: Sequence[str]) -> CaptionFeatures:
        if not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"captions must be a list of texts, got {captions!r:.80}")
        if self.text_encoder is None:
            raise ValueError(
                "this generator was loaded without a text encoder; pass text_encoder= to load_generator, or set "
                "generator.text_encoder= of a command: a folder with T5, or with the features of your captions, as "
                "`align data captions` makes them"
            )
        return self.text_encoder.encode(list(captions))


def attach_text_encoder(generator: Generator, chosen: TextEncoder | Path | str, device: torch.device | str) -> None:
    """Give a generator the text encoder of a folder, or one that is there already.

    Raises:
        FileNotFoundError: no text encoder there.
        ValueError: a generator that reads no captions by one, or features of another shape than it reads.
    """
    if not isinstance(generator, CaptionConditional):
        raise ValueError(f"a {generator.family} generator reads no captions by a text encoder; leave text_encoder out")
    if not isinstance(chosen, (str, Path)):
        generator.attach_text(chosen)
        return
    expected = generator.caption_shape
    encoder = load_text_encoder(chosen, max_length=expected[0], clean=generator.clean_captions, device=device)
    if (encoder.max_length, encoder.width) != expected:
        raise ValueError(
            f"{chosen} gives captions of {encoder.max_length} x {encoder.width} features, and this generator reads "
            f"{expected[0]} x {expected[1]}: it is of another text encoder, or of another max_length"
        )
    generator.attach_text(encoder)


def null_beta(like: Condition) -> dict[str, Tensor]:
    """The null condition's beta, 1, where conditions carry it."""
    return {name: torch.ones_like(tensor) for name, tensor in like.tensors.items() if name == "beta"}
