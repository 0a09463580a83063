"""Extractors are made of what settings say, mistakes there are named, and what they give is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.classifier import DigitClassifier, save_classifier
from evaluation.features.base import ExtractorOutput
from evaluation.features.clip import ClipExtractor
from evaluation.features.dinov2 import Dinov2Extractor
from evaluation.features.inception import InceptionExtractor
from evaluation.features.make import EXTRACTORS, extract, make_extractor

IMAGES = torch.randint(0, 256, (3, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

USERS_OWN = """
from evaluation.features.base import ExtractorOutput

class Means:
    name = "means"
    fingerprint = "0123456789abcdef"

    def __call__(self, images_BHW3):
        return ExtractorOutput(images_BHW3.float().mean(dim=(1, 2)))

def nameless():
    return lambda images_BHW3: None

def a_text():
    return Means.name
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "own.py").write_text(USERS_OWN)
    save_classifier(DigitClassifier("conv3x3", seed=1), folder / "digits.safetensors")
    return folder


class Stub:
    name, fingerprint = "stub", "0" * 16

    def __init__(self, output: Any) -> None:
        self.output = output

    def __call__(self, images_BHW3: Tensor, /) -> ExtractorOutput:
        return self.output


@pytest.mark.parametrize(
    "section", ["digits.safetensors", {"name": "classifier", "path": "digits.safetensors"}, "absolute"]
)
def test_classifiers(folder: Path, section: str | dict[str, Any]) -> None:
    if section == "absolute":
        section = str(folder / "digits.safetensors")
    extractor: Any = make_extractor(section, folder, device="cpu")
    assert extractor.fingerprint == DigitClassifier("conv3x3", seed=1).fingerprint
    assert not extractor.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    arrays = extract(extractor, IMAGES)
    assert arrays.keys() == {"features", "logits"}
    assert arrays["features"].shape == (3, 64)
    with torch.no_grad():
        np.testing.assert_array_equal(arrays["logits"], extractor(IMAGES).logits_BK.numpy())


def test_the_users_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = make_extractor("own.py:Means", folder)
    assert extractor.name == "means"
    arrays = extract(extractor, IMAGES)
    np.testing.assert_allclose(arrays["features"], IMAGES.float().mean(dim=(1, 2)).numpy())
    assert arrays["features"].dtype == np.float32
    monkeypatch.chdir(folder)
    assert make_extractor("own.py:Means").fingerprint == extractor.fingerprint


@pytest.mark.parametrize(("name", "kind"), [("dinov2", Dinov2Extractor), ("clip", ClipExtractor)])
def test_mappings_tell_path_settings_and_device(
    name: str, kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def init(self: Any, path: str | Path, *, architecture: str | None = None, device: str = "auto") -> None:
        told.update(path=path, architecture=architecture, device=device)

    monkeypatch.setattr(kind, "__init__", init)
    (folder / "architecture.json").touch()
    section = {"name": name, "path": "org/model", "architecture": "architecture.json"}
    assert isinstance(make_extractor(section, folder, device="cpu"), kind)
    assert told == {"path": "org/model", "architecture": str(folder / "architecture.json"), "device": "cpu"}
    assert section == {"name": name, "path": "org/model", "architecture": "architecture.json"}


def test_inception_is_found_in_the_folder(folder: Path) -> None:
    (folder / "weights.pth").write_bytes(b"0")
    with pytest.raises(ValueError, match=f"{folder / 'weights.pth'} is not the file that was asked for"):
        make_extractor({"name": "inception", "path": "weights.pth"}, folder)
    assert EXTRACTORS["inception"] is InceptionExtractor


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        (
            "inception",
            ValueError,
            "'inception' is no extractor; allowed are a classifier's file .*name: inception, path",
        ),
        ({"path": "x"}, ValueError, "needs a name; known: inception, dinov2, clip, classifier"),
        ({"name": "incepton"}, ValueError, "unknown extractor 'incepton'; known: .*; did you mean 'inception'?"),
        ({"name": "vgg"}, ValueError, "unknown extractor 'vgg'; known: inception, dinov2, clip, classifier$"),
        (
            {"name": "inception", "path": "x", "sha265": None},
            ValueError,
            "inception has no setting 'sha265'; its settings: path, sha256; did you mean 'sha256'?",
        ),
        (
            {"name": "classifier", "path": "x", "device": "cpu"},
            ValueError,
            "has no setting 'device'; its settings: path",
        ),
        ({"name": "clip", "architecture": "ViT-L-14"}, ValueError, "clip needs its path; its settings: path, architec"),
        (
            {"name": "inception", "path": "x", "sha256": 67268250},
            TypeError,
            r"sha256 of extractor inception is 67268250, of type int; it must be of type str \| None .*needs quotes",
        ),
        ({"name": "clip", "path": "x", "quick_gelu": "no"}, TypeError, r"quick_gelu of extractor clip is 'no'.*bool"),
        ("own.py:nameless", ValueError, "gave a function without name and fingerprint, which must be texts"),
        ("own.py:a_text", ValueError, "gave a str without name and fingerprint"),
        ("own.py:Meens", ValueError, "has no 'Meens'"),
        ("none.py:Means", ValueError, "there is no file none.py"),
        ("none.safetensors", FileNotFoundError, "none.safetensors"),
    ],
)
def test_mistakes_are_named(
    folder: Path, section: str | Mapping[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_extractor(section, folder)


@pytest.mark.parametrize("part", ["features", "logits", "spatial"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(part: str, number: float) -> None:
    tensors = {"features": torch.zeros(3, 2), "logits": torch.zeros(3, 4), "spatial": torch.zeros(3, 5)}
    assert extract(Stub(ExtractorOutput(*tensors.values())), IMAGES).keys() == tensors.keys()
    tensors[part][1, 1] = number
    message = f"the {part} of extractor stub are NaN or infinite for 1 of 3 images of a batch, first for number 1"
    with pytest.raises(ValueError, match=message):
        extract(Stub(ExtractorOutput(*tensors.values())), IMAGES)


def test_what_an_extractor_may_not_give() -> None:
    with pytest.raises(TypeError, match="extractor stub gave a Tensor; it must give an .*ExtractorOutput"):
        extract(Stub(torch.zeros(3, 2)), IMAGES)
    for shape in ([2, 2], [3, 2, 1], [3]):
        with pytest.raises(ValueError, match="the features of extractor stub have shape .*one row an image, .3, ...."):
            extract(Stub(ExtractorOutput(torch.zeros(shape))), IMAGES)
    with pytest.raises(ValueError, match="there is no image in the batch"):
        extract(Stub(ExtractorOutput(torch.zeros(0, 2))), IMAGES[:0])
    with pytest.raises(TypeError, match="images must be uint8"):
        extract(Stub(ExtractorOutput(torch.zeros(3, 2))), IMAGES.float())


def test_arrays_are_float32_of_no_gradient() -> None:
    features_BD = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    arrays = extract(Stub(ExtractorOutput(features_BD)), IMAGES)
    assert arrays.keys() == {"features"}
    assert arrays["features"].dtype == np.float32
