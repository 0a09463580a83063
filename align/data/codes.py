"""Token codes: images as an encoder saw them, once, with their conditions and the encoder's identity."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.files import write_atomically

# class ids, int64 [N]; or a sequence that is read row by row: of class ids, each an int64 [], or of captions
Labels = Tensor | Sequence[Any]


class LazyCodes(ABC):
    """Token codes of N images in A views each, too many for memory: read row by row, from any process.

    labels_N: what each image is conditioned on.
    tokenizer: sha256 of the weights that made the codes; None where their files do not say.
    identity: sha256 that tells these codes from others, without reading them all.
    shape: (N, A, L).
    codebook_size, num_classes: tokens and class ids are below; None where that is known of a row only as it is read.
    """

    labels_N: Labels
    tokenizer: str | None
    identity: str
    shape: tuple[int, int, int]
    codebook_size: int | None
    num_classes: int | None

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """int64 [L]: the tokens of (row, view)."""


@dataclass(frozen=True)
class Codes:
    """tokens_NL: int64 [N, L]; labels_N: int64 [N], or N captions; tokenizer: sha256 of the tokenizer's weights that made
    them."""

    tokens_NL: Tensor
    labels_N: Labels
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
        """One safetensors file; of captions each is written once."""
        width = torch.uint8 if self.tokens_NL.max() < 256 else torch.int32
        facts, labels_N = {"tokenizer": self.tokenizer}, self.labels_N
        if not isinstance(labels_N, Tensor):
            numbers = {caption: number for number, caption in enumerate(dict.fromkeys(labels_N))}
            facts["captions"] = json.dumps(list(numbers))
            labels_N = torch.tensor([numbers[caption] for caption in labels_N])
        tensors = {"tokens": self.tokens_NL.to(width).contiguous(), "labels": labels_N.to(torch.int32).contiguous()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, facts))

    @staticmethod
    def load(path: Path | str) -> Codes:
        """Raises FileNotFoundError or ValueError, naming the file and what it should be."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no token codes at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                tokens_NL, labels_N = (file.get_tensor(name).long() for name in ("tokens", "labels"))
                facts = file.metadata() or {}
                if "captions" in facts:
                    captions = json.loads(facts["captions"])
                    return Codes(tokens_NL, [captions[number] for number in labels_N.tolist()], facts["tokenizer"])
                return Codes(tokens_NL, labels_N, facts["tokenizer"])
        except (SafetensorError, KeyError, IndexError) as error:
            raise ValueError(
                f"{path} is not a file of token codes (safetensors with 'tokens', 'labels'): {error}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
