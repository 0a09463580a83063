"""GenEval as a protocol: images in, named numbers out. The detector is made up: an image's first pixel says what is in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.geneval import Detection, GenEvalProtocol, read_verdicts
from evaluation.geneval.grammar import Row, colors, counting, single_object
from evaluation.geneval.summary import summarize_verdicts

ROWS = [single_object("cat"), counting("cat", 2), colors("cat", "red"), single_object("cat"), single_object("dog")]


class Counter:
    """As many cats as the first pixel's red says; of the colour that its green says."""

    name = "counter"
    labels: Sequence[str] = ("cat", "dog")
    colors: Sequence[str] = ("red", "blue")
    batches: list[int]

    def __init__(self, *, more: int = 0, fingerprint: str = "") -> None:
        self.more, self.batches = more, []
        if fingerprint:
            self.fingerprint = fingerprint

    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        self.batches.append(len(images))
        return [
            [
                Detection("cat", 0.95, (20.0 * n, 0, 20.0 * n + 9, 9), np.ones((2, 2), bool))
                for n in range(self._cats(image))
            ]
            for image in images
        ]

    def _cats(self, image: np.ndarray) -> int:
        return int(image[0, 0, 0]) + self.more

    def __call__(self, *given: Any) -> Any:
        if len(given) == 1:
            return self.find(*given)
        image, detections, _ = given
        return [self.colors[image[0, 0, 1]]] * len(detections)


def protocol(**changes: Any) -> GenEvalProtocol:
    judge = Counter()
    return GenEvalProtocol(
        **{"name": "test", "rows": ROWS, "detector": judge, "colors": judge, "images_per_prompt": 2} | changes
    )


def images(*cats_and_color: tuple[int, int]) -> torch.Tensor:
    """uint8 [B, 2, 2, 3]."""
    pixels = torch.zeros(len(cats_and_color), 2, 2, 3, dtype=torch.uint8)
    pixels[:, 0, 0, :2] = torch.tensor(cats_and_color, dtype=torch.uint8)
    return pixels


# two images for each of the five rows: number of cats, colour (0 is red)
DRAWN = [(1, 0), (0, 0), (2, 0), (3, 0), (2, 0), (1, 1), (1, 0), (1, 0), (0, 0), (0, 0)]
DRAWN_FOR = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_numbers_and_their_names() -> None:
    evaluator = protocol().evaluator()
    evaluator.update(images(*DRAWN), DRAWN_FOR)
    result = evaluator.compute()
    # single_object: of rows 0, 3 and 4 3 images of 6; counting 1 of 2; colors 1 of 2
    assert result.metrics == pytest.approx(
        {
            "geneval_test_10": 1 / 2,
            "single_object_test_10": 3 / 6,
            "counting_test_10": 1 / 2,
            "colors_test_10": 1 / 2,
            "credit_test_10": (3 / 6 + (1 + 2 / 3) / 2 + (1 + 1 / 2) / 2) / 3,
            "correct-images_test_10": 5 / 10,
            "correct-prompts_test_10": 3 / 4,  # the dog is never there; both rows of the cat are one prompt
        }
    )
    assert (result.n, result.reference_n, result.protocol) == (10, 4, "test")
    assert set(result.stderr) == set(result.metrics)
    assert set(result.intervals) == {"single_object_test_10"}  # the other tags have one prompt
    by_hand = summarize_verdicts(
        ["single_object"] * 6, ["cat"] * 4 + ["dog"] * 2, [True, False, True, True, False, False], [0] * 6
    )
    assert result.stderr["single_object_test_10"] == by_hand.stderr["single_object"]


def test_batches_of_any_cut_and_order_give_the_same_numbers() -> None:
    whole, parts, judge = protocol().evaluator(), None, Counter()
    whole.update(images(*DRAWN), DRAWN_FOR)
    parts = protocol(detector=judge).evaluator()
    for start, stop in ((7, 10), (0, 3), (3, 7)):
        parts.update(images(*DRAWN[start:stop]), torch.tensor(DRAWN_FOR[start:stop]))
    assert judge.batches == [3, 3, 4]
    first, second = whole.compute(), parts.compute()
    assert first.metrics == second.metrics and first.intervals == second.intervals


