"""Images that any tool made, in a folder or in an npz file as ADM's evaluator takes them, read part by part.

Shapes: N images, B of a part, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
LOSSY = ("JPEG", "WEBP", "MPO")


class ImageFiles(Protocol):
    """N images of one size, in a fixed order.

    labels: int64 [N], the class that each was asked to show, where the files say so.
    remarks: what a reader of numbers made of them should know.
    identity: changes where the files do.
    """

    labels: NDArray[np.int64] | None
    remarks: tuple[str, ...]
    identity: str

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """uint8 [B, H, W, 3]."""
        ...


def open_images(source: str | Path) -> ImageFiles:
    """The images of a folder, with its sub-folders, or of an npz file.

    In a folder the order is that of the paths. Sub-folders that are called by numbers are classes. In an npz file `arr_0`
    holds the images and `arr_1`, if there is one, the classes.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: fewer than two images, images of mixed sizes, a file that is no image, or an npz file without `arr_0`.
    """
    source = Path(source)
    if source.is_dir():
        return _Folder(source)
    if not source.exists():
        raise FileNotFoundError(f"there is no folder or file {source}; images are a folder, or an npz file with arr_0")
    return _Npz(source)


def in_parts(files: ImageFiles, size: int) -> Iterator[Tensor]:
    """All images, `size` at a time."""
    for start in range(0, len(files), size):
        yield files.read(start, min(start + size, len(files)))


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if len(self._paths) < 2:
            raise ValueError(
                f"{folder} has {len(self._paths)} images, and statistics need at least 2; known endings: {', '.join(SUFFIXES)}"
            )
        seen: dict[tuple[int, int], Path] = {}
        lossy = 0
        for path in self._paths:
            with _opened(path) as image:
                seen.setdefault(image.size, path)
                lossy += image.format in LOSSY
        if len(seen) > 1:
            told = ", ".join(f"{width}x{height} ({path})" for (width, height), path in list(seen.items())[:2])
            raise ValueError(
                f"{folder} has images of mixed sizes: {told}. All must be of one; resize them first, in one way that you can name"
            )
        self.remarks: tuple[str, ...] = ()
        if lossy:
            self.remarks = (
                f"{lossy} of {len(self._paths)} images are JPEG or WebP: compression shifts FID and the like, and numbers of PNG or npz "
                "do not compare with theirs",
            )
        self.labels = _labels_of([path.relative_to(folder) for path in self._paths])
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths]
        self.identity = hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, start: int, stop: int) -> Tensor:
        images = []
        for path in self._paths[start:stop]:
            with _opened(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"{path} has more than 8 bits a channel; write 8-bit RGB images")
                try:
                    images.append(np.asarray(image.convert("RGB")))
                except OSError as error:
                    raise ValueError(f"{path} is damaged ({error}); write it again") from error
        return torch.from_numpy(np.stack(images))


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that can be read; write it again, or take it away") from error


def _labels_of(paths: Sequence[Path]) -> NDArray[np.int64] | None:
    """The numbers that the images' folders are called by, if all are."""
    names = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
    return np.array([int(name) for name in names]) if all(name.isdecimal() for name in names) else None


@dataclass
class _Member:
    """An array in an npz file: read from the file in parts, since 50,000 images are 10 GB.

    The file stays open between parts. To skip bytes of a zip's member is to read them, so that to open it anew for every
    part would read everything before it again.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    start: int
    _file: IO[bytes] | None = None

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        row = int(np.prod(self.shape[1:]))
        place = self.start + start * row
        try:
            if self._file is None:
                archive = zipfile.ZipFile(self.path)
                self._file = archive.open(f"{self.name}.npy")
                self._file.read(self.start)
            if self._file.tell() != place:  # zipfile of Python 3.13 no longer checks for damage after a seek
                self._file.seek(place)
            data = self._file.read((stop - start) * row)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self.path} is damaged in {self.name} ({error}); write it again") from error
        if len(data) != (stop - start) * row:
            raise ValueError(f"{self.path} ends in the middle of {self.name}; write it again")
        return np.frombuffer(bytearray(data), np.uint8).reshape(stop - start, *self.shape[1:])


class _Npz:
    remarks: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self._member = _find_images(path)
        labels = _read_labels(path, len(self))
        self.labels = None if labels is None else labels.astype(np.int64)
        stat = path.stat()
        told = [str(path), stat.st_size, stat.st_mtime_ns]
        self.identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._member.shape[0]

    def read(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self._member.read(start, stop))


def _find_images(path: Path) -> _Member:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "arr_0" not in names:
                statistics = " (statistics of real images are a reference=)" if "mu" in names else ""
                raise ValueError(
                    f"it has no arr_0, which holds the images; found {', '.join(names) or 'nothing'}{statistics}"
                )
            with archive.open("arr_0.npy") as file:
                version = np.lib.format.read_magic(file)
                read_header: Any = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, in_columns, dtype = read_header(file)
                start = file.tell()
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is not a readable npz file ({error}); write it again") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or in_columns or shape[0] < 2:
        raise ValueError(
            f"{path}: arr_0 must be uint8 [N, H, W, 3] with at least 2 images, got {dtype} {list(shape)}; write it as ADM's samples are"
        )
    return _Member(path, "arr_0", shape, start)


def _read_labels(path: Path, n: int) -> NDArray[Any] | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "arr_1" not in archive.files:
                return None
            labels: NDArray[Any] = archive["arr_1"]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{path}: arr_1 cannot be read ({error}); write it again") from error
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: arr_1 must be {n} whole numbers, the images' classes; got {labels.dtype} {list(labels.shape)}"
        )
    return labels
