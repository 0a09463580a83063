"""Image datasets of HF `datasets`: saved on disk, or anything else that its `load_dataset` opens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from align.data.readers.base import Columns, ImageSource, Record, UnreadableRow


class SavedDataset(ImageSource):
    """A folder written by `save_to_disk`, or what `load_dataset(path)` makes of it; images stay encoded until asked for.

    Raises:
        ValueError: `datasets` is missing or cannot open it, several splits and none chosen, or no image column.
    """

    kind = "datasets"

    def __init__(self, path: str, columns: Columns, split: str | None) -> None:
        self.path = path
        self._columns = columns
        data = _load(path, split)
        image = columns.image or next((name for name, kind in data.features.items() if _is_image(kind)), None)
        if image is None or image not in data.features:
            raise ValueError(
                f"{path} has no column of images{f' named {image!r}' if image else ''}; it has "
                f"{', '.join(data.column_names)}. Set columns.image"
            )
        names = getattr(data.features.get(columns.label), "names", None)
        self.classes = None if names is None else tuple(names)
        self.fingerprint = hashlib.sha256(f"{data._fingerprint} {len(data)}".encode()).hexdigest()
        self._image = image
        if _is_image(data.features[image]):
            data = data.cast_column(image, type(data.features[image])(decode=False))
        self._images = data.select_columns([image])
        self._more = data.remove_columns([image])
        self._look(columns)

    def __len__(self) -> int:
        return len(self._images)

    def key(self, row: int) -> str:
        return f"row {row}"

    def record(self, row: int) -> Record:
        values = self._more[row] if self._more.column_names else {}
        return Record.of(self.key(row), values, self._columns)

    def read(self, row: int) -> bytes:
        image = self._images[row][self._image]
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if isinstance(data, bytes):
            return data
        if path := (path or data):
            return (Path(self.path) / path).read_bytes()
        raise UnreadableRow(self.key(row), "the row holds neither the image's bytes nor its path")


def _load(path: str, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("such datasets are read by the package datasets; try: pip install 'ar-align[data]'") from error
    try:
        saved = is_saved(Path(path))
        data = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, split=split)
    except Exception as error:  # the package raises errors of many kinds, some its own, for what it cannot open
        raise ValueError(f"datasets cannot open {path}: {str(error).strip().splitlines()[0]}") from error
    if isinstance(data, dict):
        if split not in data:
            raise ValueError(f"{path} has the splits {', '.join(data)}; set split= to one of them, got {split!r}")
        data = data[split]
    return data


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"
