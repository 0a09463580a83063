"""From an image of any size to square views of one size, pixel for pixel as the published generators' data was made.

Images come as PIL, RGB, and leave as uint8 arrays [size, size, 3].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

VIEWS = ("center", "flip", "ten_crop")
KINDS = (*VIEWS, "random")
ENLARGED = 1.125  # VAR's random crop is out of an image this much larger


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's: the shorter side is halved by averaging while twice too large, then resized, and the centre cut out.

    (Dhariwal & Nichol 2021; LlamaGen's, CCA's and DiT's preparation.)
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _cut(image, (width - size) // 2, (height - size) // 2, size)


def five_crops(image: Image.Image, size: int) -> list[Image.Image]:
    """The four corners and the centre: top left, top right, bottom left, bottom right, centre."""
    right, bottom = image.width - size, image.height - size
    middle = round(right / 2), round(bottom / 2)  # half to even, as torchvision's
    return [_cut(image, *place, size) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom), middle)]


def ten_crop(image: Image.Image, size: int, enlarged: float) -> list[Image.Image]:
    """Five crops of ADM's centre crop at int(size * enlarged), then five of its mirror image (LlamaGen's training data).

    The mirror image is cropped, not the crops mirrored: its top left is the mirrored top right.
    """
    large = center_crop(image, int(size * enlarged))
    return [*five_crops(large, size), *five_crops(ImageOps.mirror(large), size)]


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """VAR's training crop: the shorter side becomes round(1.125 * size), then a square anywhere in it."""
    short = round(ENLARGED * size)
    if image.width <= image.height:
        shape = short, int(short * image.height / image.width)
    else:
        shape = int(short * image.width / image.height), short
    if shape != image.size:
        image = image.resize(shape, Image.Resampling.LANCZOS)
    top = int(rng.integers(image.height - size + 1))
    left = int(rng.integers(image.width - size + 1))
    return _cut(image, left, top, size)


@dataclass(frozen=True)
class Crop:
    """How an image becomes one or more views.

    kind: `center`, ADM's; `flip`, that and its mirror image; `ten_crop`, ten views for each of `enlarged`; `random`,
        VAR's, of which there is no fixed set.
    flip: with `random`, half of the crops are mirrored.

    Raises:
        ValueError: an unknown kind, or a size or an enlargement out of range.
    """

    kind: str
    size: int
    enlarged: tuple[float, ...] = (1.1, 1.05)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown crop {self.kind!r}; known: {', '.join(KINDS)}")
        if self.size < 1:
            raise ValueError(f"the size of a crop is {self.size} pixels; it must be at least 1")
        if self.kind == "ten_crop" and (not self.enlarged or min(self.enlarged) < 1):
            raise ValueError(f"ten crops are cut from images enlarged {self.enlarged} times; each must be at least 1")
        if self.flip and self.kind != "random":
            raise ValueError(f"only the random crop is flipped at random; {self.kind} has fixed views")

    @property
    def number(self) -> int:
        """Views of an image. Raises ValueError for `random`."""
        if self.kind == "random":
            raise ValueError(f"a random crop has no fixed views to store; use one of {', '.join(VIEWS)}")
        return {"center": 1, "flip": 2}.get(self.kind, 10 * len(self.enlarged))

    def views(self, image: Image.Image) -> np.ndarray:
        """All of them, uint8 [views, size, size, 3]."""
        if self.kind == "ten_crop":
            found = [view for enlarged in self.enlarged for view in ten_crop(image, self.size, enlarged)]
        else:
            center = center_crop(image, self.size)
            found = [center, ImageOps.mirror(center)][: self.number]
        return np.stack([np.asarray(view) for view in found])

    def draw(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """One at random, uint8 [size, size, 3]."""
        if self.kind != "random":
            return self.views(image)[int(rng.integers(self.number))] if self.number > 1 else self.views(image)[0]
        view = random_crop(image, self.size, rng)
        return np.asarray(ImageOps.mirror(view) if self.flip and rng.random() < 0.5 else view)


def _cut(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))
