"""Finding the shapes of an image by rule: pixels to the nearest colour, connected regions, outlines compared.

It is exact on true scenes (the tests measure that), knows nothing of how an image was made, and is no network that a
generator could learn to deceive; `neural` is the second opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import ndimage

from evaluation.geneval.detections import Detection, box_slices
from evaluation.shapes_world.scenes import COLORS, GROUND, SHAPES, silhouette

_PALETTE = np.array([GROUND, *COLORS.values()], dtype=np.float32)  # 0 is the ground
_NEIGHBOURS = ndimage.generate_binary_structure(2, 1)  # pixels touch by a side
_SIDES = (6, 13)  # pixels: a region of another width or height is no shape
_SLENDER = 1.5  # nor is one so many times as long as it is wide
# share of an outline that must agree (intersection over union) for the confidences 0 and 1; the threshold 0.3 of GenEval
# lies at 0.66, its counting threshold 0.9 at 0.78
_AGREEMENT = (0.6, 0.8)


def color_indices(images: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] to the nearest colour of each pixel, int64 [...]: 0 is the ground, 1 the first of COLORS."""
    # squared distances, less what all colours have in common; whole numbers below 2^24, so that float32 is exact
    distances = (_PALETTE**2).sum(axis=-1) - 2 * (images.astype(np.float32) @ _PALETTE.T)
    return distances.argmin(axis=-1)


class ShapeDetector:
    """An `evaluation.geneval.Detector` of the shapes world, for images of any size that shapes of its sizes are in."""

    name = "shapes"
    labels: Sequence[str] = SHAPES

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Detection]:
        indices = color_indices(image)
        found = []
        for color in np.flatnonzero(np.bincount(indices.ravel())[1:]) + 1:
            regions, _ = ndimage.label(indices == color, _NEIGHBOURS)
            for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
                inside = regions[rows, columns] == number
                label, agreement = _best_fit(inside)
                low, high = _AGREEMENT
                if agreement > low:
                    mask = np.zeros(indices.shape, dtype=bool)
                    mask[rows, columns] = inside
                    box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
                    found.append(Detection(label, min((agreement - low) / (high - low), 1.0), box, mask))
        return found


class ShapeColors:
    """An `evaluation.geneval.ColorClassifier`: the commonest colour of an object's pixels."""

    colors: Sequence[str] = tuple(COLORS)

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        return [self._name(image, detection) for detection in detections]

    def _name(self, image: np.ndarray, detection: Detection) -> str:
        mask = detection.mask
        inside = image[box_slices(detection, *image.shape[:2]) if mask is None else mask]
        indices = color_indices(inside).ravel()
        counts = np.bincount(indices, minlength=len(_PALETTE))[1:]  # the ground is no colour of an object
        return self.colors[int(counts.argmax())]


def _best_fit(inside: np.ndarray) -> tuple[str, float]:
    """The shape whose outline a region fits best, and its intersection over union; 0 for a region of no shape's size."""
    height, width = inside.shape
    smallest, largest = _SIDES
    if not (smallest <= height <= largest and smallest <= width <= largest):
        return SHAPES[0], 0.0
    if max(height, width) > _SLENDER * min(height, width):
        return SHAPES[0], 0.0
    outlines = _outlines(height, width)
    agreement = (outlines & inside).sum(axis=(1, 2)) / (outlines | inside).sum(axis=(1, 2))
    best = int(agreement.argmax())
    return SHAPES[best], float(agreement[best])


@cache
def _outlines(height: int, width: int) -> np.ndarray:
    return np.stack([silhouette(label, height, width) for label in SHAPES])
