"""The shapes world: its scenes, the prompts and what they are laid out to, and that its detector is exact on true scenes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from evaluation.geneval import TAGS, Detection, GenEvalResult, GenEvalScorer
from evaluation.geneval.scorer import relations
from evaluation.shapes_world import (
    COLORS,
    SHAPES,
    SIDE,
    Shape,
    ShapeColors,
    ShapeDetector,
    lay_out,
    prompt_rows,
    render,
)
from evaluation.shapes_world.detector import color_indices
from evaluation.shapes_world.prompts import all_rows, vocabulary
from evaluation.shapes_world.scenes import GAP, GROUND, SIZES, STEP, silhouette

ROWS = all_rows()
SCORER = GenEvalScorer(labels=SHAPES, colors=ShapeColors())
DETECTOR = ShapeDetector()


def row(prompt: str) -> dict[str, Any]:
    """The metadata of a prompt."""
    return next(row for row in ROWS if row["prompt"] == f"a photo of {prompt}")


def detect(image: np.ndarray) -> list[Detection]:
    return DETECTOR([image])[0]


def judge(image: np.ndarray, prompt: str) -> GenEvalResult:
    return SCORER.score(image, detect(image), row(prompt))


# scenes


@pytest.mark.parametrize("label", SHAPES)
@pytest.mark.parametrize("size", [7, *SIZES, 11])
def test_a_silhouette_fills_its_box_and_is_the_same_from_both_sides(label: str, size: int) -> None:
    mask = silhouette(label, size, size)
    assert mask[0].any()
    assert mask[-1].any()
    assert mask[:, 0].any()
    assert mask[:, -1].any()
    assert np.array_equal(mask, mask[:, ::-1])
    assert np.array_equal(mask, mask[::-1]) == (label != "triangle")


def test_silhouettes_by_hand() -> None:
    def drawn(label: str) -> list[str]:
        return ["".join(".#"[int(pixel)] for pixel in line) for line in silhouette(label, 8, 8)]

    circle = ["..####..", ".######.", *["########"] * 4, ".######.", "..####.."]
    triangle = ["...##...", "...##...", "..####..", "..####..", ".######.", ".######.", "########", "########"]
    cross = [*["...##..."] * 3, *["########"] * 2, *["...##..."] * 3]
    assert [drawn(label) for label in SHAPES] == [circle, ["########"] * 8, triangle, cross]


def test_an_unknown_silhouette_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'star'; known: circle, square, triangle, cross"):
        silhouette("star", 8, 8)


def test_what_is_drawn_later_covers_what_was_there() -> None:
    image = render([Shape("square", "red", 4, 6, 8), Shape("circle", "blue", 8, 6, 8)])
    assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)
    assert tuple(image[6, 4]) == tuple(image[6, 9]) == COLORS["red"]  # beside the circle's round corner
    assert tuple(image[10, 10]) == COLORS["blue"]
    assert tuple(image[5, 4]) == tuple(image[14, 8]) == GROUND


@pytest.mark.parametrize("offset", [(8 + GAP, 0), (0, 8 + GAP), (-8 - GAP, 0), (0, -8 - GAP)])
def test_shapes_are_apart_from_two_pixels_on(offset: tuple[int, int]) -> None:
    here = Shape("circle", "red", 12, 12, 8)
    there = Shape("cross", "red", 12 + offset[0], 12 + offset[1], 8)
    nearer = Shape("cross", "red", there.left - np.sign(offset[0]), there.top - np.sign(offset[1]), 8)
    assert here.apart(there)
    assert not here.apart(nearer)


# detector


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("label", SHAPES)
def test_a_shape_is_found_to_the_pixel(label: str, size: int) -> None:
    for color in COLORS:
        shape = Shape(label, color, 20, 2, size)
        image = render([shape])
        (found,) = detect(image)
        assert (found.label, found.score, found.box) == (label, 1.0, shape.box)
        assert found.mask is not None
        assert np.array_equal(found.mask, (image != GROUND).any(axis=2))
        assert ShapeColors()(image, [found], label) == [color]


def test_a_full_scene_in_an_image_of_another_size() -> None:
    scene = [Shape(label, color, 0, 10 * i, 8 + i % 2) for i, (label, color) in enumerate(zip(SHAPES, COLORS, strict=False))]  # fmt: skip
    image = np.full((48, 20, 3), GROUND, dtype=np.uint8)
    for shape in scene:
        image[shape.top : shape.top + shape.size, : shape.size][silhouette(shape.label, shape.size, shape.size)] = (
            COLORS[shape.color]
        )
    assert {(d.label, d.box) for d in detect(image)} == {(s.label, s.box) for s in scene}
    assert DETECTOR([]) == []
    assert [len(found) for found in DETECTOR([image, render([])])] == [4, 0]


def test_shapes_that_touch_count_only_in_two_colors() -> None:
    left, right = Shape("square", "red", 4, 8, 8), Shape("cross", "blue", 12, 8, 8)
    assert {(d.label, d.box) for d in detect(render([left, right]))} == {("square", left.box), ("cross", right.box)}
    same = Shape("cross", "red", 12, 8, 8)
    assert detect(render([left, same])) == []  # one region of 8x16 pixels
    corner = Shape("square", "red", 12, 16, 8)  # meets the first at a corner only
    assert len(detect(render([left, corner]))) == 2


@pytest.mark.parametrize("label", SHAPES)
def test_half_a_shape_is_none(label: str) -> None:
    image = render([Shape(label, "green", 8, 8, 10)])
    image[:, 13:] = GROUND
    assert judge(image, "a " + label).reason == f"0 of 1 {label}"


def test_the_confidence_falls_with_what_is_missing() -> None:
    """Of a square of 100 pixels: 80 of them are certain, 69 count but not in counting, 66 and less do not."""

    def confidence(missing: int) -> float:
        image = render([Shape("square", "blue", 10, 10, 10)])
        for pixel in range(missing):  # a hole that leaves the outline alone
            image[11 + pixel // 8, 11 + pixel % 8] = GROUND
        return max((d.score for d in detect(image)), default=0.0)

    assert confidence(0) == confidence(20) == 1
    assert confidence(21) == pytest.approx(0.95)
    assert 0.9 < confidence(21) < 1
    assert confidence(31) == pytest.approx(0.45)
    assert confidence(33) > 0.3 > confidence(35)
    assert confidence(40) == confidence(48) == 0


@pytest.mark.parametrize(("height", "width"), [(5, 8), (8, 5), (14, 14), (6, 10), (13, 8), (3, 3)])
def test_rectangles_and_other_sizes_are_no_squares(height: int, width: int) -> None:
    image = render([])
    image[4 : 4 + height, 6 : 6 + width] = COLORS["purple"]
    assert detect(image) == []


@pytest.mark.parametrize(("height", "width"), [(6, 6), (13, 13), (6, 9), (12, 8)])
def test_nearly_square_ones_within_the_sizes_are(height: int, width: int) -> None:
    image = render([])
    image[4 : 4 + height, 6 : 6 + width] = COLORS["purple"]
    assert [(d.label, d.score, d.box) for d in detect(image)] == [("square", 1.0, (6, 4, 6 + width, 4 + height))]


def test_a_pixel_has_the_nearest_color() -> None:
    palette = np.array([GROUND, *COLORS.values()])
    assert color_indices(palette.astype(np.uint8)).tolist() == list(range(1 + len(COLORS)))
    for index, color in enumerate(palette[1:], start=1):
        pale, faint = (np.round(share * color + (1 - share) * palette[0]).astype(np.uint8) for share in (0.75, 0.25))
        assert color_indices(np.stack([pale, faint])).tolist() == [index, 0]
    assert color_indices(np.zeros((2, 3, 3), np.uint8)).shape == (2, 3)


def test_the_color_is_the_commonest_of_the_object_and_never_the_ground() -> None:
    image = render([Shape("cross", "yellow", 8, 8, 10)])
    image[:, 8:12][(image[:, 8:12] != GROUND).any(axis=2)] = COLORS["red"]  # a part of an arm
    box = (8.0, 8.0, 18.0, 18.0)  # more ground in it than cross
    assert ShapeColors()(image, [Detection("cross", 1.0, box)], "cross") == ["yellow"]
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, 8:12] = True
    assert ShapeColors()(image, [Detection("cross", 1.0, box, mask)], "cross") == ["red"]
    assert ShapeColors()(image, [], "cross") == []
    outside = render([Shape("square", "blue", 0, 4, 8)])
    assert ShapeColors()(outside, [Detection("square", 1.0, (-0.6, 4.0, 8.0, 12.0))], "square") == ["blue"]


# verdicts


def test_wrong_scenes_fail_for_the_right_reason() -> None:
    red_circle, blue_square = Shape("circle", "red", 2, 2, 8), Shape("square", "blue", 20, 2, 8)
    image = render([red_circle, blue_square])

    def faults(prompt: str) -> list[str]:
        return [demand.fault for demand in judge(image, prompt).demands if demand.fault]

    for right in (
        *("a circle", "a square and a circle", "a blue square", "a red circle and a blue square"),
        *("a circle left of a square", "a square right of a circle"),
    ):
        assert judge(image, right).correct
    assert faults("a cross") == ["missing"]
    assert faults("a circle and a triangle") == ["missing"]
    assert faults("two squares") == ["too few"]
    assert faults("a green circle") == ["color"]
    assert faults("a blue circle and a red square") == ["color", "color"]
    assert faults("a square left of a circle") == faults("a circle above a square") == ["position"]
    four = render([Shape("cross", "green", 12 * i, 12 * j, 8) for i in range(2) for j in range(2)])
    assert judge(four, "four crosses").correct
    assert judge(four, "three crosses").reason == "4 cross, at most 3 allowed"
    assert judge(four, "a green cross").correct  # further ones do no harm


def accuracy(tag: str, number: int) -> float:
    """Of verdicts on true scenes."""
    rng = np.random.default_rng(0)
    rows = [row for row in ROWS if row["tag"] == tag]
    asked = [rows[rng.integers(len(rows))] for _ in range(number)]
    images = [render(lay_out(row, rng)) for row in asked]
    found = zip(images, DETECTOR(images), asked, strict=True)
    return float(np.mean([SCORER.score(image, detections, row).correct for image, detections, row in found]))


@pytest.mark.parametrize("tag", TAGS)
def test_true_scenes_are_right(tag: str) -> None:
    assert accuracy(tag, 15) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_many_true_scenes_are_right(tag: str) -> None:
    assert accuracy(tag, 1000) >= 0.99  # measured: 1.000


# layouts


@pytest.mark.parametrize("tag", TAGS)
def test_a_scene_shows_what_is_asked_for_and_nothing_else(tag: str) -> None:
    rng = np.random.default_rng(1)
    rows = [row for row in ROWS if row["tag"] == tag]
    for asked in (rows[rng.integers(len(rows))] for _ in range(15)):
        scene = lay_out(asked, rng)
        clauses = asked["include"]
        assert Counter(shape.label for shape in scene) == Counter(
            label for clause in clauses for label in [clause["class"]] * clause["count"]
        )
        for clause in clauses:
            for shape in (shape for shape in scene if shape.label == clause["class"]):
                assert shape.color == clause.get("color", shape.color)
                if "position" in clause:
                    assert clause["position"][0] in relations(shape.box, scene[0].box)
        for index, shape in enumerate(scene):
            left, top, right, bottom = shape.box
            assert 0 <= left < right <= SIDE
            assert 0 <= top < bottom <= SIDE
            assert left % STEP == top % STEP == 0
            assert all(shape.apart(other) for other in scene[:index])


def test_places_sizes_and_colors_that_are_not_asked_for_are_all_drawn() -> None:
    rng = np.random.default_rng(2)
    circle = row("a circle")
    scenes = [lay_out(circle, rng)[0] for _ in range(300)]
    assert {shape.size for shape in scenes} == set(SIZES)
    assert {shape.color for shape in scenes} == set(COLORS)
    for edge in ("left", "top"):
        places = {getattr(shape, edge) for shape in scenes}
        assert places == set(range(0, SIDE - min(SIZES) + 1, STEP))


def test_a_seed_decides_the_scene() -> None:
    def scenes(seed: int) -> list[list[Shape]]:
        rng = np.random.default_rng(seed)
        return [lay_out(row("a circle and a square"), rng) for _ in range(3)]

    assert scenes(5) == scenes(5)
    assert scenes(5) != scenes(6)
    assert scenes(5)[0] != scenes(5)[1]


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ({"class": "cross", "count": 9}, r"'nine' could not be laid out in 32x32 pixels; ask for fewer shapes"),
        ({"class": "star", "count": 1}, r"class 'star'.* it knows circle, square, triangle, cross"),
        ({"class": "cross", "count": 1, "color": "pink"}, r"colour 'pink'.* it knows red, yellow, green, blue, purple"),
    ],
)
def test_rows_that_cannot_be_laid_out_are_refused(clause: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lay_out({"tag": "counting", "include": [clause], "prompt": "nine"}, np.random.default_rng(0))


# prompts

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def meaning(row: dict[str, Any]) -> frozenset[Any]:
    """What an image that fits the row shows, whatever the order of the words."""
    if row["tag"] == "position":
        target, clause = row["include"]
        relation = clause["position"][0]
        return frozenset(
            [(clause["class"], relation, target["class"]), (target["class"], OPPOSITE[relation], clause["class"])]
        )
    return frozenset((c["class"], c["count"], c.get("color"), row["tag"]) for c in row["include"])


def test_the_two_sets_share_no_meaning() -> None:
    align, test = ({meaning(row) for row in prompt_rows(split)} for split in ("align", "test"))
    assert align.isdisjoint(test)
    assert align | test <= {meaning(row) for row in ROWS}


def test_tags_of_few_combinations_are_used_up() -> None:
    """What there is of one object, of numbers and of colours is in one set or the other."""
    used = {meaning(row) for split in ("align", "test") for row in prompt_rows(split)}
    for tag in ("single_object", "two_object", "counting", "colors", "position"):
        assert {meaning(row) for row in ROWS if row["tag"] == tag} <= used


def test_no_word_is_kept_for_tests_alone() -> None:
    """Of each kind of prompt the alignment has every colour, number and relation, and at most a third of its combinations
    are missing; the test set has as many different ones as fit."""
    align, test = (prompt_rows(split) for split in ("align", "test"))
    for tag in ("counting", "colors", "position", "color_attr"):
        wanted = set(vocabulary(row for row in ROWS if row["tag"] == tag))
        assert set(vocabulary(row for row in align if row["tag"] == tag)) == wanted
    counts = [row["include"][0]["count"] for row in test if row["tag"] == "counting"]
    hues = [row["include"][0]["color"] for row in test if row["tag"] == "colors"]
    assert Counter(counts) == {2: 8, 3: 8, 4: 8}
    assert set(hues) == set(COLORS)


@pytest.mark.parametrize(
    ("split", "number", "digest"),
    [("align", 72, "5e76482589ccf329"), ("test", 24, "0271c63d63f80ae0")],
)
def test_the_sets_are_what_they_were(split: str, number: int, digest: str) -> None:
    """Results recorded with one set of prompts are not comparable with those of another."""
    rows = prompt_rows(split)
    assert Counter(row["tag"] for row in rows) == dict.fromkeys(TAGS, number)
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == digest


def test_the_rows_handed_out_are_copies() -> None:
    prompt_rows("align")[0]["prompt"] = "changed"
    assert prompt_rows("align")[0]["prompt"] != "changed"


def test_the_vocabulary() -> None:
    words = vocabulary(ROWS)
    assert len(words) == 24
    assert words == sorted(words)
    assert vocabulary([row("a red circle")]) == ["a", "circle", "of", "photo", "red"]
    assert set(vocabulary(prompt_rows("test"))) <= set(words)


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'train' of the shapes world's prompts; known: align, test"):
        prompt_rows("train")
