"""Colours by CLIP are the published tool's: its sentences, its crops, its mean of embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.clip.models import ClipModel
from evaluation.clip.pixels import MEAN, STD
from evaluation.geneval import Detection
from evaluation.geneval.clip_colors import ClipColors
from evaluation.geneval.coco import COLORS
from rewards.tiny import clip as tiny

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)


def objects(number: int = 12) -> list[Detection]:
    """Boxes of many shapes, each with a mask of about half of it."""
    found = []
    for index in range(number):
        left, top, width, height = 3 * index, 2 * index, 8 + 3 * index, 30 - index
        box = (float(left), float(top), float(min(left + width, 80)), float(min(top + height, 60)))
        found.append(Detection("bear", 0.9, box, RNG.random((60, 80)) > 0.5))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny.save_transformers_clip(folder, activation="quick_gelu", seed=0)
    return folder


class Seen:
    """A CLIP that embeds pixels as their mean colour and texts as it is told, and notes both."""

    def __init__(self, texts: dict[str, tuple[float, float, float]], other: tuple[float, float, float]) -> None:
        self.texts, self.other = texts, other
        self.asked: list[list[str]] = []
        self.shown: list[Tensor] = []

    def embed_pixels(self, pixels_BCHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
        self.shown.append(pixels_BCHW * std + mean)
        return self.shown[-1].mean(dim=(2, 3))

    def embed_texts(self, part: list[str]) -> Tensor:
        self.asked.append(part)
        return torch.tensor([self.texts.get(text, self.other) for text in part])


@pytest.fixture
def with_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Seen], None]]:
    def use(seen: Seen) -> None:
        (tmp_path / "weights").write_bytes(b"none")
        model = ClipModel(
            seen.embed_pixels, seen.embed_texts, 8, 3, 100.0, tmp_path / "weights", torch.device("cpu"), torch.float32
        )
        monkeypatch.setattr("evaluation.geneval.clip_colors.load_clip", lambda *_, **__: model)

    yield use


def test_a_colour_is_three_sentences_about_the_class(with_clip: Callable[[Seen], None]) -> None:
    """red: two short sentences towards red and a long one towards blue; lengths do not count, so red it is."""
    seen = Seen(
        {
            "a photo of a red bear": (1.0, 0.0, 0.0),
            "a photo of a red-colored bear": (1.0, 0.0, 0.0),
            "a photo of a red object": (0.0, 0.0, 9.0),
            "a photo of a blue bear": (0.0, 0.0, 1.0),
            "a photo of a blue-colored bear": (0.0, 0.0, 1.0),
            "a photo of a blue object": (9.0, 0.0, 0.0),
        },
        other=(0.0, -1.0, 0.0),
    )
    with_clip(seen)
    colors = ClipColors("x")
    image = np.zeros((10, 10, 3), np.uint8)
    image[:, :5, 0] = 200
    image[:, 5:, 2] = 200
    found = [Detection("bear", 0.9, (0, 0, 5, 10)), Detection("bear", 0.9, (5, 0, 10, 10))]
    assert colors(image, found, "bear") == ["red", "blue"]
    assert colors(image, found[::-1], "bear") == ["blue", "red"]
    (asked,) = seen.asked  # once for the class, whatever number of objects
    assert asked == [
        sentence
        for color in COLORS
        for sentence in (
            f"a photo of a {color} bear",
            f"a photo of a {color}-colored bear",
            f"a photo of a {color} object",
        )
    ]
    colors(image, found, "hot dog")
    assert "a photo of a white-colored hot dog" in seen.asked[-1]


def test_what_is_not_the_object_is_grey(with_clip: Callable[[Seen], None]) -> None:
    seen = Seen({}, other=(1.0, 1.0, 1.0))
    with_clip(seen)
    image = np.full((16, 16, 3), 255, np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:8] = True
    assert len(ClipColors("x")(image, [Detection("bear", 0.9, (4, 4, 12, 12), mask)], "bear")) == 1
    (pixels,) = seen.shown
    assert pixels.shape == (1, 3, 8, 8)
    torch.testing.assert_close(pixels[0, 0, 3], torch.tensor([1.0] * 4 + [0.6] * 4))  # "#999"


def test_crops_go_in_batches_of_any_sizes(with_clip: Callable[[Seen], None]) -> None:
    seen = Seen({}, other=(1.0, 1.0, 1.0))
    with_clip(seen)
    assert len(ClipColors("x", batch_size=5)(IMAGE, objects(12), "bear")) == 12
    assert [len(part) for part in seen.shown] == [5, 5, 2]
    assert ClipColors("x")(IMAGE, [], "bear") == []


def test_names_are_those_of_transformers_own_way(folder: Path) -> None:
    """The published steps by transformers' classes: crop, processor, zero-shot classifier of three sentences, argmax."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    found, vectors, pixels = objects(), [], []
    with torch.no_grad():
        for color in COLORS:
            texts = [f"a photo of a {color} bear", f"a photo of a {color}-colored bear", f"a photo of a {color} object"]
            text = model.text_model(**tokenizer(texts, padding=True, return_tensors="pt"))
            each = torch.nn.functional.normalize(model.text_projection(text.pooler_output), dim=-1)
            vectors.append(each.mean(dim=0) / each.mean(dim=0).norm())
        for one in found:
            assert one.mask is not None
            grey = Image.new("RGB", (80, 60), "#999")
            crop = Image.composite(Image.fromarray(IMAGE), grey, Image.fromarray(one.mask)).crop(one.box)  # type: ignore[arg-type]
            shorter = min(crop.size)
            resized = crop.resize([int(28 * side / shorter) for side in crop.size], Image.Resampling.BICUBIC)
            left, top = (round((side - 28) / 2) for side in resized.size)
            square = np.asarray(resized.crop((left, top, left + 28, top + 28)), dtype=np.float32) / 255
            pixels.append((torch.tensor(square) - torch.tensor(MEAN)) / torch.tensor(STD))
        vision = model.vision_model(pixel_values=torch.stack(pixels).permute(0, 3, 1, 2)).pooler_output
        crops = torch.nn.functional.normalize(model.visual_projection(vision), dim=-1)
    expected = [COLORS[index] for index in (crops @ torch.stack(vectors).T).argmax(dim=1).tolist()]
    colors = ClipColors(folder, device="cpu")
    torch.testing.assert_close(colors._colors_of("bear"), torch.stack(vectors), rtol=0, atol=1e-6)
    assert colors(IMAGE, found, "bear") == expected
    assert len(set(expected)) > 1
    assert tuple(colors.colors) == COLORS


