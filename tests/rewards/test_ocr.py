"""The text of an image against the wanted one; the real engine where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from rewards.builtin import ocr
from rewards.builtin.ocr import OcrTextMatch, edit_distance, match, wanted_texts
from rewards.registry import load_reward


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
        ("abc", "abc", 0),
        ("abcdef", "azced", 3),
    ],
)
def test_edit_distance(a: str, b: str, edits: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == edits


@pytest.mark.parametrize(
    ("wanted", "seen", "score"),
    [
        ("Hello World", "HELLO\n world", 1),
        ("HELLO", "say hello there", 1),
        ("HELLO", "HELL0", 0.8),
        ("HELLO", "HLO", 0.6),
        ("HELLO", "", 0),
        ("HI", "completely different and long", 0),  # not below 0
        ("ab", "xa", 0),  # two edits of two characters
    ],
)
def test_match(wanted: str, seen: str, score: float) -> None:
    assert match(wanted, seen) == pytest.approx(score)


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"prompt": 'a sign that says "STOP"'}, ["STOP"]),
        ({"prompt": "a sign that says “Go on”, don't ask"}, ["Go on"]),
        ({"prompt": 'a "red" and a “blue” card'}, ["red", "blue"]),
        ({"prompt": 'a "red" card', "text": "blue"}, ["blue"]),
        ({"prompt": 'a "red" card', "text": None}, ["red"]),
        ({"text": "blue"}, ["blue"]),
        ({"prompt": "it's a cat"}, []),
        ({"prompt": 'a card with " "'}, []),
        ({"prompt": 'a "red" card', "text": " "}, []),
    ],
)
def test_the_wanted_text(row: dict[str, Any], texts: list[str]) -> None:
    assert wanted_texts(row, 0) == texts


def test_a_row_without_text_and_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 3 has no text as its 'text' or 'prompt', it has \['label'\]"):
        wanted_texts({"label": 1}, 3)


def written(*texts: str) -> torch.Tensor:
    """Black on white, 64x192 pixels each."""
    images = []
    for text in texts:
        image = Image.new("RGB", (192, 64), "white")
        ImageDraw.Draw(image).text((16, 10), text, fill="black", font=ImageFont.load_default(36))
        images.append(torch.from_numpy(np.array(image)))
    return torch.stack(images)


def test_a_failing_engine_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def engine(image: np.ndarray) -> tuple[list[Any] | None, list[float]]:
        seen.append(image)
        if image.max() == 0:
            raise RuntimeError("out of memory")
        return ([[None, "ST", 0.9], [None, "OP", 0.8]] if image[0, 0, 0] == 3 else None), []

    monkeypatch.setattr(ocr, "_engine", lambda: engine)
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    images[0] = torch.tensor([1, 2, 3])  # red 1, blue 3
    images[1] = 9
    scores = OcrTextMatch()(images, [{"prompt": 'the "STOP" and the "STEP"'}, *[{"text": "a"}] * 2, {"prompt": "none"}])
    assert scores.valid.tolist() == [True, True, False, True]
    assert scores.values[:2].tolist() == [pytest.approx((1 + 3 / 4) / 2), 0]
    assert scores.values[3].isnan()
    assert scores.error == "image 2: RuntimeError: out of memory"
    assert len(seen) == 3  # nothing is read where nothing is wanted
    assert seen[0][0, 0].tolist() == [3, 2, 1]  # the engine takes BGR


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidocr_onnxruntime", None)
    ocr._engine.cache_clear()
    with pytest.raises(ValueError, match="pip install 'ar-align\\[rewards\\]'"):
        load_reward("ocr-text-match")


@pytest.mark.slow
def test_the_real_engine_reads() -> None:
    pytest.importorskip("rapidocr_onnxruntime", reason="reads with the package rapidocr-onnxruntime")
    rows = [{"prompt": 'a sign with "HELLO" on it'}] * 2 + [{"prompt": 'a sign with "HELLO" on it'}]
    scores = load_reward("ocr-text-match")(written("HELLO", "YELLOW", ""), rows)
    assert scores.valid.all()
    assert scores.values.tolist() == [1, pytest.approx(0.6), 0]  # h for y, and a w too many
