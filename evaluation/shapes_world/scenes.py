"""The shapes world: images of 32x32 pixels with one to four plain shapes on a light ground, drawn pixel by pixel.

It is small enough for a generator that learns on two CPU cores, and exact: what an image shows is known to the pixel, so
that all six kinds of GenEval's prompts can be judged without a learnt detector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SIDE = 32  # pixels of an image
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (208, 46, 46),
    "yellow": (240, 196, 32),
    "green": (52, 152, 66),
    "blue": (44, 92, 200),
    "purple": (146, 62, 170),
}
GROUND = (236, 236, 232)
SIZES = (8, 10)  # pixels, of shapes along each side
STEP = 2  # pixels: shapes stand on a grid of so many
GAP = 2  # pixels that shapes are apart, at least


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, its colour's name, and the square [top, top + size) x [left, left + size) that it fills."""

    label: str
    color: str
    left: int
    top: int
    size: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.size, self.top + self.size

    def apart(self, other: Shape) -> bool:
        """Whether at least GAP pixels lie between the squares of both."""
        return (
            self.left >= other.left + other.size + GAP
            or other.left >= self.left + self.size + GAP
            or self.top >= other.top + other.size + GAP
            or other.top >= self.top + self.size + GAP
        )


def silhouette(label: str, height: int, width: int) -> np.ndarray:
    """bool [height, width]: a shape that fills the rectangle, point upwards."""
    v, u = ((np.arange(length) + 0.5) / length - 0.5 for length in (height, width))
    v, u = v[:, None], u[None, :]
    if label == "circle":
        return u**2 + v**2 <= 0.25
    if label == "square":
        return np.ones((height, width), dtype=bool)
    if label == "triangle":
        return np.abs(u) <= (v + 0.5 + 0.51 / height) / 2  # its point is a pixel or two, not less than one
    if label == "cross":
        return (np.abs(u) <= 0.17) | (np.abs(v) <= 0.17)
    raise ValueError(f"unknown shape {label!r}; known: {', '.join(SHAPES)}")


def render(shapes: Iterable[Shape]) -> np.ndarray:
    """uint8 [32, 32, 3]."""
    image = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    image[:] = GROUND
    for shape in shapes:
        left, top, right, bottom = shape.box
        image[top:bottom, left:right][silhouette(shape.label, shape.size, shape.size)] = COLORS[shape.color]
    return image
