"""The reference that the policy is measured against: a frozen copy, or its log-probs computed once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from align.data.stream import TrainingStream
from align.files import sha256_of_tensors, write_atomically
from align.generators.base import Generator
from align.progress import progress_bar
from align.training.contrast import conditions, score_images
from align.types import Condition


class Reference(Protocol):
    """Gives the log-probs of a training batch under the reference."""

    fingerprint: str  # sha256 of the reference's weights

    def score(self, batch: Mapping[str, Tensor], given: list[Condition]) -> Tensor:
        """float32 [K, B]: log p of each row's image given each condition, nats, without gradient."""


class FrozenReference:
    """A copy of the generator as it is now, in eval mode, never trained."""

    def __init__(self, generator: Generator) -> None:
        self.fingerprint = sha256_of_tensors(generator.state_dict())
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)

    def score(self, batch: Mapping[str, Tensor], given: list[Condition]) -> Tensor:
        self.generator.to(batch["tokens"].device)
        with torch.no_grad():
            return score_images(self.generator, batch["tokens"], given).logprobs_KB


class CachedReference:
    """Log-probs of a whole training stream, computed in one pass, so that the reference can leave memory.

    They belong to positions of the stream: another seed, label drop, dataset or reference makes them worthless, so a
    stored table carries the hash of all of those and is refused against others.
    """

    def __init__(self, table_NK: Tensor, fingerprint: str) -> None:
        self.table_NK = table_NK
        self.fingerprint = fingerprint

    def score(self, batch: Mapping[str, Tensor], given: list[Condition]) -> Tensor:
        if len(given) > self.table_NK.shape[1]:
            raise ValueError(
                f"the cached reference holds {self.table_NK.shape[1]} log-probs an image; {len(given)} were asked for"
            )
        rows = self.table_NK[batch["position"].cpu()].T
        return rows[: len(given)].to(batch["tokens"].device)

    @staticmethod
    def compute(generator: Generator, stream: TrainingStream, *, batch_size: int) -> CachedReference:
        """One pass of the reference over the stream."""
        reference = FrozenReference(generator)
        bar = progress_bar(total=len(stream), description="reference log-probs", unit="img")
        columns = []
        for batch in DataLoader(stream, batch_size=batch_size):
            batch = {name: tensor.to(generator.device) for name, tensor in batch.items()}
            own, negative, _ = conditions(generator, batch)
            columns.append(reference.score(batch, [own, negative]).T.cpu())
            bar.update(len(batch["tokens"]))
        bar.close()
        return CachedReference(torch.cat(columns), reference.fingerprint)

    def save(self, path: Path, stream: TrainingStream) -> None:
        metadata = {"reference": self.fingerprint, "stream": stream.fingerprint}
        write_atomically(
            path, lambda temporary: save_file({"logprobs": self.table_NK.contiguous()}, temporary, metadata)
        )

    @staticmethod
    def load(path: Path, generator: Generator, stream: TrainingStream) -> CachedReference:
        """Raises ValueError when the table belongs to another reference or another stream."""
        with safe_open(path, framework="pt") as file:
            metadata, table = file.metadata(), file.get_tensor("logprobs")
        expected = {"reference": sha256_of_tensors(generator.state_dict()), "stream": stream.fingerprint}
        for name, value in expected.items():
            if metadata.get(name) != value:
                raise ValueError(
                    f"{path} was computed with another {name}: {metadata.get(name, 'unknown')[:12]}, now {value[:12]}; delete the file to compute it anew"
                )
        return CachedReference(table, expected["reference"])
