"""One JSON object a line: the path of an image with its caption or class, as text-to-image training sets come."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from align.data.readers.base import Columns, ImageSource, Record, UnreadableRow, parse_json, read_at

_BLOCK = 1 << 24  # bytes read at once


class JsonLines(ImageSource):
    """Lines with `image_path` (relative ones are resolved against the file's folder) and `text` or `label`.

    Only the lines' places are kept in memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no lines, or the first ones lack the columns.
    """

    kind = "jsonl"

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path = str(path)
        self._columns = columns
        self._image = columns.image or "image_path"
        self._starts, self._sizes, self.fingerprint = _lines(path)
        self._look(columns)

    def __len__(self) -> int:
        return len(self._starts)

    def key(self, row: int) -> str:
        try:
            return self.record(row).key
        except UnreadableRow as error:
            return error.key

    def record(self, row: int) -> Record:
        key = f"{Path(self.path).name} row {row}"
        values = parse_json(read_at(Path(self.path), int(self._starts[row]), int(self._sizes[row])), key)
        image = values.get(self._image)
        if not isinstance(image, str):
            raise UnreadableRow(
                key, f"{self._image} is {image!r}; a path was expected. The columns are {', '.join(values)}"
            )
        return Record.of(image, values, self._columns, self._image)

    def read(self, row: int) -> bytes:
        return (Path(self.path).parent / self.record(row).key).read_bytes()


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Start and size of each line that is not empty, and the file's sha256, in one pass."""
    digest, ends, position = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            ends.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + position + 1)
            position += len(block)
    edges = np.unique(np.concatenate([[0], *ends, [position]]).astype(np.int64))
    sizes = np.diff(edges)
    filled = sizes > 1
    return edges[:-1][filled], sizes[filled], digest.hexdigest()
