"""Sample grids are the images themselves, in order, on white; captions stand below them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align.images import LEAST_WIDTH, save_grid, wrap


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


def test_captions_stand_below_images_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    images = torch.arange(2 * 32 * 32 * 3, dtype=torch.int64).view(2, 32, 32, 3).remainder(251).to(torch.uint8)
    save_grid(images, tmp_path / "grid.png", columns=2, gap=3, captions=["a red circle", ""])
    picture = Image.open(tmp_path / "grid.png")
    sheet = np.asarray(picture)
    side = 160  # 32 pixels, five times as large: the first whole factor that reaches 144
    assert side >= LEAST_WIDTH
    assert sheet.shape[1] == 2 * side + 3
    assert (sheet[:side:5, :side:5] == images[0].numpy()).all()
    assert (sheet[4:side:5, side + 3 + 4 :: 5] == images[1].numpy()).all()
    below = sheet[side:, :, 0]
    assert below[:, :side].min() < 60, "dark letters below the first"
    assert (below[:, side:] == 255).all(), "none below the second"
    assert 24 < len(below) < 30, "one line of letters of a readable size"
    assert picture.info["Description"] == "a red circle\n"


def test_images_that_are_wide_enough_keep_their_size(tmp_path: Path) -> None:
    images = torch.zeros(1, 20, LEAST_WIDTH, 3, dtype=torch.uint8)
    save_grid(images, tmp_path / "grid.png", columns=1, captions=["a red circle"])
    assert Image.open(tmp_path / "grid.png").width == LEAST_WIDTH


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a red circle", ["a red", "circle"]),
        ("one two three four", ["one two", "three", "four"]),
        ("one two three fourteen", ["one two", "three", "fourte…"]),
        ("one two three four five", ["one two", "three", "four…"]),
        ("unbreakable", ["unbreak", "able"]),
        ("no un unbreakable", ["no un", "unbreak", "able"]),
        ("   ", [""]),
    ],
)
def test_lines_of_seven_letters(text: str, lines: list[str]) -> None:
    assert wrap(text, lambda line: len(line) <= 7) == lines


def test_lines_that_hold_nothing_still_end() -> None:
    assert wrap("a word", lambda line: False) == ["a", "w", "…"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("漢字" * 200, "漢字" * 200),
        ("two\nlines\tand\x00 more", "two lines and more"),
        ("\ud83d half a surrogate", "half a surrogate"),
        ("שלום 🎉👩‍👩‍👧 e\u0301\u202e", "שלום 🎉👩‍👩‍👧 e\u0301\u202e"),
        ("x" * 100_000, "x" * 100_000),
    ],
    ids=["no spaces", "control characters", "surrogates", "emoji and marks", "long"],
)
def test_any_text_can_be_a_caption(tmp_path: Path, text: str, kept: str) -> None:
    save_grid(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), tmp_path / "grid.png", columns=1, captions=[text])
    assert Image.open(tmp_path / "grid.png").info["Description"] == kept


def test_a_caption_for_each_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 1 captions for 2 images"):
        save_grid(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), tmp_path / "grid.png", columns=1, captions=["one"])


def test_without_captions_the_pixels_are_all_there_is(tmp_path: Path) -> None:
    images = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(1, 8, 8, 3)
    save_grid(images, tmp_path / "grid.png", columns=1)
    Image.fromarray(images[0].numpy()).save(tmp_path / "plain.png")
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
