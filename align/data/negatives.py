"""Hard negative captions: an image's own with one word changed, so that a contrast teaches that very word."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

Alternatives = Sequence[Sequence[str]]


def swap_word(caption: str, alternatives: Alternatives, rng: np.random.Generator) -> str | None:
    """The caption with one word (or phrase) replaced by another of its list; None where none of them is in it.

    Args:
        alternatives: lists of words that exclude each other, as [["red", "blue"], ["left of", "right of"]]. Of all places
            where one stands, one is chosen evenly, then its replacement.
    """
    places = [
        (found.start(), found.end(), [other for other in words if other != word])
        for words in alternatives
        for word in words
        for found in re.finditer(rf"\b{re.escape(word)}\b", caption)
    ]
    if not places:
        return None
    start, end, others = places[int(rng.integers(len(places)))]
    return caption[:start] + others[int(rng.integers(len(others)))] + caption[end:]


def check_alternatives(alternatives: Alternatives) -> None:
    """Raises ValueError unless there are lists of at least two different words each."""
    for words in alternatives:
        if isinstance(words, str) or len(set(words)) < 2 or not all(isinstance(word, str) and word for word in words):
            raise ValueError(
                f"hard_negatives has {words!r:.80}; it is lists of two words or more that exclude each other, as [[red, blue], [two, three]]"
            )
