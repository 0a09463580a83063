"""The sizes of an image on its way into a detector, and its pixels as published detectors of photographs read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

DIVISOR = 32  # of padded sizes: what a backbone halves five times
# of ImageNet's photographs
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Frame:
    """(height, width) of an image as it is, resized, and padded below and on the right."""

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


def frame_of(image: np.ndarray, size: tuple[int, int]) -> Frame:
    """Resized by one factor, so that the shorter edge is size[0] pixels, or less if the longer would be above size[1].

    Raises:
        ValueError: not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an image is {image.dtype} {list(image.shape)}; detectors read uint8 [H, W, 3], red, green and blue"
        )
    height, width = image.shape[:2]
    factor = min(size[0] / min(height, width), size[1] / max(height, width))
    resized = tuple(max(int(length * factor + 0.5), 1) for length in (height, width))
    padded = tuple(math.ceil(length / DIVISOR) * DIVISOR for length in resized)
    return Frame((height, width), (resized[0], resized[1]), (padded[0], padded[1]))


def pixels_of(image_HW3: np.ndarray, frame: Frame) -> Tensor:
    """float32 [3, H, W] of the padded size: Pillow's bilinear to whole levels, normalised, zeros in the padding."""
    (height, width), (padded_height, padded_width) = frame.resized, frame.padded
    resized = Image.fromarray(image_HW3).resize((width, height), Image.Resampling.BILINEAR)
    pixels_3HW = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return functional.pad((pixels_3HW - mean) / std, (0, padded_width - width, 0, padded_height - height))
