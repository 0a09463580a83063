"""What CLIP models see is what the published code shows them, to the last level."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from evaluation.clip.pixels import resize_float, resize_pil

BICUBIC = transforms.InterpolationMode.BICUBIC
SHAPES = [(40, 50), (70, 28), (28, 28), (20, 31)]  # smaller, taller, as it is, larger


def picture(height: int, width: int, number: int = 2) -> Tensor:
    return torch.randint(
        0, 256, (number, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_pillow_resizes_as_in_clip(shape: tuple[int, int]) -> None:
    images = picture(*shape)
    published = transforms.Compose([transforms.Resize(28, BICUBIC), transforms.CenterCrop(28), transforms.ToTensor()])
    expected = torch.stack([published(Image.fromarray(image.numpy())) for image in images])
    assert torch.equal(resize_pil(images, 28), expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_resize_as_in_hpsv2(shape: tuple[int, int], antialias: bool) -> None:
    images = picture(*shape)
    resize = transforms.Resize(28, BICUBIC, antialias=antialias)
    published = transforms.Compose([transforms.ToTensor(), resize, transforms.CenterCrop(28)])
    expected = torch.stack([published(image.numpy()) for image in images])
    torch.testing.assert_close(resize_float(images, 28, antialias=antialias), expected, rtol=0, atol=1e-6)


def test_the_ways_differ() -> None:
    images = picture(70, 78)  # to 28 x 31: one and a half columns to take away on each side
    ways = [
        resize_pil,
        partial(resize_pil, round_down=True),
        partial(resize_float, antialias=True),
        partial(resize_float, antialias=False),
    ]
    squares = [way(images, 28) for way in ways]
    gaps = [float((a - b).abs().max()) for index, a in enumerate(squares) for b in squares[:index]]
    assert min(gaps) > 0.001
