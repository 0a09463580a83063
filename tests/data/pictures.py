"""Images that the tests of data make: small, all different, in every layout that is read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_llamagen, tiny_var
from PIL import Image

from align.checkpoints import Tokenizer, save_tokenizer

GARBAGE = b"no image at all"


def picture(number: int, *, width: int = 20, height: int = 16) -> Image.Image:
    """A noise of its own for each number."""
    pixels = np.random.default_rng([7, number]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(number: int, *, cut: bool = False, **size: int) -> bytes:
    """As a JPEG; `cut` to a half, as by a download that broke off."""
    buffer = io.BytesIO()
    picture(number, **size).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    return data[: len(data) // 2] if cut else data


def image_folder(path: Path, *, classes: int = 4, each: int = 3, broken: Mapping[int, bytes] | None = None) -> Path:
    """Sub-folders c0, c1, ...; `broken` are rows whose files hold other bytes. Images are wider than high, then higher."""
    for row in range(classes * each):
        file = path / f"c{row // each}" / f"{row:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = {"width": 20, "height": 16} if row % 2 else {"width": 17, "height": 23}
        file.write_bytes((broken or {}).get(row, encoded(row, **size)))
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tokenizer_file(path: Path, *, var: bool = False, seed: int = 0) -> Path:
    """12 pixels are 3x3 tokens of 16 codes; of a VAR 1 + 4 + 9."""
    generator = tiny_var(seed=seed) if var else tiny_llamagen(grid=(3, 3), seed=seed)
    assert generator.tokenizer is not None
    save_tokenizer(generator.tokenizer, path)
    return path


def tiny_tokenizer(*, var: bool = False, seed: int = 0) -> Tokenizer:
    generator = tiny_var(seed=seed) if var else tiny_llamagen(grid=(3, 3), seed=seed)
    assert generator.tokenizer is not None
    return generator.tokenizer


def encode_one(tokenizer: Tokenizer, view: np.ndarray | Image.Image) -> list[int]:
    return tokenizer.encode_images(torch.from_numpy(np.array(view))[None])[0].tolist()
