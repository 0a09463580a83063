"""Reading token codes from a folder of shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from align.data.codes import Labels, LazyCodes
from align.data.shards import FORMAT, MANIFEST, assemble
from align.fingerprints import sha256_of_file


class ShardCodes(LazyCodes):
    """The codes of a folder that `align data encode` wrote, mapped to memory as they are read.

    Args:
        conditions: `label`, `caption`, or `auto`: captions where there are any.
        partial: take the shards that are there, also before all are, and without a manifest.

    Raises:
        ValueError: the folder is not whole, a file is not what the manifest says, or the conditions are not there.
    """

    def __init__(self, folder: Path, *, conditions: str = "auto", partial: bool = False) -> None:
        self.folder = folder
        if (folder / MANIFEST).exists():
            text = (folder / MANIFEST).read_text()
            self.manifest: dict[str, Any] = json.loads(text)
        else:
            self.manifest = assemble(folder)
            text = json.dumps(self.manifest)
            if not partial:
                raise ValueError(
                    f"{folder} is not whole: {self.manifest['missing']} of {self.manifest['missing'] + len(self.manifest['shards'])} "
                    "shards are missing. Run its `align data encode` again to go on"
                )
        manifest = self.manifest
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{folder / MANIFEST} has the format {manifest.get('format')!r}; {FORMAT!r} was expected")
        if not manifest["rows"]:
            raise ValueError(f"{folder} holds no images yet")
        self._check_files()
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self.tokenizer = manifest["tokenizer"]
        self.codebook_size = manifest["codebook_size"]
        self.num_classes = manifest["label_range"][1] + 1 if manifest["label_range"] else None
        self.shape = (manifest["rows"], manifest["views"], manifest["tokens_per_image"])
        self._starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])])
        self._opened: dict[int, Any] = {}
        self.labels_N = self._conditions(conditions)

    def _check_files(self) -> None:
        for file in self.files():
            path = self.folder / file["file"]
            if not path.exists() or path.stat().st_size != file["bytes"]:
                size = path.stat().st_size if path.exists() else "no"
                raise ValueError(
                    f"{path} has {size} bytes, and the manifest says {file['bytes']}; copy it again, or remove "
                    f"{MANIFEST} and run its `align data encode` again"
                )

    def _conditions(self, wanted: str) -> Labels:
        there = [name for name in ("caption", "label") if self.manifest[f"{name}s"]]
        if wanted != "auto" and wanted not in there:
            raise ValueError(f"{self.folder} holds images with a {there[0]}; a {wanted} was asked for")
        if (wanted if wanted != "auto" else there[0]) == "caption":
            return Captions(self)
        # safetensors cannot slice a shard of which no image could be read
        parts = [self._tensor(n, "labels")[:] for n, shard in enumerate(self.manifest["shards"]) if shard["rows"]]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        row, view = place
        shard, offset = self._place(row)
        return torch.from_numpy(self._tensor(shard, "tokens")[offset, view].astype(np.int64))

    def source_row(self, row: int) -> int:
        shard, offset = self._place(row)
        return int(self._tensor(shard, "rows")[offset : offset + 1][0])

    def text(self, row: int) -> dict[str, Any]:
        """caption, or None, and `more`: the row's further columns."""
        shard, offset = self._place(row)
        files = self.manifest["shards"][shard]["files"]
        if len(files) == 1:
            return {"caption": None, "more": {}}
        start, end = (int(place) for place in self._tensor(shard, "places")[offset : offset + 2])
        with (self.folder / files[1]["file"]).open("rb") as file:
            file.seek(start)
            return json.loads(file.read(end - start))

    def files(self) -> Iterator[dict[str, Any]]:
        """Name, bytes and sha256 of every file of the shards."""
        return (file for shard in self.manifest["shards"] for file in shard["files"])

    def verify(self) -> None:
        """Read all files. Raises ValueError for one that is not the one that was written."""
        for file in self.files():
            if sha256_of_file(self.folder / file["file"]) != file["sha256"]:
                raise ValueError(f"{self.folder / file['file']} is not what the manifest says (its sha256 differs)")

    def _place(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def _tensor(self, shard: int, name: str) -> Any:
        if shard not in self._opened:
            path = self.folder / self.manifest["shards"][shard]["files"][0]["file"]
            try:
                self._opened[shard] = safe_open(path, framework="np")
            except SafetensorError as error:
                raise ValueError(f"{path} is no whole shard ({error}); copy it again") from error
        return self._opened[shard].get_slice(name)


class Captions(Sequence[str]):
    """The captions of a folder of shards, read one at a time."""

    def __init__(self, codes: ShardCodes) -> None:
        self._codes = codes
        self.identity = f"captions of {codes.identity}"

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        return self._codes.text(row)["caption"]
