"""How close an image is to the one that it was to reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from evaluation.devices import pick_device
from rewards.perceptual import load_distance


class PixelReconstruction:
    """Less the mean squared error to the row's "image", pixels in [-1, 1]: 0 is exact, -4 is white for black.

    With a perceptual distance: less the sum of both, the reconstruction reward of VA-π (arXiv 2512.19680).

    Args:
        perceptual: a distance of `rewards.perceptual`, such as "lpips"; None takes pixels only.
        weights: that distance's file.
        perceptual_weight: what the distance is multiplied by.
        device: where the distance is computed, such as "cuda:1"; "auto" is the GPU in use, or the CPU where there is none.
        batch_size: images that it takes at once.

    Raises:
        FileNotFoundError, ValueError: no such distance, file or device, or a distance without its file.
    """

    def __init__(
        self,
        *,
        perceptual: str | None = None,
        weights: str | None = None,
        perceptual_weight: float = 1.0,
        device: str = "auto",
        batch_size: int = 32,
    ) -> None:
        if (perceptual is None) != (weights is None):
            raise ValueError(
                f"perceptual is {perceptual!r} and weights {weights!r}; a perceptual distance needs its file, and a file its distance"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it is a number of images, 1 or more")
        self.device = pick_device(device)
        self.perceptual_weight = perceptual_weight
        self.batch_size = batch_size
        self._distance = load_distance(perceptual, weights) if perceptual and weights else None

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        """float32 [B] on the CPU for uint8 images [B, H, W, 3].

        Each row has an "image": a file's path, or uint8 [H, W, 3] as an array or a tensor, of the images' size.
        """
        size = tuple(images.shape[1:])
        originals = torch.stack([_original(row, index, size) for index, row in enumerate(conditions)])
        cuts = range(0, len(images), self.batch_size)
        return torch.cat([self._score(*(x[i : i + self.batch_size] for x in (images, originals))) for i in cuts])

    @torch.no_grad()
    def _score(self, images: Tensor, originals: Tensor) -> Tensor:
        a_BCHW, b_BCHW = (x.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (images, originals))
        error_B = (a_BCHW - b_BCHW).square().mean(dim=(1, 2, 3))
        if self._distance is not None:
            error_B = error_B + self.perceptual_weight * self._distance(a_BCHW, b_BCHW)
        return -error_B.cpu()


def _original(row: dict[str, Any], index: int, size: tuple[int, ...]) -> Tensor:
    image = row.get("image")
    if isinstance(image, (str, Path)):
        image = _read(Path(image), index)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"row {index} has no 'image', it has {sorted(row)}; give the image to reproduce, as a file's path or as uint8 [H, W, 3]"
        )
    pixels = torch.as_tensor(image)
    if pixels.dtype != torch.uint8 or tuple(pixels.shape) != size:
        raise ValueError(
            f"the 'image' of row {index} is {pixels.dtype} {list(pixels.shape)}; to be compared it must be uint8 {list(size)}, as what is scored. Resize it beforehand"
        )
    return pixels.cpu()


def _read(path: Path, index: int) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            return np.array(opened.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"the 'image' of row {index}, {path}, cannot be read: {error}") from error
