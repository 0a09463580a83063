"""Images are resized whole, by Pillow's filters, to whole levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.features.resize import RULES, resize_images

IMAGES = torch.randint(0, 256, (2, 12, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", ["bicubic", "lanczos", "bilinear", "box"])
@pytest.mark.parametrize("size", [6, 31])
def test_rules_are_pillows(rule: str, size: int) -> None:
    resized_BHW3 = resize_images(IMAGES, size, rule)
    assert resized_BHW3.shape == (2, size, size, 3)
    assert resized_BHW3.dtype == torch.uint8
    for image, resized in zip(IMAGES, resized_BHW3, strict=True):
        theirs = Image.fromarray(image.numpy()).resize((size, size), getattr(Image.Resampling, rule.upper()))
        assert torch.equal(resized, torch.from_numpy(np.array(theirs)))


def test_rules_differ_and_shrinking_averages() -> None:
    stripes_BHW3 = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    stripes_BHW3[:, :, ::2] = 200
    assert (resize_images(stripes_BHW3, 8, "box") == 100).all()
    for rule in RULES:  # a rule without antialiasing would see one of the stripes only
        assert abs(resize_images(stripes_BHW3, 8, rule)[0, 2:6, 2:6].float().mean() - 100) < 12
    resized = [resize_images(IMAGES, 7, rule) for rule in RULES]
    assert len({tensor.numpy().tobytes() for tensor in resized}) == 4


def test_images_of_that_size_stay_and_none_gives_none() -> None:
    square = IMAGES[:, :, :12]
    assert torch.equal(resize_images(square, 12, "bicubic"), square)
    assert resize_images(IMAGES[:0], 8, "box").shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("images", "size", "rule", "error", "message"),
    [
        (
            IMAGES,
            8,
            "nearest",
            ValueError,
            "unknown rule of resizing 'nearest'; known: bicubic, lanczos, bilinear, box",
        ),
        (IMAGES, 0, "box", ValueError, "resized to 0 pixels; give a size of at least 1"),
        (IMAGES.float(), 8, "box", TypeError, "must be uint8"),
        (IMAGES.permute(0, 3, 1, 2), 8, "box", ValueError, "must have shape"),
    ],
)
def test_what_cannot_be_resized_is_refused(
    images: torch.Tensor, size: int, rule: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resize_images(images, size, rule)
