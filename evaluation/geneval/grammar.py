"""GenEval's sentences and what they ask for: one metadata row for each choice of classes, colours, number and relation.

The rows, to the order of their keys, are those of the published prompts (Ghosh et al. 2023, arXiv 2310.11513); classes and
colours may be others than COCO's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from evaluation.geneval.requests import RELATIONS

Row = dict[str, Any]
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTS = (2, 3, 4)  # that the published prompts ask for
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def single_object(label: str) -> Row:
    """`a photo of a cat`"""
    return {"tag": "single_object", "include": [_one(label)], "prompt": f"a photo of {_article(label)}"}


def two_object(first: str, second: str) -> Row:
    """`a photo of a cat and a dog`"""
    prompt = f"a photo of {_article(first)} and {_article(second)}"
    return {"tag": "two_object", "include": [_one(first), _one(second)], "prompt": prompt}


def counting(label: str, number: int) -> Row:
    """`a photo of three cats`: that many and no more."""
    return {
        "tag": "counting",
        "include": [{"class": label, "count": number}],
        "exclude": [{"class": label, "count": number + 1}],
        "prompt": f"a photo of {NUMBERS[number]} {_plural(label)}",
    }


def colors(label: str, color: str) -> Row:
    """`a photo of a red cat`"""
    return {"tag": "colors", "include": [_one(label, color)], "prompt": f"a photo of {_article(color)} {label}"}


def position(label: str, relation: str, target: str) -> Row:
    """`a photo of a cat left of a dog`; the target is the first clause."""
    return {
        "tag": "position",
        "include": [_one(target), {**_one(label), "position": [relation, 0]}],
        "prompt": f"a photo of {_article(label)} {relation} {_article(target)}",
    }


def color_attr(first: str, first_color: str, second: str, second_color: str) -> Row:
    """`a photo of a red cat and a blue dog`"""
    return {
        "tag": "color_attr",
        "include": [_one(first, first_color), _one(second, second_color)],
        "prompt": f"a photo of {_article(first_color)} {first} and {_article(second_color)} {second}",
    }


def every_row(labels: Sequence[str], color_names: Sequence[str]) -> Iterator[Row]:
    """All that can be said of these classes and colours, tag by tag."""
    yield from map(single_object, labels)
    yield from (two_object(*pair) for pair in permutations(labels, 2))
    yield from (counting(label, number) for label in labels for number in COUNTS)
    yield from (colors(label, color) for label in labels for color in color_names)
    yield from (position(a, relation, b) for a, b in permutations(labels, 2) for relation in RELATIONS)
    for first, second in permutations(labels, 2):
        for first_color, second_color in permutations(color_names, 2):
            yield color_attr(first, first_color, second, second_color)


def meaning(row: Mapping[str, Any]) -> str:
    """The same for rows whose include clauses ask for the same image, in whatever order, and whatever their tags and prompts.

    A cat left of a dog is a dog right of a cat. Exclude clauses are not read: they limit what is asked for already.
    """
    things = [[clause["class"], int(clause["count"]), clause.get("color") or ""] for clause in row["include"]]
    places = []
    for thing, clause in zip(things, row["include"], strict=True):
        if clause.get("position") is not None:
            relation, target = clause["position"]
            places.append(min([thing, relation, things[target]], [things[target], OPPOSITE[relation], thing]))
    return json.dumps([sorted(things), sorted(places)])


def wordings(row: Row) -> set[str]:
    """The sentences of this grammar for what one of its rows asks for: of two things, either may come first."""
    prompts = {row["prompt"]}
    if len(row["include"]) == 2:
        one, other = row["include"]
        if "position" in other:
            turned = position(one["class"], OPPOSITE[other["position"][0]], other["class"])
        elif "color" in one:
            turned = color_attr(other["class"], other["color"], one["class"], one["color"])
        else:
            turned = two_object(other["class"], one["class"])
        prompts.add(turned["prompt"])
    return prompts


def _one(label: str, color: str | None = None) -> Row:
    return {"class": label, "count": 1} | ({} if color is None else {"color": color})


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _plural(name: str) -> str:
    """As crude as the published one: `sheeps`, `knifes`, `benchs`."""
    return f"{name}es" if name.endswith("s") else f"{name}s"
