"""Files that hold what a user cannot lose: written whole or not at all, read without running code from them."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

# How a state_dict lies in published files: under one of these keys (a/b: under b in a), or bare (None). The last two
# are VAR's and CCA's training files.
WRAPPERS = ("model", "module", "state_dict", "trainer/var_wo_ddp", "trainer")


@dataclass(frozen=True)
class TensorFile:
    """A checkpoint as read: its tensors in the file's order, and the key they were wrapped in (None: bare)."""

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str | None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A crash, a kill or a full disk leaves the old file as it was.

    Raises:
        OSError: nothing could be written; says where, and that the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def save_tensors(path: Path, tensors: Mapping[str, Tensor], wrapper: str | None = None) -> None:
    """Write a state_dict: safetensors if the name ends so, torch's format (wrapped in `wrapper`) otherwise."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if Path(path).suffix == ".safetensors":
        write_atomically(path, lambda temporary: save_file(contiguous, temporary))
    else:
        content: dict[str, Any] = contiguous
        for key in reversed(wrapper.split("/") if wrapper else []):
            content = {key: content}
        write_atomically(path, lambda temporary: torch.save(content, temporary))


def read_tensors(path: Path) -> TensorFile:
    """Read a checkpoint's tensors, memory-mapped, without ever running code that the file carries.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated, not a checkpoint, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a checkpoint file was expected (.pt, .pth or .safetensors)")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dictionary of named tensors was expected")
    wrapper = next((name for name in WRAPPERS if _unwrap(content, name) is not None), None)
    state = content if wrapper is None else _unwrap(content, wrapper) or {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors under its top level or {', '.join(WRAPPERS)}; its keys: {sorted(map(str, content))[:8]}"
        )
    return TensorFile(path, tensors, wrapper)


def _unwrap(content: Any, wrapper: str) -> Mapping[Any, Any] | None:
    for key in wrapper.split("/"):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else None


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from error


def _load_torch(path: Path) -> Any:
    try:
        # training files of LlamaGen and CCA carry their argparse.Namespace; nothing else but tensors is allowed
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "unsupported GLOBAL" in str(error):
            raise ValueError(
                f"{path} carries Python code or objects, and was not run. Only tensors (and argparse.Namespace) are "
                "read; re-save its state_dict with torch.save, or as safetensors, on a machine that trusts it"
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or was cut short; download or copy it again") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path} is not a checkpoint, or was cut short ({error}); download it again") from error


def sha256_of_file(path: Path) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Identity of a set of weights: names, shapes, dtypes and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(
                tensor.view(torch.uint8).numpy().tobytes()
                if tensor.dim()
                else bytes(tensor.view(1).view(torch.uint8).numpy())
            )
    return digest.hexdigest()
