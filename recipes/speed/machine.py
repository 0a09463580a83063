"""The machine: its clock, its memory, and how fast it reads and multiplies."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGES = ("torch", "transformers", "trl", "torch-fidelity", "scipy", "numpy")
READS = 12  # of which the best counts


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def interleaved(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, `repeats` times, in turn, so that what else the machine does hits all alike.

    Each round begins with another one. What warms up must have run before.
    """
    names = list(works)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(seconds_of(works[name]))
    return found


def median_ratio(others: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as long the other took: the median over the rounds, in each of which both ran."""
    return statistics.median(other / own for other, own in zip(others, ours, strict=True))


def read_bandwidth(num_bytes: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second at which so many are read: the best of a dot product, a matrix by a vector, and a matrix by eight rows.

    As many as a step of sampling reads, so that a cache that holds the weights counts for the floor as well.
    """
    width = 4096
    wide = torch.ones(max(num_bytes // 4 // width, 1), width, device=device)
    narrow = torch.ones(max(num_bytes // dtype.itemsize // width, 1), width, device=device, dtype=dtype)
    first, second = wide.flatten().chunk(2)
    vector, rows = torch.ones(width, device=device), torch.ones(8, width, device=device, dtype=dtype)
    works: dict[Tensor, list[Callable[[], object]]] = {
        wide: [lambda: torch.dot(first, second), lambda: wide @ vector],
        narrow: [lambda: F.linear(rows, narrow)],
    }
    best = 0.0
    for buffer, reads in works.items():
        for read in reads:
            read()
            fastest = min(seconds_of(read) for _ in range(READS))
            best = max(best, buffer.numel() * buffer.element_size() / fastest)
    return best


def matmul_rate(rows: int, width: int, into: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of [rows, width] @ [width, into], the best of several."""
    a = torch.randn(rows, width, device=device).to(dtype)
    b = torch.randn(into, width, device=device).to(dtype)
    F.linear(a, b)
    return 2 * rows * width * into / min(seconds_of(lambda: F.linear(a, b)) for _ in range(READS))


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Of the GPU since `reset_peak`, or of the whole process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if (status := Path("/proc/self/status")).exists():
        # ru_maxrss of a process begins with that of the one that started it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
