"""What the held-out judge learns from: scenes of whole shapes and of things that must not count as such.

A whole shape is one whose visible pixels, with all of its colour that hang together with it, fill its outline. Half
shapes, holes, specks, blobs, crosses of two shapes, shapes upside down, in two colours, merged, tiny, huge or squeezed
are none. What lies in between is left undecided: the judge is not trained there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from evaluation.shapes_world.layouts import lay_out
from evaluation.shapes_world.scenes import COLORS, GROUND, SHAPES, SIDE, silhouette

NONE, UNDECIDED = 0, -1  # kinds of things; 1 and above are shapes
# intersection over union with the best outline up to which a thing is no shape, and from which on it is one
AGREEMENT = (0.68, 0.82)
ASKED = 0.25  # share of scenes that show a prompt, with whole shapes only
_SIZES = (7, 8, 8, 8, 9, 10, 10, 10, 11)
_NEAR, _FAR = 0.15, 0.35  # how far from the middle shapes are cut, in sides of their box
_COLORS = np.array([*COLORS.values()], dtype=np.float64)


@dataclass(frozen=True)
class Thing:
    """What stands in a scene: pixels of one colour in a box.

    mask: bool [h, w], what of the box it fills.
    color: index into COLORS.
    strength: 1 for its colour, less for paler ones, 0 for the ground.
    """

    mask: np.ndarray
    left: int
    top: int
    color: int
    strength: float = 1.0


class Truth(NamedTuple):
    """What the judge is to see of a thing: its kind, its middle (x, y) and its size in pixels, its colour's index."""

    kind: int
    x: float
    y: float
    width: float
    height: float
    color: int


