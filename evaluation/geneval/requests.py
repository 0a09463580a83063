"""What a prompt asks for: GenEval's metadata rows, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Include:
    """At least `count` objects of a class, perhaps all of a colour, perhaps in a relation to those of an earlier clause."""

    label: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int | None = None  # index of the earlier clause


@dataclass(frozen=True)
class Exclude:
    """Fewer than `count` objects of a class."""

    label: str
    count: int


@dataclass(frozen=True)
class Request:
    """All clauses of a prompt: every one must hold."""

    tag: str
    include: tuple[Include, ...]
    exclude: tuple[Exclude, ...] = ()


def read_request(row: Mapping[str, Any], *, labels: Collection[str], colors: Collection[str]) -> Request:
    """The request of a metadata row as GenEval writes them; other columns are not read.

    Args:
        row: {"tag": "position", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "color": "red",
            "position": ["left of", 0]}], "exclude": [{"class": "cat", "count": 3}]}. Keys with None count as absent.
        labels: classes that the detector knows.
        colors: names that the colour classifier gives; none if there is no classifier.

    Raises:
        ValueError: an unknown tag, class, colour, relation or key, a count below 1, a relation to a clause that does not
            come before; the message names the clause.
    """
    tag = row.get("tag")
    if tag not in TAGS:
        raise ValueError(f"the tag is {tag!r}; allowed: {', '.join(TAGS)}")
    include = tuple(
        _include(clause, index, labels, colors) for index, clause in enumerate(_clauses(row, "include", required=True))
    )
    exclude = tuple(
        Exclude(*_counted(clause, f"exclude[{index}]", ("class", "count"), labels))
        for index, clause in enumerate(_clauses(row, "exclude", required=False))
    )
    return Request(tag, include, exclude)


def _clauses(row: Mapping[str, Any], key: str, *, required: bool) -> list[dict[str, Any]]:
    clauses = row.get(key)
    if clauses is None and not required:
        return []
    if not isinstance(clauses, (list, tuple)) or (required and not clauses):
        raise ValueError(
            f"{key} is {clauses!r:.80}; a list of clauses is needed, such as [{{'class': 'cat', 'count': 1}}]"
        )
    for index, clause in enumerate(clauses):
        if not isinstance(clause, Mapping):
            raise ValueError(f"{key}[{index}] is {clause!r:.80}; a clause is such as {{'class': 'cat', 'count': 1}}")
    return [{name: value for name, value in clause.items() if value is not None} for clause in clauses]


def _counted(clause: dict[str, Any], where: str, allowed: tuple[str, ...], labels: Collection[str]) -> tuple[str, int]:
    if unknown := [key for key in clause if key not in allowed]:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; allowed: {', '.join(allowed)}")
    label: Any = clause.get("class")
    count: Any = clause.get("count")
    if label not in labels:
        raise ValueError(
            f"{where} asks for the class {label!r}, which the detector does not know; it knows {_some(labels)}"
        )
    if not _is_whole(count) or count < 1:
        raise ValueError(f"{where} has the count {count!r}; a whole number of at least 1 is needed")
    return str(label), int(count)


def _include(clause: dict[str, Any], index: int, labels: Collection[str], colors: Collection[str]) -> Include:
    where = f"include[{index}]"
    label, count = _counted(clause, where, ("class", "count", "color", "position"), labels)
    color = clause.get("color")
    if color is not None and color not in colors:
        known = f"it knows {_some(colors)}" if colors else "there is none; give one"
        raise ValueError(f"{where} asks for the colour {color!r}, which the colour classifier does not know; {known}")
    relation, target = _position(clause["position"], index, where) if "position" in clause else (None, None)
    return Include(label, count, color, relation, target)


def _position(position: Any, index: int, where: str) -> tuple[str, int]:
    if not isinstance(position, (list, tuple)) or len(position) != 2 or position[0] not in RELATIONS:
        raise ValueError(
            f"{where} has the position {position!r}; it is [relation, index of an earlier clause] with a relation out of {', '.join(RELATIONS)}"
        )
    relation, target = position
    if not _is_whole(target) or not 0 <= target < index:
        raise ValueError(
            f"{where} is to be {relation} clause {target!r}; it must be one of the {index} before it, counted from 0"
        )
    return relation, int(target)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _some(names: Collection[str], limit: int = 12) -> str:
    shown = ", ".join(list(names)[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
