"""The nouns: conditions row by row, averages that merge exactly."""

from __future__ import annotations

import math

import torch

from align.types import Average, Condition


def test_conditions_compare_and_mix_row_by_row() -> None:
    one = Condition({"label": torch.tensor([1, 2, 3]), "mask": torch.tensor([[1, 0], [1, 1], [0, 0]])})
    two = Condition({"label": torch.tensor([1, 9, 3]), "mask": torch.tensor([[1, 0], [1, 1], [0, 1]])})
    assert one.equals(two).tolist() == [True, False, False]
    mixed = one.where(torch.tensor([False, True, True]), two)
    assert mixed.tensors["label"].tolist() == [1, 9, 3]
    assert mixed.tensors["mask"].tolist() == [[1, 0], [1, 1], [0, 1]]
    assert len(Condition.cat([one, two])) == 6
    assert one[1:].tensors["label"].tolist() == [2, 3]


def test_average_counts_what_the_mask_lets_through() -> None:
    average = Average.of(torch.tensor([1.0, 5.0, math.nan]), torch.tensor([True, True, False]))
    assert (average.total.item(), average.count.item()) == (6.0, 2)
