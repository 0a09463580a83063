"""GenEval's prompts, drawn at random from its grammar: the published 553, and others to train on that share none with them.

The draws are those of the published generator (Ghosh et al. 2023, arXiv 2310.11513), in its order, so that seed 43 gives the
published rows on any numpy whose streams are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.geneval import grammar
from evaluation.geneval.coco import COCO_NAMES, COLORS
from evaluation.geneval.grammar import COUNTS, Row, meaning, wordings
from evaluation.geneval.requests import RELATIONS

PUBLISHED_SEED = 43
# of the published evaluation_metadata.jsonl: 553 rows as JSON, a newline after each
PUBLISHED_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
NEVER_COLORED = "person"


def make_prompts(
    labels: Sequence[str] = COCO_NAMES,
    colors: Sequence[str] = COLORS,
    *,
    seed: int = PUBLISHED_SEED,
    per_tag: int = 100,
    exclude: Iterable[Row | str] = (),
) -> list[Row]:
    """GenEval metadata rows, tag by tag; as published if nothing is given: 80, 99, 80, 94, 100 and 100 of the six tags.

    Args:
        labels: classes. Each makes one prompt of the tag single_object; no prompt asks for a `person` of a colour.
        colors: names of colours.
        per_tag: draws of each of the other tags. Of equal draws one is kept, so that there may be fewer rows.
        exclude: rows, or sentences, that must not occur, nor what asks for the same: `a photo of a cat left of a dog`
            keeps out `a photo of a dog right of a cat`. Further draws do not replace them.

    Raises:
        ValueError: fewer than two classes that may be coloured or than two colours, one of them twice, or no draws.
    """
    colorable = [label for label in labels if label != NEVER_COLORED]
    for what, names in (("classes", labels), ("colours", colors)):
        if len(set(names)) < len(names):
            raise ValueError(f"the {what} {', '.join(names)} hold one twice; each must be there once")
    if min(len(colorable), len(colors), per_tag + 1) < 2:
        raise ValueError(
            f"{len(colorable)} classes that may be coloured, {len(colors)} colours and {per_tag} draws of each tag were given; "
            "at least 2, 2 and 1 are needed"
        )
    rng = np.random.default_rng(seed)

    def some(names: Sequence[str], number: int) -> list[str]:
        return [names[index] for index in rng.choice(len(names), size=number, replace=False)]

    def one(names: Sequence[Any]) -> Any:
        return names[rng.choice(len(names))]

    def position() -> Row:
        label, target = some(labels, 2)
        return grammar.position(label, one(RELATIONS), target)

    def color_attr() -> Row:
        (first, second), (first_color, second_color) = some(colorable, 2), some(colors, 2)
        return grammar.color_attr(first, first_color, second, second_color)

    draws: tuple[Callable[[], Row], ...] = (
        lambda: grammar.two_object(*some(labels, 2)),
        lambda: grammar.counting(one(labels), one(COUNTS)),
        lambda: grammar.colors(one(colorable), one(colors)),
        position,
        color_attr,
    )
    rows = [grammar.single_object(label) for label in some(labels, len(labels))]
    rows += [draw() for draw in draws for _ in range(per_tag)]
    distinct = {json.dumps(row): row for row in rows}
    return _without(distinct.values(), exclude)


def training_prompts(
    seed: int, per_tag: int, *, labels: Sequence[str] = COCO_NAMES, colors: Sequence[str] = COLORS
) -> list[Row]:
    """Rows to align with: the same grammar, another seed, nothing that the test set of these classes asks for.

    There is no row of the tag single_object: the test set asks for every class. Up to `per_tag` rows of each other tag;
    equal draws and those of the test set are left out.

    Raises:
        ValueError: the test set's own seed, or what `make_prompts` refuses.
    """
    if seed == PUBLISHED_SEED:
        raise ValueError(f"seed {seed} draws the test set; choose another to train on")
    return make_prompts(labels, colors, seed=seed, per_tag=per_tag, exclude=make_prompts(labels, colors))


def _without(rows: Iterable[Row], exclude: Iterable[Row | str]) -> list[Row]:
    unwanted = list(exclude)
    meanings = {meaning(item) for item in unwanted if isinstance(item, Mapping)}
    sentences = {_plain(item) for item in unwanted if isinstance(item, str)}
    return [row for row in rows if meaning(row) not in meanings and sentences.isdisjoint(map(_plain, wordings(row)))]


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().split()).rstrip(".")
