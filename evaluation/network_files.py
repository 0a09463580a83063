"""Files of our own small networks: safetensors that name their format in the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from evaluation.files import write_atomically


def save_network(net: nn.Module, path: str | Path, file_format: str, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights, with the format's name and what else is needed to rebuild the network; atomic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors, {"format": file_format, **(metadata or {})}))


def read_network(path: str | Path, file_format: str, *, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a file written by `save_network`.

    Args:
        what: what the network is, for messages: `classifier`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or of another format.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no {what}: not a readable safetensors file ({error}); write it again") from error
    if metadata.get("format") != file_format:
        raise ValueError(
            f"{path} is no {what}: its metadata says format {metadata.get('format')!r}, expected {file_format!r}; write it again"
        )
    return tensors, metadata
