"""GenEval's verdicts as rewards, with a detector by name or out of a user's file. The rules: tests/evaluation/test_geneval.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.shapes_world.neural import NeuralShapes, save_neural_shapes
from rewards.registry import load_reward
from rewards.tiny import scenes

CODE = """
from evaluation.geneval import Detection

class Detector:
    name = "stripes"
    labels = ("cat", "dog")

    def __init__(self, score):
        self.score = score
        self.seen = []

    def __call__(self, images):
        assert images
        # an image's first pixel counts its cats, its second its dogs
        self.seen.extend(images)
        return [
            [Detection(label, self.score, (0, 0, 2, 2)) for place, label in enumerate(self.labels)
             for _ in range(image[0, place, 0])]
            for image in images
        ]

class Red:
    colors = ("red", "blue")

    def __call__(self, image, detections, label):
        return ["red" for _ in detections]

def detector(score=0.8):
    return Detector(score)

def colors():
    return Red()

def mute():
    found = Detector(0.8)
    Detector.__call__ = lambda self, images: []
    return found
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def images(*counts: tuple[int, int]) -> torch.Tensor:
    batch = torch.zeros(len(counts), 4, 4, 3, dtype=torch.uint8)
    batch[:, 0, :2, 0] = torch.tensor(counts, dtype=torch.uint8)
    return batch


CAT, TWO_DOGS = {"class": "cat", "count": 1}, {"class": "dog", "count": 2}
BOTH = {"tag": "two_object", "include": [CAT, TWO_DOGS]}


@pytest.mark.parametrize(("credit", "expected"), [("strict", [1, 0, 0]), ("partial", [1, 0.75, 0])])
def test_credit(file: Path, credit: str, expected: list[float]) -> None:
    reward = load_reward("geneval", detector=f"{file}:detector", credit=credit)
    assert reward(images((1, 2), (1, 1), (0, 0)), [BOTH] * 3).tolist() == expected


def test_rows_that_ask_for_nothing_do_not_apply(file: Path) -> None:
    reward: Any = load_reward("geneval", detector=f"{file}:detector")
    scores = reward(images((0, 0), (1, 2), (0, 0)), [{"prompt": "x"}, BOTH, {"include": None}])
    assert scores.isnan().tolist() == [True, False, True]
    assert scores[1] == 1
    assert [image[0, :2, 0].tolist() for image in reward.detector.seen] == [[1, 2]]
    assert reward(images((1, 1)), [{}]).isnan().all()


def test_settings_reach_the_detector_and_colours_the_scorer(file: Path) -> None:
    doubtful = load_reward("geneval", detector=f"{file}:detector", detector_kwargs={"score": 0.2})
    assert doubtful(images((1, 2)), [BOTH]).tolist() == [0]
    coloured = load_reward("geneval", detector=f"{file}:detector", colors=f"{file}:colors")
    rows = [{"tag": "colors", "include": [{**CAT, "color": color}]} for color in ("red", "blue")]
    assert coloured(images((1, 0), (1, 0)), rows).tolist() == [1, 0]


def test_a_wrong_row_is_named_before_anything_is_detected(file: Path) -> None:
    reward: Any = load_reward("geneval", detector=f"{file}:detector")
    with pytest.raises(ValueError, match=r"row 2: include\[0\] asks for the class 'kat'"):
        reward(images((1, 2), (1, 2), (1, 2)), [BOTH, {}, {**BOTH, "include": [{"class": "kat", "count": 1}]}])
    assert reward.detector.seen == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": "mask2former"}, "mask2former comes without colours: give colors=clip"),
        ({"detector": "shape"}, "unknown detector 'shape'; known: .*did you mean 'shapes'"),
        ({"detector": "{file}:detectr"}, "has no 'detectr'; .*did you mean 'detector'"),
        ({"detector": "{file}:detector", "credit": "half"}, "unknown credit 'half'; allowed: strict, partial"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(file: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward("geneval", **{key: value.format(file=file) for key, value in settings.items()})


def test_a_detector_answers_for_each_image(file: Path) -> None:
    with pytest.raises(ValueError, match="the detector answered for 0 images of 1"):
        load_reward("geneval", detector=f"{file}:mute")(images((1, 2)), [BOTH])


def test_a_detector_by_name_brings_its_colours() -> None:
    rewards: dict[str, Any] = {
        credit: load_reward("geneval", detector="shapes", credit=credit) for credit in ("strict", "partial")
    }
    pictures = scenes.two_scenes()
    assert rewards["strict"](pictures, [scenes.ROW] * 2).tolist() == [1, 0]
    assert rewards["partial"](pictures, [scenes.ROW] * 2).tolist() == pytest.approx([1, 0.6])
    assert rewards["strict"].fingerprint == ""
    blind = load_reward("geneval", detector="shapes", colors="none")
    with pytest.raises(ValueError, match=r"row 0: include\[0\] asks for the colour 'red', .*there is none; give one"):
        blind(pictures, [scenes.ROW] * 2)


def test_the_fingerprint_is_of_both(file: Path) -> None:
    with file.open("a") as code:
        code.write("Detector.fingerprint = 'of-stripes'\nRed.fingerprint = 'of-red'\n")
    alone: Any = load_reward("geneval", detector=f"{file}:detector")
    assert alone.fingerprint == "of-stripes"
    both: Any = load_reward("geneval", detector=f"{file}:detector", colors=f"{file}:colors")
    assert both.fingerprint == "of-stripes-of-red"


def test_the_held_out_judge_is_a_reward_too(tmp_path: Path) -> None:
    save_neural_shapes(NeuralShapes(), tmp_path / "judge.safetensors")
    settings = {"path": str(tmp_path / "judge.safetensors")}
    reward: Any = load_reward("geneval", detector="shapes-neural", detector_kwargs=settings)
    assert reward(scenes.two_scenes(), [scenes.ROW] * 2).shape == (2,)
