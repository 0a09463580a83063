"""The order of training, as a pure function of (seed, position).

Position j alone decides which row is seen, which other row lends it a negative condition, and whether its label is
dropped. Micro-batch size, accumulation, number of ranks and resuming therefore cannot change what is trained on, and
negatives are as good in a micro-batch of one as in one of 256 (rolling labels inside a micro-batch is not).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from align.data.codes import Codes, Labels, LazyCodes
from align.data.negatives import Alternatives, check_alternatives, swap_word
from align.files import sha256_of_tensors

# separate the random streams that share a seed
_ORDER, _ROW = 1, 2


class Stream(Dataset[dict[str, Any]]):
    """Samples 0..length-1 of an endless reshuffled pass over rows with a class label or a caption each.

    Each item: a row of every field, label and negative_label ([] or str), dropped [] bool, position []. The negative
    label is that of another row drawn uniformly, so it follows the labels' marginal and may collide; or
    `negative_label`, for every row, where that is set; or, with `hard_negatives`, the row's own caption with one word
    changed, wherever it has one. Of a field with several views one is drawn.

    Args:
        fields: what each row holds: tensors [N, ...], tensors of views [N, A, L], or codes that are read lazily.
        labels_N: int64 [N], or a sequence of labels or captions.
        source: identity of what made the fields; part of the fingerprint.
        hard_negatives: lists of words that exclude each other; see `align.data.negatives`.

    Raises:
        ValueError: label_drop is no probability, negative_label is no condition of these rows, or hard negatives of classes.
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor | LazyCodes],
        labels_N: Labels,
        *,
        source: str,
        length: int,
        seed: int,
        label_drop: float,
        negative_label: int | str | None = None,
        hard_negatives: Alternatives = (),
    ) -> None:
        if not 0 <= label_drop <= 1:
            raise ValueError(f"label_drop is {label_drop}; it is a probability, in [0, 1]")
        if isinstance(negative_label, int) and negative_label < 0:
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
        self.hard_negatives = [list(words) for words in hard_negatives]
        self._order = lru_cache(maxsize=2)(self._shuffled)
        if negative_label is not None and isinstance(negative_label, str) != isinstance(self._condition(0), str):
            raise ValueError(
                f"negative_label is {negative_label!r}, and the images have {'captions' if isinstance(negative_label, int) else 'class labels'}"
            )

        check_alternatives(hard_negatives)
        if hard_negatives and (negative_label is not None or not isinstance(self._condition(0), str)):
            raise ValueError(
                "hard_negatives change a word of an image's own caption: they take captions, and negative_label=null"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Identity of everything that the stream's samples depend on; what is read lazily counts by its own."""
        recipe = f"{self.seed} {self.label_drop} {self.negative_label} {self.length} {self.source}"
        recipe += f" {self.hard_negatives}" if self.hard_negatives else ""
        columns = {"labels": self.labels_N, **self.fields}
        for name, column in columns.items():
            if not isinstance(column, Tensor):
                recipe += f" {name} {_identity(column)}"
        tensors = {name: column for name, column in columns.items() if isinstance(column, Tensor)}
        return sha256_of_tensors({recipe: tensors.pop("labels", torch.empty(0)), **tensors})

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([_ORDER, self.seed, epoch]).permutation(len(self.labels_N))

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, offset = divmod(position, len(self.labels_N))
        row = int(self._order(epoch)[offset])
        rng = np.random.default_rng([_ROW, self.seed, position])
        dropped = rng.random() < self.label_drop
        negative = self._condition(int(rng.integers(len(self.labels_N))))
        if self.negative_label is not None:
            fixed = self.negative_label
            negative = fixed if isinstance(fixed, str) else torch.full_like(negative, fixed)
        if self.hard_negatives:
            negative = swap_word(self._condition(row), self.hard_negatives, rng) or negative
        return {
            **self._item(row, rng),
            "negative_label": negative,
            "dropped": torch.tensor(dropped),
            "position": torch.tensor(position),
        }

    def _condition(self, row: int) -> Any:
        """int64 [], or a caption."""
        return self.labels_N[row]

    def _item(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        """Fields and label of a row."""
        drawn = {name: _drawn(field, row, rng) for name, field in self.fields.items()}
        return {**drawn, "label": self._condition(row)}


class TrainingStream(Stream):
    """Real images: each item holds tokens [L] beside what every `Stream` gives."""

    def __init__(
        self,
        codes: Codes | LazyCodes,
        *,
        length: int,
        seed: int,
        label_drop: float,
        negative_label: int | str | None = None,
        hard_negatives: Alternatives = (),
    ) -> None:
        super().__init__(
            {"tokens": codes.tokens_NL if isinstance(codes, Codes) else codes},
            codes.labels_N,
            source=codes.tokenizer or "unknown",
            length=length,
            seed=seed,
            label_drop=label_drop,
            negative_label=negative_label,
            hard_negatives=hard_negatives,
        )


def _drawn(field: Tensor | LazyCodes, row: int, rng: np.random.Generator) -> Tensor:
    """A row of a field; of its views, one. The draw comes after those of the row's condition, which it must not move."""
    if isinstance(field, Tensor) and field.dim() < 3:
        return field[row]
    views = field.shape[1]
    return field[row, int(rng.integers(views)) if views > 1 else 0]


def _identity(column: Any) -> str:
    known = getattr(column, "identity", None)
    return known if known is not None else hashlib.sha256(repr(list(column)).encode()).hexdigest()
