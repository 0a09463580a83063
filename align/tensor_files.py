"""Checkpoint files as they are found: read without running code from them, and written back in the form they had."""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.files import write_atomically, write_text

# How a state_dict lies in published files: under one of these keys (a/b: under b in a), or bare (None). `vae` is
# Infinity's tokenizer; the last three are VAR's, Infinity's and CCA's training files.
WRAPPERS = ("model", "module", "state_dict", "vae", "trainer/var_wo_ddp", "trainer/gpt_fsdp", "trainer")
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_SAFETENSORS_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    },
}
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class TensorFile:
    """A checkpoint as read.

    tensors: in the file's order, mapped to it: they take no memory until they are looked at, and what is written into
        them stays in memory. The file itself must not be overwritten in place meanwhile; our own writers replace it.
    wrapper: the key that they were under (None: bare).
    content: of a file in torch's format all that it holds, tensors included; of a folder, that of its only weight file.
    shards: of a folder with several weight files, the file of each tensor.
    metadata: of a safetensors file.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str | None = None
    content: Any = None
    shards: Mapping[str, str] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorFile:
        return self  # it is a file: copies of a generator share it

    @property
    def suffix(self) -> str:
        """What a name for a file of this form ends in; empty for a folder."""
        return "" if self.path.is_dir() else ".safetensors" if self.path.suffix == ".safetensors" else ".pt"

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings that a training file carries."""
        found = self.content.get("args") if isinstance(self.content, Mapping) else None
        if isinstance(found, argparse.Namespace):
            return vars(found)
        return dict(found) if isinstance(found, Mapping) else {}

    def save(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write this file again with other values: its form, key order and dtypes, and all else that it holds.

        Names that it lacks are added at the end. A path that ends like a file's name gives one file; any other gives a
        folder, if this is one.

        Raises:
            OSError: nothing could be written; what was there stays.
        """
        merged = {name: _as(tensors[name], old) if name in tensors else old for name, old in self.tensors.items()}
        merged |= {name: tensor for name, tensor in tensors.items() if name not in merged}
        path = Path(path)
        if self.path.is_dir() and path.suffix not in SUFFIXES:
            self._save_folder(merged, path)
        elif path.suffix == ".safetensors" or self.content is None:
            save_tensors(path, merged, self.wrapper, self.metadata)
        else:
            _save_torch(path, _rewrapped(self.content, self.wrapper, merged), _archive_name(self.path))

    def _save_folder(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        names = list((self.shards or {}).values()) or [_single_file(self.path).name]
        shards = {name: (self.shards or {}).get(name, names[-1]) for name in tensors}
        path.mkdir(parents=True, exist_ok=True)
        for source in self.path.iterdir():  # its settings and text tokenizer, but not other forms of the same weights
            if source.is_file() and source.suffix not in SUFFIXES and source.name not in INDEX_FILES:
                write_atomically(path / source.name, partial(shutil.copyfile, source))
        for shard in dict.fromkeys(names):
            part = {name: tensors[name] for name in tensors if shards[name] == shard}
            archive_name = _archive_name(self.path / shard)
            if self.content is None:
                save_tensors(path / shard, part, self.wrapper, self.metadata, archive_name)
            else:
                _save_torch(path / shard, _rewrapped(self.content, self.wrapper, part), archive_name)
        if self.shards is None:
            return
        index_name = INDEX_FILES[0] if names[0].endswith(".safetensors") else INDEX_FILES[1]
        if shards == self.shards:  # it may tell more than we would
            write_atomically(path / index_name, partial(shutil.copyfile, self.path / index_name))
        else:
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(shards.items()))}
            write_text(path / index_name, json.dumps(index, indent=2) + "\n")


def _as(tensor: Tensor, old: Tensor) -> Tensor:
    return tensor.detach().to("cpu", old.dtype)


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    wrapper: str | None = None,
    metadata: Mapping[str, str] | None = None,
    archive_name: str | None = None,
) -> None:
    """Write a state_dict: safetensors if the name ends so, torch's format (wrapped in `wrapper`) otherwise."""
    contiguous = {name: _own(tensor.detach().cpu()) for name, tensor in tensors.items()}
    if Path(path).suffix == ".safetensors":
        write_atomically(path, lambda temporary: save_file(contiguous, temporary, dict(metadata or {}) or None))
    else:
        content: dict[str, Any] = contiguous
        for key in reversed(wrapper.split("/") if wrapper else []):
            content = {key: content}
        _save_torch(path, content, archive_name)


def _archive_name(path: Path) -> str | None:
    """What the archive inside a torch file is called, so that it is written again to the last byte; None: by a handle."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        name = archive.namelist()[0].partition("/")[0]
    return None if name == "archive" else name


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, on a storage of its own: torch would write the whole of a mapped file with every view of it."""
    tensor = tensor.contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _save_torch(path: Path, content: Any, archive_name: str | None = None) -> None:
    """The bytes do not depend on the path: torch names the archive inside after its file, and "archive" in a handle."""

    def write(temporary: Path) -> None:
        if archive_name is None:
            with temporary.open("wb") as file:
                torch.save(content, file)
        else:
            with TemporaryDirectory(dir=temporary.parent) as folder:
                named = Path(folder) / f"{archive_name}.pt"
                torch.save(content, named)
                named.replace(temporary)

    write_atomically(path, write)


def _rewrapped(content: Any, wrapper: str | None, tensors: Mapping[str, Tensor]) -> Any:
    """A copy of the content in which the state_dict holds these tensors; its other entries stay."""
    copied = copy.copy(content)  # keeps the type, and the version notes that torch attaches to a state_dict
    if wrapper is None:
        copied.update({name: _own(tensor) for name, tensor in tensors.items()})
        return copied
    key, _, rest = wrapper.partition("/")
    copied[key] = _rewrapped(content[key], rest or None, tensors)
    return copied


def read_tensors(path: Path) -> TensorFile:
    """Read a checkpoint's tensors, memory-mapped, without ever running code that the file carries.

    Args:
        path: a file in torch's or the safetensors format, or a folder in the manner of Hugging Face (sharded or not).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated, not a checkpoint, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        tensors, metadata = _load_safetensors(path)
        return TensorFile(path, _checked(tensors, path, tensors), metadata=metadata)
    content = _load_torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dictionary of named tensors was expected")
    wrapper = next((name for name in WRAPPERS if _unwrap(content, name) is not None), None)
    state = content if wrapper is None else _unwrap(content, wrapper) or {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    return TensorFile(path, _checked(tensors, path, content), wrapper, content)


def _checked(tensors: dict[str, Tensor], path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors under its top level or {', '.join(WRAPPERS)}; its keys: {sorted(map(str, content))[:8]}"
        )
    return tensors


def _read_folder(folder: Path) -> TensorFile:
    index = next((folder / name for name in INDEX_FILES if (folder / name).exists()), None)
    if index is None:
        file = read_tensors(_single_file(folder))
        return TensorFile(folder, file.tensors, file.wrapper, file.content, metadata=file.metadata)
    try:
        shards: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{index} is not an index of weight files ({error}); download it again") from error
    names = sorted(set(shards.values()))
    if absent := [name for name in names if not (folder / name).exists()]:
        raise ValueError(f"{folder} is not whole: {index.name} names {', '.join(absent[:4])}; download what is missing")
    files = {name: read_tensors(folder / name) for name in names}
    tensors = {key: tensor for name in names for key, tensor in files[name].tensors.items()}
    if lost := [key for key in shards if key not in tensors]:
        raise ValueError(
            f"{folder} is not whole: {len(lost)} tensors of its index are in no file, {', '.join(lost[:4])}"
        )
    shards = {key: name for name in names for key in files[name].tensors}
    return TensorFile(folder, tensors, files[names[0]].wrapper, shards=shards, metadata=files[names[0]].metadata)


def _single_file(folder: Path) -> Path:
    """The one weight file of a folder."""
    for preferred in ("model.safetensors", "pytorch_model.bin"):
        if (folder / preferred).exists():
            return folder / preferred
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(found) != 1:
        raise ValueError(
            f"{folder} is a folder with {len(found)} weight files ({', '.join(file.name for file in found[:5])}) and no "
            f"index ({', '.join(INDEX_FILES)}); name the file"
        )
    return found[0]


def _unwrap(content: Any, wrapper: str) -> Mapping[Any, Any] | None:
    for key in wrapper.split("/"):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else None


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            mapped = _map_safetensors(path)
            tensors = {name: mapped[name] if name in mapped else file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, ValueError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from error


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that is known to be whole, of torch's common dtypes, where they are aligned.

    get_tensor would read a page of each, and the system megabytes around it: 1.4 s of a 3 GB file that nobody has read yet.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header: dict[str, Any] = json.loads(handle.read(length))
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    found = {}
    for name, entry in header.items():
        dtype = _SAFETENSORS_DTYPES.get(entry.get("dtype"))
        if name == "__metadata__" or dtype is None:
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if start % dtype.itemsize == 0:
            found[name] = torch.empty(0, dtype=dtype).set_(storage[start:end]).view(entry["shape"])
    return found


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
