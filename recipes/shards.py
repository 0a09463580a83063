"""What an evaluation has found so far, on disk shard by shard, so that a killed one goes on where it was.

A shard is a fixed range of sample indices, drawn and measured together: whichever process makes it and however often it
is begun, it comes out the same. All shards in their order are the evaluation.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.files import write_atomically

PARTIAL = "partial"


class Shards:
    """The shards of one evaluation, in a folder of its own below a run's.

    Args:
        folder: the run's.
        identity: all that the numbers depend on; other facts mean other shards.
        total: sample indices, 0 to total - 1.
        size: of a shard.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, total: int, size: int) -> None:
        self.total, self.size = total, size
        told = json.dumps([dict(identity), total, size], sort_keys=True, default=str)
        self.folder = folder / PARTIAL / hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return -(-self.total // self.size)

    def indices(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.total))

    def has(self, shard: int) -> bool:
        return self._path(shard).exists()

    def write(self, shard: int, arrays: Mapping[str, Any]) -> None:
        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:  # a name would get an ending
                np.savez(file, **arrays)

        write_atomically(self._path(shard), save)

    def read(self, shard: int) -> dict[str, NDArray[Any]]:
        with np.load(self._path(shard), allow_pickle=False) as archive:
            return dict(archive)

    def remove(self) -> None:
        """When the numbers are written down."""
        shutil.rmtree(self.folder)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06}.npz"
