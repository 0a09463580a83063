"""What turns images into the numbers that metrics compare.

Shapes: B batch, H height, W width, D feature dim, K classes, S spatial feature dim.
"""

from __future__ import annotations

import typing
from typing import NamedTuple

from torch import Tensor


class ExtractorOutput(NamedTuple):
    """What an extractor says about a batch, all float32; None for what it does not have.

    features_BD: one vector an image.
    logits_BK: class logits; the Inception Score and accuracy need them.
    spatial_BS: an early layer that still tells places apart, for sFID.
    """

    features_BD: Tensor
    logits_BK: Tensor | None = None
    spatial_BS: Tensor | None = None


class Extractor(typing.Protocol):
    """What turns images into features; `DigitClassifier` is one."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Identifies weights and preprocessing: extractors with different ones give different numbers."""
        ...

    def __call__(self, images_BHW3: Tensor, /) -> ExtractorOutput:
        """uint8 [B, H, W, 3], on any device. An image's output does not depend on its batch."""
        ...
