"""Pictures to look at."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from align.files import write_atomically

# ---- of grids with captions; lengths in pixels
LEAST_WIDTH = 144  # of an image, for a line of some twenty letters below it
LEAST_LETTERS = 14  # size of the font; larger below larger images, which a page shows smaller than they are
LETTERS_PER_WIDTH = 1 / 14
MARGIN = 4  # around the text
MOST_LINES = 3
MOST_CHARACTERS = 400  # of a caption that are looked at; three lines hold less
ELLIPSIS = "…"


def save_grid(
    images_NHWC: Tensor, path: Path, *, columns: int, gap: int = 2, captions: Sequence[str] | None = None
) -> None:
    """Write uint8 images [N, H, W, 3] as one PNG, row by row, on white.

    captions: a text for each image, below it: wrapped, cut after three lines. Images narrower than a line of text are
        enlarged by a whole factor, pixel by pixel. The file carries the texts as its `Description`, one a line. Letters
        that Pillow's own font lacks (it has few beyond English) are drawn as boxes.

    Raises:
        ValueError: another number of captions than of images.
    """
    information = None
    if captions is not None:
        if len(captions) != len(images_NHWC):
            raise ValueError(f"got {len(captions)} captions for {len(images_NHWC)} images; one each is needed")
        texts = [_printable(caption) for caption in captions]
        images_NHWC = _with_captions(images_NHWC.cpu(), texts)
        information = PngInfo()
        information.add_itxt("Description", "\n".join(texts))
    number, height, width, _ = images_NHWC.shape
    rows = -(-number // columns)
    sheet = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for index, image in enumerate(images_NHWC.cpu()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.numpy())
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=information))


def _with_captions(images_NHWC: Tensor, captions: Sequence[str]) -> Tensor:
    """uint8 [N, H', W', 3]: enlarged if they must be, each on top of a white strip with its caption; strips are equally high."""
    factor = max(1, -(-LEAST_WIDTH // images_NHWC.shape[2]))
    images_NHWC = images_NHWC.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    width = images_NHWC.shape[2]
    font = ImageFont.load_default(max(LEAST_LETTERS, round(width * LETTERS_PER_WIDTH)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind, of one size, comes where no size is asked for
    blocks = [wrap(caption, lambda line: font.getlength(line) <= width - 2 * MARGIN) for caption in captions]
    line_height = sum(font.getmetrics())
    strip_height = max(map(len, blocks)) * line_height + 2 * MARGIN
    tiles = []
    for image_HWC, lines in zip(images_NHWC, blocks, strict=True):
        strip = Image.new("RGB", (width, strip_height), "white")
        pen = ImageDraw.Draw(strip)
        for number, line in enumerate(lines):
            pen.text((MARGIN, MARGIN + number * line_height), line, fill="black", font=font)
        tiles.append(torch.cat([image_HWC, torch.from_numpy(np.array(strip))]))
    return torch.stack(tiles)


def _printable(text: str) -> str:
    """On one line, without what neither a font nor a PNG's text can hold: control characters and halves of surrogates."""
    kept = (" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text)
    return " ".join("".join(kept).split())


def wrap(text: str, fits: Callable[[str], bool], *, most_lines: int = MOST_LINES) -> list[str]:
    """At least one and at most `most_lines` lines that fit; what is left over becomes an ellipsis.

    Lines break between words, and inside of one that is too long for a line.
    """
    words = text[:MOST_CHARACTERS].split()[::-1]
    lines = [""]
    while words:
        word = words.pop()
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if fits(joined):
            lines[-1] = joined
            continue
        if not lines[-1]:
            length = next((end - 1 for end in range(2, len(word) + 1) if not fits(word[:end])), 1)
            lines[-1], word = word[:length], word[length:]
        words += [word] if word else []
        if len(lines) == most_lines:
            return [*lines[:-1], _ended(lines[-1], fits)] if words else lines
        lines += [""] if words else []
    return lines


def _ended(line: str, fits: Callable[[str], bool]) -> str:
    while line and not fits(line + ELLIPSIS):
        line = line[:-1]
    return line.rstrip() + ELLIPSIS
