"""Where the models of rewards run, and in what precision."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str) -> torch.device:
    """The device that a setting names: `auto` is this process's current GPU, or the CPU where there is none.

    A GPU is returned with its index, so that it stays the same one in a thread with another current GPU.

    Raises:
        ValueError: no device of that name, or a GPU that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; allowed: auto, cpu, cuda, cuda:0, cuda:1, ...") from error
    if picked.type == "cuda":
        count = torch.cuda.device_count()
        index = picked.index if picked.index is not None else torch.cuda.current_device() if count else 0
        if index >= count:
            raise ValueError(f"device {device!r} is not here: {count} GPUs are seen. Take another, or auto")
        picked = torch.device("cuda", index)
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The precision that a setting names: `auto` is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: another name than auto, float32, bfloat16 and float16.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
