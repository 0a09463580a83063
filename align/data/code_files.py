"""From a path to the token codes that lie there, whatever their layout."""

from __future__ import annotations

from pathlib import Path

from align.data.codes import Codes, LazyCodes
from align.data.npy_codes import NpyCodes, find_npy_codes
from align.data.shard_codes import ShardCodes
from align.data.shards import MANIFEST, SETTINGS


def open_codes(
    path: Path | str,
    *,
    conditions: str = "auto",
    codebook_size: int | None = None,
    num_classes: int | None = None,
    partial: bool = False,
) -> Codes | LazyCodes:
    """Token codes from a .safetensors file, a folder of shards, or LlamaGen's folders of .npy files.

    Args:
        conditions: of shards: `label`, `caption`, or `auto` for captions where there are any.
        codebook_size, num_classes: of the generator that will read them; layouts that do not tell their ranges are
            checked against these row by row.
        partial: also a folder of shards that is not whole yet.

    Raises:
        FileNotFoundError: nothing at the path.
        ValueError: none of these layouts, or a file that is damaged.
    """
    path = Path(path)
    if (path / MANIFEST).exists() or (path / SETTINGS).exists():
        return ShardCodes(path, conditions=conditions, partial=partial)
    if (found := find_npy_codes(path)) is not None:
        return NpyCodes(found, codebook_size=codebook_size, num_classes=num_classes)
    if path.is_dir():
        raise ValueError(
            f"{path} holds no token codes: neither {MANIFEST} (as `align data encode` writes) nor *_codes and *_labels "
            "with .npy files (as LlamaGen's extraction does)"
        )
    return Codes.load(path)
