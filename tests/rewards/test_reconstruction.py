"""The closer to the row's own image, the larger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from evaluation.classifier import DigitClassifier, save_classifier
from rewards.perceptual import load_distance
from rewards.registry import load_reward


def random_images(number: int, size: int = 28, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8, generator=generator)


def test_exact_is_zero_and_white_for_black_minus_four() -> None:
    images = torch.cat([random_images(1), torch.full((2, 28, 28, 3), 255, dtype=torch.uint8)])
    half = torch.full((28, 28, 3), 255, dtype=torch.uint8)
    half[:14] = 0
    rows = [{"image": images[0].numpy()}, {"image": torch.zeros(28, 28, 3, dtype=torch.uint8)}, {"image": half}]
    assert load_reward("pixel-reconstruction", device="cpu", batch_size=2)(images, rows).tolist() == [0, -4, -2]


def test_the_original_may_be_a_file(tmp_path: Path) -> None:
    images = random_images(2)
    Image.fromarray(images[1].numpy()).save(tmp_path / "one.png")
    reward = load_reward("pixel-reconstruction", device="cpu")
    rows = [{"image": str(tmp_path / "one.png")}, {"image": tmp_path / "one.png"}]
    expected = -((images[0].float() - images[1].float()) / 127.5).square().mean().item()
    assert reward(images, rows).tolist() == [pytest.approx(expected), 0]


def test_a_perceptual_distance_is_added(tmp_path: Path) -> None:
    weights = str(tmp_path / "classifier.safetensors")
    save_classifier(DigitClassifier("strided5x5", 4, seed=3), Path(weights))
    images, originals = random_images(3), random_images(3, seed=1)
    rows = [{"image": original} for original in originals]
    pixels = load_reward("pixel-reconstruction", device="cpu")(images, rows)
    both = load_reward(
        "pixel-reconstruction",
        device="cpu",
        perceptual="classifier",
        weights=weights,
        perceptual_weight=1e6,
        batch_size=2,
    )(images, rows)
    a, b = ((x.permute(0, 3, 1, 2).float() / 127.5 - 1) for x in (images, originals))
    distance = load_distance("classifier", weights)(a, b)
    assert distance.min() > 1e-6  # of a classifier that was never trained
    torch.testing.assert_close(both, pixels - 1e6 * distance)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 1}, r"row 1 has no 'image', it has \['label'\]; give the image to reproduce"),
        ({"image": None}, "row 1 has no 'image'"),
        (
            {"image": torch.zeros(8, 8, 3, dtype=torch.uint8)},
            r"is torch.uint8 \[8, 8, 3\]; .*must be uint8 \[28, 28, 3\]",
        ),
        ({"image": torch.zeros(28, 28, 3)}, r"the 'image' of row 1 is torch.float32"),
        ({"image": "nowhere.png"}, "the 'image' of row 1, nowhere.png, cannot be read"),
    ],
)
def test_a_row_without_a_fitting_image_is_refused(row: dict[str, Any], message: str) -> None:
    images = random_images(2)
    with pytest.raises(ValueError, match=message):
        load_reward("pixel-reconstruction", device="cpu")(images, [{"image": images[0]}, row])


def test_a_distance_needs_its_file() -> None:
    with pytest.raises(
        ValueError, match="perceptual is 'lpips' and weights None; a perceptual distance needs its file"
    ):
        load_reward("pixel-reconstruction", perceptual="lpips")
    with pytest.raises(ValueError, match="batch_size is 0"):
        load_reward("pixel-reconstruction", batch_size=0)