def test_the_fingerprint_is_of_weights_and_settings(folder: Path, tmp_path: Path) -> None:
    tiny.save_transformers_clip(tmp_path, activation="quick_gelu", seed=1)
    settings: list[tuple[Path, dict[str, Any]]] = [
        (folder, {}),
        (tmp_path, {}),
        (folder, {"dtype": "bfloat16"}),
        (folder, {"colors": ("red", "blue")}),
    ]
    prints = [ClipColors(path, device="cpu", **more).fingerprint for path, more in settings]
    assert len(set(prints)) == 4
    assert ClipColors(folder, device="cpu", batch_size=1).fingerprint == prints[0]


@pytest.mark.slow
def test_a_file_is_open_clips_and_its_activation_is_told(tmp_path: Path) -> None:
    tensors, architecture = tiny.open_clip_tensors(seed=2), tmp_path / "architecture.json"
    torch.save(tensors, tmp_path / "model.pt")
    architecture.write_text(json.dumps(tiny.OPEN_CLIP))
    gelu, quick = (
        ClipColors(tmp_path / "model.pt", model=str(architecture), quick_gelu=quick, device="cpu")
        for quick in (False, True)
    )
    assert gelu.fingerprint != quick.fingerprint
    assert (gelu._colors_of("bear") - quick._colors_of("bear")).abs().max() > 0.003
    assert len(quick(IMAGE, objects(2), "bear")) == 2
    with pytest.raises(ValueError, match=r"ViT-L-14 may be with GELU or with QuickGELU.*quick_gelu=true for weights"):
        ClipColors(tmp_path / "model.pt", model="ViT-L-14")
    with pytest.raises(ValueError, match=r"is no ViT-L-14-quickgelu of open_clip: missing"):
        ClipColors(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("openai/of-nobody", {}, "in the Hugging Face cache of this machine; it is not downloaded here"),
        ("weights/missing.pt", {}, "weights/missing.pt is not on the disk|there is no folder weights/missing.pt"),
        ("x", {"colors": ()}, "there are no colours to choose from"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(path: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        ClipColors(path, **settings)
