"""Detectors and colour classifiers are made by name, with their partners; what is none is refused with what there is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.geneval import GenEvalScorer
from evaluation.geneval.detectors import COLORS, DETECTORS, make_colors, make_detector, make_pair
from evaluation.geneval.folder import write_folder
from evaluation.shapes_world import Shape, ShapeColors, ShapeDetector, render
from evaluation.shapes_world.neural import NeuralShapeColors, NeuralShapeDetector, NeuralShapes, save_neural_shapes

CODE = """
class Mine:
    name, labels, colors = "mine", ("cat",), ("red",)
    def __init__(self, *, score=0.8):
        self.score = score
    def __call__(self, *args):
        return []

def nameless():
    return object()

number = 3
"""
SCENE = render([Shape("circle", "red", 2, 4, 10), Shape("square", "blue", 18, 20, 8)])
ROW = {
    "tag": "color_attr",
    "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}],
    "prompt": "a photo of a red circle and a blue square",
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return str(tmp_path / "mine.py")


def test_the_shapes_world_judges_its_scenes() -> None:
    detector, colors = make_pair("shapes")
    assert (type(detector), type(colors)) == (ShapeDetector, ShapeColors)
    scorer = GenEvalScorer(labels=detector.labels, colors=colors)
    assert scorer.score(SCENE, detector([SCENE])[0], ROW).correct
    wrong = {**ROW, "include": [{"class": "circle", "count": 1, "color": "green"}]}
    assert not scorer.score(SCENE, detector([SCENE])[0], wrong).correct


def test_the_learnt_judge_is_read_from_its_file(tmp_path: Path) -> None:
    net = NeuralShapes(seed=3)
    save_neural_shapes(net, tmp_path / "judge.safetensors")
    detector, colors = make_pair("shapes-neural", detector_kwargs={"path": str(tmp_path / "judge.safetensors")})
    assert isinstance(detector, NeuralShapeDetector)
    assert isinstance(colors, NeuralShapeColors)
    assert detector.net.fingerprint == colors.net.fingerprint == net.fingerprint


def test_recorded_results_are_read_with_their_images(tmp_path: Path) -> None:
    row = {
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "red"}],
        "prompt": "a photo of a red cat",
    }
    write_folder(tmp_path / "images", [row], [SCENE[None]])
    result = {
        "filename": "elsewhere/00000/samples/0000.png",
        "correct": True,
        "reason": "",
        "metadata": json.dumps(row),
    }
    result |= {"tag": row["tag"], "prompt": row["prompt"], "details": json.dumps({"cat": [[1, 2, 3, 4, 0.9]]})}
    (tmp_path / "results.jsonl").write_text(json.dumps(result) + "\n")
    settings = {"results": str(tmp_path / "results.jsonl"), "folder": str(tmp_path / "images")}
    detector, colors = make_pair("recorded", detector_kwargs=settings)
    (found,) = detector([SCENE])
    assert [(one.label, one.box) for one in found] == [("cat", (1, 2, 3, 4))]
    assert colors is not None
    assert colors(SCENE, found, "cat") == ["red"]


def test_a_users_own_takes_settings_and_brings_no_colours(file: str) -> None:
    detector, colors = make_pair(f"{file}:Mine", detector_kwargs={"score": 0.5})
    assert (detector.name, detector.score, colors) == ("mine", 0.5, None)  # type: ignore[attr-defined]
    assert tuple(make_colors(f"{file}:Mine", score=None).colors) == ("red",)  # None counts as left out
    _, colors = make_pair(f"{file}:Mine", f"{file}:Mine", colors_kwargs={"score": 0.1})
    assert colors is not None
    assert colors.score == 0.1  # type: ignore[attr-defined]
    assert make_pair("shapes", "none")[1] is None
    assert isinstance(make_pair(f"{file}:Mine", "shapes")[1], ShapeColors)


def test_one_image_of_the_wrong_kind_is_no_secret() -> None:
    detector = make_detector("shapes")
    scorer = GenEvalScorer(labels=detector.labels, colors=None)
    row: dict[str, Any] = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
    with pytest.raises(
        ValueError,
        match=r"include\[0\] asks for the class 'cat', which the detector does not know; it knows circle, square, triangle, cross",
    ):
        scorer.score(SCENE, detector([SCENE])[0], row)
    with pytest.raises(ValueError, match=r"the colour 'red', .* there is none; give one"):
        scorer.score(SCENE, [], ROW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"detector": "mask2fromer"},
            "unknown detector 'mask2fromer'; known: mask2former, recorded, shapes, shapes-neural; did",
        ),
        (
            {"detector": "yolo"},
            r"unknown detector 'yolo'; known: .*shapes-neural\. Your own is path/to/file.py:function",
        ),
        ({"detector": "clip"}, "unknown detector 'clip'"),
        ({"detector": "shapes", "colors": "shape"}, "unknown colour classifier 'shape'; known: clip, .*mean 'shapes'"),
        ({"detector": "mask2former"}, "mask2former comes without colours: give colors=clip and .*colors=none"),
        ({"detector": "mask2former", "colors": "none"}, "missing a required argument: 'path'; it takes .*revision"),
        (
            {"detector": "mask2former", "colors": "none", "detector_kwargs": {"path": "x", "sise": 3}},
            r"'mask2former' cannot be made with path=\.\.\., sise=\.\.\.: got an unexpected keyword argument 'sise'",
        ),
        ({"detector": "shapes", "detector_kwargs": {"path": "x"}}, "'shapes' cannot be made with path"),
        ({"detector": "shapes", "colors": "clip"}, "'clip' cannot be made with no settings: missing .*'path'"),
        ({"detector": "shapes", "colors_kwargs": {"a": 1}}, "colors_kwargs without colors; known: clip, .*none"),
        ({"detector": "{file}:Mime"}, "has no 'Mime'"),
        ({"detector": "{file}:number"}, "is of type int; a function that makes a detector is needed"),
        ({"detector": "{file}:nameless"}, "gives a object without name and labels, which a detector has; see"),
        ({"detector": "shapes", "colors": "{file}:nameless"}, "without colors, which a colour classifier has"),
        ({"detector": "nowhere.py:f"}, "there is no file nowhere.py"),
    ],
)
def test_names_that_lead_nowhere_are_refused(file: str, settings: dict[str, Any], message: str) -> None:
    filled = {key: value.format(file=file) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(ValueError, match=message):
        make_pair(**filled)


@pytest.mark.parametrize("table", [DETECTORS, COLORS])
def test_every_name_stands_for_something(table: dict[str, str]) -> None:
    for name, reference in table.items():
        module, _, attribute = reference.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_an_image_may_have_any_size() -> None:
    assert make_detector("shapes")([np.full((5, 7, 3), 236, np.uint8)]) == [[]]
