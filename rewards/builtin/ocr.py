"""Whether an image shows the text that it should, as an OCR engine reads it."""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from rewards.base import PartialScores
from rewards.builtin.partial import partial_scores

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
_ONE_AT_A_TIME = threading.Lock()  # the engine keeps the picture's size between its steps


class OcrTextMatch:
    """How much of the wanted text is read in an image: 1 - min(edit distance, length) / length, in [0, 1].

    Case and white space do not count; text that holds the wanted one somewhere scores 1. The formula is that of the OCR
    reward of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), with two differences: of several wanted texts it is the mean,
    and an image on which the engine fails is a failure, not the lowest score.

    The wanted text is the row's "text" if it has one, else all that stands in double quotes, straight or curly, in its
    "prompt"; NaN where neither gives any. The engine is rapidocr-onnxruntime (PP-OCRv4, in the package), on the CPU, one
    for all rewards of a process.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self) -> None:
        self._engine = _engine()

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        """[B] scores for uint8 images [B, H, W, 3] and rows with a "text" or a "prompt"."""
        wanted = [wanted_texts(row, index) for index, row in enumerate(conditions)]
        return partial_scores([self._score(image, texts) for image, texts in zip(images.cpu(), wanted, strict=True)])

    def _score(self, image_HW3: Tensor, texts: list[str]) -> float | Exception:
        if not texts:
            return float("nan")
        try:
            seen = self._read(image_HW3.numpy())
        except Exception as error:  # whatever it is, it says nothing about the image
            return error
        return sum(match(text, seen) for text in texts) / len(texts)

    def _read(self, image_HW3: np.ndarray) -> str:
        """All lines that the engine is more sure of than not, from top to bottom, one after another."""
        with _ONE_AT_A_TIME:
            lines, _ = self._engine(np.ascontiguousarray(image_HW3[..., ::-1]))  # arrays are BGR to it
        return "".join(text for _, text, _ in lines or [])


def wanted_texts(row: dict[str, Any], index: int) -> list[str]:
    """What the image of a row is to show; `index` is for the message.

    Raises:
        ValueError: there is neither a "text" nor a "prompt", or it is no text.
    """
    column = "text" if row.get("text") is not None else "prompt"
    if not isinstance(row.get(column), str):
        raise ValueError(
            f"row {index} has no text as its 'text' or 'prompt', it has {sorted(row)}; the text to be read is its 'text', or stands in double quotes in its 'prompt'"
        )
    texts = [row["text"]] if column == "text" else ["".join(groups) for groups in QUOTED.findall(row["prompt"])]
    return [text for text in texts if fold(text)]


def match(wanted: str, seen: str) -> float:
    """In [0, 1]: 1 if `seen` holds `wanted`, less a share for each edit that it would take."""
    wanted, seen = fold(wanted), fold(seen)
    if wanted in seen:
        return 1.0
    return 1 - min(edit_distance(wanted, seen), len(wanted)) / len(wanted)


def fold(text: str) -> str:
    """Without case and white space."""
    return "".join(text.split()).casefold()


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and substitutions of a character that turn a into b."""
    above = list(range(len(b) + 1))
    for row, of_a in enumerate(a, start=1):
        here = [row]
        for column, of_b in enumerate(b, start=1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (of_a != of_b)))
        above = here
    return above[-1]


@lru_cache(maxsize=1)
def _engine() -> Any:
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        raise ValueError(
            "OCR comes with the package rapidocr-onnxruntime; try: pip install 'ar-align[rewards]'"
        ) from error
    return RapidOCR()
