"""Resizing of whole images by Pillow, whose filters widen when they shrink: no aliasing. B batch, H/W of images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.classifier import check_images

RULES = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


def resize_images(images_BHW3: Tensor, size: int, rule: str) -> Tensor:
    """uint8 [B, size, size, 3], on the CPU, rounded to whole levels; sides that differ are squeezed into the square.

    Images of that size already come back as they are.

    Args:
        images_BHW3: uint8 [B, H, W, 3], on any device.
        rule: a key of `RULES`.

    Raises:
        TypeError, ValueError: other images, a size below 1, or an unknown rule.
    """
    check_images(images_BHW3)
    if rule not in RULES:
        raise ValueError(f"unknown rule of resizing {rule!r}; known: {', '.join(RULES)}")
    if size < 1:
        raise ValueError(f"images cannot be resized to {size} pixels; give a size of at least 1")
    resized_BHW3 = np.empty((len(images_BHW3), size, size, 3), np.uint8)
    for row, image_HW3 in enumerate(images_BHW3.cpu().numpy()):
        resized_BHW3[row] = np.asarray(Image.fromarray(image_HW3).resize((size, size), RULES[rule]))
    return torch.from_numpy(resized_BHW3)
