"""From a path to the reader that fits what lies there."""

from __future__ import annotations

import glob
from pathlib import Path

from align.data.readers.base import Columns, ImageSource
from align.data.readers.folder import ImageFolder
from align.data.readers.jsonl import JsonLines
from align.data.readers.parquet import ParquetTable
from align.data.readers.saved import SavedDataset, is_saved
from align.data.readers.tar import TarShards

KINDS = ("folder", "jsonl", "parquet", "webdataset", "datasets")
_SUFFIXES = {".jsonl": "jsonl", ".parquet": "parquet", ".tar": "webdataset"}


def open_images(
    path: str, *, kind: str = "auto", columns: Columns | None = None, split: str | None = None
) -> ImageSource:
    """Images with labels or captions from what lies at `path`.

    Args:
        path: an image folder, a .jsonl, a .parquet or .tar file or a folder of them, a pattern such as
            `shards/*.tar`, or a dataset of HF `datasets`.
        kind: one of `KINDS`, or auto: by the suffix, or by what the folder holds.
        split: where there are several; parquet files belong to one by the beginning of their name (train-00000-of-8).

    Raises:
        FileNotFoundError: nothing at the path.
        ValueError: an unknown kind, or what the reader of the kind refuses.
    """
    columns = columns or Columns()
    if kind not in ("auto", *KINDS):
        raise ValueError(f"unknown kind of images {kind!r}; known: auto, {', '.join(KINDS)}")
    if kind == "datasets":
        return SavedDataset(path, columns, split)
    # not Path.glob, whose patterns must be relative
    found = sorted(map(Path, glob.glob(path))) if glob.has_magic(path) else [Path(path)]  # noqa: PTH207
    if not found or not all(place.exists() for place in found):
        raise FileNotFoundError(f"no images at {path}")
    kind = _guess(found[0]) if kind == "auto" else kind
    if split is not None and kind not in ("parquet", "datasets"):
        raise ValueError(f"split={split} tells parquet files and saved datasets apart; {path} is read as {kind}")
    if kind == "datasets":
        return SavedDataset(path, columns, split)
    if kind == "webdataset":
        return TarShards(_files(found, "*.tar"), columns)
    if kind == "parquet":
        return ParquetTable(_of_split(_files(found, "*.parquet"), split), columns)
    if len(found) > 1:
        raise ValueError(f"{path} matches {len(found)} places; as {kind} one is read at a time")
    if kind == "jsonl":
        if found[0].is_dir():
            raise ValueError(f"{path} is a folder; name its .jsonl file")
        return JsonLines(found[0], columns)
    if not found[0].is_dir():
        raise ValueError(f"{path} is a file; an image folder has one sub-folder for each class")
    return ImageFolder(found[0])


def _guess(place: Path) -> str:
    if place.is_file():
        if place.suffix not in _SUFFIXES:
            raise ValueError(
                f"cannot tell what images {place} holds; a folder was expected, or a file ending in {', '.join(_SUFFIXES)}"
            )
        return _SUFFIXES[place.suffix]
    if is_saved(place):
        return "datasets"
    for pattern, kind in (("*.tar", "webdataset"), ("*.parquet", "parquet"), ("data/*.parquet", "parquet")):
        if next(place.glob(pattern), None) is not None:
            return kind
    return "folder"


def _files(found: list[Path], pattern: str) -> list[Path]:
    files = [file for place in found for file in (sorted(place.rglob(pattern)) if place.is_dir() else [place])]
    if not files:
        raise ValueError(f"{found[0]} holds no {pattern}")
    return files


def _of_split(files: list[Path], split: str | None) -> list[Path]:
    splits = {file.name.split("-")[0] for file in files if "-of-" in file.name}
    if split is None:
        if len(splits) > 1:
            raise ValueError(
                f"{files[0].parent} holds the splits {', '.join(sorted(splits))}; set split= to one of them"
            )
        return files
    chosen = [file for file in files if file.name.startswith(f"{split}-") or file.stem == split]
    if not chosen:
        raise ValueError(
            f"{files[0].parent} holds no parquet files of a split {split!r}, such as {split}-00000-of-00001"
        )
    return chosen
