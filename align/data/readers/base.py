"""What every reader of images gives: rows in a fixed order, each an image with a class label or a caption."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, UnidentifiedImageError

# what torchvision's ImageFolder takes for an image
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FIRST_ROWS = 100  # looked at for what the rows hold


class UnreadableRow(Exception):
    """A row that cannot be used: its image is missing, damaged or cut short, or its label is none. It never stops the
    work: who reads skips it, counts it, and lists its key."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold image, class label and caption. `image`: None is the reader's own default.
    `caption`: where the text is a list of captions, which of them counts."""

    image: str | None = None
    label: str = "label"
    text: str = "text"
    caption: int = 0


@dataclass(frozen=True)
class Record:
    """A row without its image. key: its path or name, for people; more: its other columns."""

    key: str
    label: int | None
    caption: str | None
    more: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(key: str, values: Mapping[str, Any], columns: Columns, *others: str) -> Record:
        """Of a row's columns; `others` are left out of `more`.

        Raises:
            UnreadableRow: the label is no class id, or the text no caption.
        """
        label, text = values.get(columns.label), values.get(columns.text)
        if label is not None and (isinstance(label, bool) or not isinstance(label, int) or label < 0):
            raise UnreadableRow(key, f"{columns.label} is {label!r}; a class id, a whole number from 0, was expected")
        if isinstance(text, (list, tuple)):
            if columns.caption >= len(text):
                raise UnreadableRow(
                    key, f"{columns.text} has {len(text)} captions, and columns.caption={columns.caption}"
                )
            text = text[columns.caption]
        if text is not None and not isinstance(text, str):
            raise UnreadableRow(key, f"{columns.text} is {text!r}; a caption, or a list of them, was expected")
        known = {columns.label, columns.text, *others}
        return Record(key, label, text, {name: value for name, value in values.items() if name not in known})


class ImageSource(ABC):
    """Rows 0..len-1, always in the same order, read one at a time and from any process.

    kind: what a user calls it; path: where it lies.
    classes: names of the classes in the order of their ids, where known.
    has_labels, has_captions: what the rows are conditioned on; one at least.
    fingerprint: sha256 of what tells one source from another, without reading the images.
    """

    kind: ClassVar[str]
    path: str
    classes: tuple[str, ...] | None = None
    has_labels: bool
    has_captions: bool
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def record(self, row: int) -> Record:
        """Raises UnreadableRow."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded image. Raises UnreadableRow or OSError."""

    @abstractmethod
    def key(self, row: int) -> str:
        """What people know the row by; never fails."""

    def image(self, row: int) -> Image.Image:
        """Decoded, RGB. Raises UnreadableRow."""
        try:
            data = self.read(row)
        except OSError as error:
            raise UnreadableRow(self.key(row), error.strerror or str(error)) from error
        return decode_image(data, self.key(row))

    def label(self, row: int) -> int:
        """Raises UnreadableRow."""
        return self._known(row, self.record(row).label, "label")

    def caption(self, row: int) -> str:
        """Raises UnreadableRow."""
        return self._known(row, self.record(row).caption, "caption")

    def _known(self, row: int, value: Any, name: str) -> Any:
        if value is None:
            raise UnreadableRow(self.key(row), f"it has no {name}, and the rows before it have")
        return value

    def _look(self, columns: Columns) -> None:
        """Set has_labels and has_captions by the first row that can be read.

        Raises:
            ValueError: there are no rows, or they are not what the settings say.
        """
        if not len(self):
            raise ValueError(f"{self.path} holds no images; check the path")
        first: UnreadableRow | None = None
        for row in range(min(len(self), _FIRST_ROWS)):
            try:
                record = self.record(row)
            except UnreadableRow as error:
                first = first or error
                continue
            self.has_labels, self.has_captions = record.label is not None, record.caption is not None
            if not self.has_labels and not self.has_captions:
                raise ValueError(
                    f"{self.path}: rows have neither {columns.label!r} nor {columns.text!r}; they have "
                    f"{', '.join(record.more) or 'nothing else'}. Set columns.label or columns.text"
                )
            return
        raise ValueError(f"{self.path}: none of the first {row + 1} rows can be used; {first}")


def decode_image(data: bytes, key: str) -> Image.Image:
    """RGB, wholly decoded. Raises UnreadableRow."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableRow(key, f"not an image ({len(data)} bytes)") from error
    except Exception as error:  # decoders raise errors of all kinds on damaged files
        raise UnreadableRow(key, f"{type(error).__name__}: {error}") from error


def parse_json(text: bytes, key: str) -> dict[str, Any]:
    """Raises UnreadableRow for what is no JSON object."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UnreadableRow(key, f"no JSON: {error}") from error
    if not isinstance(values, dict):
        raise UnreadableRow(key, f"a JSON object was expected, got {type(values).__name__}")
    return values


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Part of a file, opened for it alone: nothing is shared between processes."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
