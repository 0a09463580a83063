"""Weights that are the same with every version of every library."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module | Mapping[str, Tensor])


@torch.no_grad()
def fill(model: Model, seed: int) -> Model:
    """Write into every floating tensor numbers that depend on its name, its shape and the seed alone; returns the model.

    Matrices and embeddings are uniform with variance 1 / (numbers in a row), so that signals neither die nor grow; norms'
    weights (one-dimensional, named `weight`) are in 1 ± 0.1; biases and the rest are in ± 0.1.
    """
    for name, tensor in (model.state_dict() if isinstance(model, nn.Module) else model).items():
        if not tensor.is_floating_point():
            continue
        # the bits of a PCG64 and what becomes of them as uniform numbers are fixed; normal numbers may change with numpy
        stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        values = torch.from_numpy(np.asarray(2 * stream.random(tuple(tensor.shape)) - 1))
        if tensor.ndim >= 2:
            values *= math.sqrt(3 / (tensor.numel() / len(tensor)))
        else:
            values = 0.1 * values + (name.rpartition(".")[2] == "weight")
        tensor.copy_(values)
    return model
