"""The shapes world's prompts, in GenEval's grammar, in two sets that share none.

Of every kind of combination (classes; class and number; class and colour; classes and relation; coloured classes) a quarter
is kept for tests, and the rest is for alignment. What says the same in another order (`a circle left of a square`, `a square
right of a circle`) stays on one side. The captions that the shipped generator was pretrained on know both sets. (Half for
each is harsher than it looks: all colours of a circle that are not rewarded are then those of the tests.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache

import numpy as np

from evaluation.geneval.grammar import Row, every_row, meaning
from evaluation.geneval.requests import TAGS
from evaluation.shapes_world.scenes import COLORS, SHAPES

# rows of each tag in a set; tags of fewer combinations repeat theirs, since GenEval weighs tags equally
PER_TAG = {"align": 72, "test": 24}
FEWEST = 2  # meanings of a tag in the test set
_SEED = 43


def all_rows() -> list[Row]:
    """Everything that can be asked for, tag by tag."""
    return list(every_row(SHAPES, tuple(COLORS)))


@cache
def _split() -> dict[str, list[Row]]:
    rng = np.random.default_rng(_SEED)
    sets: dict[str, list[Row]] = {name: [] for name in PER_TAG}
    for tag in TAGS:
        meanings: dict[str, list[Row]] = {}
        for row in all_rows():
            if row["tag"] == tag:
                meanings.setdefault(meaning(row), []).append(row)
        order = [list(meanings.values())[index] for index in rng.permutation(len(meanings))]
        kept = _evenly(order, max(FEWEST, len(order) // 4))
        for name, chosen in (("align", [rows for rows in order if rows not in kept]), ("test", kept)):
            rows = [row for rows in chosen for row in rows]
            sets[name] += [rows[index % len(rows)] for index in range(PER_TAG[name])]
    return sets


def _evenly(candidates: list[list[Row]], number: int) -> list[list[Row]]:
    """So many of them, the first ones in which every word comes up as seldom as can be: no number or colour is kept for tests
    alone."""
    chosen: list[list[Row]] = []
    seen: Counter[str] = Counter()
    for _ in range(number):
        rest = [rows for rows in candidates if rows not in chosen]
        best = min(rest, key=lambda rows: sum(seen[word] for word in _words(rows)))
        chosen.append(best)
        seen.update(_words(best))
    return chosen


def _words(rows: list[Row]) -> set[str]:
    """Of all rows of one meaning; its first row's classes as a pair, too."""
    words = {word for row in rows for word in row["prompt"].removeprefix("a photo of").split()}
    return words | {" ".join(sorted(clause["class"] for clause in rows[0]["include"]))}


def prompt_rows(split: str) -> list[Row]:
    """GenEval metadata rows, PER_TAG of each tag.

    Args:
        split: `align` for rollouts, rewards and pairs; `test` for evaluation.

    Raises:
        ValueError: another split.
    """
    if split not in PER_TAG:
        raise ValueError(f"unknown split {split!r} of the shapes world's prompts; known: {', '.join(PER_TAG)}")
    return [dict(row) for row in _split()[split]]


def vocabulary(rows: Iterable[Row]) -> list[str]:
    """All words of the rows' prompts, sorted."""
    return sorted({word for row in rows for word in row["prompt"].split()})
