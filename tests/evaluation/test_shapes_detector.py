"""The shapes world's exact detector: its arithmetic."""

from __future__ import annotations

import numpy as np

from evaluation.shapes_world.detector import color_indices
from evaluation.shapes_world.scenes import COLORS, GROUND


def test_each_pixel_gets_its_nearest_colour_exactly() -> None:
    """In whole numbers, for colours at random and for all points halfway between two, where only an exact answer agrees."""
    palette = np.array([GROUND, *COLORS.values()])
    halfway = (palette[:, None] + palette[None]).reshape(-1, 3) // 2
    pixels = np.concatenate([np.random.default_rng(0).integers(0, 256, (20_000, 3)), palette, halfway]).astype(np.uint8)
    nearest = ((pixels[:, None].astype(int) - palette) ** 2).sum(axis=-1).argmin(axis=-1)
    assert color_indices(pixels.reshape(-1, 2, 3)).ravel().tolist() == nearest.tolist()
    assert color_indices(palette.astype(np.uint8)).tolist() == list(range(len(palette)))