def practice_scene(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> tuple[np.ndarray, list[Truth]]:
    """An image uint8 [32, 32, 3] and what is in it: a prompt out of `rows` as it is asked for, or up to 5 things."""
    if rng.random() < ASKED:
        names = list(COLORS)
        shapes = lay_out(rows[int(rng.integers(len(rows)))], rng)
        return draw([Thing(silhouette(s.label, s.size, s.size), s.left, s.top, names.index(s.color)) for s in shapes])
    things: list[Thing] = []
    for _ in range(rng.integers(6)):
        things += _placed(things, rng)
    return draw(things)


def draw(things: Sequence[Thing]) -> tuple[np.ndarray, list[Truth]]:
    """The image uint8 [32, 32, 3], later things before earlier ones, and the truth about each of them that is seen."""
    owner = np.full((SIDE, SIDE), -1)
    image = np.full((SIDE, SIDE, 3), GROUND, dtype=np.uint8)
    for index, thing in enumerate(things):
        height, width = thing.mask.shape
        inside = thing.mask[: SIDE - thing.top, : SIDE - thing.left]
        box = np.s_[thing.top : thing.top + height, thing.left : thing.left + width]
        owner[box][inside] = index
        image[box][inside] = np.round(thing.strength * _COLORS[thing.color] + (1 - thing.strength) * np.array(GROUND))
    areas = np.bincount(owner.ravel() + 1, minlength=len(things) + 1)[1:]
    grown = [areas[list(_attached(owner, index, things))].sum() for index in range(len(things))]
    return image, [_truth(thing, owner == i, grown[i]) for i, thing in enumerate(things) if areas[i]]


def _attached(owner: np.ndarray, index: int, things: Sequence[Thing]) -> set[int]:
    """The other things of the same colour whose pixels meet those of one."""
    meets = set()
    for a, b in ((owner[1:], owner[:-1]), (owner[:, 1:], owner[:, :-1])):
        meets |= {*a[b == index].tolist(), *b[a == index].tolist()}
    return {other for other in meets - {index, -1} if things[other].color == things[index].color}


def _truth(thing: Thing, seen: np.ndarray, attached: int) -> Truth:
    height, width = thing.mask.shape
    inside = seen[thing.top : thing.top + height, thing.left : thing.left + width]
    outlines = np.stack([silhouette(label, height, width)[: inside.shape[0], : inside.shape[1]] for label in SHAPES])
    whole = np.array([silhouette(label, height, width).sum() for label in SHAPES])
    shared = (outlines & inside).sum(axis=(1, 2))
    agreements = shared / (whole + inside.sum() + attached - shared)
    best = int(agreements.argmax())
    decisions = (
        _decide(float(agreements[best]), *AGREEMENT),
        _decide(min(height, width), 5, 7),
        _decide(-max(height, width), -14, -11),
        _decide(-max(height, width) / min(height, width), -1.5, -1.3),
        _decide(thing.strength, 0.35, 0.7),
    )
    certain = min(decisions, key=(False, None, True).index)
    kind = {True: 1 + best, False: NONE, None: UNDECIDED}[certain]
    return Truth(kind, thing.left + width / 2, thing.top + height / 2, width, height, thing.color)


def _decide(value: float, no: float, yes: float) -> bool | None:
    return False if value <= no else True if value >= yes else None


def _placed(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    """A new thing at a place that is free, if one is found soon; now and then at any. Two of them if it has two colours."""
    mask, rest = _form(rng)
    height, width = mask.shape
    gap = int(rng.integers(3))
    careless = rng.random() < 0.12
    color, other = rng.permutation(len(_COLORS))[:2].tolist()
    if things and rng.random() < 0.3:
        color = things[-1].color  # merged shapes are of one colour
    strength = rng.uniform(0.2, 1) if rng.random() < 0.1 else 1.0
    for _ in range(20):
        top, left = int(rng.integers(SIDE - height + 1)), int(rng.integers(SIDE - width + 1))
        if careless or all(_apart(thing, left, top, width, height, gap) for thing in things):
            first = Thing(mask, left, top, color, strength)
            return [first] if rest is None else [first, Thing(rest, left, top, other, strength)]
    return []


def _apart(thing: Thing, left: int, top: int, width: int, height: int, gap: int) -> bool:
    return (
        left >= thing.left + thing.mask.shape[1] + gap
        or thing.left >= left + width + gap
        or top >= thing.top + thing.mask.shape[0] + gap
        or thing.top >= top + height + gap
    )


def _form(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """The outline of a thing, bool [h, w], and what of its box has a second colour, if any has."""
    size = int(rng.choice(_SIZES))
    height, width = size, size
    choice = rng.random()
    if choice < 0.04:
        height = width = int(rng.choice([3, 4, 5, 14, 16, 18]))
    elif choice < 0.08:
        height, width = rng.permutation([int(rng.integers(4, 8)), int(rng.integers(10, 16))]).tolist()
    elif choice < 0.2:
        height, width = size, min(max(size + int(rng.choice([-1, 1])), 7), 11)
    mask = silhouette(str(rng.choice(SHAPES)), height, width)
    if rng.random() < 0.5:
        return mask, None
    return _spoiled(mask, rng)


def _spoiled(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    height, width = mask.shape
    half = _half_plane(height, width, rng, _FAR)
    other = silhouette(str(rng.choice(SHAPES)), height, width)
    # what a network is slow to refuse comes most often: its outline is that of a whole shape
    match rng.integers(16):
        case 0 | 1 | 2 | 3 | 4 | 5:  # in two colours, too evenly for a whole shape in either
            if rng.random() < 0.6:
                first = _half_plane(height, width, rng, _NEAR)
            else:
                first = _blocks(height, width, int(rng.choice([1, 2, 4])), 0.5, rng)
            return mask & first, mask & ~first
        case 6:  # a part of it
            return mask & half, None
        case 7:  # half of one shape, half of another
            return np.where(half, mask, other), None
        case 8:  # a piece is missing
            top, left = rng.integers(height - 2), rng.integers(width - 2)
            holed = mask.copy()
            holed[top : top + rng.integers(2, height), left : left + rng.integers(2, width)] = False
            return holed, None
        case 9 | 10 | 11 | 12:  # specks are missing, or it is frayed
            specks = _blocks(height, width, int(rng.integers(1, 3)), rng.uniform(0.15, 0.5), rng)
            return (mask & ~specks if rng.random() < 0.5 else mask ^ specks), None
        case 13:  # the outline only
            return mask & ~ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 3))), None
        case 14:  # upside down, lying, or a diamond
            return _turned(mask, rng), None
        case _:  # a blob
            field = ndimage.gaussian_filter(rng.normal(size=mask.shape), rng.uniform(1, 2.5), mode="constant")
            return field > np.quantile(field, rng.uniform(0.2, 0.6)), None


def _half_plane(height: int, width: int, rng: np.random.Generator, reach: float) -> np.ndarray:
    """bool [h, w]: one side of a line that passes the middle at up to `reach` of the box's side."""
    v, u = ((np.arange(length) + 0.5) / length - 0.5 for length in (height, width))
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * u[None, :] + np.sin(angle) * v[:, None] > rng.uniform(-reach, reach)


def _blocks(height: int, width: int, side: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """bool [h, w]: squares of `side` pixels, each with the probability `share`."""
    chosen = rng.random((height // side + 1, width // side + 1)) < share
    return chosen.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


def _turned(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = mask.shape
    match rng.integers(3):
        case 0:
            return silhouette("triangle", height, width)[::-1]
        case 1:
            lying = silhouette("triangle", width, height).T
            return lying if rng.random() < 0.5 else lying[:, ::-1]
        case _:
            v, u = ((np.arange(length) + 0.5) / length - 0.5 for length in (height, width))
            return np.abs(u[None, :]) + np.abs(v[:, None]) <= 0.5
