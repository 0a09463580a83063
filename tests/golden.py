"""Golden numbers of the original authors' code, and the random weights they were made with."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "goldens"


def load(name: str) -> dict[str, Any]:
    return torch.load(FOLDER / f"{name}.pt", weights_only=True)


def weights(golden: dict[str, Any]) -> dict[str, Tensor]:
    """The state_dict of a golden's `spec` [(name, shape, dtype, fill)], each tensor from its own named stream."""
    tensors = {
        name: _fill(name, tuple(shape), dtype, fill, golden["seed"]) for name, shape, dtype, fill in golden["spec"]
    }
    assert _checksum(tensors) == golden["sha256"], "the golden weights were not rebuilt exactly"
    return tensors


def _fill(name: str, shape: tuple[int, ...], dtype: str, fill: tuple[Any, ...], seed: int) -> Tensor:
    if fill[0] == "zeros":
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    if fill[0] in ("lvl", "bias_mask"):  # VAR's buffers: each token's scale, and the mask between scales
        level = torch.tensor([scale for scale, side in enumerate(fill[1]) for _ in range(side * side)])
        hidden = level.unsqueeze(1) < level
        tensor = level if fill[0] == "lvl" else torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        return tensor.view(shape).to(getattr(torch, dtype))
    _, centre, half_width = fill
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
    values = rng.random(size=shape, dtype=np.float32)
    # in place and in this order: the last bits depend on it
    values *= np.float32(2.0)
    values -= np.float32(1.0)
    values *= np.float32(half_width)
    values += np.float32(centre)
    return torch.from_numpy(values).to(getattr(torch, dtype))


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + str(tensor.dtype).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
