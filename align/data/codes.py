"""Token codes: images as an encoder saw them, once, with their conditions and the encoder's identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.files import write_atomically


@dataclass(frozen=True)
class Codes:
    """tokens_NL: int64 [N, L]; labels_N: int64 [N]; tokenizer: sha256 of the tokenizer's weights that made them."""

    tokens_NL: Tensor
    labels_N: Tensor
    tokenizer: str

    def __post_init__(self) -> None:
        if len(self.tokens_NL) == 0:
            raise ValueError("the dataset is empty: it holds no images; check the path or the filter that made it")
        if len(self.tokens_NL) != len(self.labels_N):
            raise ValueError(
                f"{len(self.tokens_NL)} images but {len(self.labels_N)} labels; they must match row by row"
            )

    def __len__(self) -> int:
        return len(self.tokens_NL)

    def save(self, path: Path) -> None:
        width = torch.uint8 if self.tokens_NL.max() < 256 else torch.int32
        tensors = {
            "tokens": self.tokens_NL.to(width).contiguous(),
            "labels": self.labels_N.to(torch.int32).contiguous(),
        }
        write_atomically(path, lambda temporary: save_file(tensors, temporary, {"tokenizer": self.tokenizer}))

    @staticmethod
    def load(path: Path | str) -> Codes:
        """Raises FileNotFoundError or ValueError, naming the file and what it should be."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no token codes at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).long() for name in ("tokens", "labels")}
                return Codes(tensors["tokens"], tensors["labels"], (file.metadata() or {})["tokenizer"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"{path} is not a file of token codes (safetensors with 'tokens', 'labels'): {error}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
