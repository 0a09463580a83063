"""The arithmetic of extractors: float32 as it was published, whatever the training around it has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no TF32, and the algorithms of cuDNN that give the same numbers again.

    TF32 keeps 10 bits of a product's factors, and torch has it on for convolutions. The settings are the process's: while
    this runs, other threads have them too.
    """
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(
                enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
