"""From a prompt's metadata row to a scene of the shapes world that shows it, and to the scene's captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.geneval.requests import Request, read_request
from evaluation.geneval.scorer import relations
from evaluation.shapes_world.scenes import COLORS, SHAPES, SIDE, SIZES, STEP, Shape

ATTEMPTS = 1000


def lay_out(row: Mapping[str, Any], rng: np.random.Generator) -> list[Shape]:
    """What the row asks for and nothing else, at random places, sizes, and colours where it names none.

    Raises:
        ValueError: a row of other classes or colours, or one that cannot be laid out.
    """
    request = read_request(row, labels=SHAPES, colors=tuple(COLORS))
    for _ in range(ATTEMPTS):
        shapes = _attempt(request, rng)
        if shapes is not None:
            return shapes
    raise ValueError(f"{row.get('prompt')!r} could not be laid out in {SIDE}x{SIDE} pixels; ask for fewer shapes")


def _attempt(request: Request, rng: np.random.Generator) -> list[Shape] | None:
    """One try at random; None if shapes meet or stand in another relation than asked for."""
    scene: list[Shape] = []
    groups: list[list[Shape]] = []
    for clause in request.include:
        group: list[Shape] = []
        for _ in range(clause.count):
            color = clause.color or str(rng.choice(list(COLORS)))
            shape = _placed(clause.label, color, rng)
            if not all(shape.apart(other) for other in scene):
                return None
            group.append(shape)
            scene.append(shape)
        if clause.relation is not None and clause.target is not None:
            for shape in group:
                if any(clause.relation not in relations(shape.box, other.box) for other in groups[clause.target]):
                    return None
        groups.append(group)
    return scene


def _placed(label: str, color: str, rng: np.random.Generator) -> Shape:
    size = int(rng.choice(SIZES))
    left, top = (int(rng.integers((SIDE - size) // STEP + 1)) * STEP for _ in range(2))
    return Shape(label, color, left, top, size)
