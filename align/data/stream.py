"""The order of training, as a pure function of (seed, position).

Position j alone decides which row is seen, which other row lends it a negative condition, and whether its label is
dropped. Micro-batch size, accumulation, number of ranks and resuming therefore cannot change what is trained on, and
negatives are as good in a micro-batch of one as in one of 256 (rolling labels inside a micro-batch is not).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from align.data.codes import Codes
from align.files import sha256_of_tensors

# separate the random streams that share a seed
_ORDER, _ROW = 1, 2


class Stream(Dataset[dict[str, Tensor]]):
    """Samples 0..length-1 of an endless reshuffled pass over labelled rows.

    Each item: a row of every field, label [], negative_label [], dropped [] bool, position []. The negative label is
    that of another row drawn uniformly, so it follows the labels' marginal and may collide; or `negative_label`, for
    every row, where that is set.

    Args:
        fields: tensors whose first dimension is the row.
        labels_N: int64 [N].
        source: identity of what made the fields; part of the fingerprint.

    Raises:
        ValueError: label_drop is no probability, or negative_label is below 0.
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor],
        labels_N: Tensor,
        *,
        source: str,
        length: int,
        seed: int,
        label_drop: float,
        negative_label: int | None = None,
    ) -> None:
        if not 0 <= label_drop <= 1:
            raise ValueError(f"label_drop is {label_drop}; it is a probability, in [0, 1]")
        if negative_label is not None and negative_label < 0:
            raise ValueError(
                f"negative_label is {negative_label}; it must be a class, at least 0, or None for that of another row"
            )
        self.fields = dict(fields)
        self.labels_N = labels_N
        self.source = source
        self.length = length
        self.seed = seed
        self.label_drop = label_drop
        self.negative_label = negative_label
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Identity of everything that the stream's samples depend on."""
        recipe = f"{self.seed} {self.label_drop} {self.negative_label} {self.length} {self.source}"
        return sha256_of_tensors({recipe: self.labels_N, **self.fields})

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([_ORDER, self.seed, epoch]).permutation(len(self.labels_N))

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, offset = divmod(position, len(self.labels_N))
        row = self._order(epoch)[offset]
        rng = np.random.default_rng([_ROW, self.seed, position])
        dropped = rng.random() < self.label_drop
        negative = self.labels_N[rng.integers(len(self.labels_N))]
        if self.negative_label is not None:
            negative = torch.full_like(negative, self.negative_label)
        return {
            **{name: tensor[row] for name, tensor in self.fields.items()},
            "label": self.labels_N[row],
            "negative_label": negative,
            "dropped": torch.tensor(dropped),
            "position": torch.tensor(position),
        }


class TrainingStream(Stream):
    """Real images: each item holds tokens [L] beside what every `Stream` gives."""

    def __init__(
        self, codes: Codes, *, length: int, seed: int, label_drop: float, negative_label: int | None = None
    ) -> None:
        super().__init__(
            {"tokens": codes.tokens_NL},
            codes.labels_N,
            source=codes.tokenizer,
            length=length,
            seed=seed,
            label_drop=label_drop,
            negative_label=negative_label,
        )
