"""Pictures to look at."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from align.files import write_atomically


def save_grid(images_NHWC: Tensor, path: Path, *, columns: int, gap: int = 2) -> None:
    """Write uint8 images [N, H, W, 3] as one PNG, row by row, on white."""
    number, height, width, _ = images_NHWC.shape
    rows = -(-number // columns)
    sheet = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for index, image in enumerate(images_NHWC.cpu()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.numpy())
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
