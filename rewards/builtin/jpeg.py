"""How well an image compresses: a reward that needs no weights, to try things with."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image
from torch import Tensor

QUALITY = 75  # Pillow's own default


def jpeg_compressibility(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
    """Less the size as JPEG at quality 75, in kilobytes of 1,000 bytes, headers included: the smoother, the larger.

    Reads no row of `conditions`. Sizes depend a little on the JPEG library that Pillow was built with.
    """
    return [-_kilobytes(image) for image in images.cpu()]


def jpeg_incompressibility(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
    """The size as JPEG at quality 75, in kilobytes of 1,000 bytes: the more detail or noise, the larger."""
    return [_kilobytes(image) for image in images.cpu()]


def _kilobytes(image_HW3: Tensor) -> float:
    buffer = io.BytesIO()
    Image.fromarray(image_HW3.numpy()).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell() / 1000
