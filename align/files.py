"""Files that hold what a user cannot lose: written whole or not at all, and known by their hash."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

_TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A crash, a kill or a full disk leaves the old file as it was.

    Raises:
        OSError: nothing could be written; says where, and that the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's and safetensors' writers report a full disk as errors of their own
        full = getattr(error, "errno", None) == errno.ENOSPC or _looks_full(path.parent, error)
        reason = "the disk is full" if full else str(error)
        kept = "the file that was there is untouched" if path.exists() else "nothing was written"
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"could not write {path}: {reason}; {kept}. Free some space or set another output_dir",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_torsos(folder: Path) -> None:
    """Take away the temporary files that killed processes left below a folder; nobody may be writing there."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While the body runs no other process enters it with the same folder. However this one ends, the folder is free again.

    Warns where the file system has no locks, as some of clusters have not.

    Raises:
        ValueError: another one is within.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {folder}; wait for its end or end it (processes can outlive a launcher "
                "that was killed), or set another output_dir="
            ) from None
        except OSError as error:
            warnings.warn(
                f"{folder} cannot be locked ({error}): nothing keeps a second training out of it", stacklevel=3
            )
        yield
    finally:
        os.close(handle)


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def _looks_full(folder: Path, error: Exception) -> bool:
    if isinstance(error, OSError):
        return False
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize < 1 << 20 or "No space left" in str(error)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Identity of a set of weights: names, shapes, dtypes and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
