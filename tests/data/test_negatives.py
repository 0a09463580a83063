"""Hard negatives: exactly one word changes, into another of its list, anywhere it stands."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from align.data import Codes, TrainingStream
from align.data.negatives import swap_word

LISTS = [["red", "blue", "green"], ["left of", "right of"]]


def many(caption: str, number: int = 3000) -> Counter[str | None]:
    rng = np.random.default_rng(0)
    return Counter(swap_word(caption, LISTS, rng) for _ in range(number))


def test_every_place_and_every_other_word_is_as_likely() -> None:
    found = many("a red cat left of a blue dog")
    # three places, a third each; two other colours for each colour, one other relation
    expected = {
        "a blue cat left of a blue dog": 500,
        "a green cat left of a blue dog": 500,
        "a red cat right of a blue dog": 1000,
        "a red cat left of a red dog": 500,
        "a red cat left of a green dog": 500,
    }
    assert found.keys() == expected.keys()
    assert all(abs(found[caption] - number) < 4 * number**0.5 for caption, number in expected.items())


def test_only_whole_words_change() -> None:
    assert set(many("a bored reddish cat", 20)) == {None}
    assert set(many("red. bored", 50)) == {"blue. bored", "green. bored"}


def stream(**changes: object) -> TrainingStream:
    settings = {"length": 60, "seed": 3, "label_drop": 0.5, "hard_negatives": LISTS} | changes
    codes = Codes(torch.arange(6).reshape(3, 2), ["a red cat", "a blue cat", "a cat"], "x")
    return TrainingStream(codes, **settings)  # type: ignore[arg-type]


def test_a_stream_changes_a_word_of_the_rows_own_caption_where_it_can() -> None:
    items = [stream()[position] for position in range(60)]
    for item in items:
        words = set(item["label"].split()) ^ set(item["negative_label"].split())
        assert len(words) == 2 or item["label"] == "a cat"
    plain = [stream(hard_negatives=())[position] for position in range(60)]
    # all else stays: the order of rows, the dropped ones, and the negatives of captions without such a word
    assert [item["label"] for item in items] == [item["label"] for item in plain]
    assert [bool(item["dropped"]) for item in items] == [bool(item["dropped"]) for item in plain]
    rest = [(a, b) for a, b in zip(items, plain, strict=True) if a["label"] == "a cat"]
    assert rest
    assert all(a["negative_label"] == b["negative_label"] for a, b in rest)
    assert stream().fingerprint != stream(hard_negatives=()).fingerprint


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hard_negatives has \['red'\]; it is lists of two words or more"):
        stream(hard_negatives=[["red"]])
    with pytest.raises(ValueError, match="they take captions, and negative_label=null"):
        stream(negative_label="a cat")
    with pytest.raises(ValueError, match="they take captions, and negative_label=null"):
        TrainingStream(
            Codes(torch.zeros(2, 2, dtype=torch.long), torch.tensor([0, 1]), "x"),
            length=4,
            seed=0,
            label_drop=0.0,
            hard_negatives=LISTS,
        )
