"""From images to what CLIP models look at: a square of fixed size, cut from the middle. B batch, H/W/C of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training images; most CLIP models since have kept them
STD = (0.26862954, 0.26130258, 0.27577711)


def resize_pil(images_BHWC: Tensor, size: int, *, round_down: bool = False) -> Tensor:
    """float32 [B, 3, size, size] in [0, 1]: Pillow's bicubic of the shorter side to `size`, rounded to whole levels.

    What CLIP itself and open_clip do; `round_down` is what transformers' CLIPImageProcessor does, in the version that works
    with Pillow: where an odd number of rows or columns is cut off, its square may begin one earlier.
    """
    height, width = _scaled(images_BHWC, size)
    top, left = _middle(height, size, round_down), _middle(width, size, round_down)
    squares = []
    for image_HWC in images_BHWC.cpu().numpy():
        resized = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC)
        squares.append(np.asarray(resized.crop((left, top, left + size, top + size))))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255


def resize_each(images: Sequence[Tensor], size: int) -> Tensor:
    """float32 [B, 3, size, size] in [0, 1] of uint8 images [H, W, 3] of different sizes, each by `resize_pil`."""
    return torch.cat([resize_pil(image_HWC[None], size) for image_HWC in images])


def resize_float(images_BHWC: Tensor, size: int, *, antialias: bool) -> Tensor:
    """float32 [B, 3, size, size]: bicubic of numbers in [0, 1], not rounded, so that it may leave that range a little.

    What torchvision's Resize and CenterCrop do to tensors, on the device of the images.
    """
    height, width = _scaled(images_BHWC, size)
    pixels_BCHW = images_BHWC.permute(0, 3, 1, 2).float() / 255
    pixels_BCHW = functional.interpolate(pixels_BCHW, (height, width), mode="bicubic", antialias=antialias)
    top, left = _middle(height, size), _middle(width, size)
    return pixels_BCHW[:, :, top : top + size, left : left + size]


def normalise(pixels_BCHW: Tensor) -> Tensor:
    """Pixels in [0, 1] less OpenAI's mean, in its standard deviations."""
    mean, std = (torch.tensor(numbers, device=pixels_BCHW.device).view(3, 1, 1) for numbers in (MEAN, STD))
    return (pixels_BCHW - mean) / std


def _scaled(images_BHWC: Tensor, size: int) -> tuple[int, int]:
    height, width = images_BHWC.shape[1:3]
    shorter = min(height, width)
    return int(size * height / shorter), int(size * width / shorter)


def _middle(length: int, size: int, round_down: bool = False) -> int:
    return (length - size) // 2 if round_down else round((length - size) / 2)
