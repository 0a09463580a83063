"""The published files as lists of names, shapes and dtypes: tensors without numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from align.tensor_files import TensorFile

LISTS: dict[str, Any] = json.loads((Path(__file__).parent / "goldens" / "published_files.json").read_text())


def meta_file(name: str) -> TensorFile:
    """The file of that name, on the meta device."""
    entry = LISTS[LISTS[name].get("same_as", name)]
    rows: list[tuple[str, list[int], str]] = []
    for row in entry["tensors"]:
        if isinstance(row, dict):
            rows += [
                (key.format(i), shape, dtype) for i in range(row["repeat"]) for key, shape, dtype in row["tensors"]
            ]
        else:
            rows.append(tuple(row))
    tensors = {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, shape, dtype in rows}
    return TensorFile(Path(f"{name}.pt"), tensors, entry["wrap"])
