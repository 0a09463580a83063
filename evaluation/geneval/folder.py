"""Images on disk as GenEval's own tools read and write them (github.com/djghosh13/geneval, evaluation/evaluate_images.py).

    <folder>/00000/metadata.jsonl        one line: the row of the prompt
    <folder>/00000/samples/0000.png      images drawn for it, 0001.png and so on

Other files and folders may stand beside them, such as a grid.png, and are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from evaluation.files import write_atomically
from evaluation.geneval.grammar import Row

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # that have a plain RGB picture; 16 bits of grey would be cut to 8


@dataclass(frozen=True, eq=False)
class FolderImage:
    """An image uint8 [H, W, 3] with the number and the row of its prompt."""

    number: int
    row: Row
    image: np.ndarray
    path: Path


def write_folder(folder: str | Path, rows: Iterable[Mapping[str, Any]], images: Iterable[Any]) -> None:
    """Write rows with their images, uint8 [n, H, W, 3] for each row, into a folder that has none yet.

    Raises:
        ValueError: a folder with prompts in it, another number of rows than of images, or what `write_prompt` refuses.
    """
    if any(_numbered(folder)):
        raise ValueError(
            f"{folder} holds prompts already, which would be scored along with these; choose another folder"
        )
    for number, (row, images_NHW3) in enumerate(zip(rows, images, strict=True)):
        write_prompt(folder, number, row, images_NHW3)


def write_prompt(folder: str | Path, number: int, row: Mapping[str, Any], images_NHW3: Any, *, first: int = 0) -> None:
    """Write images of one prompt, the `first` under that number; further ones may follow in other calls.

    Args:
        images_NHW3: uint8 [n, H, W, 3], of numpy or torch on the CPU.

    Raises:
        ValueError: other images, an image that is there already, or a folder of that number with another row.
    """
    pixels = np.asarray(images_NHW3)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"the images are {pixels.dtype} {list(pixels.shape)}; uint8 [n, H, W, 3] is needed")
    place = Path(folder) / f"{number:05}"
    samples = place / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    metadata = place / "metadata.jsonl"
    if not metadata.exists():
        write_atomically(metadata, (json.dumps(dict(row)) + "\n").encode())
    elif _read_row(metadata) != json.loads(json.dumps(dict(row))):
        raise ValueError(
            f"{metadata} has another row than prompt {number}, {row.get('prompt')!r}; choose another folder"
        )
    for index, image in enumerate(pixels, start=first):
        path = samples / f"{index:04}.png"
        if path.exists():
            raise ValueError(f"{path} is there already; choose another folder, or another `first`")
        Image.fromarray(image).save(path)


def read_rows(folder: str | Path) -> list[Row]:
    """The rows of a folder's prompts, from number 0 on without a gap.

    Raises:
        ValueError: no prompts, a number that is not there, or a metadata.jsonl that is no single row.
    """
    places = _prompts(folder)
    for number, there in enumerate(sorted(places)):
        if number != there:
            raise ValueError(f"{folder} has no prompt {number:05}, but one of number {there}; number them from 0 on")
    return [_read_row(places[number] / "metadata.jsonl") for number in sorted(places)]


def read_folder(folder: str | Path, *, images_per_prompt: int | None = None) -> Iterator[FolderImage]:
    """All images, by the numbers of their prompts and then their own; pixels are read one image at a time.

    Rows and the numbers of images are checked before the first image is given.

    Args:
        images_per_prompt: the first so many of each prompt; None: all, and at least one.

    Raises:
        ValueError: no prompts, two of one number, a metadata.jsonl that is missing or no single row, fewer images than
            asked for, or an image that cannot be read. The message has the path.
    """
    if images_per_prompt is not None and images_per_prompt < 1:
        raise ValueError(f"images_per_prompt is {images_per_prompt}; at least 1, or None for all, is needed")
    places = _prompts(folder)
    rows = {number: _read_row(place / "metadata.jsonl") for number, place in places.items()}
    paths = {number: _samples(place, images_per_prompt) for number, place in places.items()}
    return (
        FolderImage(number, rows[number], read_image(path), path) for number in sorted(places) for path in paths[number]
    )


def read_image(path: str | Path) -> np.ndarray:
    """uint8 [H, W, 3] in RGB, turned as its EXIF says; transparency is dropped.

    Raises:
        ValueError: no readable image, or one of more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in MODES:
                raise ValueError(f"its mode {image.mode} is none of {', '.join(MODES)}")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _numbered(folder: str | Path) -> Iterator[Path]:
    folder = Path(folder)
    if folder.is_dir():
        yield from (place for place in folder.iterdir() if re.fullmatch("[0-9]+", place.name) and place.is_dir())


def _prompts(folder: str | Path) -> dict[int, Path]:
    places: dict[int, Path] = {}
    for place in _numbered(folder):
        other = places.setdefault(int(place.name), place)
        if other is not place:
            raise ValueError(f"{place} and {other} have the same number; each prompt needs its own")
    if not places:
        raise ValueError(f"{folder} holds no prompts; they are folders such as 00000, each with a metadata.jsonl")
    return places


def _read_row(path: Path) -> Row:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); each prompt needs one with its row") from error
    if len(lines) != 1:
        raise ValueError(f"{path} has {len(lines)} lines; one is needed, the row of its prompt as JSON")
    try:
        row = json.loads(lines[0])
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); its line must be the row of its prompt") from error
    if not isinstance(row, dict):
        raise ValueError(
            f'{path} holds {lines[0]:.60}; a row is such as {{"tag": ..., "include": [...], "prompt": ...}}'
        )
    return row


def _samples(place: Path, needed: int | None) -> Sequence[Path]:
    samples = place / "samples"
    found = list(samples.iterdir()) if samples.is_dir() else []
    images = sorted(
        (path for path in found if re.fullmatch(r"[0-9]+\.png", path.name) and path.is_file()),
        key=lambda path: (int(path.stem), path.name),
    )
    if len(images) < (needed or 1):
        raise ValueError(f"{samples} has {len(images)} images; {needed or 'at least 1'} are needed, such as 0000.png")
    return images[:needed]
