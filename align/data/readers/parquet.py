"""Parquet files with images as bytes (as exported by HF `datasets`) or as paths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.data.readers.base import Columns, ImageSource, Record, UnreadableRow


class ParquetTable(ImageSource):
    """Rows of the files one after the other. Labels and captions are read at once, images by the row group: quick in
    order, slow at random, as training on images asks for; then save the rows as an image folder or by `datasets`.

    Raises:
        ValueError: pyarrow is missing, a file is none or lacks the columns, or there are no rows.
    """

    kind = "parquet"

    def __init__(self, files: Sequence[Path], columns: Columns) -> None:
        self._files = [Path(file) for file in files]
        self.path = str(files[0] if len(files) == 1 else files[0].parent)
        self._columns = columns
        self._image = columns.image or "image"
        schema = _open(self._files[0]).schema_arrow
        if self._image not in schema.names:
            raise ValueError(
                f"{files[0]} has no column {self._image!r}; it has {', '.join(schema.names)}. Set columns.image"
            )
        self._more = [field.name for field in schema if self._is_more(field)]
        self.classes = _class_names(schema, columns.label)
        self._groups, self._conditions, self.fingerprint = self._read_index(schema.names)
        self._held: dict[str, tuple[int, Any]] = {}
        self._look(columns)

    def _read_index(self, names: list[str]) -> tuple[np.ndarray, dict[str, Any], str]:
        """(file, number in it, first row) of each row group, the columns of labels and captions, and the fingerprint."""
        import pyarrow

        digest, groups, start = hashlib.sha256(), [], 0
        chunks: dict[str, list[Any]] = {name: [] for name in (self._columns.label, self._columns.text) if name in names}
        for number, file in enumerate(self._files):
            opened = _open(file)
            if opened.schema_arrow.names != names:
                raise ValueError(
                    f"{file} has the columns {', '.join(opened.schema_arrow.names)}, and {self._files[0]} has {', '.join(names)}"
                )
            for group in range(opened.metadata.num_row_groups):
                groups.append((number, group, start))
                start += opened.metadata.row_group(group).num_rows
            for name, found in chunks.items():
                found += opened.read([name]).column(name).chunks
            digest.update(f"{file.name} {opened.metadata.num_rows} {file.stat().st_size}\n".encode())
        self._rows = start
        conditions = {name: pyarrow.chunked_array(found) for name, found in chunks.items() if found}
        return np.array(groups, dtype=np.int64).reshape(-1, 3), conditions, digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    def __len__(self) -> int:
        return self._rows

    def key(self, row: int) -> str:
        group = self._group_of(row)
        first = self._groups[self._groups[:, 0] == self._groups[group, 0]][0, 2]
        return f"{self._files[self._groups[group, 0]].name} row {row - first}"

    def record(self, row: int) -> Record:
        return Record.of(self.key(row), {**self._condition(row), **self._more_of(row)}, self._columns, self._image)

    def label(self, row: int) -> int:
        return self._known(row, Record.of(self.key(row), self._condition(row), self._columns).label, "label")

    def caption(self, row: int) -> str:
        return self._known(row, Record.of(self.key(row), self._condition(row), self._columns).caption, "caption")

    def read(self, row: int) -> bytes:
        group = self._group_of(row)
        image = self._table("image", group)[row - self._groups[group, 2]].as_py()
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if isinstance(data, bytes):
            return data
        if path := (path or data):
            return (self._files[self._groups[group, 0]].parent / path).read_bytes()
        raise UnreadableRow(self.key(row), "the row holds neither the image's bytes nor its path")

    def _condition(self, row: int) -> dict[str, Any]:
        return {name: column[row].as_py() for name, column in self._conditions.items()}

    def _more_of(self, row: int) -> dict[str, Any]:
        if not self._more:
            return {}
        group = self._group_of(row)
        return self._table("more", group)[row - self._groups[group, 2]]

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._groups[:, 2], row, side="right")) - 1

    def _table(self, part: str, group: int) -> Any:
        """A row group's images, or its other columns as a list of rows; the last one is held."""
        if self._held.get(part, (-1, None))[0] != group:
            file, number, _ = (int(place) for place in self._groups[group])
            names = [self._image] if part == "image" else self._more
            table = _open(self._files[file]).read_row_group(number, columns=names)
            self._held[part] = group, table.column(self._image) if part == "image" else table.to_pylist()
        return self._held[part][1]

    def _is_more(self, field: Any) -> bool:
        """Columns that a line of JSON can hold, beside those with a meaning of their own."""
        from pyarrow import types

        held = field.type.value_type if types.is_list(field.type) or types.is_large_list(field.type) else field.type
        plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
        known = (self._image, self._columns.label, self._columns.text)
        return field.name not in known and any(is_kind(held) for is_kind in plain)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """What HF `datasets` notes about a column of classes."""
    try:
        note = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        return tuple(note["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _open(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("parquet files are read by pyarrow; try: pip install 'ar-align[data]'") from error
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no whole parquet file ({error}); copy it again") from error
