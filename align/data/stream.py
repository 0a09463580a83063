"""The order of training, as a pure function of (seed, position).

Position j alone decides which image is seen, which other image lends it a negative condition, and whether its label is
dropped. Micro-batch size, accumulation, number of ranks and resuming therefore cannot change what is trained on, and
negatives are as good in a micro-batch of one as in one of 256 (rolling labels inside a micro-batch is not).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from align.data.codes import Codes
from align.files import sha256_of_tensors

# separate the random streams that share a seed
_ORDER, _ROW = 1, 2


class TrainingStream(Dataset[dict[str, Tensor]]):
    """Samples 0..length-1 of an endless reshuffled pass over the data.

    Each item: tokens [L], label [], negative_label [] (of another image drawn uniformly, so it follows the labels'
    marginal and may collide), dropped [] bool, position [].
    """

    def __init__(self, codes: Codes, *, length: int, seed: int, label_drop: float) -> None:
        if not 0 <= label_drop <= 1:
            raise ValueError(f"label_drop is {label_drop}; it is a probability, in [0, 1]")
        self.codes = codes
        self.length = length
        self.seed = seed
        self.label_drop = label_drop
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Identity of everything that the stream's samples depend on."""
        recipe = f"{self.seed} {self.label_drop} {self.length} {self.codes.tokenizer}"
        return sha256_of_tensors({recipe: self.codes.tokens_NL, "labels": self.codes.labels_N})

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([_ORDER, self.seed, epoch]).permutation(len(self.codes))

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, offset = divmod(position, len(self.codes))
        row = self._order(epoch)[offset]
        rng = np.random.default_rng([_ROW, self.seed, position])
        dropped = rng.random() < self.label_drop
        negative = rng.integers(len(self.codes))
        return {
            "tokens": self.codes.tokens_NL[row],
            "label": self.codes.labels_N[row],
            "negative_label": self.codes.labels_N[negative],
            "dropped": torch.tensor(dropped),
            "position": torch.tensor(position),
        }