def test_the_held_out_judge_sees_the_same_images() -> None:
    """It finds one more cat in each, so that only images without a cat, or with one of two, are right for it."""
    second = Counter(more=1)
    evaluator = protocol(held_out=(second, second)).evaluator()
    evaluator.update(images(*DRAWN), DRAWN_FOR)
    metrics = evaluator.compute().metrics
    # single_object: the cat's rows are right in all 4 images, the dog's never; counting never; colors as before
    assert metrics["held-out_test_10"] == pytest.approx((4 / 6 + 0 + 1 / 2) / 3)
    assert metrics["geneval_test_10"] == pytest.approx(1 / 2)
    assert "held-out_test_10" in evaluator.compute().stderr


def test_the_lines_are_published_ones_and_more(tmp_path: Path) -> None:
    second = Counter(more=1)
    evaluator = protocol(held_out=(second, second)).evaluator()
    evaluator.update(images(*DRAWN[4:]), DRAWN_FOR[4:])
    evaluator.update(images(*DRAWN[:4]), DRAWN_FOR[:4])
    path = tmp_path / "verdicts.jsonl"
    evaluator.write(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in lines] == DRAWN_FOR
    assert lines[3] == {
        "filename": "00001/samples/0001.png",
        "tag": "counting",
        "prompt": "a photo of two cats",
        "correct": False,
        "reason": "3 cat, at most 2 allowed",
        "metadata": json.dumps(ROWS[1]),
        "details": json.dumps({"cat": [[20.0 * n, 0, 20.0 * n + 9, 9, 0.95] for n in range(3)]}),
        "credit": pytest.approx(2 / 3),
        "faults": [{"kind": "number", "fault": "too many", "label": "cat"}],
        "row": 1,
        "held_out_correct": False,
    }
    assert list(lines[3])[:7] == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert lines[5]["faults"] == [{"kind": "color", "fault": "color", "label": "cat"}]
    assert (lines[0]["faults"], lines[0]["held_out_correct"], lines[2]["held_out_correct"]) == ([], True, False)
    assert [verdict.correct for verdict in read_verdicts(path)] == [line["correct"] for line in lines]


def test_without_a_second_judge_no_line_names_one(tmp_path: Path) -> None:
    evaluator = protocol().evaluator()
    evaluator.update(images((1, 0)), [0])
    evaluator.write(tmp_path / "verdicts.jsonl")
    assert "held_out_correct" not in json.loads((tmp_path / "verdicts.jsonl").read_text())


def test_too_few_images_are_not_summed_up() -> None:
    evaluator = protocol().evaluator()
    with pytest.raises(
        ValueError, match="row 0, 'a photo of a cat', has 0 images; the protocol asks for 2 of each row"
    ):
        evaluator.compute()
    evaluator.update(images(*DRAWN[:3]), DRAWN_FOR[:3])
    with pytest.raises(ValueError, match="row 1, 'a photo of two cats', has 1 images; the protocol asks for 2"):
        evaluator.compute()


class Hasty(Counter):
    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        return super().find(images)[1:]


class Stranger(Counter):
    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        return [[Detection("kite", 0.9, (0, 0, 1, 1))] for _ in images]


@pytest.mark.parametrize(
    ("detector", "pixels", "rows", "message"),
    [
        (Counter(), images((1, 0)), [0, 1], "1 images came with 2 row numbers; one each"),
        (Counter(), images((1, 0)), [5], "there is no row 5; the protocol has rows 0 to 4"),
        (Counter(), images((1, 0)), [-1], "there is no row -1"),
        (
            Counter(),
            images((1, 0), (1, 0)),
            [0, 0],
            "row 0, 'a photo of a cat', has 1 images and would get 2 more; the pro",
        ),
        (Hasty(), images((1, 0), (1, 0)), [1, 2], "the detector 'counter' answered for 1 images of 2; one list each"),
        (Stranger(), images((1, 0)), [0], "found a 'kite', which is not among the classes"),
        (Counter(), images((1, 0)).float(), [0], "uint8"),
    ],
)
def test_a_refused_batch_leaves_no_trace(
    detector: Counter, pixels: torch.Tensor, rows: list[int], message: str, tmp_path: Path
) -> None:
    judge = Counter()
    evaluator = protocol(detector=judge, held_out=(detector, judge)).evaluator()
    detector_of_first, detector.find = detector.find, judge.find  # type: ignore[method-assign]
    evaluator.update(images((1, 0)), [0])
    detector.find = detector_of_first  # type: ignore[method-assign]
    with pytest.raises((ValueError, TypeError), match=message):
        evaluator.update(pixels, rows)
    evaluator.write(tmp_path / "verdicts.jsonl")
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 1


