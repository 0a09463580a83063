"""The published prompts, and others that ask for none of the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from evaluation.geneval import TAGS, read_request
from evaluation.geneval.coco import COCO_NAMES, COLORS
from evaluation.geneval.grammar import Row, counting, meaning, position, two_object, wordings
from evaluation.geneval.prompts import PUBLISHED_SHA256, make_prompts, training_prompts


def test_the_published_rows_byte_by_byte() -> None:
    """The hash is sha256sum of prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval at commit af4902f."""
    rows = make_prompts()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED_SHA256
    assert PUBLISHED_SHA256 == "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    counts = Counter(row["tag"] for row in rows)
    assert [counts[tag] for tag in TAGS] == [80, 99, 80, 94, 100, 100]
    for row in rows:
        read_request(row, labels=COCO_NAMES, colors=COLORS)


def test_rows_of_other_classes() -> None:
    rows = make_prompts(("person", "cat", "owl"), ("red", "orange"), seed=1, per_tag=200)
    counts = Counter(row["tag"] for row in rows)
    # 3 classes, 3 x 2 ordered pairs, 3 x 3 numbers, 2 classes with a colour x 2, 6 pairs x 4 places, 2 pairs x 2
    assert counts == dict(zip(TAGS, (3, 6, 9, 4, 24, 4), strict=True))
    assert not [row for row in rows for clause in row["include"] if clause["class"] == "person" and "color" in clause]
    prompts = {row["prompt"] for row in rows}
    assert {"a photo of an owl", "a photo of an orange owl and a red cat", "a photo of two cats"} <= prompts


def test_an_excluded_row_takes_what_says_the_same_with_it() -> None:
    def prompts(*exclude: Row | str) -> set[str]:
        return {row["prompt"] for row in make_prompts(("cat", "dog"), ("red", "blue"), per_tag=200, exclude=exclude)}

    everything = prompts()
    left, right = "a photo of a cat left of a dog", "a photo of a dog right of a cat"
    assert everything - prompts(position("cat", "left of", "dog")) == {left, right}
    assert everything - prompts("A photo of a dog right  of a cat.") == {left, right}
    below, above = "a photo of a dog below a cat", "a photo of a cat above a dog"
    assert everything - prompts(position("dog", "below", "cat")) == {below, above} == everything - prompts(above)
    both = {"a photo of a cat and a dog", "a photo of a dog and a cat"}
    assert everything - prompts("a photo of a dog and a cat") == both == everything - prompts(two_object("cat", "dog"))
    assert everything - prompts("a photo of a red dog and a blue cat") == {
        "a photo of a red dog and a blue cat",
        "a photo of a blue cat and a red dog",
    }
    reworded = {**counting("cat", 3), "prompt": "three lovely cats"}  # the clauses count, not the sentence
    assert everything - prompts(reworded) == {"a photo of three cats"}


def test_the_same_image_is_the_same_meaning() -> None:
    cat, dog, cup = ({"class": name, "count": 1} for name in ("cat", "dog", "cup"))
    chain = [cat, {**dog, "position": ["above", 0]}, {**cup, "position": ("left of", 1)}]
    turned = [cup, {**dog, "position": ["right of", 0], "color": None}, {**cat, "position": ["below", 1]}]
    assert meaning({"include": chain}) == meaning({"include": turned})
    assert meaning({"include": chain}) != meaning({"include": [*chain[:2], {**cup, "position": ["left of", 0]}]})
    assert meaning({"include": [cat, dog]}) == meaning({"include": [dog, cat]}) != meaning({"include": [cat, cup]})
    red_cat, red_dog = {**cat, "color": "red"}, {**dog, "color": "red"}
    assert meaning({"include": [red_cat, dog]}) != meaning({"include": [cat, red_dog]})
    assert meaning({"include": [cat]}) != meaning({"include": [{**cat, "count": 2}]})


def test_two_wordings_mean_the_same() -> None:
    by_prompt = {row["prompt"]: row for row in make_prompts(("cat", "dog", "cup"), ("red", "blue"), per_tag=400)}
    for prompt, row in by_prompt.items():
        said = wordings(row)
        assert len(said) == len(row["include"])
        assert {meaning(by_prompt[other]) for other in said} == {meaning(row)}, prompt


def test_training_prompts_share_none_with_the_test_set() -> None:
    rows, tests = training_prompts(7, 60), make_prompts()
    assert not {meaning(row) for row in rows} & {meaning(row) for row in tests}
    counts = Counter(row["tag"] for row in rows)
    assert list(counts) == list(TAGS[1:])
    assert counts["color_attr"] == 60
    assert rows == training_prompts(7, 60) != training_prompts(8, 60)


def test_training_prompts_of_the_test_sets_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="seed 43 draws the test set; choose another"):
        training_prompts(43, 10)


@pytest.mark.parametrize(
    ("labels", "colors", "per_tag", "message"),
    [
        (("person", "cat"), ("red", "blue"), 1, "1 classes that may be coloured, 2 colours and 1 draws"),
        (("cat", "dog"), ("red",), 1, "1 colours and 1 draws"),
        (("cat", "dog"), ("red", "blue"), 0, "2 colours and 0 draws of each tag were given; at least 2, 2 and 1"),
        (("cat", "cat"), ("red", "blue"), 1, "the classes cat, cat hold one twice"),
        (("cat", "dog"), ("red", "red"), 1, "the colours red, red hold one twice"),
    ],
)
def test_too_little_to_draw_from_is_refused(
    labels: tuple[str, ...], colors: tuple[str, ...], per_tag: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_prompts(labels, colors, per_tag=per_tag)
