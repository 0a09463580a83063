"""GenEval's rules on hand-made boxes, one golden case each, with those that other implementations get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evaluation.geneval import Detection, GenEvalResult, GenEvalScorer, object_crop, read_request
from evaluation.geneval.detections import overlap
from evaluation.geneval.scorer import relations

IMAGE = np.zeros((100, 100, 3), np.uint8)
LABELS = ("cat", "dog", "cup")


class Painted:
    """The colour of an object is the image's at its box's corner: 200 red in red, else blue."""

    colors = ("red", "blue")

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        return ["red" if image[int(d.box[1]), int(d.box[0]), 0] == 200 else "blue" for d in detections]


def objects(label: str, *scores: float, x: float = 0.0) -> list[Detection]:
    """Boxes of 10x10 pixels in a column, far from each other."""
    return [Detection(label, score, (x, 20.0 * row, x + 10, 20.0 * row + 10)) for row, score in enumerate(scores)]


def score(
    detections: list[Detection],
    include: list[dict[str, Any]],
    *,
    exclude: list[dict[str, Any]] | None = None,
    tag: str = "two_object",
    image: np.ndarray = IMAGE,
    **settings: Any,
) -> GenEvalResult:
    scorer = GenEvalScorer(labels=LABELS, colors=Painted(), **settings)
    return scorer.score(image, detections, {"tag": tag, "include": include, "exclude": exclude, "prompt": "a photo"})


CAT, DOG = {"class": "cat", "count": 1}, {"class": "dog", "count": 1}
THREE_CATS = {"include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}], "tag": "counting"}


def test_a_score_at_the_threshold_does_not_count() -> None:
    at, above = score(objects("cat", 0.3), [CAT]), score(objects("cat", 0.3001), [CAT])
    assert (at.correct, at.credit, at.reason, at.demands[0].fault) == (False, 0, "0 of 1 cat", "missing")
    assert (above.correct, above.credit, above.reason, above.demands[0].fault) == (True, 1, "", "")


def test_every_clause_is_asked() -> None:
    result = score(objects("cat", 0.8), [CAT, DOG])
    assert (result.correct, result.credit, result.reason) == (False, 0.5, "0 of 1 dog")


def test_further_objects_do_no_harm_without_an_exclude_clause() -> None:
    """A published reward asks for exactly the number, in prompts of every tag."""
    result = score(objects("cat", 0.8, 0.7) + objects("cup", 0.9), [CAT])
    assert result.correct and result.credit == 1


@pytest.mark.parametrize(
    ("found", "correct", "credit", "fault"),
    [(0, False, 0, "missing"), (2, False, 2 / 3, "too few"), (3, True, 1, ""), (4, False, 3 / 4, "too many")],
)
def test_counting_is_exact_and_only_the_certain_count(found: int, correct: bool, credit: float, fault: str) -> None:
    sure, doubtful = [0.95] * found, [0.9]
    result = score(objects("cat", *sure, *doubtful), **THREE_CATS)
    assert (result.correct, result.credit, result.demands[0].fault) == (correct, pytest.approx(credit), fault)
    assert len(result.demands) == 1


def test_the_threshold_of_counting_is_for_that_tag_only() -> None:
    result = score(objects("cat", 0.5, 0.5, 0.5), **{**THREE_CATS, "tag": "two_object"})
    assert result.correct


def test_at_most_sixteen_of_a_class_count_and_they_are_the_best() -> None:
    weak_first = objects("cat", *[0.4] * 10, *[0.8] * 10)
    kept = score(weak_first, [CAT]).objects["cat"]
    assert [detection.score for detection in kept] == [0.8] * 10 + [0.4] * 6
    assert score(objects("cat", *[0.8] * 20), [CAT], exclude=[{"class": "cat", "count": 17}]).correct


def test_an_exclude_clause_of_another_class_is_a_demand_of_its_own() -> None:
    result = score(objects("cat", 0.8) + objects("dog", 0.8, 0.7), [CAT], exclude=[{"class": "dog", "count": 2}])
    assert (result.correct, result.credit, result.reason) == (False, (1 + 1 / 2) / 2, "2 dog, at most 1 allowed")
    assert score(objects("cat", 0.8), [CAT], exclude=[{"class": "dog", "count": 1}]).credit == 1
    assert score(objects("cat", 0.8), [CAT], exclude=[{"class": "cat", "count": 1}]).credit == 0


def test_the_limit_on_a_number_does_not_take_the_target_away() -> None:
    """An exclude clause fails the image and nothing else: the most confident cat is there for the dog to be right of."""
    found = objects("cat", 0.9, 0.8) + objects("dog", 0.8, x=50)
    result = score(found, [CAT, right_of_cat()], exclude=[{"class": "cat", "count": 2}])
    assert [(demand.kind, demand.fault) for demand in result.demands] == [
        ("number", "too many"),
        ("number", ""),
        ("position", ""),
    ]
    assert (result.correct, result.credit) == (False, pytest.approx((1 / 2 + 1 + 1) / 3))


def test_the_strictest_limit_counts() -> None:
    limits = [{"class": "cat", "count": 4}, {"class": "cat", "count": 2}]
    for exclude in (limits, limits[::-1]):
        assert score(objects("cat", *[0.8] * 4), [CAT], exclude=exclude).credit == 1 / 4
    assert score(objects("cat", *[0.8] * 3), [CAT], exclude=limits[:1]).correct


def test_overlapping_boxes_stay_unless_asked_to_go() -> None:
    twice = [Detection("cat", 0.8, (0, 0, 9, 9)), Detection("cat", 0.7, (0, 0, 9, 9)), *objects("dog", 0.6)]
    assert len(score(twice, [CAT]).objects["cat"]) == 2
    kept = score(twice, [CAT], max_overlap=0.9).objects
    assert [d.score for d in kept["cat"]] == [0.8]
    assert len(kept["dog"]) == 1
    # boxes end within their last pixel: 10x10 and 10x20 pixels share 100 of 200
    half = [Detection("cat", 0.8, (0, 0, 9, 9)), Detection("cat", 0.7, (0, 0, 9, 19))]
    assert overlap(half[0].box, half[1].box) == 0.5
    assert len(score(half, [CAT], max_overlap=0.5).objects["cat"]) == 1
    assert len(score(half, [CAT], max_overlap=0.51).objects["cat"]) == 2
    assert overlap((0, 0, 9, 9), (0, 0, 19, 9)) == 0.5
    # what is gone takes nothing with it: the third overlaps the second only
    chain = [Detection("cat", 0.9 - x / 100, (x, 0, x + 9, 9)) for x in (0, 6, 12)]
    assert [d.box[0] for d in score(chain, [CAT], max_overlap=0.2).objects["cat"]] == [0, 12]


def painted(*rows: int) -> np.ndarray:
    """Red where `objects` puts these."""
    image = IMAGE.copy()
    for row in rows:
        image[20 * row : 20 * row + 10, :10, 0] = 200
    return image


RED_CAT = {"class": "cat", "count": 1, "color": "red"}


def test_only_the_most_confident_objects_are_asked_for_their_colour() -> None:
    cats = objects("cat", 0.5, 0.9)  # the second is the more confident
    right, wrong = score(cats, [RED_CAT], image=painted(1)), score(cats, [RED_CAT], image=painted(0))
    assert right.correct
    assert (wrong.correct, wrong.credit, wrong.reason) == (False, 0.5, "0 of 1 cat red: seen blue")
    assert [demand.fault for demand in wrong.demands] == ["", "color"]


def test_colour_credit_is_the_share_and_there_is_none_for_too_few() -> None:
    two = {**RED_CAT, "count": 2}
    half = score(objects("cat", 0.9, 0.8), [two], image=painted(1))
    assert (half.correct, half.credit) == (False, (1 + 1 / 2) / 2)
    few = score(objects("cat", 0.9), [two], image=painted(0))
    assert [(demand.credit, demand.fault) for demand in few.demands] == [(0.5, "too few"), (0, "skipped")]
    assert few.reason == "1 of 2 cat"


def test_clauses_of_one_class_look_at_the_same_objects() -> None:
    """Each clause begins with the most confident object, so that a red and a blue cat are never both there."""
    cats, blue_cat = objects("cat", 0.9, 0.8), {**RED_CAT, "color": "blue"}
    result = score(cats, [RED_CAT, blue_cat], image=painted(0))
    assert [demand.fault for demand in result.demands] == ["", "", "", "color"]
    assert score(cats, [RED_CAT, {**CAT, "count": 2}], image=painted(0)).correct


def test_a_clause_of_the_wrong_colour_does_not_lend_its_colour_to_another() -> None:
    red_dog = {"class": "dog", "count": 1, "color": "red"}
    found = objects("cat", 0.9) + objects("dog", 0.9, x=50)
    swapped = score(found, [{**RED_CAT, "color": "blue"}, red_dog], image=painted(0))  # the cat is the red one
    assert [demand.fault for demand in swapped.demands] == ["", "color", "", "color"]
    assert (swapped.correct, swapped.credit) == (False, 0.5)


def right_of_cat(*, color: str | None = None) -> dict[str, Any]:
    return {**DOG, "position": ["right of", 0], "color": color}


@pytest.mark.parametrize(("dog_x", "correct", "credit"), [(50, True, 1), (0, False, 2 / 3), (-50, False, 2 / 3)])
def test_a_wrong_place_earns_nothing(dog_x: float, correct: bool, credit: float) -> None:
    """A published reward adds a full point for the place after it has found it wrong."""
    result = score(objects("cat", 0.8) + objects("dog", 0.8, x=dog_x), [CAT, right_of_cat()])
    assert (result.correct, result.credit) == (correct, pytest.approx(credit))
    assert [demand.fault for demand in result.demands] == ["", "", "" if correct else "position"]


def test_the_reason_tells_where_it_is() -> None:
    assert (
        score(objects("cat", 0.8) + objects("dog", 0.8, x=-50), [CAT, right_of_cat()]).reason
        == "no dog right of clause 0: it is left of"
    )
    assert score(objects("cat", 0.8) + objects("dog", 0.8), [CAT, right_of_cat()]).reason.endswith(
        "it is in no relation"
    )


def test_each_object_is_compared_with_each_target() -> None:
    cats = [Detection("cat", 0.9, (0, 0, 10, 10)), Detection("cat", 0.8, (80, 0, 90, 10))]
    dog = [Detection("dog", 0.9, (40, 0, 50, 10))]
    assert score(cats + dog, [CAT, right_of_cat()]).correct  # the most confident cat is the target
    two_cats = {**CAT, "count": 2}
    assert not score(cats + dog, [two_cats, right_of_cat()]).correct
    dogs = [*dog, Detection("dog", 0.8, (-40, 0, -30, 10))]
    assert not score(cats[:1] + dogs, [CAT, {**right_of_cat(), "count": 2}]).correct


@pytest.mark.parametrize(("relation", "correct"), [("right of", True), ("below", True), ("above", False)])
def test_on_a_diagonal_either_relation_will_do(relation: str, correct: bool) -> None:
    dog = [Detection("dog", 0.8, (40, 40, 50, 50))]
    assert score(objects("cat", 0.8) + dog, [CAT, {**DOG, "position": [relation, 0]}]).correct == correct


def test_the_target_is_the_clause_that_is_named() -> None:
    cup = {"class": "cup", "count": 1, "position": ["right of", 0]}
    found = objects("cat", 0.8) + objects("dog", 0.8, x=80) + objects("cup", 0.8, x=40)
    assert score(found, [CAT, DOG, cup]).correct
    assert not score(found, [CAT, DOG, {**cup, "position": ["right of", 1]}]).correct


def test_no_place_without_a_target() -> None:
    nothing = score(objects("dog", 0.8, x=50), [CAT, right_of_cat()])
    assert [(demand.credit, demand.fault) for demand in nothing.demands] == [(0, "missing"), (1, ""), (0, "target")]
    blue_cat = score(objects("cat", 0.8) + objects("dog", 0.8, x=50), [RED_CAT, right_of_cat()])
    assert [demand.fault for demand in blue_cat.demands] == ["", "color", "", "target"]


def test_no_place_for_what_has_the_wrong_colour() -> None:
    result = score(objects("cat", 0.8) + objects("dog", 0.8, x=50), [CAT, right_of_cat(color="red")])
    assert [demand.fault for demand in result.demands] == ["", "", "color", "skipped"]
    assert (result.credit, result.reason) == (0.5, "0 of 1 dog red: seen blue")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((30, 0, 40, 10), (0, 0, 10, 10), {"right of"}),
        ((0, 0, 10, 10), (30, 0, 40, 10), {"left of"}),
        ((0, 0, 10, 10), (0, 30, 10, 40), {"above"}),
        ((0, 30, 10, 40), (0, 0, 10, 10), {"below"}),
        ((0, 0, 10, 10), (30, 30, 40, 40), {"left of", "above"}),  # (30 - 2) / 42.4 = .66 in both
        ((0, 0, 10, 10), (2, 0, 12, 10), set()),  # centres 2 apart, a tenth of both sizes is 2
        ((0, 0, 10, 10), (4, 0, 14, 10), set()),  # (4 - 2) / 4 = .5, which is not more than half
        ((4, 0, 14, 10), (0, 0, 10, 10), set()),
        ((0, 0, 10, 10), (0, 4, 10, 14), set()),
        ((0, 4, 10, 14), (0, 0, 10, 10), set()),
        ((0, 0, 10, 10), (3.9, 0, 13.9, 10), set()),  # (3.9 - 2) / 3.9 = .487
        ((0, 0, 10, 10), (4.1, 0, 14.1, 10), {"left of"}),  # (4.1 - 2) / 4.1 = .512
        # by the shortened distance, 28 / 32.2, y would be a relation too; by the whole one it is 16 / 35 = .457
        ((0, 0, 10, 10), (30, 18, 40, 28), {"left of"}),
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
        ((0, 0, 100, 10), (30, 0, 40, 10), set()),  # centres 15 apart: sizes of both count
        ((0, 0, 100, 10), (70, 0, 80, 10), {"left of"}),  # centres 25 apart: (25 - 11) / 25; twice the first's were 20
        ((0, 0, 10, 100), (0, 50, 10, 60), set()),  # heights in y: centres 5 apart, a tenth of both is 11
        ((0, 0, 100, 10), (0, 20, 100, 30), {"above"}),  # widths do not shorten heights: (20 - 2) / 20
        ((0, 0, 0, 0), (0.0009, 0, 0.0009, 0), set()),  # less than a thousandth of a pixel is no distance
        ((0, 0, 0, 0), (0.0011, 0, 0.0011, 0), {"left of"}),
    ],
)
def test_relations(a: tuple[float, ...], b: tuple[float, ...], expected: set[str]) -> None:
    assert relations(a, b, threshold=0.1) == expected


def test_the_crop_is_grey_around_the_mask() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True
    crop = object_crop(image, Detection("cat", 0.9, (0.6, 0.6, 3.4, 2.5), mask))
    assert crop.shape == (1, 2, 3)  # rows 1 to 2, columns 1 to 3, ends not included
    assert crop.tolist() == [[[153] * 3, image[1, 2].tolist()]]
    bare = object_crop(image, Detection("cat", 0.9, (0.6, 0.6, 3.4, 2.5)))
    assert bare.tolist() == image[1:2, 1:3].tolist()


@pytest.mark.parametrize("box", [(2.1, 1.2, 2.3, 1.4), (6.0, 4.0, 6.0, 4.0), (-3.0, -3.0, -1.0, -1.0)])
def test_a_crop_has_at_least_a_pixel(box: tuple[float, float, float, float]) -> None:
    assert object_crop(np.zeros((4, 6, 3), np.uint8), Detection("cat", 0.9, box)).shape == (1, 1, 3)


def test_what_a_detector_must_not_say() -> None:
    with pytest.raises(ValueError, match=r"a detection of 'cat' has score 0.9 and box \(5, 0, 1, 9\); a box is \(left"):
        Detection("cat", 0.9, (5, 0, 1, 9))
    with pytest.raises(ValueError, match="has score nan"):
        Detection("cat", float("nan"), (0, 0, 1, 9))
    with pytest.raises(ValueError, match=r"mask \[2, 2\] in an image of 100x100 pixels"):
        object_crop(IMAGE, Detection("cat", 0.9, (0, 0, 1, 9), np.zeros((2, 2), bool)))
    with pytest.raises(ValueError, match="found a 'kite', which is not among the classes"):
        score([Detection("kite", 0.1, (0, 0, 1, 9))], [CAT])


def test_a_colour_classifier_answers_for_each_object() -> None:
    class Silent(Painted):
        def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
            return []

    scorer = GenEvalScorer(labels=LABELS, colors=Silent())
    with pytest.raises(ValueError, match="named 0 colours for 1 objects"):
        scorer.score(IMAGE, objects("cat", 0.9), {"tag": "colors", "include": [RED_CAT]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tag": "colour", "include": [CAT]}, "the tag is 'colour'; allowed: single_object, two_object, counting"),
        ({"include": [CAT]}, "the tag is None"),
        ({"tag": "colors"}, "include is None; a list of clauses is needed"),
        ({"tag": "colors", "include": []}, r"include is \[\]"),
        ({"tag": "colors", "include": ["cat"]}, r"include\[0\] is 'cat'; a clause is such as"),
        ({"tag": "colors", "include": [CAT, {"class": "kat", "count": 1}]}, r"include\[1\] asks for the class 'kat'"),
        ({"tag": "colors", "include": [{"class": "cat"}]}, r"include\[0\] has the count None; a whole number"),
        ({"tag": "colors", "include": [{"class": "cat", "count": 0}]}, "has the count 0"),
        ({"tag": "colors", "include": [{"class": "cat", "count": True}]}, "has the count True"),
        ({"tag": "colors", "include": [{**CAT, "colour": "red"}]}, r"include\[0\] has the unknown key 'colour'"),
        ({"tag": "colors", "include": [{**CAT, "color": "mauve"}]}, "asks for the colour 'mauve'.* it knows red, blue"),
        (
            {"tag": "position", "include": [{**CAT, "position": ["left of", 0]}]},
            "clause 0; it must be one of the 0 bef",
        ),
        ({"tag": "position", "include": [CAT, {**DOG, "position": ["left of", -1]}]}, "clause -1; it must be one of"),
        ({"tag": "position", "include": [CAT, {**DOG, "position": ["near", 0]}]}, r"\['near', 0\]; it is \[relation"),
        ({"tag": "position", "include": [CAT, {**DOG, "position": "left of"}]}, "has the position 'left of'; it is"),
        (
            {"tag": "counting", "include": [CAT], "exclude": [{**CAT, "color": "red"}]},
            r"exclude\[0\] has the unknown key",
        ),
        ({"tag": "counting", "include": [CAT], "exclude": 3}, "exclude is 3; a list of clauses"),
    ],
)
def test_a_row_that_asks_for_something_unknown_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_request(row, labels=LABELS, colors=("red", "blue"))


def test_what_a_row_may_be() -> None:
    full = {
        "tag": "position",
        "include": [{**CAT, "color": None, "position": None}, {**DOG, "count": np.int64(2), "position": ("above", 0)}],
    }
    request = read_request({**full, "exclude": None, "prompt": "x", "label": 3}, labels=LABELS, colors=())
    assert (request.include[0].color, request.include[1].count, request.exclude) == (None, 2, ())
    assert (request.include[1].relation, request.include[1].target) == ("above", 0)


def test_colours_need_a_classifier() -> None:
    scorer = GenEvalScorer(labels=LABELS)
    assert scorer.score(IMAGE, objects("cat", 0.9), {"tag": "single_object", "include": [CAT]}).correct
    with pytest.raises(ValueError, match="the colour classifier does not know; there is none; give one"):
        scorer.score(IMAGE, objects("cat", 0.9), {"tag": "colors", "include": [RED_CAT]})
