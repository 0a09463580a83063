"""The nouns: conditions row by row, averages that merge exactly."""

from __future__ import annotations

import math

import pytest
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


def text(*rows: list[int]) -> Condition:
    """A token each of so many; its length is the longest row's."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    return Condition({"label": torch.zeros(len(rows)), "ids": ids, "mask": ids > 0, "features": ids[..., None] * 0.5})


def test_texts_of_several_lengths_stand_right_aligned() -> None:
    short, long = text([1, 2], [3]), text([1, 2, 3, 4], [3])
    for name in ("ids", "mask", "features"):
        joined = Condition.cat([short, long, short]).tensors[name]
        assert joined.dtype == short.tensors[name].dtype
        assert torch.equal(joined, text([1, 2], [3], [1, 2, 3, 4], [3], [1, 2], [3]).tensors[name])
    for one, two in ((short, long), (long, short)):
        assert one.equals(two).tolist() == [False, True]
        mixed = one.where(torch.tensor([True, False]), two)
        expected = text(two.tensors["ids"][0][two.tensors["mask"][0]].tolist(), [3])
        assert mixed.equals(expected).all()
        assert mixed.tensors["features"].shape == (2, 4, 1)
    assert len(Condition.cat([short, long])) == 4


def test_other_shapes_than_the_length_must_agree() -> None:
    one, two = (Condition({"features": torch.zeros(2, length, width)}) for length, width in ((3, 4), (2, 5)))
    for join in (lambda: Condition.cat([one, two]), lambda: one.equals(two)):
        with pytest.raises(RuntimeError):
            join()


def test_equal_shapes_are_not_touched() -> None:
    tensors = [torch.rand(2, 3), torch.rand(2, 3)]
    one, two = (Condition({"features": tensor}) for tensor in tensors)
    assert torch.equal(Condition.cat([one, two]).tensors["features"], torch.cat(tensors))
    kept = one.where(torch.tensor([True, False]), two).tensors["features"]
    assert torch.equal(kept, torch.stack([tensors[1][0], tensors[0][1]]))


def test_average_counts_what_the_mask_lets_through() -> None:
    average = Average.of(torch.tensor([1.0, 5.0, math.nan]), torch.tensor([True, True, False]))
    assert (average.total.item(), average.count.item()) == (6.0, 2)
