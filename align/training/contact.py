"""Whether an error is this process's own, or only says that another one is gone."""

from __future__ import annotations

import torch

# how gloo and NCCL put it where they raise a plain RuntimeError
_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "/gloo/", "NCCL")


def lost_contact(error: BaseException) -> bool:
    """Of a collective that another process did not come to, or left."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
