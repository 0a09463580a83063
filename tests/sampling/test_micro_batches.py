"""Work in parts that get smaller where memory runs out: nothing is left out, and nothing done twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from align.sampling.micro_batches import MicroBatches


def limited(rows: int, tried: list[tuple[int, int]]) -> Callable[[slice], list[int]]:
    def work(part: slice) -> list[int]:
        tried.append((part.start, part.stop))
        if part.stop - part.start > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(part.start, part.stop))

    return work


def test_parts_are_halved_until_they_fit_and_stay_so(capsys: pytest.CaptureFixture[str]) -> None:
    parts, tried = MicroBatches(8, what="rollouts"), []
    found = [(part.stop, rows) for part, rows in parts(10, limited(3, tried))]
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert found == [(end, [end - 2, end - 1]) for end in (2, 4, 6, 8, 10)]
    assert "8 rollouts at once are too many for this device's memory; going on with 4" in capsys.readouterr().err
    tried.clear()
    list(parts(4, limited(3, tried)))
    assert tried == [(0, 2), (2, 4)]


def test_a_last_part_that_is_small_already_is_halved_from_its_own_size() -> None:
    tried: list[tuple[int, int]] = []
    list(MicroBatches(64)(3, limited(1, tried)))
    assert tried == [(0, 3), (0, 1), (1, 2), (2, 3)]


def test_groups_are_never_cut_and_what_fits_nowhere_is_said() -> None:
    tried: list[tuple[int, int]] = []
    parts = MicroBatches(10, multiple=3)
    assert parts.size == 9
    list(parts(9, limited(4, tried)))
    assert tried == [(0, 9), (0, 3), (3, 6), (6, 9)]
    with pytest.raises(torch.OutOfMemoryError):
        list(MicroBatches(2, multiple=3)(9, limited(2, tried)))
