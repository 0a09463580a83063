"""What `align doctor` sees of the machine: Python, cores, memory, GPUs, disks, and whether there is a hub."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from rewards.findings import Finding, error, ok, warning

GB = 1e9
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 4 * GB, 10 * GB, 0.5 * GB
DRIVER = Path("/proc/driver/nvidia/version")  # there when the NVIDIA driver is loaded


def look_at_machine() -> Iterator[Finding]:
    yield ok("python", f"{platform.python_version()}, {platform.platform()}")
    yield _memory()
    yield from _devices()


def _memory() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = _free_memory()
    text = f"{cores} cores, {torch.get_num_threads()} threads in torch, {free / GB:.1f} GB of memory free"
    if free < LITTLE_MEMORY:
        return warning("memory", text, "end other programs; models are read into memory before they go to a GPU")
    return ok("memory", text)


def _free_memory() -> float:
    """Bytes that a program may still take, by the kernel's own estimate where it gives one."""
    file = Path("/proc/meminfo")
    if file.exists():
        sizes = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return 1024.0 * int(sizes["MemAvailable"].split()[0])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _devices() -> Iterator[Finding]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count and DRIVER.exists():
        if torch.version.cuda is None:
            advice = "this torch is a build for CPUs: install one for CUDA"
        else:
            advice = f"torch is built for CUDA {torch.version.cuda}: update the driver, or install a torch for an older CUDA; see also CUDA_VISIBLE_DEVICES"
        yield warning("gpu", "the NVIDIA driver is loaded, and torch sees no GPU", advice)
        return
    if not count:
        yield ok("gpu", "none; the shipped generators train on the CPU in minutes")
    for index in range(count):
        yield _gpu(index)


def _gpu(index: int) -> Finding:
    name = torch.cuda.get_device_name(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        right = bool((ones @ ones == 64).all())
    except RuntimeError as problem:
        first = str(problem).splitlines()[0]
        return error(f"gpu {index}", f"{name}: {first}", "see nvidia-smi: is it in use by another program, or broken?")
    with torch.cuda.device(index):
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: float32 is used"
    text = f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free, {bf16}"
    if not right:
        return error(f"gpu {index}", f"{text}; it multiplies wrongly", "do not train on it")
    if free < total / 2:
        return warning(f"gpu {index}", text, "another program holds its memory; see nvidia-smi")
    return ok(f"gpu {index}", text)


def look_at_disks(output: Path) -> Iterator[Finding]:
    """Where runs are written, where downloads go, and where temporary files do."""
    from huggingface_hub import constants

    for what, folder in (
        ("disk of output_dir", output),
        ("disk of downloads", Path(constants.HF_HUB_CACHE)),
        ("disk of temporaries", Path(tempfile.gettempdir())),
    ):
        yield _disk(what, folder.absolute())
    if constants.HF_HUB_OFFLINE:
        yield ok("hub", "HF_HUB_OFFLINE is set: only what was downloaded before, or is given by its path, is found")
    else:
        yield ok("hub", f"weights named org/name come from {constants.ENDPOINT}, where there is a network")


def _disk(what: str, folder: Path) -> Finding:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    text = f"{folder}: {free / GB:.1f} GB free"
    if not os.access(place, os.W_OK):
        return error(what, f"{folder} cannot be written", "choose another: output_dir=, HF_HOME or TMPDIR")
    if free < NO_DISK:
        return error(what, text, "make room; a checkpoint that is cut short is lost")
    if free < LITTLE_DISK:
        return warning(what, text, "enough for the shipped generators; a published one takes 1 to 10 GB a checkpoint")
    return ok(what, text)
