"""Results of GenEval's own tool: read, written, and scored again by these rules.

The lines are as that tool writes them, word for word; the boxes are made up.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.geneval import Detection, GenEvalScorer
from evaluation.geneval.folder import write_folder
from evaluation.geneval.recorded import RecordedColors, RecordedDetector, Recording, rescore
from evaluation.geneval.verdicts import Verdict, read_verdicts, write_verdicts

CAT, DOG = {"class": "cat", "count": 1}, {"class": "dog", "count": 1}
RED_CAT, BLUE_DOG = {**CAT, "color": "red"}, {**DOG, "color": "blue"}
LEFT, RIGHT, NEAR = [0.0, 0.0, 10.0, 10.0, 0.95], [50.0, 0.0, 60.0, 10.0, 0.9], [1.0, 0.0, 11.0, 10.0, 0.5]


def record(include: list[dict[str, Any]], details: dict[str, Any], reason: str = "", **row: Any) -> dict[str, Any]:
    metadata = {"tag": "two_object", "include": include, "prompt": "a photo of a cat", **row}
    return {
        "filename": "somewhere/00000/samples/0000.png",
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
        "correct": not reason,
        "reason": reason,
        "metadata": json.dumps(metadata),
        "details": json.dumps(details),
    }


FOUR_CATS = {"tag": "counting", "exclude": [{"class": "cat", "count": 4}]}
RECORDS = {
    "right": record([CAT, DOG], {"cat": [LEFT], "dog": [RIGHT]}),
    "missing": record([CAT, DOG], {"cat": [LEFT]}, "expected dog>=1, found 0"),
    "too many": record([{**CAT, "count": 3}], {"cat": [LEFT] * 4}, "expected cat<4, found 4", **FOUR_CATS),
    "red": record([RED_CAT], {"cat": [LEFT]}),
    "not red": record([RED_CAT], {"cat": [LEFT]}, "expected red cat>=1, found 0 red; and 1 blue"),
    "one of two": record(
        [{**RED_CAT, "count": 2}], {"cat": [LEFT, RIGHT]}, "expected red cat>=2, found 1 red; and 1 red, 1 green"
    ),
    "second not blue": record(
        [RED_CAT, BLUE_DOG], {"cat": [LEFT], "dog": [RIGHT]}, "expected blue dog>=1, found 0 blue; and 1 red"
    ),
    "too few for a colour": record([RED_CAT], {"dog": [LEFT]}, "expected cat>=1, found 0"),
    "placed": record([CAT, {**DOG, "position": ["right of", 0]}], {"cat": [LEFT], "dog": [RIGHT]}),
    "misplaced": record(
        [CAT, {**DOG, "position": ["left of", 0]}],
        {"cat": [LEFT], "dog": [RIGHT]},
        "expected dog left of target, found right of target",
    ),
    "in no relation": record(
        [CAT, {**DOG, "position": ["left of", 0]}],
        {"cat": [LEFT], "dog": [NEAR]},
        "expected dog left of target, found  target",
    ),
    "no target": record(
        [CAT, {**DOG, "position": ["left of", 0]}],
        {"dog": [RIGHT]},
        "expected cat>=1, found 0\nno target for dog to be left of",
    ),
}


@pytest.mark.parametrize("line", RECORDS.values(), ids=RECORDS)
def test_our_rules_give_the_recorded_verdict(line: dict[str, Any]) -> None:
    verdict = Verdict.from_json(line)
    result = rescore(verdict, labels=("cat", "dog"))
    assert result.correct == verdict.correct == (result.credit == 1)
    assert result.reason.count("\n") == verdict.reason.count("\n")


def test_the_colours_are_those_that_the_reason_lists() -> None:
    assert rescore(Verdict.from_json(RECORDS["one of two"])).reason == "1 of 2 cat red: seen red, green"
    assert rescore(Verdict.from_json(RECORDS["second not blue"])).reason == "0 of 1 dog blue: seen red"


def test_a_wrong_verdict_shows() -> None:
    """Were the tool to say `right` of an image without a dog, this would differ from it."""
    assert not rescore(Verdict.from_json({**RECORDS["missing"], "correct": True, "reason": ""})).correct


def test_reasons_in_other_words_do_not_tell_colours() -> None:
    line = {**RECORDS["not red"], "reason": "0 of 1 cat red: seen blue"}
    with pytest.raises(ValueError, match="0000.png: the reason '0 of 1 cat red: seen blue' is not in the words of Gen"):
        rescore(Verdict.from_json(line))


def test_a_row_that_asks_for_something_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="0000.png: include is None; a list of clauses"):
        rescore(Verdict.from_json({**RECORDS["right"], "metadata": '{"tag": "colors"}'}))
    with pytest.raises(ValueError, match=r"0000.png: include\[0\] asks for the class 'cat'"):
        rescore(Verdict.from_json(RECORDS["right"]), labels=("dog",))


def test_a_file_survives(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in RECORDS.values()))
    verdicts = read_verdicts(path)
    assert [verdict.to_json() for verdict in verdicts] == list(RECORDS.values())
    write_verdicts(tmp_path / "copy.jsonl", verdicts)
    assert (tmp_path / "copy.jsonl").read_bytes() == path.read_bytes()


def test_our_result_becomes_a_published_line() -> None:
    detections = [
        Detection("cat", 0.5, (1, 0, 11, 10), np.ones((20, 20), bool)),
        Detection("cat", 0.95, (0, 0, 10, 10)),
    ]
    result = GenEvalScorer(labels=("cat", "dog")).score(
        np.zeros((20, 20, 3), np.uint8), detections, json.loads(RECORDS["missing"]["metadata"])
    )
    verdict = Verdict.of("00000/samples/0000.png", json.loads(RECORDS["missing"]["metadata"]), result)
    assert verdict.to_json() == {
        **RECORDS["missing"],
        "filename": "00000/samples/0000.png",
        "reason": "0 of 1 dog",
        "details": '{"cat": [[0, 0, 10, 10, 0.95], [1, 0, 11, 10, 0.5]]}',
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": "true"}, "correct is 'true'; a bool is needed"),
        ({"reason": None}, "reason is None; a str is needed"),
        ({"metadata": "[]"}, r"metadata is '\[\]'; a string with a JSON object"),
        ({"details": {"cat": []}}, r"details is {'cat': \[\]}; a string with a JSON object"),
        (
            {"details": '{"cat": [[0, 0, 1, 1]]}'},
            r"details of 'cat' hold \[0, 0, 1, 1\]; \[left, top, right, bottom, sc",
        ),
        ({"details": '{"cat": 3}'}, "details of 'cat' hold 3"),
        ({"details": '{"cat": [[5, 0, 1, 1, 0.9]]}'}, r"a detection of 'cat' has score 0.9 and box \(5, 0, 1, 1\)"),
    ],
)
def test_a_line_that_is_no_verdict_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(RECORDS["right"]) + "\n" + json.dumps({**RECORDS["right"], **change}) + "\n")
    with pytest.raises(ValueError, match=rf"results.jsonl:2: no verdict of GenEval's: {message}"):
        read_verdicts(path)


@pytest.mark.parametrize(("text", "message"), [("", "holds no verdicts"), ("[1]\n", ":1: .*an object"), ("{", ":1: ")])
def test_a_file_without_verdicts_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_verdicts(path)


# ---- as a detector


def recorded(tmp_path: Path) -> tuple[Recording, np.ndarray]:
    """Two prompts of an image each: a red cat, and what was asked to be a red cat and was blue."""
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4, 3), dtype=np.uint8)
    lines = [
        {**RECORDS[name], "filename": f"old/place/{n:05}/samples/0000.png"} for n, name in enumerate(("red", "not red"))
    ]
    write_folder(tmp_path / "images", [json.loads(line["metadata"]) for line in lines], images)
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Recording.read(tmp_path / "results.jsonl", tmp_path / "images"), images[:, 0]


def test_images_are_known_by_their_pixels(tmp_path: Path) -> None:
    recording, images = recorded(tmp_path)
    detector, colors = RecordedDetector(recording), RecordedColors(recording)
    assert detector(images[::-1]) == [[Detection("cat", 0.95, (0, 0, 10, 10))]] * 2
    cats = detector(images[:1])[0]
    assert [colors(image, cats, "cat") for image in images] == [["red"], ["blue"]]
    with pytest.raises(ValueError, match="an image of 4x4 pixels is none of the 2 that were recorded"):
        detector([images[0] + 1])
    with pytest.raises(ValueError, match="does not tell the colours of 2 cat; use a colour classifier"):
        colors(images[0], cats * 2, "cat")
    with pytest.raises(ValueError, match="does not tell the colours of 1 dog"):
        colors(images[0], cats, "dog")


def test_colours_that_were_never_asked_for_are_not_made_up() -> None:
    """The tool found no cat, and so asked for no colour; its verdict says nothing of one that another detector finds."""
    image = np.zeros((1, 1, 3), np.uint8)
    colors = RecordedColors(Recording([Verdict.from_json(RECORDS["too few for a colour"])], [image]))
    with pytest.raises(ValueError, match="does not tell the colours of 1 cat"):
        colors(image, [Detection("cat", 0.9, (0, 0, 1, 1))], "cat")


def test_a_recording_is_known_by_what_it_tells() -> None:
    def fingerprint(name: str) -> str:
        return RecordedDetector(Recording([Verdict.from_json(RECORDS[name])], [np.zeros((1, 1, 3))])).fingerprint

    assert fingerprint("right") != fingerprint("missing")
    assert fingerprint("right") == fingerprint("right")


@pytest.mark.parametrize("other", ["missing", "placed"])  # other objects; the same objects and another row
def test_equal_images_with_other_verdicts_are_refused(other: str) -> None:
    verdicts = [Verdict.from_json(RECORDS[name]) for name in ("right", other)]
    blank = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="0000.png are equal images with different verdicts"):
        Recording(verdicts, [blank, blank])
    Recording(verdicts[:1] * 2, [blank, blank])
    Recording(verdicts, [blank, np.zeros((1, 4, 3), np.uint8)])  # the same bytes in another shape
    nothing = replace(verdicts[0], details={})
    Recording([nothing, replace(nothing, metadata={**nothing.metadata, "prompt": "another"})], [blank, blank])
    with pytest.raises(ValueError, match="zip"):
        Recording(verdicts, [blank])
