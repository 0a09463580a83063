"""A folder with one sub-folder of images for each class, as ImageNet is laid out."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from align.data.readers.base import EXTENSIONS, ImageSource, Record


class ImageFolder(ImageSource):
    """Classes are the sorted names of the sub-folders; rows have the order of torchvision's ImageFolder.

    Hidden sub-folders are no classes: an editor's leftovers would shift every label.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no sub-folders, or one without images.
    """

    kind = "folder"
    has_labels, has_captions = True, False

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        classes = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != ".")
        if not classes:
            raise ValueError(f"{path} has no sub-folders; an image folder has one for each class")
        names: list[bytes] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = list(_images(path / name, path))
            if not found:
                raise ValueError(f"{path / name} holds no image ({', '.join(EXTENSIONS)}); remove it, or fill it")
            names += found
            labels += [label] * len(found)
        self.classes = tuple(classes)
        # arrays, not lists: a million paths are then shared with worker processes, not copied to them
        self._names = np.array(names, dtype=np.bytes_)
        self._labels = np.array(labels, dtype=np.int32)
        self.fingerprint = hashlib.sha256(b"\0".join([*names, self._labels.tobytes()])).hexdigest()

    def __len__(self) -> int:
        return len(self._labels)

    def key(self, row: int) -> str:
        return os.fsdecode(self._names[row])

    def record(self, row: int) -> Record:
        return Record(self.key(row), int(self._labels[row]), None)

    def read(self, row: int) -> bytes:
        return Path(self.path, self.key(row)).read_bytes()


def _images(folder: Path, base: Path) -> list[bytes]:
    found = []
    for root, _, files in sorted(os.walk(folder, followlinks=True)):
        relative = os.path.relpath(root, base)
        found += [os.fsencode(f"{relative}/{name}") for name in sorted(files) if name.lower().endswith(EXTENSIONS)]
    return found
