"""Sample grids are the images themselves, in order, on white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from align.images import save_grid


def test_a_grid_holds_the_images_row_by_row(tmp_path: Path) -> None:
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 4, 5, 3) * 10
    save_grid(images, tmp_path / "grid.png", columns=2, gap=1)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (9, 11, 3)
    assert (sheet[:4, :5] == 0).all()
    assert (sheet[:4, 6:] == 10).all()
    assert (sheet[5:, :5] == 20).all()
    assert (sheet[5:, 6:] == 255).all()
    assert (sheet[4] == 255).all()