class Dogless(Counter):
    labels = ("cat",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Gen Eval"}, "protocol name 'Gen Eval' must be lower-case letters, digits and '-'"),
        ({"rows": []}, "there are 0 rows and 2 images for each; at least 1 of both"),
        ({"images_per_prompt": 0}, "there are 5 rows and 0 images for each"),
        (
            {"detector": Dogless()},
            r"row 4, 'a photo of a dog', cannot be judged by the detector 'counter': include\[0\] asks for the class 'dog'",
        ),
        ({"held_out": (Dogless(), Counter())}, "row 4, .* asks for the class 'dog', which the detector does not know"),
        ({"colors": None}, "row 2, 'a photo of a red cat', .* asks for the colour 'red', .* there is none; give one"),
        ({"rows": [ROWS[0], {**ROWS[0], "tag": "cats"}]}, "row 1, 'a photo of a cat', .*: the tag is 'cats'; allowed"),
        ({"rows": [{**ROWS[0], "prompt": None}]}, "row 0, None, .*: it has no prompt; a sentence is needed"),
        ({"rows": [{**ROWS[0], "seed": np.int64(3)}]}, "row 0, .*: it cannot be written as JSON: .*int64"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol(**changes)


def test_the_thresholds_are_for_both_judges() -> None:
    second = Counter()
    evaluator = protocol(rows=ROWS[:1], images_per_prompt=1, held_out=(second, second), threshold=0.96).evaluator()
    evaluator.update(images((1, 0)), [0])
    metrics = evaluator.compute().metrics
    assert (metrics["geneval_test_1"], metrics["held-out_test_1"]) == (0, 0)


def test_the_fingerprint_tells_judges_settings_and_rows_apart() -> None:
    class Other(Counter):
        name = "other"

    def fingerprint(**changes: Any) -> str:
        return protocol(**changes).fingerprint

    plain, rows = fingerprint(), [*ROWS[:-1], single_object("cat")]
    others: list[dict[str, Any]] = [
        *({"detector": Other()}, {"detector": Counter(fingerprint="ab")}, {"colors": Counter(fingerprint="ab")}),
        *({"colors": Other()}, {"held_out": (Counter(), None)} | {"rows": [ROWS[0]]}, {"rows": [ROWS[0]]}),
        *({"held_out": (Counter(), Counter())}, {"held_out": (Counter(fingerprint="ab"), Counter())}, {"rows": rows}),
        *({"threshold": 0.4}, {"counting_threshold": 0.8}, {"max_objects": 15}, {"max_overlap": 0.5}),
        {"position_threshold": 0.2},
    ]
    told = [plain, *(fingerprint(**changes) for changes in others)]
    assert len(set(told)) == len(told)
    assert plain == fingerprint() == fingerprint(name="another", images_per_prompt=1)
    evaluator = protocol(rows=ROWS[:1]).evaluator()
    evaluator.update(images((1, 0), (1, 0)), [0, 0])
    assert evaluator.compute().extractor_fingerprint == fingerprint(rows=ROWS[:1])
    assert len(plain) == 16


def test_rows_that_change_later_do_not_change_the_protocol() -> None:
    row: Row = single_object("cat")
    rows = [row]
    fixed = protocol(rows=rows)
    before = fixed.fingerprint
    row["tag"] = "counting"
    rows.append(single_object("dog"))
    assert (fixed.fingerprint, len(fixed.rows)) == (before, 1)
    assert replace(fixed, name="other").rows == fixed.rows
