"""The shapes world's prompts, in GenEval's grammar, in two sets that share none.

Of every kind of combination (classes; class and number; class and colour; classes and relation; coloured classes) half is
for alignment and half is kept for tests. What says the same in another order (`a circle left of a square`, `a square right
of a circle`) stays on one side. The captions that the shipped generator was pretrained on know both halves.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np

from evaluation.geneval.grammar import Row, every_row, meaning
from evaluation.geneval.requests import TAGS
from evaluation.shapes_world.scenes import COLORS, SHAPES

SPLITS = ("align", "test")
PER_TAG = 24  # rows of each tag in a set; tags of fewer combinations repeat theirs, since GenEval weighs tags equally
_SEED = 43


def all_rows() -> list[Row]:
    """Everything that can be asked for, tag by tag."""
    return list(every_row(SHAPES, tuple(COLORS)))


@cache
def _split() -> dict[str, list[Row]]:
    rng = np.random.default_rng(_SEED)
    sets: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for tag in TAGS:
        meanings: dict[str, list[Row]] = {}
        for row in all_rows():
            if row["tag"] == tag:
                meanings.setdefault(meaning(row), []).append(row)
        order = [list(meanings)[index] for index in rng.permutation(len(meanings))]
        half = len(order) // 2
        for name, keys in (("align", order[half:]), ("test", order[:half])):
            rows = [row for key in keys for row in meanings[key]]
            sets[name] += [rows[index % len(rows)] for index in range(PER_TAG)]
    return sets


def prompt_rows(split: str) -> list[Row]:
    """GenEval metadata rows, 24 of each tag.

    Args:
        split: `align` for rollouts, rewards and pairs; `test` for evaluation.

    Raises:
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the shapes world's prompts; known: {', '.join(SPLITS)}")
    return [dict(row) for row in _split()[split]]


def vocabulary(rows: Iterable[Row]) -> list[str]:
    """All words of the rows' prompts, sorted."""
    return sorted({word for row in rows for word in row["prompt"].split()})
