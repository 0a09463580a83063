"""LlamaGen's own layout of token codes: two files an image, `imagenet256_codes/{i}.npy` and `imagenet256_labels/{i}.npy`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from align.data.codes import LazyCodes

_CODES, _LABELS = "_codes", "_labels"
_SAMPLED = 16  # rows that the identity is made of
_TEN_CROP, _SIBLING = "ten_crop", "ten_crop_105"


def find_npy_codes(path: Path) -> Path | None:
    """The folder of codes that `path` means: itself, or the one beside the labels, or the one inside it."""
    candidates = [path, path.with_name(path.name.removesuffix(_LABELS) + _CODES)]
    candidates += sorted(path.glob(f"*{_CODES}")) if path.is_dir() else []
    return next((place for place in candidates if place.name.endswith(_CODES) and labels_of(place).is_dir()), None)


def labels_of(codes: Path) -> Path:
    return codes.with_name(codes.name.removesuffix(_CODES) + _LABELS)


class NpyCodes(LazyCodes):
    """Codes int64 (1, A, L) and labels int64 (1,), a file each, read as they are asked for.

    Where a part of the path ends in `ten_crop` and there is the same path with `ten_crop_105`, the views of both count,
    half of all each, as in the authors' loader. The files do not say which tokenizer made them.

    Args:
        codebook_size, num_classes: what rows are checked against as they are read.

    Raises:
        ValueError: files are missing, or not of this layout.
    """

    def __init__(self, folder: Path, *, codebook_size: int | None = None, num_classes: int | None = None) -> None:
        sibling = _sibling(folder)
        self.folders = [folder] if sibling is None else [folder, sibling]
        self.tokenizer = None
        self.codebook_size, self.num_classes = codebook_size, num_classes
        rows = {place: _count(place) for place in [*self.folders, labels_of(folder)]}
        if len(set(rows.values())) > 1:
            raise ValueError(
                f"the folders do not match: {', '.join(f'{place} holds {number} rows' for place, number in rows.items())}"
            )
        first = [_read(place / "0.npy", dimensions=3) for place in self.folders]
        if len({codes.shape for codes in first}) > 1:
            raise ValueError(
                f"{self.folders[1]} holds codes of shape {first[1].shape}, and {folder} of {first[0].shape}; both count half, so they must match"
            )
        _, self._views, length = first[0].shape
        self.shape = (rows[folder], self._views * len(self.folders), length)
        self.labels_N = NpyLabels(labels_of(folder), rows[folder], num_classes)
        self.identity = self._identity()

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        row, view = place
        path = self.folders[view // self._views] / f"{row}.npy"
        codes = _read(path, dimensions=3)
        if codes.shape != (1, self._views, self.shape[2]):
            raise ValueError(
                f"{path} holds {codes.shape}; (1, {self._views}, {self.shape[2]}) was expected, as in 0.npy"
            )
        tokens = codes[0, view % self._views]
        if tokens.min() < 0 or (self.codebook_size is not None and tokens.max() >= self.codebook_size):
            raise ValueError(
                f"{path} holds tokens from {tokens.min()} to {tokens.max()}; the generator knows 0 to {(self.codebook_size or 0) - 1}. "
                "Another tokenizer made it"
            )
        return torch.from_numpy(tokens.astype(np.int64))

    def _identity(self) -> str:
        digest = hashlib.sha256(repr(self.shape).encode())
        for row in np.linspace(0, len(self) - 1, min(_SAMPLED, len(self))).astype(int):
            digest.update(int(self.labels_N[row]).to_bytes(8, "little", signed=True))
            for folder in self.folders:
                digest.update(_read(folder / f"{row}.npy", dimensions=3).tobytes())
        return digest.hexdigest()


class NpyLabels(Sequence[Tensor]):
    """Class ids, each an int64 [], read one at a time."""

    def __init__(self, folder: Path, rows: int, num_classes: int | None) -> None:
        self._folder, self._rows, self._num_classes = folder, rows, num_classes
        self.identity = f"labels of {rows} rows"  # the codes' identity holds some of them

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, row: int) -> Tensor: ...
    @overload
    def __getitem__(self, row: slice) -> list[Tensor]: ...
    def __getitem__(self, row: int | slice) -> Tensor | list[Tensor]:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        if not 0 <= row < self._rows:
            raise IndexError(f"row {row} of {self._rows}")
        path = self._folder / f"{row}.npy"
        label = int(_read(path, dimensions=1)[0])
        if label < 0 or (self._num_classes is not None and label >= self._num_classes):
            raise ValueError(f"{path} holds the class {label}; the generator knows 0 to {(self._num_classes or 0) - 1}")
        return torch.tensor(label)


def _sibling(folder: Path) -> Path | None:
    for depth, part in enumerate(folder.absolute().parts):
        if part.endswith(_TEN_CROP):
            other = Path(*folder.absolute().parts[:depth], part.removesuffix(_TEN_CROP) + _SIBLING)
            other = other.joinpath(*folder.absolute().parts[depth + 1 :])
            if other.is_dir():
                return other
    return None


def _count(folder: Path) -> int:
    """Of files 0.npy, 1.npy, ... without a gap."""
    names = {entry.name.removesuffix(".npy") for entry in os.scandir(folder) if entry.name.endswith(".npy")}
    if not names:
        raise ValueError(f"{folder} holds no .npy files")
    numbers = [int(name) for name in names if name.isdecimal()]
    if len(numbers) < len(names) or max(numbers) != len(numbers) - 1:
        raise ValueError(
            f"{folder} holds {len(names)} .npy files that are not numbered 0 to {len(names) - 1}; some are missing, or others are among them"
        )
    return len(numbers)


def _read(path: Path, *, dimensions: int) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npy file ({error}); copy it again") from error
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != dimensions
        or array.shape[0] != 1
        or array.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}; LlamaGen's layout has integers of shape {'(1, views, tokens)' if dimensions == 3 else '(1,)'}"
        )
    return array
