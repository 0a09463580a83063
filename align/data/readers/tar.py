"""WebDataset's layout: tar files in which the files of one sample lie together and share the name before the dot."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.data.readers.base import EXTENSIONS, Columns, ImageSource, Record, UnreadableRow, parse_json, read_at

_PARTS = ("image", "txt", "json", "cls")
_ABSENT = -1


class TarShards(ImageSource):
    """Samples of an image with .txt (a caption), .cls (a class id) or .json (columns) beside it, file by file.

    Opening walks the headers of all tars once; images are then read from their place, in any order.

    Raises:
        ValueError: no samples, a tar that is damaged or compressed, or samples without label and caption.
    """

    kind = "webdataset"

    def __init__(self, paths: Sequence[Path], columns: Columns) -> None:
        self._tars = [str(path) for path in paths]
        self.path = self._tars[0] if len(paths) == 1 else os.path.commonpath(self._tars)
        self._columns = columns
        digest = hashlib.sha256()
        keys, places = [], []
        for number, path in enumerate(paths):
            for key, parts in _samples(path):
                keys.append(os.fsencode(key))
                places.append([number, *(place for part in _PARTS for place in parts.get(part, (_ABSENT, 0)))])
            digest.update(f"{path.name} {path.stat().st_size} {len(keys)}\n".encode())
        self._keys = np.array(keys, dtype=np.bytes_)
        self._places = np.array(places, dtype=np.int64).reshape(len(keys), 1 + 2 * len(_PARTS))
        digest.update(self._places.tobytes())
        self.fingerprint = digest.hexdigest()
        self._look(columns)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        return f"{Path(self._tars[self._places[row, 0]]).name}/{os.fsdecode(self._keys[row])}"

    def record(self, row: int) -> Record:
        key = self.key(row)
        table, text, label = (self._part(row, part) for part in ("json", "txt", "cls"))
        values: dict[str, Any] = {} if table is None else parse_json(table, key)
        try:
            if text is not None:
                values[self._columns.text] = text.decode().strip()
            if label is not None:
                values[self._columns.label] = int(label)
        except ValueError as error:
            raise UnreadableRow(key, str(error)) from error
        return Record.of(key, values, self._columns)

    def read(self, row: int) -> bytes:
        data = self._part(row, "image")
        if data is None:
            raise UnreadableRow(self.key(row), "the sample holds no image")
        return data

    def _part(self, row: int, part: str) -> bytes | None:
        column = 1 + 2 * _PARTS.index(part)
        offset, size = (int(number) for number in self._places[row, column : column + 2])
        return None if offset == _ABSENT else read_at(Path(self._tars[self._places[row, 0]]), offset, size)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Each sample's key with (offset, size) of its parts, in the order of the file."""
    current: str | None = None
    parts: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                part = _part_of(member.name)
                if not member.isfile() or part is None:
                    continue
                if part[0] != current:
                    if current is not None:
                        yield current, parts
                    current, parts = part[0], {}
                parts[part[1]] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no whole, uncompressed tar ({error}); unpack it, or copy it again") from error
    if current is not None:
        yield current, parts


def _part_of(name: str) -> tuple[str, str] | None:
    """("folder/0001", "image") of folder/0001.jpg: the key ends at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    kind = "image" if f".{extension.lower()}" in EXTENSIONS else extension.lower()
    return (f"{folder}{slash}{stem}", kind) if stem and kind in _PARTS else None
